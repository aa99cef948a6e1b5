"""Opening files that came from outside: whatever goes wrong is one CheckpointError that says what to do."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from prepkit.errors import CheckpointError, PrepkitError, listed
from prepkit.support.files import is_zoo, like_in_folder

CONVERT_DCP = "convert it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt"
FETCH_AGAIN = "copy or download it again"
TORCH_ADVICE = ("Weights only load failed", "Please file an issue", "Check the documentation", "\t(")


@contextmanager
def explained(path: Path, fault: str, remedy: str) -> Iterator[None]:
    """Raise a CheckpointError for whatever a library or the system raises inside; our own errors pass through."""
    try:
        yield
    except PrepkitError:
        raise
    except Exception as error:  # torch.load, zipfile and json raise a dozen kinds of errors for damaged input
        raise CheckpointError(f"{path} {fault} ({reason(error)}); {remedy}.") from error


def reason(error: Exception) -> str:
    """Return the first informative line of an error, printable and short."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(TORCH_ADVICE)]
    text = "".join(letter for letter in (lines or [""])[0] if letter.isprintable())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file; raises CheckpointError with the system's reason, or what to pass instead of a folder."""
    with explained(path, "cannot be read", "check its name and permissions"):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError as error:
            like = like_in_folder(path)
            raise CheckpointError(f"{path} cannot be read ({reason(error)}); check its name.{like}") from error
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{path} is {instead_of_folder(path)}.")
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path} is a device or a pipe; pass a file, which can be checked and mapped.")
        with path.open("rb") as file:
            yield file


def instead_of_folder(folder: Path) -> str:
    """Return what kind of folder was passed, and what to do instead."""
    if is_zoo(folder):
        return f"a zoo, not one network; `prepkit zoo info {folder}` describes it"
    return f"a folder; {remedy_for_folder(folder)}"


def remedy_for_folder(folder: Path) -> str:
    """Return what to pass instead of a folder that is no zoo."""
    if (folder / ".metadata").is_file():
        return CONVERT_DCP
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    for candidates in (
        [name for name in names if name.endswith(".safetensors.index.json")],
        [name for name in names if name == "model.safetensors"],
        [name for name in names if name.endswith((".safetensors", ".pt", ".pth", ".bin", ".ckpt"))],
    ):
        if candidates:
            return f"pass a file in it: {listed(folder / name for name in candidates)}"
    return "pass a file; there is no .pt, .pth or .safetensors in it"


def quoted(names: Iterable[object]) -> str:
    """Return names for a message: few, short, and without characters that a terminal would obey."""
    return listed([repr(name)[:100] for name in names])
