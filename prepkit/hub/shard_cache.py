"""The disk cache of streamed zoos: files of many zoos and versions under one bound.

    <cache>/<user>--<name>/<commit>/zoo.json, models-....parquet, shards/...

Only shards count and are ever removed: the least recently used first, and none that any process has mapped. Whoever
maps a shard holds a shared lock on it for as long as the mapping lives; whoever removes one holds the exclusive lock.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from prepkit.errors import ZooError

CACHE_BYTES = "PREPKIT_CACHE_BYTES"
DEFAULT_BYTES = 64 << 30
SHARDS = "*/*/shards/*"


def shelf_bytes(asked: int | None) -> int:
    """The bound in bytes: as asked, or PREPKIT_CACHE_BYTES, or 64 GiB.

    raises ZooError if it is no whole number
    """
    text = os.environ.get(CACHE_BYTES, str(DEFAULT_BYTES)) if asked is None else str(asked)
    try:
        found = int(text)
    except ValueError:
        found = -1
    if found < 0:
        raise ZooError(f"{CACHE_BYTES} (cache_bytes) is {text!r}; give a number of bytes such as 10000000000.")
    return found


def mapped(file: Path) -> mmap.mmap:
    """A file mapped copy on write; while the mapping lives, nobody removes the file from the shelf.

    raises FileNotFoundError if it was removed before
    """
    with open(file, "rb") as opened:
        with suppress(OSError):  # a file system without locks: the system keeps a mapped file's content by itself
            fcntl.flock(opened, fcntl.LOCK_SH)  # the mapping has the same open file, and with it the lock
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """One thread and process at a time fetches a file; others wait."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file.parent.parent / f".{file.name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@dataclass(frozen=True)
class Kept:
    """A shard on the shelf, and when it was used last."""

    file: Path
    bytes: int
    used: float


def make_room(folder: Path, bound: int, used: Callable[[Path], float], let_go: Callable[[Path], None]) -> None:
    """Remove the least recently used shards until the rest are within the bound, or all are in use.

    used:   when this process has used a file last, 0 if never; infinity for one that is about to be
    let_go: makes this process forget a mapping of a file that it does not need now
    """
    kept = list(_kept(folder, used))
    excess = sum(item.bytes for item in kept) - bound
    for item in sorted(kept, key=lambda item: item.used):
        if excess <= 0 or item.used == float("inf"):
            return
        let_go(item.file)
        if _removed(item.file):
            excess -= item.bytes


def _kept(folder: Path, used: Callable[[Path], float]) -> Iterator[Kept]:
    for file in folder.glob(SHARDS):
        with suppress(OSError):
            found = file.stat()
            yield Kept(file, found.st_size, max(found.st_mtime, used(file)))


def _removed(file: Path) -> bool:
    """Remove a file unless a mapping of it lives."""
    try:
        with open(file, "rb") as opened:
            with suppress(OSError):
                try:
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
            file.unlink()
    except OSError:
        return False
    return True
