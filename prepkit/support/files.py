"""Files and folders that are written whole or not at all, and checksums of files.

Commands that need no torch import this, so what only some functions need is imported in them.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prepkit.errors import OutputError, PrepkitError, nearest
from prepkit.support.progress import Advance

CHUNK_BYTES = 4 << 20  # hashed between two calls of a progress
ZOO_MANIFEST = "zoo.json"  # a folder with this file in it is a zoo
ZOO_LOCK = ".prepkit.lock"  # in a finished zoo while some of its files are replaced


def is_zoo(folder: Path) -> bool:
    """Whether a folder holds a zoo, whole or not."""
    return (folder / ZOO_MANIFEST).is_file()


def like_in_folder(path: str | os.PathLike[str]) -> str:
    """Return ` Did you mean 'x'?` with what lies beside a path that does not exist and has nearly its name, else ""."""
    missing = Path(path)
    try:
        names = [entry.name for entry in missing.parent.iterdir()]
    except OSError:
        return ""
    like = nearest(missing.name, [name for name in names if not name.startswith(".")])
    return like.replace("'", f"'{missing.parent}/", 1) if like and missing.parent != Path() else like


@contextmanager
def replacing(target: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `target`; on success it becomes `target`, durably, else it is removed.

    raises OutputError if the target exists and `overwrite` is false, or cannot be written
    """
    path = Path(target)
    check_writable(path, overwrite=overwrite)
    # Its name does not hold the target's, which may be as long as the system allows. Two threads may write one target.
    temporary = path.with_name(f".prepkit-{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        yield temporary
        publish(temporary, path)
    except PrepkitError:
        raise
    except Exception as error:
        cause = system_error(error)
        if cause is None:
            raise
        raise output_error(path, cause) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write one JSON document whole or not at all, in place of an older one.

    raises OutputError if it cannot be written
    """
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError before any work is done for a result that could not be written."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except OSError as error:
        raise output_error(path, error) from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"cannot write '{path}': it is a directory; name a file in it.")
    if mode and not stat.S_ISREG(mode):  # a file would replace it, and root may do that even to /dev/null
        raise OutputError(f"cannot write '{path}': it is a device or a pipe; name a file.")
    if mode and not overwrite:
        raise OutputError(f"'{path}' exists already; use another name, or overwrite=True to replace it.")
    check_parent(path)


@contextmanager
def replacing_folder(target: Path, *, mark: str, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `target`; on success it becomes `target`, else it is removed.

    mark: file in a folder that may be replaced with `overwrite`; a folder with other contents is the user's
    raises OutputError if something else is there, or it cannot be written
    """
    import shutil

    check_folder_writable(target, mark=mark, overwrite=overwrite)
    name = f".prepkit-{os.getpid()}-{os.urandom(4).hex()}"
    temporary, old = target.with_name(f"{name}.tmp"), target.with_name(f"{name}.old")
    try:
        temporary.mkdir()
        yield temporary
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
    except PrepkitError:
        raise
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_folder_writable(target: Path, *, mark: str, overwrite: bool) -> None:
    """Raise OutputError before any work is done for a folder that could not be written; see `replacing_folder`."""
    if target.name in ("", ".."):
        raise OutputError(f"'{target}' cannot be replaced as a whole; name a new folder.")
    if target.exists() and not target.is_dir():
        raise OutputError(f"cannot write '{target}': it is a file; name a folder.")
    if target.exists() and any(target.iterdir()):
        if not (target / mark).is_file():
            raise OutputError(f"'{target}' holds other files and no {mark}; name a new or empty folder.")
        if not overwrite:
            raise OutputError(f"'{target}' exists already; use another name, or overwrite=True to replace it.")
    check_parent(target)


def check_parent(path: Path) -> None:
    """Raise OutputError if nothing can be written into the folder that holds a path."""
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
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def system_error(error: Exception) -> OSError | None:
    """Return the system's own error behind an error that a library raised, or None if there is none.

    torch raises a RuntimeError while it handles the OSError; safetensors keeps its number only in a text.
    """
    if isinstance(error, OSError):
        return error
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def output_error(path: Path, error: OSError) -> OutputError:
    """Say what the system said, with the file's name and what to do."""
    if error.errno == errno.ENOSPC:
        return OutputError(f"cannot write '{path}': the disk is full. Nothing was written; free some room.")
    return OutputError(f"cannot write '{path}': {error.strerror or error}.")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or the one that it was made of, says that there is no room left."""
    causes = [system_error(cause) for cause in (error, error.__cause__) if isinstance(cause, Exception)]
    return any(cause is not None and cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in causes)


@contextmanager
def system_errors_as_output(path: Path) -> Iterator[None]:
    """Turn the system's errors inside into an OutputError that names a path."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise output_error(path, error) from error


def sha256_of_file(path: str | os.PathLike[str], progress: Advance | None = None) -> str:
    """Return the sha256 of a file's bytes, in hex; raises OSError.

    progress: is called with a number of bytes each time that many more were hashed
    """
    import hashlib

    with open(path, "rb", buffering=0) as file:
        if progress is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            progress(count)
        return digest.hexdigest()


def sha256_of_code(packages: Iterable[Path], libraries: Iterable[str]) -> str:
    """Return the sha256 of all Python files in these folders, with their names, and of the libraries' versions."""
    import hashlib
    from importlib.metadata import PackageNotFoundError, version

    total = hashlib.sha256()
    for package in packages:
        for file in sorted(package.rglob("*.py")):
            name = f"{package.name}/{file.relative_to(package).as_posix()}"
            total.update(f"{name} {sha256_of_file(file)}\n".encode())
    for library in libraries:
        try:
            installed = version(library)
        except PackageNotFoundError:
            installed = "missing"
        total.update(f"{library} {installed}\n".encode())
    return total.hexdigest()
