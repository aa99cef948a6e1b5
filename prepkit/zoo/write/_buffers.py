"""Buffers: memory that is used again and again for rows on their way to a file.

Fresh memory costs more than the copy into it, since the system has to find and clear each page. A buffer is taken,
filled, written, and hashed by another thread, which then gives it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import TYPE_CHECKING

from prepkit.errors import counted

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 64 << 20  # bounds the buffers in use; of buffers larger than half of it, two may be in use


@dataclass(frozen=True)
class Piece:
    """Whole rows of a zoo as bytes, and the buffer that holds them until they are hashed."""

    values: memoryview
    buffer: Tensor


class Buffers:
    """A bounded set of buffers; `take` waits until there is one."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._free: list[Tensor] = []
        self._taken: list[int] = []  # sizes of the buffers that are in use

    def take(self, num_bytes: int) -> Tensor:
        """Return a buffer of at least so many bytes, uint8, with any content."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(num_bytes))
            fitting = [buffer for buffer in self._free if len(buffer) >= num_bytes]
            if fitting:
                buffer = min(reversed(fitting), key=len)  # prefer the buffer used last, which may be in the cache
                self._free = [other for other in self._free if other is not buffer]
            else:
                buffer = self._fresh(num_bytes)
            self._taken.append(len(buffer))
            return buffer

    def give_back(self, buffer: Tensor) -> None:
        """Return a buffer that nothing reads any more."""
        with self._changed:
            self._taken.remove(len(buffer))
            self._free.append(buffer)
            self._changed.notify()

    @contextmanager
    def filled(self, num_bytes: int) -> Iterator[tuple[Tensor, Piece]]:
        """Give a buffer of exactly so many bytes to fill, as tensor and piece; it is given back if filling fails."""
        buffer = self.take(num_bytes)
        try:
            values = buffer[:num_bytes]
            yield values, Piece(values.numpy().data, buffer)
        except BaseException:
            self.give_back(buffer)
            raise

    def give_back_after(self, hashed: Future[None], piece: Piece) -> None:
        """Give a piece's buffer back when a future is done."""
        hashed.add_done_callback(lambda _: self.give_back(piece.buffer))

    def _has_room(self, num_bytes: int) -> bool:
        return len(self._taken) < 2 or sum(self._taken) + num_bytes <= MAX_BYTES

    def _fresh(self, num_bytes: int) -> Tensor:
        import torch

        room = MAX_BYTES - sum(self._taken) - num_bytes
        while self._free and sum(map(len, self._free)) > room:  # a larger buffer replaces these smaller ones
            self._free.pop(0)
        try:
            return torch.empty(num_bytes, dtype=torch.uint8)
        except (RuntimeError, TypeError):  # there is no memory, or 64 bits cannot count the bytes
            raise MemoryError(f"there is no memory for {counted(num_bytes, 'byte')}.") from None
