"""Instances that are written together: appending to the files, with sums, takes longer than packing a small network."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prepkit.zoo.format.columns import Schema
    from prepkit.zoo.write._buffers import Buffers, Piece
    from prepkit.zoo.write._contents import Contents
    from prepkit.zoo.write._journal import Entry, Journal
    from prepkit.zoo.write.staging import Stage

MAX_BYTES = 2 << 20  # of the values in a group; a larger instance is written alone
MAX_INSTANCES = 64
MAX_SECONDS = 1.0  # of work that a kill may cost


class Group:
    """Instances of one architecture that are in `contents`, and wait to be written."""

    def __init__(self, journal: Journal, contents: Contents, buffers: Buffers) -> None:
        self._journal, self._contents, self._buffers = journal, contents, buffers
        self._values = memoryview(bytearray(MAX_BYTES))
        self._entries: list[Entry] = []
        self._stage: Stage | None = None
        self._began = 0.0

    def add(self, stage: Stage, entry: Entry, schema: Schema, piece: Piece) -> None:
        """Take an instance in; those before it are written first if they are of another architecture, or too many.

        The piece is given back.
        raises OutputError
        """
        size = len(piece.values)
        if stage is not self._stage or (len(self._entries) + 1) * size > MAX_BYTES:
            self.write()
            self._stage = stage
        if size > MAX_BYTES:
            self._buffers.give_back_after(stage.append(piece.values), piece)
            self._journal.add([entry], stage.sums())
            self._contents.add([entry], schema)
            return
        if not self._entries:
            self._began = time.monotonic()
        start = len(self._entries) * size
        self._values[start : start + size] = piece.values
        self._buffers.give_back(piece.buffer)
        self._entries.append(entry)
        self._contents.add([entry], schema)
        if len(self._entries) == MAX_INSTANCES or time.monotonic() - self._began > MAX_SECONDS:
            self.write()

    def write(self) -> None:
        """Write all that wait; if that fails, `contents` is without them.

        raises OutputError
        """
        if not self._entries or self._stage is None:
            return
        try:
            row_bytes = self._stage.full.row_bytes
            self._stage.append(self._values[: len(self._entries) * row_bytes])
            self._journal.add(self._entries, self._stage.sums())  # which waits until all values are hashed
        except BaseException:
            self.drop()
            raise
        self._entries = []

    def drop(self) -> None:
        """Take those that wait out of the contents again."""
        self._contents.remove(self._entries)
        self._entries = []
