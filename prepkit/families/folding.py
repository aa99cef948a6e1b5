"""Folding the BatchNorms of many networks of one architecture: the first is proved, the others take the same steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from prepkit.errors import VerificationError
from prepkit.families.architecture import Architecture
from prepkit.families.loading import network_with
from prepkit.fusion.again import fold_again
from prepkit.fusion.example import FLOAT32, FLOAT64, PASS_ANOTHER, Precision
from prepkit.fusion.fold import Fusion, KeepUnfoldable, UnfoldableNetwork, fold, fusion_of
from prepkit.fusion.step import Step

EXAMPLE_OF_ITS_OWN = (
    "give another `input_shape`, or have the builder set `network.example_input_array` to inputs that it runs on in "
    "eval mode: a tensor, or a tuple or dict of all arguments, with token ids as integers."
)
MAX_PROOFS = 64  # architectures whose steps are kept; the one that was proved first makes room

_Proof = tuple[tuple[Step, ...], Precision]
_proofs: dict[tuple[Architecture, KeepUnfoldable], _Proof] = {}


def fold_known(
    tensors: Mapping[str, Tensor], architecture: Architecture, place: str, keep_unfoldable: KeepUnfoldable = False
) -> Fusion:
    """Fold the network of this architecture with these tensors.

    If the steps of an earlier network would change its outputs, it is folded with a proof of its own.
    tensors, place: as for `network_with`, which raises LayoutMismatch
    raises UnfoldableNetwork as `fold` does
    """
    if proof := _proofs.get((architecture, keep_unfoldable)):
        network, same = (network_with(tensors, architecture, place) for _ in range(2))
        with suppress(VerificationError, UnfoldableNetwork):  # the proof says better what is wrong
            steps, precision = proof
            example = architecture.example_for(network)
            folded, before, after = fold_again(network, same, example, steps, precision)
            return fusion_of(folded, steps, before, after, precision)
    network = network_with(tensors, architecture, place)
    return fold_proved(network, architecture, place, keep_unfoldable)


def fold_stack(
    architecture: Architecture, rows: Sequence[Mapping[str, Tensor]], costs: list[float] | None = None
) -> dict[str, Tensor]:
    """Fold K trained networks into the tensors `[K, *shape]` of the architecture's layout, in the dtypes they had.

    rows:  parameters and buffers of each network, on the CPU
    costs: gets `Fusion.cost_of_cast` of each network
    raises UnfoldableNetwork if a BatchNorm cannot be folded, or if folding changes a function
    """
    fusions = [fold_known(row, architecture, "the trained network", "affine") for row in rows]
    if costs is not None:
        costs += [fusion.cost_of_cast for fusion in fusions]
    folded = [fusion.network.state_dict() for fusion in fusions]
    return {slot.name: torch.stack([state[slot.name] for state in folded]) for slot in architecture.layout}


def fold_proved(
    network: nn.Module, architecture: Architecture, place: str, keep_unfoldable: KeepUnfoldable = False
) -> Fusion:
    """Fold a network of this architecture with a proof, and keep the steps, without values, for others.

    place: names the network in errors
    raises UnfoldableNetwork as `fold` does
    """
    try:
        fusion = fold(network, architecture.example_for(network), keep_unfoldable=keep_unfoldable)
    except UnfoldableNetwork as error:
        message = str(error)
        if message.endswith(PASS_ANOTHER):
            message = message.removesuffix(PASS_ANOTHER) + EXAMPLE_OF_ITS_OWN
        raise UnfoldableNetwork(f"{place}: {message}", error.refusals) from error
    precision = FLOAT64 if fusion.precision == FLOAT64.name else FLOAT32
    while len(_proofs) >= MAX_PROOFS:
        _proofs.pop(next(iter(_proofs)), None)
    _proofs[architecture, keep_unfoldable] = tuple(replace(step, values={}) for step in fusion.steps), precision
    return fusion
