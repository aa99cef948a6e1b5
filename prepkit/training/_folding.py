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
from prepkit.fusion.example import FLOAT32, FLOAT64, MARGIN, Precision
from prepkit.fusion.fold import fold
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
    check(architecture, rows, stacked, FLOAT64 if fusion.precision == FLOAT64.name else FLOAT32)
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


def check(
    architecture: Architecture,
    rows: Sequence[Mapping[str, Tensor]],
    folded: Mapping[str, Tensor],
    precision: Precision = FLOAT64,
) -> None:
    """Raise VerificationError if an instance gives other outputs once it is folded; all is compared in `precision`."""
    inputs = precision.cast(architecture.example_input(EXAMPLE_BATCH))
    trained = {name: precision.cast(torch.stack([row[name] for row in rows])) for name in rows[0]}
    tied = {alias: folded[name] for alias, name in architecture.layout.ties}
    cpu = torch.device("cpu")
    with torch.no_grad():
        run = runner(architecture, False, False, cpu)
        expected = run(trained, inputs)
        packed = {name: precision.cast(tensor) for name, tensor in {**folded, **tied}.items()}
        error = _errors(expected, runner(architecture, True, False, cpu)(packed, inputs))
        allowed = torch.full_like(error, precision.limit)
        if not bool((error < allowed).all()):  # a network may react strongly to any rounding
            reaction = _errors(expected, run(trained, precision.shaken(inputs)))
            allowed = allowed.maximum((MARGIN * reaction).clamp_max(precision.ceiling))
    if not bool((error < allowed).all()):
        raise VerificationError(
            f"an instance of {architecture.name} is another function once folded: relative error {error.max():.1e}."
        )


def _errors(expected: Tensor, found: Tensor) -> Tensor:
    """Return max|a - b| / max|a| of each instance."""
    return (found - expected).abs().flatten(1).amax(1) / expected.abs().flatten(1).amax(1).clamp_min(1e-30)
