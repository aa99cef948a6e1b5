"""Units of the built-in families that may be reordered, written by hand: what derived symmetries are compared with.

    groups = unit_groups(architecture)               # which units may be reordered, and along which axes they stand
    places = permutation(architecture, generator)    # [V]: the place that each value comes from
    permuted = permute(preps, places)                # [N, H, W]

A unit is one output of a layer: a neuron, or a channel of a convolution. The outputs of a network stay the same if the
rows of a layer are reordered and the inputs of the next layers are reordered in the same way. Channels that a residual
sum joins are reordered together.
Shapes: N instances, V values of an architecture's PRep, H x W the PRep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from prepkit.families.architecture import Architecture, Shapes


@dataclass(frozen=True)
class UnitAxis:
    """An axis of a tensor along which units stand.

    block: consecutive values that belong to one unit; more than 1 where feature maps were flattened before the layer
    """

    tensor: str
    axis: int
    block: int = 1


@dataclass(frozen=True)
class UnitGroup:
    """Units that are reordered together.

    units: their number
    axes:  all axes of all tensors along which they stand
    """

    units: int
    axes: tuple[UnitAxis, ...]


def unit_groups(architecture: Architecture) -> list[UnitGroup]:
    """Return all units that may be reordered in the folded network of a built-in family."""
    return GROUPS_OF_FAMILY[architecture.family](architecture.folded_shapes)


def permutation(architecture: Architecture, generator: torch.Generator) -> Tensor:
    """Draw an order of all units and return, for each value of a flat PRep, the place that it comes from, `[V]`."""
    layout = architecture.layout
    places_V = torch.arange(layout.total)
    slots = {slot.name: slot for slot in layout}
    for group in unit_groups(architecture):
        order = torch.randperm(group.units, generator=generator)
        for along in group.axes:
            slot = slots[along.tensor]
            places = places_V[slot.start : slot.stop].view(slot.shape)
            sources = (order[:, None] * along.block + torch.arange(along.block)).flatten()
            places.copy_(places.index_select(along.axis, sources))
    return places_V


def permute(preps_NHW: Tensor, places_V: Tensor) -> Tensor:
    """Return PReps with their values taken from these places; padding stays where it is."""
    flat = preps_NHW.flatten(1)
    sources = torch.arange(flat.shape[1], device=flat.device)
    sources[: len(places_V)] = places_V.to(flat.device)
    return flat.index_select(1, sources).view_as(preps_NHW)


# Each family has one function, which sees nothing but names and shapes of the folded tensors. ---------------------


def _convolutions_then_linear(shapes: Shapes) -> list[UnitGroup]:
    layers = [*_numbered("convs", shapes), *_numbered("hidden", shapes), "linear"]
    return [
        UnitGroup(_outputs(layer, shapes), (*_written(layer), _read(following, _outputs(layer, shapes), shapes)))
        for layer, following in pairwise(layers)
    ]


def _resnet(shapes: Shapes) -> list[UnitGroup]:
    """Group the channels between the convolutions of each block, and those that the shortcuts of a stage carry."""
    groups = []
    units, axes = _outputs("conv", shapes), list(_written("conv"))
    for stage in _numbered("stages", shapes):
        for block in _numbered(stage, shapes):
            first, second, shortcut = f"{block}.conv1", f"{block}.conv2", f"{block}.shortcut.0"
            between = _outputs(first, shapes)
            groups.append(UnitGroup(between, (*_written(first), _read(second, between, shapes))))
            axes.append(_read(first, units, shapes))
            if f"{shortcut}.weight" in shapes:  # the shortcut makes new channels; without one the block adds to the old
                groups.append(UnitGroup(units, (*axes, _read(shortcut, units, shapes))))
                units, axes = _outputs(second, shapes), list(_written(shortcut))
            axes.extend(_written(second))
    groups.append(UnitGroup(units, (*axes, _read("linear", units, shapes))))
    return groups


GROUPS_OF_FAMILY: dict[str, Callable[[Shapes], list[UnitGroup]]] = {
    "lenet_like": _convolutions_then_linear,
    "vanilla_cnn": _convolutions_then_linear,
    "resnet": _resnet,
    "sine_mlp": _convolutions_then_linear,
}


def _numbered(prefix: str, shapes: Shapes) -> Sequence[str]:
    """Return `prefix.0`, `prefix.1`, ... as many as there are."""
    start = f"{prefix}."
    numbers = {int(name.removeprefix(start).split(".")[0]) for name in shapes if name.startswith(start)}
    return [f"{prefix}.{number}" for number in sorted(numbers)]


def _outputs(layer: str, shapes: Shapes) -> int:
    """Return the number of a layer's units."""
    return shapes[f"{layer}.weight"][0]


def _written(layer: str) -> tuple[UnitAxis, UnitAxis]:
    """Return the axes along which a layer's own units stand."""
    return UnitAxis(f"{layer}.weight", 0), UnitAxis(f"{layer}.bias", 0)


def _read(layer: str, units: int, shapes: Shapes) -> UnitAxis:
    """Return the axis along which a layer reads units; after a convolution, `linear` reads the map of each."""
    return UnitAxis(f"{layer}.weight", 1, shapes[f"{layer}.weight"][1] // units)
