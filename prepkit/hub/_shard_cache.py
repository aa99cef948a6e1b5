"""The cache on the disk for zoos that are read from the Hub; one bound holds for all zoos and versions together.

    <cache>/<user>--<name>/<commit>/zoo.json, models-....parquet, shards/...

Only shards count and are removed: the least recently used first, and none that a process uses. Who uses a shard holds a
shared lock on it, which needs an open file, so it is held on the `MAX_OPEN` shards that were used last; who removes one
holds its exclusive lock. The system keeps the content of a removed file that is mapped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from prepkit.errors import ZooError
from prepkit.support.lock import lacks_locks
from prepkit.zoo.read.shard_values import OpenFile

CACHE_BYTES = "PREPKIT_CACHE_BYTES"
DEFAULT_BYTES = 64 << 30
SHARDS = "*/*/shards/*"


def bound_of_cache(num_bytes: int | None) -> int:
    """Return how many bytes of shards are kept: as given, or PREPKIT_CACHE_BYTES, or 64 GiB.

    raises ZooError if it is no whole number
    """
    text = os.environ.get(CACHE_BYTES, str(DEFAULT_BYTES)) if num_bytes is None else str(num_bytes)
    try:
        bound = int(text)
    except ValueError:
        bound = -1
    if bound < 0:
        raise ZooError(f"{CACHE_BYTES} (cache_bytes) is {text!r}; give a number of bytes such as 10000000000.")
    return bound


def held(file: Path) -> OpenFile:
    """Open a file; while it is open, nobody removes it from the cache.

    raises FileNotFoundError if it was removed before
    """
    opened = OpenFile(file)
    with suppress(OSError):  # without locks, too, the system keeps the content of an open or mapped file
        _share(opened.descriptor)
    return opened


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Let one thread of one process at a time fetch a file; others wait."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.parent.parent / f".{file.name}.lock")
    if not lacks_locks(file.parent.parent):  # else a killed process might keep others waiting for ever
        with suppress(OSError):  # a file system whose locks do not work
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class CachedShard:
    """A shard in the cache, and when it was used last."""

    file: Path
    bytes: int
    used: float


def make_room(folder: Path, bound: int, used: Callable[[Path], float], unmap: Callable[[Path], None]) -> None:
    """Remove the least recently used shards until the rest are within the bound, or all are in use.

    used:  returns when this process used a file last, 0 if never
    unmap: makes this process forget the shard in a file
    """
    shards = list(_cached_shards(folder, used))
    excess = sum(shard.bytes for shard in shards) - bound
    for shard in sorted(shards, key=lambda shard: shard.used):
        if excess <= 0:
            return
        unmap(shard.file)
        if _remove(shard.file):
            excess -= shard.bytes


def _cached_shards(folder: Path, used: Callable[[Path], float]) -> Iterator[CachedShard]:
    for file in folder.glob(SHARDS):
        with suppress(OSError):  # another process may remove it just now
            status = file.stat()
            yield CachedShard(file, status.st_size, max(status.st_mtime, used(file)))


def _remove(file: Path) -> bool:
    """Remove a file, and return whether that was possible: no process may have it mapped."""
    try:
        with open(file, "rb") as opened:
            if _is_shared(opened.fileno()):
                return False
            file.unlink()
    except OSError:
        return False
    return True


# Many processes may map a file at once, so they share its lock, which filelock's locks cannot. Windows needs none:
# it refuses to remove a mapped file.


def _share(descriptor: int) -> None:
    """Hold a shared lock on an open file for as long as it is open."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_SH)


def _is_shared(descriptor: int) -> bool:
    """Take the lock on an open file for oneself, and tell whether somebody else has it."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False
