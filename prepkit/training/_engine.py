"""The engine of a zoo's training: how many instances of an architecture are trained at once, on how many threads.

The last bits of a zoo's numbers depend on it. So the sizes of stacks are derived from sizes alone; only the way in
which a stack shares a GPU is found by timing (prepkit.training._trial). The zoo records the engine, and whoever resumes
its training, here or elsewhere, keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from prepkit.errors import ZooError
from prepkit.families.registry import Architecture, architecture
from prepkit.running.instances import activation_bytes, is_stackable, stacking_pays
from prepkit.training._hyperparameters import Training
from prepkit.training._plan import TrainingPlan
from prepkit.training.spec import Spec

STACK_ON_CPU = 32  # Larger stacks are no faster (benchmarks/results), and an interruption costs more of them.
MOST_ON_GPU = 128
SHARE_OF_GPU = 0.5  # Share of memory for activations; weights, gradients, workspaces and other users need the rest.


@dataclass(frozen=True)
class Way:
    """How the instances of a stack share a GPU in a step.

    at_once: instances that run at once, as one network; packs of so many run one after another. None runs all.
    streams: number of streams among which the packs are dealt, so that they run side by side
    dense:   whether convolutions of a pack are one without groups (prepkit.running._stacking.StackedConvolution)
    padded:  whether dense ones read a multiple of 8 channels, the last of which are 0
    """

    at_once: int | None = None
    streams: int = 1
    dense: bool = False
    padded: bool = False

    def __str__(self) -> str:
        packs = "all at once" if self.at_once is None else f"{self.at_once} at once"
        traits = [*["dense"] * self.dense, *["padded"] * self.padded]
        return ", ".join([packs, *traits, *[f"on {self.streams} streams"] * (self.streams > 1)])


ALL_AT_ONCE = Way()


@dataclass(frozen=True)
class Engine:
    """How a zoo is trained.

    device:  kind of the device, "cpu", "cuda" or "mps"
    threads: number of CPU threads; None on an accelerator
    stacks:  architecture -> how many instances are trained at once; 1 trains one after another
    ways:    architecture -> how they share the device, where it is not all at once
    """

    device: str
    threads: int | None
    stacks: Mapping[str, int]
    ways: Mapping[str, Way] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        data = asdict(self)
        if not self.ways:
            del data["ways"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Engine:
        """The engine that `to_dict` wrote."""
        ways = {name: Way(**way) for name, way in data.get("ways", {}).items()}
        return cls(data["device"], data["threads"], dict(data["stacks"]), ways)

    def way_of(self, name: str) -> Way:
        """How the instances of an architecture share the device."""
        return self.ways.get(name, ALL_AT_ONCE)


def choose_engine(
    spec: Spec, plan: TrainingPlan, device: torch.device, stack: int | None = None, threads: int | None = None
) -> Engine:
    """The engine for a spec on a device.

    stack:   instances at once for architectures that can be stacked, in place of `stack_size_for`
    threads: number of CPU threads, in place of torch's own
    raises ZooError for a number below 1, or a stack above 1 if no architecture can be stacked
    """
    for what, asked in (("stack", stack), ("threads", threads)):
        if asked is not None and (type(asked) is not int or asked < 1):
            raise ZooError(f"{what}: expected a whole number of at least 1; found {asked!r}.")
    counts = {architecture(name): len(jobs) for name, jobs in plan.by_architecture.items()}
    stackable = [known for known in counts if is_stackable(known, folded=False)]
    if stack is not None and stack > 1 and not stackable:
        names = ", ".join(known.name for known in counts)
        raise ZooError(f"stack: none of {names} can be trained {stack} at once; leave it out.")
    sizes = {}
    for known, count in counts.items():
        size = stack if stack is not None else stack_size_for(known, spec.training[known.name], device)
        sizes[known.name] = min(count, size) if known in stackable else 1
    return Engine(device.type, (threads or torch.get_num_threads()) if device.type == "cpu" else None, sizes)


def stack_size_for(architecture: Architecture, training: Training, device: torch.device) -> int:
    """How many instances of an architecture are trained at once on a device, unless the user says otherwise."""
    if not stacking_pays(architecture, training.batch_size, device, folded=False):
        return 1
    if device.type != "cuda":
        return STACK_ON_CPU
    # The backward pass needs all activations of the forward, and makes about as many again.
    each = 2 * activation_bytes(architecture, training.batch_size)
    room = SHARE_OF_GPU * torch.cuda.get_device_properties(device).total_memory
    return max(1, min(MOST_ON_GPU, int(room / each)))
