"""The cache on the disk for zoos that are read from the Hub or another store; one bound holds for all of them together.

    <cache>/<user>--<name>/<commit>/zoo.json, models-....parquet, shards/...
    <cache>/s3--<bucket>--<name>/<sha256 of zoo.json>/zoo.json, ...

A shard that several versions of a zoo have is one file with several names (hard links). Only shards count and are
removed: the least recently used first, and none that a process uses. Who uses a shard holds a shared lock on it, which
needs an open file, so it is held on the `MAX_OPEN` shards that were used last; who removes one holds its exclusive
lock. The system keeps the content of a removed file that is mapped.
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


def link_from_another_version(file: Path, size: int) -> bool:
    """Give a missing file of a version the content of its namesake of another one; return whether there was one.

    Names of shards have a part of their sha256, but whether the content is right is for the caller to compare.
    """
    version = file.parent.parent
    for other in version.parent.glob(f"*/{file.relative_to(version).as_posix()}"):
        with suppress(OSError):  # it is removed just now, or the file system has no hard links
            if other != file and other.stat().st_size == size:
                os.link(other, file)
                return True
    return False


@dataclass
class CachedShard:
    """A shard in the cache with all of its names, and when it was used last."""

    files: list[Path]
    bytes: int
    used: float


def make_room(folder: Path, bound: int, used: Callable[[Path], float], unmap: Callable[[Path], None]) -> None:
    """Remove the least recently used shards until the rest are within the bound, or all are in use.

    used:  returns when this process used a file last, 0 if never
    unmap: makes this process forget the shard in a file
    """
    shards = _cached_shards(folder, used)
    excess = sum(shard.bytes for shard in shards) - bound
    for shard in sorted(shards, key=lambda shard: shard.used):
        if excess <= 0:
            return
        for file in shard.files:
            unmap(file)
        removed = [_remove(file) for file in shard.files]
        if all(removed):
            excess -= shard.bytes


def _cached_shards(folder: Path, used: Callable[[Path], float]) -> list[CachedShard]:
    shards: dict[tuple[int, int], CachedShard] = {}
    for file in folder.glob(SHARDS):
        with suppress(OSError):  # another process may remove it just now
            status = file.stat()
            shard = shards.setdefault((status.st_dev, status.st_ino), CachedShard([], status.st_size, status.st_mtime))
            shard.files.append(file)
            shard.used = max(shard.used, used(file))
    return list(shards.values())


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
