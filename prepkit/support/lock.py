"""One process at a time writes a folder: a lock on a file, which the system frees when its process dies."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from prepkit.errors import OutputError, ZooLocked
from prepkit.support.files import ZOO_LOCK, output_error, system_errors_as_output

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def take_lock(file: Path, folder: Path) -> FileLock:
    """Take the lock of a folder without waiting, and write into its file who holds it; `release()` gives it back.

    raises ZooLocked naming the process that holds it, OutputError if the disk is full or its file system has no locks
    """
    lock = FileLock(file, thread_local=False)  # another thread may give it back
    holder = _holder(file)  # read before, as older versions of filelock empty the file
    try:
        lock.acquire(timeout=0)
    except Timeout:
        own = holder == _this_process()
        what = "which is this one; close its writer, or `del` it" if own else "wait for it, or stop it"
        raise ZooLocked(f"'{folder}' is being written by {holder}{', ' if own else '; '}{what}.") from None
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise OutputError(
                f"cannot write '{folder}': its file system cannot lock files ({error.strerror}), so nothing would keep "
                "two processes from writing it at once. Write to another disk, and copy the result."
            ) from error
        raise output_error(file, error) from error
    try:
        with suppress(PermissionError):  # Windows lets nobody write a locked file
            file.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
    except OSError as error:
        lock.release()
        raise output_error(file, error) from error
    return lock


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Let one process at a time replace files of a finished zoo; others read it meanwhile.

    raises ZooLocked naming the process that changes it, OutputError if nothing can be written into the folder
    """
    file = folder / ZOO_LOCK
    with system_errors_as_output(folder):
        lock = take_lock(file, folder)
    try:
        yield
    finally:
        with suppress(OSError):  # filelock sees that a lock that it waited for was removed; Windows refuses to do it
            file.unlink()
        lock.release()


def holder_of(file: Path) -> str | None:
    """Return who holds a lock, None if nobody does or it cannot be told."""
    if not file.is_file():
        return None
    holder = _holder(file)
    try:
        with FileLock(file, thread_local=False).acquire(timeout=0):
            return None
    except Timeout:
        return holder
    except OSError:  # who only reads may not lock
        return None


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _holder(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "another process"
    try:
        data = json.loads(text)
        return f"process {data['pid']} on {data['host']}"
    except (ValueError, KeyError, TypeError):
        return text or "another process"
