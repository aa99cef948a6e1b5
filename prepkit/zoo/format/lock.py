"""One writer at a time: a lock on a file that says who holds it. The system frees it when its process dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from prepkit.errors import ZooLocked
from prepkit.files import output_error


@dataclass
class Lock:
    """A held lock."""

    file: int

    @classmethod
    def take(cls, path: Path, root: Path) -> Lock:
        """Take the lock, without waiting.

        raises ZooLocked naming the process that holds it, OutputError if the disk is full
        """
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(file, 4096, 0).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise ZooLocked(f"'{root}' is being written by {_told(holder)}; wait for it, or stop it.") from None
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        except OSError as error:
            os.close(file)
            raise output_error(path, error) from error
        return cls(file)

    def release(self) -> None:
        """Give it back."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


def _told(holder: str) -> str:
    try:
        data = json.loads(holder)
        return f"process {data['pid']} on {data['host']}"
    except (ValueError, KeyError, TypeError):
        return holder
