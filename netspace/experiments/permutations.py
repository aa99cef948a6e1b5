"""Hidden units in another order: PReps of other values whose networks compute the same function.

    groups = unit_groups(architecture)               # what may be reordered, and which axes of which tensors go along
    places = permutation(architecture, generator)    # [V]: where each value comes from
    permuted = permute(preps, places)                # [N, H, W]

A unit is an output of a layer: a neuron, or a channel of a convolution. Reordering the rows of its layer and, the same
way, what the layers after it read gives the same outputs. Channels that a residual sum joins are reordered together.
Shapes: N instances, V values of an architecture's PRep, H x W the PRep.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

import prepkit
from prepkit.errors import listed


class NoPermutations(prepkit.PrepkitError, ValueError):
    """It is not known which units of an architecture may be reordered."""


@dataclass(frozen=True)
class Axis:
    """An axis of a tensor that runs over units; over `block` values of each, where maps were flattened before it."""

    tensor: str
    axis: int
    block: int = 1


@dataclass(frozen=True)
class UnitGroup:
    """Units that are reordered together.

    units: how many
    axes:  all axes of all tensors that run over them
    """

    units: int
    axes: tuple[Axis, ...]


Shapes = Mapping[str, tuple[int, ...]]


def unit_groups(architecture: prepkit.Architecture) -> list[UnitGroup]:
    """All units of a built-in family's network that may be reordered.

    raises NoPermutations for another family
    """
    if architecture.family not in FAMILIES:
        raise NoPermutations(
            f"'{architecture.name}' is of family '{architecture.family}'; which of its units may be reordered is known "
            f"for {listed(FAMILIES)}."
        )
    return FAMILIES[architecture.family](architecture.folded_shapes)


def permutation(architecture: prepkit.Architecture, generator: torch.Generator) -> Tensor:
    """Which value each place of a flat PRep takes, `[V]`, for a random order of all units.

    raises NoPermutations
    """
    layout = architecture.layout
    places_V = torch.arange(layout.total)
    slots = {slot.name: slot for slot in layout}
    for group in unit_groups(architecture):
        order = torch.randperm(group.units, generator=generator)
        for one in group.axes:
            slot = slots[one.tensor]
            values = places_V[slot.start : slot.stop].view(slot.shape)
            taken = (order[:, None] * one.block + torch.arange(one.block)).flatten()
            values.copy_(values.index_select(one.axis, taken))
    return places_V


def permute(preps_NHW: Tensor, places_V: Tensor) -> Tensor:
    """PReps with their units reordered; padding stays where it is."""
    flat = preps_NHW.flatten(1)
    taken = torch.arange(flat.shape[1], device=flat.device)
    taken[: len(places_V)] = places_V.to(flat.device)
    return flat.index_select(1, taken).view_as(preps_NHW)


# Families: one function each, from names and shapes of the folded tensors ----------------------------------------


def _chain(layers: Sequence[str], shapes: Shapes) -> list[UnitGroup]:
    """The hidden units of layers one after the other."""
    return [
        UnitGroup(_outputs(layer, shapes), (*_written(layer), _read(after, _outputs(layer, shapes), shapes)))
        for layer, after in pairwise(layers)
    ]


def _convolutions_then_linear(shapes: Shapes) -> list[UnitGroup]:
    return _chain([*_numbered("convs", shapes), *_numbered("hidden", shapes), "linear"], shapes)


def _resnet(shapes: Shapes) -> list[UnitGroup]:
    """Of each block the channels between its convolutions; of each stage those that its shortcuts carry along."""
    groups = []
    units, stream = _outputs("conv", shapes), list(_written("conv"))
    for stage in _numbered("stages", shapes):
        for block in _numbered(stage, shapes):
            first, second, shortcut = f"{block}.conv1", f"{block}.conv2", f"{block}.shortcut.0"
            between = _outputs(first, shapes)
            groups.append(UnitGroup(between, (*_written(first), _read(second, between, shapes))))
            stream.append(_read(first, units, shapes))
            if f"{shortcut}.weight" in shapes:  # a new stream begins; without one the block adds to the old
                groups.append(UnitGroup(units, (*stream, _read(shortcut, units, shapes))))
                units, stream = _outputs(second, shapes), list(_written(shortcut))
            stream.extend(_written(second))
    groups.append(UnitGroup(units, (*stream, _read("linear", units, shapes))))
    return groups


FAMILIES: dict[str, Callable[[Shapes], list[UnitGroup]]] = {
    "lenet_like": _convolutions_then_linear,
    "vanilla_cnn": _convolutions_then_linear,
    "resnet": _resnet,
    "sine_mlp": _convolutions_then_linear,
}


def _numbered(prefix: str, shapes: Shapes) -> list[str]:
    """`prefix.0`, `prefix.1`, ... as many as there are; none if there is no such list."""
    start = f"{prefix}."
    numbers = {int(name.removeprefix(start).split(".")[0]) for name in shapes if name.startswith(start)}
    return [f"{prefix}.{number}" for number in sorted(numbers)]


def _outputs(layer: str, shapes: Shapes) -> int:
    return shapes[f"{layer}.weight"][0]


def _written(layer: str) -> tuple[Axis, Axis]:
    """Where a layer's own units stand."""
    return Axis(f"{layer}.weight", 0), Axis(f"{layer}.bias", 0)


def _read(layer: str, units: int, shapes: Shapes) -> Axis:
    """Where a layer reads units; a fully connected one after a convolution reads the whole map of each."""
    return Axis(f"{layer}.weight", 1, shapes[f"{layer}.weight"][1] // units)
