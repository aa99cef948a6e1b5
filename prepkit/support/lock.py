"""One process at a time writes a folder: a lock on a file, which the system frees when its process dies.

Some file systems have no such locks, as Lustre mounted without them. There a file that exists stands for the lock, and
a kill leaves it behind. It names its process, so that a later one on the same machine sees that it is dead.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from prepkit.errors import OutputError, ZooLocked
from prepkit.support.files import ZOO_LOCK, output_error, system_errors_as_output

POLLING = 0.1  # seconds between two attempts to take a lock that another process holds
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def lock_on(file: Path) -> BaseFileLock:
    """Return the lock on a file, free or not; another thread than the one that takes it may give it back."""
    kind = SoftFileLock if lacks_locks(file.parent) else FileLock
    return kind(file, thread_local=False)


def lacks_locks(folder: Path) -> bool:
    """Return whether the file system of a folder has no locks at all; False if nothing can be written there."""
    if sys.platform == "win32":
        return False
    import fcntl

    with suppress(OSError), TemporaryFile(dir=folder) as probe:
        try:
            fcntl.flock(probe.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno == errno.ENOSYS
    return False


def take_lock(file: Path, folder: Path) -> BaseFileLock:
    """Take the lock of a folder without waiting, and write into its file who holds it; `release()` gives it back.

    raises ZooLocked naming the process that holds it, OutputError if the disk is full or its file system has no locks
    """
    lock = lock_on(file)
    is_marker = isinstance(lock, SoftFileLock)
    holder = _holder(file)  # read before, as older versions of filelock empty the file
    try:
        if is_marker:
            with suppress(Timeout):  # the first attempt removes the marker of a dead process on this machine
                lock.acquire(timeout=0)
        if not lock.is_locked:
            lock.acquire(timeout=0)
    except Timeout:
        if holder.startswith(_this_process()):
            reason = ", which is this one; close its writer, or `del` it."
        else:
            reason = "; wait for it, or stop it."
            if is_marker:
                reason += f" If that process runs no more, delete '{file}': this file system frees no locks."
        raise ZooLocked(f"'{folder}' is being written by {holder}{reason}") from None
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise OutputError(
                f"cannot write '{folder}': its file system cannot lock files ({error.strerror}), so nothing would keep "
                "two processes from writing it at once. Write to another disk, and copy the result."
            ) from error
        raise output_error(file, error) from error
    if is_marker:
        return lock  # the file says who holds it, in words of filelock's by which a dead process is known
    try:
        with suppress(PermissionError):  # Windows lets nobody write a locked file
            file.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
    except OSError as error:
        lock.release()
        raise output_error(file, error) from error
    return lock


@contextmanager
def changing(folder: Path, *, patience: float = 0) -> Iterator[None]:
    """Let one process at a time replace files of a finished zoo; others read it meanwhile.

    patience: seconds to wait for another process that changes it
    raises ZooLocked naming the process that changes it, OutputError if nothing can be written into the folder
    """
    file = folder / ZOO_LOCK
    deadline = time.monotonic() + patience
    with system_errors_as_output(folder):
        while True:
            try:
                lock = take_lock(file, folder)
                break
            except ZooLocked:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(POLLING)
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
        with lock_on(file).acquire(timeout=0):
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
        lines = text.splitlines()  # a marker of filelock's: process, machine, and often when it began
        marker = len(lines) in (2, 3) and lines[0].isdigit()
        return f"process {lines[0]} on {lines[1]}" if marker else text or "another process"
