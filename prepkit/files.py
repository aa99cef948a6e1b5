"""Writing files whole or not at all, and hashing them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prepkit.errors import OutputError


@contextmanager
def replacing(target: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `target`; on success it becomes `target`, durably, else it is removed.

    raises OutputError if the target exists and `overwrite` is false, or cannot be written
    """
    path = Path(target)
    check_writable(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        publish(temporary, path)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise output_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError before any work is done for a result that could not be written."""
    if path.is_dir():
        raise OutputError(f"cannot write '{path}': it is a directory; name a file in it.")
    if path.exists() and not overwrite:
        raise OutputError(f"'{path}' exists already; use another name, or --force (overwrite=True) to replace it.")
    parent = path.parent
    if not parent.is_dir():
        what = "is not a directory" if parent.exists() else "does not exist"
        raise OutputError(f"cannot write '{path}': '{parent}' {what}.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write '{path}': no permission to write in '{parent}'.")


def publish(temporary: Path, path: Path) -> None:
    """Flush a finished file to the disk, give it the usual permissions and its name."""
    flush(temporary)
    os.chmod(temporary, 0o666 & ~current_umask())  # safetensors writes 0600, which a lab cannot share
    os.replace(temporary, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # file systems that cannot flush a directory
            raise
    finally:
        os.close(descriptor)


def current_umask() -> int:
    """The process's umask, which the system only tells by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def output_error(path: Path, error: OSError) -> OutputError:
    """What the system said, with the file's name and what to do."""
    if error.errno == errno.ENOSPC:
        return OutputError(f"cannot write '{path}': the disk is full. Nothing was written; free some room.")
    return OutputError(f"cannot write '{path}': {error.strerror or error}.")
