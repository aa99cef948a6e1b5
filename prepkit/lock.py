"""One process at a time writes a folder: a lock on a file, which the system frees when its process dies."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from prepkit.errors import ZooLocked
from prepkit.files import ZOO_LOCK, output_error, system_errors_as_output


def take_lock(file: Path, folder: Path) -> FileLock:
    """Take the lock of a folder without waiting, and write into its file who holds it; `release()` gives it back.

    raises ZooLocked naming the process that holds it, OutputError if the disk is full
    """
    lock = FileLock(file, thread_local=False)  # another thread may give it back
    holder = _holder(file)  # read before, as older versions of filelock empty the file
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ZooLocked(f"'{folder}' is being written by {holder}; wait for it, or stop it.") from None
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
