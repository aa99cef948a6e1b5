"""A whole zoo built in a folder beside its target, which it becomes when it is finished.

A kill leaves a folder `.prepkit-<target>-<random>.tmp` behind, never half a zoo, and whoever builds the same target
next removes it. Whoever builds holds the lock `.prepkit-<target>-<random>.lock`, which the system frees when the
process dies.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock

from prepkit.support.files import flush, system_errors_as_output
from prepkit.support.lock import lock_on
from prepkit.zoo.write.staging import SHARDS


@contextmanager
def building(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder beside `target`, which is missing or empty; on success it becomes `target`, else it is removed.

    raises OutputError if it cannot be written
    """
    path = Path(target).absolute()
    with system_errors_as_output(Path(target)):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_dead(path)
        with locked_folder(path) as folder:
            (folder / SHARDS).mkdir()
            yield folder
            flush(folder)
            os.rename(folder, path)
            flush(path.parent)


@contextmanager
def locked_folder(path: Path) -> Iterator[Path]:
    """Give a new folder beside `path` that nobody takes for a dead process's; what is in it at the end is removed."""
    folder = path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}.tmp")
    lock = _lock_of(folder)
    with lock:  # it is held before there is a folder, so that the folder of a living process always has a lock
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)


def remove_dead(path: Path) -> None:
    """Remove what killed processes left of this target."""
    for folder in {file.with_suffix(".tmp") for file in path.parent.glob(f"{_prefix(path)}*")}:
        lock = _lock_of(folder)
        with suppress(OSError), lock.acquire(timeout=0):  # held by a living process, or not ours to remove
            if not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)


def _lock_of(folder: Path) -> BaseFileLock:
    return lock_on(folder.with_suffix(".lock"))


def _prefix(path: Path) -> str:
    """Return how the names of a target's folders begin: the target's own name may be as long as the system allows."""
    return f".prepkit-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}-"
