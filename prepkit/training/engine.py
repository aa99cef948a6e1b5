"""How the instances of an architecture are trained on a device: how many at once, and on how many threads.

Chosen once for a zoo by a rule, not by a clock: the numbers of a zoo depend on the size of its stacks in their last
bits, so the choice is recorded in the zoo and kept by whoever goes on with it, here or on another machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from prepkit.errors import ZooError
from prepkit.families.registry import architecture
from prepkit.running.instances import activation_bytes, is_stackable, stacking_pays
from prepkit.training.hyperparameters import Training
from prepkit.training.plan import Plan
from prepkit.training.spec import Spec

STACK_ON_CPU = 32  # more gains nothing (benchmarks/results), and fewer lose less of a stack that is interrupted
MOST_ON_GPU = 128
SHARE_OF_GPU = 0.5  # of its memory for activations; the rest is for weights, gradients, workspaces, and other users


@dataclass(frozen=True)
class Engine:
    """How a zoo is trained.

    device:  kind of the device, "cpu", "cuda" or "mps"
    threads: of a CPU; None on an accelerator
    stacks:  architecture -> how many instances are trained at once; 1 is one after another
    """

    device: str
    threads: int | None
    stacks: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Engine:
        """What `to_dict` wrote."""
        return cls(data["device"], data["threads"], dict(data["stacks"]))


def choose_engine(
    spec: Spec, plan: Plan, device: torch.device, stack: int | None = None, threads: int | None = None
) -> Engine:
    """The engine for a spec on a device.

    stack:   instances at once, in place of the rule's choice, for architectures that can be stacked
    threads: of a CPU, in place of torch's own number
    raises ZooError for a number below 1, or a stack above 1 if no architecture can be stacked
    """
    for what, asked in (("stack", stack), ("threads", threads)):
        if asked is not None and asked < 1:
            raise ZooError(f"{what}: expected a whole number of at least 1; found {asked}.")
    counts = {name: len(jobs) for name, jobs in plan.by_architecture.items()}
    stackable = {name for name in counts if is_stackable(architecture(name), folded=False)}
    if stack is not None and stack > 1 and not stackable:
        raise ZooError(f"stack: none of {', '.join(counts)} can be trained {stack} at once; leave it out.")
    sizes = {}
    for name, count in counts.items():
        chosen = stack if stack is not None else rule(name, spec.training[name], device)
        sizes[name] = min(count, chosen) if name in stackable else 1
    return Engine(device.type, (threads or torch.get_num_threads()) if device.type == "cpu" else None, sizes)


def rule(name: str, training: Training, device: torch.device) -> int:
    """How many instances of an architecture are trained at once on a device."""
    known = architecture(name)
    if not stacking_pays(known, training.batch_size, device, folded=False):
        return 1
    if device.type != "cuda":
        return STACK_ON_CPU
    # Forward activations are kept for the backward, which makes about as many again.
    each = 2 * activation_bytes(known, training.batch_size)
    room = SHARE_OF_GPU * torch.cuda.get_device_properties(device).total_memory
    return max(1, min(MOST_ON_GPU, int(room / each)))
