"""Moving the values of many PReps into a view and back, by places that are computed once for all batches.

On the CPU, numpy copies blocks: rows of neighbouring values, as a channel's weights are. That touches each byte once,
where an index costs a lookup for each value. Elsewhere, and where gradients are needed, one index moves a whole batch.
Shapes: N instances, H x W the PRep, P values of an architecture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prepkit.errors import PrepkitError, counted
from prepkit.prep.layout import PRepShape

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes; numpy has no bfloat16


@dataclass(frozen=True, eq=False)
class Block:
    """Values that stand side by side in the rows of a view.

    cells:  their places in the flat PRep, `[rows, values]`
    start:  place in the flat view where the first row begins
    stride: values of the view from one row to the next
    offset: place of the first value in each row
    """

    cells: np.ndarray
    start: int
    stride: int
    offset: int

    def of_preps(self, flat: np.ndarray) -> np.ndarray:
        """Return the values `[N, rows, values]` of flat PReps; they share memory unless the places are not in order."""
        if self._first is None:
            return flat[:, self.cells]
        return flat[:, self._first : self._first + self.cells.size].reshape(len(flat), *self.cells.shape)

    def write(self, flat: np.ndarray, values: np.ndarray) -> None:
        """Write values `[N, rows, values]` into flat PReps."""
        if self._first is None:
            flat[:, self.cells] = values
        else:
            flat[:, self._first : self._first + self.cells.size].reshape(values.shape)[...] = values

    def of_view(self, flat: np.ndarray) -> np.ndarray:
        """Return where the values `[N, rows, values]` stand in a flat view; it shares the memory."""
        rows, values = self.cells.shape
        part = flat[:, self.start : self.start + rows * self.stride].reshape(len(flat), rows, self.stride)
        return part[:, :, self.offset : self.offset + values]

    @property
    def places(self) -> np.ndarray:
        """The places in the flat view, `[rows, values]`."""
        rows, values = self.cells.shape
        return self.start + self.offset + np.arange(rows)[:, None] * self.stride + np.arange(values)

    @cached_property
    def _first(self) -> int | None:
        """The first place in the PRep if all others follow it in order."""
        first = int(self.cells[0, 0])
        in_order = np.array_equal(self.cells.reshape(-1), np.arange(first, first + self.cells.size))
        return first if in_order else None


class Moved:
    """The way of values from PReps into a view of another shape with padding, and back.

    blocks: where the values stand; each of the P values stands in one of them
    shape:  shape of one instance in the view
    mask:   `[*shape]` bool, False where there is padding
    """

    def __init__(self, blocks: Sequence[Block], shape: tuple[int, ...]) -> None:
        self.blocks, self.shape = tuple(blocks), shape
        cells = np.concatenate([block.cells.reshape(-1) for block in blocks])
        places = np.concatenate([block.places.reshape(-1) for block in blocks])
        back = np.empty(len(cells), dtype=np.int64)
        back[cells] = places
        self._back = OnDevices(torch.from_numpy(back))
        mask = torch.zeros(math.prod(shape), dtype=torch.bool)
        mask[self._back.host] = True
        self.mask = mask.view(shape)

    def forward(self, flat: Tensor) -> Tensor:
        """Return `[N, *shape]` of flat PReps `[N, H * W]`, 0 where there is padding."""
        size = self.mask.numel()
        given = _array(flat)
        if given is not None:
            moved = _zeros((len(given), size), given.dtype)
            for block in self.blocks:
                block.of_view(moved)[...] = block.of_preps(given)
            return torch.from_numpy(moved).view(flat.dtype).view(len(flat), *self.shape)
        back = self._back.on(flat.device)
        moved_there = flat.new_zeros(len(flat), size).scatter(1, back.expand(len(flat), -1), flat[:, : len(back)])
        return moved_there.view(len(flat), *self.shape)

    def inverse(self, values: Tensor, shape: PRepShape) -> Tensor:
        """Return the PReps `[N, H, W]` of `[N, *shape]`; what stands in the padding does not matter."""
        values = values.flatten(1)
        given = _array(values)
        if given is not None:
            flat = _zeros((len(given), shape.cells), given.dtype)
            for block in self.blocks:
                block.write(flat, block.of_view(given))
            return torch.from_numpy(flat).view(values.dtype).view(len(values), shape.height, shape.width)
        return padded([values.index_select(1, self._back.on(values.device))], shape)


class Reordered:
    """The P values in another order, without padding; nothing is copied forward where the order is the PRep's own.

    cells: the places in the flat PRep, in the new order
    """

    def __init__(self, cells: np.ndarray) -> None:
        self._size = len(cells)
        self.is_same = bool((cells == np.arange(self._size)).all())
        self._cells, self._back = OnDevices(torch.from_numpy(cells)), OnDevices(torch.from_numpy(np.argsort(cells)))

    def forward(self, flat: Tensor) -> Tensor:
        """Return `[N, P]` of flat PReps `[N, H * W]`."""
        return flat[:, : self._size] if self.is_same else flat.index_select(1, self._cells.on(flat.device))

    def inverse(self, pieces: Sequence[Tensor], shape: PRepShape) -> Tensor:
        """Return the PReps `[N, H, W]` of values in the new order, in pieces `[N, size]`."""
        if self.is_same:
            return padded(pieces, shape)
        values = pieces[0] if len(pieces) == 1 else torch.cat(tuple(pieces), dim=1)
        return padded([values.index_select(1, self._back.on(values.device))], shape)


class OnDevices:
    """A tensor of places, which is copied once to each device that asks for it."""

    def __init__(self, host: Tensor) -> None:
        self.host = host
        self._on = {host.device: host}

    def on(self, device: torch.device) -> Tensor:
        """Return the tensor on a device."""
        if device not in self._on:
            self._on[device] = self.host.to(device)
        return self._on[device]


def padded(pieces: Sequence[Tensor], shape: PRepShape) -> Tensor:
    """Return values in pieces `[N, size]` as PReps `[N, H, W]` with zeros after the last."""
    tail = shape.cells - sum(piece.shape[1] for piece in pieces)
    zeros = [pieces[0].new_zeros(len(pieces[0]), tail)] if tail else []
    return torch.cat([*pieces, *zeros], dim=1).view(len(pieces[0]), shape.height, shape.width)


def _array(flat: Tensor) -> np.ndarray | None:
    """Return a tensor on the CPU as an array of its words; None where gradients or torch.func need the tensor."""
    if flat.device.type != "cpu" or (flat.requires_grad and torch.is_grad_enabled()):
        return None
    try:
        return flat.detach().view(WORDS[flat.element_size()]).numpy()
    except RuntimeError:  # a tensor of torch.func has no memory of its own
        return None


def _zeros(size: tuple[int, int], dtype: np.dtype[Any]) -> np.ndarray:
    try:
        return np.zeros(size, dtype)
    except MemoryError:
        needed = counted(math.prod(size) * dtype.itemsize, "byte")
        raise PrepkitError(
            f"the view of {counted(size[0], 'instance')} takes {needed}, which memory does not have; take fewer at a "
            "time."
        ) from None
