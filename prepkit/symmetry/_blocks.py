"""Tensors as rows of blocks: consecutive values that stay together whatever units change places.

The kernel of a convolution is a block, as is the part of a row that reads one flattened map. Moving whole blocks takes
a fraction of the time of moving single values.
Shapes: N networks, V values of a tensor, B blocks.
"""

# ruff: noqa: N803 - names of tensors end in their axes

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEAST_BLOCKED = 1024  # values of a tensor: below it, a call for each network costs more than blocks gain


@dataclass(frozen=True)
class Entry:
    """Where the units of one group stand along one axis of a tensor.

    axis:   the axis
    group:  name of the group
    units:  for each place the number of its unit, counted over all groups it is over; -1 where there is none.
            It has as many axes as the tensor, each of the tensor's size or 1.
    stride: how many places of the axis lie between two units
    """

    axis: int
    group: str
    units: Tensor
    stride: int


@dataclass(frozen=True)
class Blocks:
    """A tensor whose places are blocks.

    shape:   shape of the tensor in blocks
    entries: where units stand among them
    values:  number of values in a block
    """

    shape: tuple[int, ...]
    entries: list[Entry]
    values: int

    @classmethod
    def of(cls, shape: tuple[int, ...], entries: list[Entry]) -> Blocks:
        """Take a tensor apart into the largest blocks that stay together."""
        values, own = 1, entries
        while shape and all(entry.units.shape[-1] == 1 and entry.axis < len(shape) - 1 for entry in own):
            values *= shape[-1]
            own = [Entry(one.axis, one.group, one.units[..., 0], one.stride) for one in own]
            shape = shape[:-1]
        if math.prod(shape) * values < LEAST_BLOCKED or not own:
            return cls((*shape, values), [_with_axis(one) for one in own], 1) if values > 1 else cls(shape, own, 1)
        steps = [one.stride for one in own if one.axis == len(shape) - 1]
        block = math.gcd(shape[-1], *steps)
        if block > 1 and all(_is_in_blocks(one.units, block) for one in own):
            values, shape = values * block, (*shape[:-1], shape[-1] // block)
            own = [
                Entry(
                    one.axis,
                    one.group,
                    one.units[..., ::block] if one.units.shape[-1] > 1 else one.units,
                    one.stride // block if one.axis == len(shape) - 1 else one.stride,
                )
                for one in own
            ]
        return cls(shape, own, values)


def _with_axis(entry: Entry) -> Entry:
    return Entry(entry.axis, entry.group, entry.units[..., None], entry.stride)


def _is_in_blocks(units: Tensor, block: int) -> bool:
    if units.shape[-1] == 1:
        return True
    parts = units.view(*units.shape[:-1], -1, block)
    return bool((parts == parts[..., :1]).all())


def take(source_NV: Tensor, places_NB: Tensor, values: int, target_NV: Tensor) -> None:
    """Write the blocks of each network that stand at these places, `[N or 1, B]`, one after another.

    target_NV: may be the source
    """
    if values == 1:
        target_NV.copy_(torch.gather(source_NV, 1, places_NB.expand(len(source_NV), -1)))
        return
    sources, targets = (_words(each) for each in (source_NV, target_NV))
    places = places_NB.numpy()
    moved = np.empty((places.shape[1], values), sources.dtype)
    for row in range(len(sources)):  # numpy copies a block at once; memory of one network stays in the cache
        own = sources[row].reshape(-1, values)
        np.take(own, places[row if len(places) > 1 else 0], axis=0, out=moved, mode="clip")
        targets[row] = moved.reshape(-1)


def _words(tensor: Tensor) -> np.ndarray:
    """Return the values as whole numbers of the same size, since numpy has no bfloat16."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    words: np.ndarray = tensor.detach().view(kinds[tensor.element_size()]).numpy()
    return words
