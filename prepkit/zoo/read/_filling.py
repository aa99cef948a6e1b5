"""Fill batches of PReps, one after another, in memory that is used again as soon as nothing refers to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np

from prepkit.prep.contents import Contents, note_contents
from prepkit.prep.shape import PRepShape
from prepkit.tensors import torch_dtype
from prepkit.zoo.read.gather import Gatherer, new_memory, words
from prepkit.zoo.read.shard_values import Words

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from prepkit.zoo.read._rows import Rows

KEPT = 6  # pieces of memory that may be used again; a loader that reads ahead needs five
PINNED = 2


@dataclass(frozen=True)
class Filled:
    """PReps `[B, H, W]` on the device, and the event after which they are there, if the device is a CUDA device."""

    preps: Tensor
    copied: torch.cuda.Event | None = None

    def ready(self) -> Tensor:
        """Return the PReps, made safe to use on the stream on which the caller computes."""
        if self.copied is None:
            return self.preps
        import torch

        stream = torch.cuda.current_stream(self.preps.device)
        stream.wait_event(self.copied)
        self.preps.record_stream(stream)
        return self.preps


def filler(zoo: Rows, batch_size: int, device: torch.device) -> Filler | PinnedFiller:
    """Return what fills batches of a zoo on a device."""
    kind = PinnedFiller if device.type == "cuda" else Filler
    return kind(zoo.shape, zoo.manifest.dtype, min(batch_size, len(zoo)), device)


class Filler:
    """Fills batches whose memory a later batch uses again, but only when no tensor and no array refers to it any more.

    So a batch stays as it is for as long as somebody keeps it, and a loop that keeps none uses two pieces of memory.
    Each piece is lent as a numpy array, which the storage of a tensor that is made from it keeps alive: when the array
    is gone, so are all tensors that share the storage.
    """

    def __init__(self, shape: PRepShape, dtype: str, batch_size: int, device: torch.device) -> None:
        self.shape = shape
        self.dtype = torch_dtype(dtype)
        self.batch_size = batch_size
        self.device = device
        self._pieces: list[tuple[Words, ref[Any]]] = []

    def fill(self, gatherer: Gatherer, first: int, last: int) -> Filled:
        """Fill a batch with the PReps number `first` to `last` of those of the gatherer."""
        import torch

        lent = self._lent(last - first)
        contents = gatherer.fill(first, last, lent.reshape(last - first, self.shape.cells))
        preps = torch.from_numpy(lent)
        if preps.dtype != self.dtype:
            preps = preps.view(self.dtype)
        if self.device.type != "cpu":
            preps = preps.to(self.device)
        note_contents(preps, contents)
        return Filled(preps)

    def _lent(self, count: int) -> Words:
        """Return memory for a number of PReps, `[count, H, W]`, that nothing else refers to."""
        for number, (piece, borrower) in enumerate(self._pieces):
            if borrower() is None:
                lent = piece[:count]
                self._pieces[number] = (piece, ref(lent))
                return lent
        piece = words(new_memory((self.batch_size, self.shape.height, self.shape.width), self.dtype))
        lent = piece[:count]
        self._pieces = [*self._pieces[1 - KEPT :], (piece, ref(lent))]  # a piece that is left out is its borrower's
        return lent


class PinnedFiller:
    """Fills batches in pinned memory, from which they are copied to a CUDA device beside the computation."""

    def __init__(self, shape: PRepShape, dtype: str, batch_size: int, device: torch.device) -> None:
        import torch

        self.shape = shape
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        size = (batch_size, shape.height, shape.width)
        self._pieces = [torch.empty(size, dtype=torch_dtype(dtype), pin_memory=True) for _ in range(PINNED)]
        self._copied: list[torch.cuda.Event | None] = [None] * PINNED
        self._next = 0

    def fill(self, gatherer: Gatherer, first: int, last: int) -> Filled:
        """Gather the PReps number `first` to `last` of those of the gatherer, and begin to copy them to the device."""
        import torch

        number, self._next = self._next, (self._next + 1) % PINNED
        if (earlier := self._copied[number]) is not None:
            earlier.synchronize()  # the device may still be reading what was here before
        preps = self._pieces[number][: last - first]
        contents: Contents = gatherer.fill(first, last, words(preps.view(last - first, self.shape.cells)))
        with torch.cuda.stream(self.stream):
            moved = preps.to(self.device, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self.stream)
        self._copied[number] = copied
        note_contents(moved, contents)
        return Filled(moved, copied)


def starts(batches: list[np.ndarray]) -> list[tuple[int, int]]:
    """Return where each batch begins and ends in the row of all of them."""
    ends = np.cumsum([len(batch) for batch in batches], dtype=np.int64).tolist()
    return list(zip([0, *ends], ends, strict=False))
