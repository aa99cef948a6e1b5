"""A whole zoo built in a folder beside its target, which it becomes when it is finished.

What a kill leaves behind is a folder `.prepkit-<target>-<random>.tmp`, never half a zoo; the next one who builds the
same target removes it. Whoever builds holds a lock on the folder, which the system frees when the process dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prepkit.errors import OutputError
from prepkit.files import flush, output_error
from prepkit.zoo.write.staging import SHARDS


@contextmanager
def building(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder beside `target`, which is missing or empty; on success it becomes `target`, else it is removed.

    raises OutputError if it cannot be written
    """
    path = Path(target).absolute()
    remove_dead(path)
    temporary, lock = path, -1
    try:
        temporary, lock = locked_folder(path)
        (temporary / SHARDS).mkdir()
        yield temporary
        flush(temporary)
        os.rename(temporary, path)
        flush(path.parent)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise output_error(Path(target), error) from error
    finally:
        if temporary != path:
            shutil.rmtree(temporary, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def locked_folder(path: Path) -> tuple[Path, int]:
    """A new folder beside `path`, and the open lock on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}.tmp")
        temporary.mkdir()
        with suppress(FileNotFoundError):  # another process took it for a dead one's, before the lock was held
            lock = os.open(temporary, os.O_RDONLY)
            if _take(lock) is not False and temporary.exists():
                return temporary, lock
            os.close(lock)


def remove_dead(path: Path) -> None:
    """Remove what killed processes left of this target."""
    for folder in path.parent.glob(f"{_prefix(path)}*.tmp"):
        with suppress(OSError):  # gone meanwhile, or not ours to remove
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _take(lock):
                    shutil.rmtree(folder)
            finally:
                os.close(lock)


def _take(lock: int) -> bool | None:
    """Take a lock without waiting: False if another process holds it, None if the file system has no such locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _prefix(path: Path) -> str:
    """Of the folders of one target: not its name itself, which may be as long as the system allows."""
    return f".prepkit-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}-"
