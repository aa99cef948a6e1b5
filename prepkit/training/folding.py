"""Folding the BatchNorms of a whole stack: the first instance is watched, and every instance is checked.

Which BatchNorm goes into which layer depends on the architecture alone, so `prepkit.fusion` finds it out and proves it
on the first instance. The others take the same formula, and for each of them the outputs of the trained and the folded
network are compared in float64. Shapes: K instances, B inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prepkit.errors import VerificationError
from prepkit.families.registry import Architecture
from prepkit.fusion.fold import LIMIT, fold
from prepkit.fusion.step import Step, new_values
from prepkit.running.instances import runner

EXAMPLE_BATCH = 2


def fold_stack(architecture: Architecture, rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Fold K trained networks into the tensors `[K, *shape]` of the architecture's layout, in the dtypes they had.

    rows: the state dict of each network, on the CPU
    raises UnfoldableNetwork if a BatchNorm cannot be folded, VerificationError if folding changes a function
    """
    networks = [loaded(architecture, row) for row in rows]
    fusion = fold(networks[0], architecture.example_input(EXAMPLE_BATCH), keep_unfoldable="affine")
    folded = [folded_tensors(network, fusion.steps, architecture) for network in networks]
    stacked = {name: torch.stack([row[name] for row in folded]) for name in folded[0]}
    check(architecture, rows, stacked)
    default = next(tensor.dtype for tensor in rows[0].values() if tensor.is_floating_point())
    dtypes = {name: rows[0][name].dtype if name in rows[0] else default for name in stacked}
    return {name: tensor.to(dtypes[name]) for name, tensor in stacked.items()}


def loaded(architecture: Architecture, row: Mapping[str, Tensor]) -> nn.Module:
    """The trained network in evaluation mode, in float64."""
    with torch.random.fork_rng(devices=[]):
        network = architecture.build().double().eval()
    names = {id(tensor): name for name, tensor in reversed([*network.named_parameters(), *network.named_buffers()])}
    own = {name: row[names[id(tensor)]] for name, tensor in network.state_dict(keep_vars=True).items()}  # with ties
    network.load_state_dict(own)
    return network.requires_grad_(False)


def folded_tensors(network: nn.Module, steps: Sequence[Step], architecture: Architecture) -> dict[str, Tensor]:
    """The tensors of the layout, in float64; the steps are those that were proved for another instance."""
    values: dict[str, Tensor] = {}
    for step in steps:
        values |= new_values(step, network, values)
    state = network.state_dict() | values
    return {slot.name: state[slot.name] for slot in architecture.layout}


def check(architecture: Architecture, rows: Sequence[Mapping[str, Tensor]], folded: Mapping[str, Tensor]) -> None:
    """Raise VerificationError if an instance gives other outputs once it is folded; all is compared in float64."""
    inputs = architecture.example_input(EXAMPLE_BATCH).double()
    trained = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    trained = {name: t.double() if t.is_floating_point() else t for name, t in trained.items()}
    aliases = {alias: folded[name] for alias, name in architecture.layout.ties}
    cpu = torch.device("cpu")
    with torch.no_grad():
        expected = runner(architecture, False, False, cpu)(trained, inputs)
        found = runner(architecture, True, False, cpu)({**folded, **aliases}, inputs)
    error = (found - expected).abs().flatten(1).amax(1) / expected.abs().flatten(1).amax(1).clamp_min(1e-30)
    if not bool((error < LIMIT).all()):
        raise VerificationError(
            f"an instance of {architecture.name} is another function once folded: relative error {error.max():.1e}."
        )
