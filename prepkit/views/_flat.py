"""The views `prep`, PReps as they are, and `flat`, one vector an instance in the order of the state dict."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from prepkit.prep.layout import PRepShape
from prepkit.prep.slot import Slot
from prepkit.views._moving import Reordered, padded
from prepkit.views._view import View
from prepkit.views.source import Source


def prep(of: Any) -> Preps:
    """Return the view of PReps as they are, `[N, H, W]`.

    of: a zoo, an architecture, its name, a network or a layout

    >>> prepkit.views.prep("lenet_like@digits")
    <Preps of lenet_like@digits: preps [N, 8, 512]>
    """
    return Preps(Source.of(of))


def flat(of: Any) -> Flat:
    """Return the view of one vector `[N, P]`: all values in the order of the state dict, without padding.

    of: a zoo, an architecture, its name, a network or a layout

    >>> prepkit.views.flat("lenet_like@digits")
    <Flat of lenet_like@digits: values [N, 2302]>
    """
    return Flat(Source.of(of))


class Preps(View):
    """PReps `[N, H, W]` as they are, whatever their height and width. `names` are those of the tensors.

    mask: `[H, W]` bool, True where a PRep of the zoo's shape holds a value and False where it is padded
    """

    name = "prep"

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        cells = torch.arange(source.shape.cells).view(source.shape.height, source.shape.width)
        self.mask = cells < source.layout.total

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors, in the order of their values."""
        return tuple(slot.name for slot in self.source.layout)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of the zoo's PReps."""
        return {"preps": (self.source.shape.height, self.source.shape.width)}

    def forward(self, preps: Tensor) -> Tensor:
        """Return the PReps themselves."""
        self._flat(preps)
        return preps

    def inverse(self, values: Tensor, shape: PRepShape | tuple[int, int] | None = None) -> Tensor:
        """Return PReps of this shape, zeros after the last value; those that were given if they have it already."""
        wanted = self._prep_shape(shape)
        flat = self._flat(values)
        total = self.source.layout.total
        given = (*values.shape[1:],) == (wanted.height, wanted.width)
        if given and (flat.shape[1] == total or not bool(flat[:, total:].count_nonzero())):
            return values
        return padded([flat[:, :total]], wanted)


class Flat(View):
    """All values `[N, P]` of an instance in the order of the state dict. `slots` tells where each tensor stands.

    Where that is the order of the PRep, as nearly always, the vectors share the PReps' memory.
    """

    name = "flat"

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        slots = {slot.name: slot for slot in source.layout}
        order = [*slots] if source.network is None else [name for name in source.network.state_dict() if name in slots]
        self.slots = _side_by_side([slots[name] for name in order])
        cells = [np.arange(slots[name].start, slots[name].stop) for name in order]
        self._reordered = Reordered(np.concatenate(cells))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors in order; tied ones stand there once."""
        return tuple(slot.name for slot in self.slots)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The number of values."""
        return {"values": (self.source.layout.total,)}

    def forward(self, preps: Tensor) -> Tensor:
        """Return `[N, P]`."""
        return self._reordered.forward(self._flat(preps))

    def inverse(self, values: Tensor, shape: PRepShape | tuple[int, int] | None = None) -> Tensor:
        """Return the PReps `[N, H, W]` of `[N, P]`."""
        wanted = self._prep_shape(shape)
        tensor = self._expect(values, (self.source.layout.total,), "flat values")
        return self._reordered.inverse([tensor], wanted)


def _side_by_side(slots: list[Slot]) -> tuple[Slot, ...]:
    """Return slots one after another, in this order."""
    placed: list[Slot] = []
    for slot in slots:
        start = placed[-1].stop if placed else 0
        placed.append(Slot(slot.name, slot.shape, slot.dtype, slot.kind, start))
    return tuple(placed)
