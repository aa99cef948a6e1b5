"""The open files of unfinished shards: few at a time, since a zoo may have more architectures than a process has files.

A file that was closed for others is opened again when its shard goes on.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

from prepkit.support.files import system_errors_as_output

MAX_OPEN = 64


class OpenFiles:
    """Descriptors by path, of which the `MAX_OPEN` used last stay open."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, int] = OrderedDict()

    def open(self, path: Path, *, new: bool = False) -> int:
        """Return a descriptor to read and write with; it is valid until the next call. `new` begins an empty file.

        raises OutputError
        """
        if path not in self._files:
            while len(self._files) >= MAX_OPEN:
                os.close(self._files.popitem(last=False)[1])
            with system_errors_as_output(path):
                flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if new else 0)
                self._files[path] = os.open(path, flags, 0o666)
        self._files.move_to_end(path)
        return self._files[path]

    def close(self, path: Path) -> None:
        """Close a file, if it is open."""
        file = self._files.pop(path, None)
        if file is not None:
            os.close(file)

    def close_all(self) -> None:
        """Close all files."""
        for path in list(self._files):
            self.close(path)
