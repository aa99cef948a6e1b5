"""All errors that prepkit raises on purpose, as one tree, and the parts that their messages share.

    PrepkitError                 everything below; `exit_code` is what the command line returns for it
    ├── InvalidShape             a PRep's width or height is illegal or too small for the parameters
    ├── LayoutMismatch           names, shapes or dtypes of tensors differ from a layout
    ├── FusionError              a BatchNorm cannot be folded without changing the function
    ├── SymmetryError            nothing can be proved of a network's symmetries
    ├── CheckpointError          a file is not a checkpoint that can be read
    │   └── UnsafeCheckpoint     reading it would run code or allocate more than the file holds
    ├── RegistryError            an architecture or a ClassId is unknown or in conflict
    ├── PRepFileError            a .prep.safetensors file is damaged, foreign or of a newer format
    ├── ZooError                 a zoo is damaged, foreign, of a newer format, or does not hold what was asked for
    │   ├── WhereError           a condition on a zoo's table cannot be read
    │   └── ZooLocked            another process is writing the zoo
    ├── HubError                 the Hub or another store refuses, cannot be reached, or lacks what was asked for
    ├── DeviceError              a device is unknown or not there
    ├── OutputError              a result cannot be written where it was asked for
    └── VerificationError        a result was computed and found wrong; nothing was written

Every message says what was asked, what was found and what to do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import islice

MANY_CHOICES = 2000


class PrepkitError(Exception):
    """Root of all errors that prepkit raises on purpose."""

    exit_code = 2


def expect(value: object, kind: type | tuple[type, ...], name: str, words: str) -> None:
    """Raise PrepkitError if an argument is of another kind than its function takes.

    name, words: the argument, and what it may be
    """
    if not isinstance(value, kind):
        raise PrepkitError(f"{name}: expected {words}; found {'None' if value is None else type(value).__name__}.")


class InvalidShape(PrepkitError, ValueError):
    """A PRep's width or height is illegal, or too small for the parameters."""


class LayoutMismatch(PrepkitError, ValueError):
    """Names, shapes or dtypes of tensors differ from a layout."""


class FusionError(PrepkitError, ValueError):
    """A BatchNorm cannot be folded without changing the function of its network."""


class SymmetryError(PrepkitError, ValueError):
    """Nothing can be proved of a network's symmetries, or a change of them does not fit the tensors."""


class CheckpointError(PrepkitError, ValueError):
    """A file is not a checkpoint that can be read."""


class UnsafeCheckpoint(CheckpointError):
    """Reading the file would run code, or allocate more than the file holds."""


class RegistryError(PrepkitError, LookupError):
    """An architecture or a ClassId is unknown or in conflict."""


class PRepFileError(PrepkitError, ValueError):
    """A .prep.safetensors file is damaged, foreign or of a newer format."""


class ZooError(PrepkitError, ValueError):
    """A zoo is damaged, foreign or of a newer format, or does not hold what was asked for."""


class WhereError(ZooError):
    """A condition on a zoo's table cannot be read."""


class ZooLocked(ZooError):
    """Another process is writing the zoo."""

    exit_code = 1


class HubError(PrepkitError):
    """The Hub or another store refuses, cannot be reached, or does not hold what was asked for.

    repo:   USER/NAME of the repository that was asked, None if none was
    status: HTTP status of the answer, None if none came or the store has none
    """

    exit_code = 1

    def __init__(self, message: str, *, repo: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.repo = repo
        self.status = status


class DeviceError(PrepkitError, ValueError):
    """A device is unknown, or not there."""


class OutputError(PrepkitError, OSError):
    """A result cannot be written where it was asked for."""


class VerificationError(PrepkitError):
    """A result was computed and found wrong; nothing was written."""

    exit_code = 1


class FormerSpelling(FutureWarning):
    """A file names a key or a value as it was once spelled. It is read all the same; the command line prints a note."""


class RecordingFailed(RuntimeWarning):
    """A step cannot be recorded as a CUDA graph, and runs without one; the command line prints a note."""


class ZooChanged(RuntimeWarning):
    """A zoo has grown, or got columns, since a run was trained on it; only the instances that were there are used."""


class CopiesDiffer(RuntimeWarning):
    """Copies of a network in other orders of units are not all aligned to one; the command line prints a note."""


def nearest(asked: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` with the choice closest to what was asked, or an empty string if none is close."""
    import difflib

    names = list(choices)
    if len(names) > MANY_CHOICES:  # comparing a million letter by letter takes seconds
        names = _likely(asked, names)
    close = difflib.get_close_matches(asked, names, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def _likely(asked: str, names: list[str]) -> list[str]:
    """Return those of many names that one slip makes of what was asked, else some that begin or end as it does."""
    letters = sorted({*asked, *"abcdefghijklmnopqrstuvwxyz0123456789-_./@"})
    cuts = [(asked[:at], asked[at:]) for at in range(len(asked) + 1)]
    slips = {head + tail[1:] for head, tail in cuts} | {head + tail[1:2] + tail[:1] + tail[2:] for head, tail in cuts}
    slips |= {head + letter + rest for head, tail in cuts for letter in letters for rest in (tail, tail[1:])}
    found = slips.intersection(names)
    if found:
        return sorted(found)
    half = max(1, len(asked) // 2)
    ordered = sorted(names)
    starts = (bisect_left(ordered, asked[:length]) for length in range(len(asked), half - 1, -1))
    likely = [name for start in starts for name in ordered[start : start + MANY_CHOICES // len(asked)]]
    return likely + list(islice((name for name in names if name.endswith(asked[-half:])), MANY_CHOICES))


def listed(items: Iterable[object], limit: int = 6) -> str:
    """Return `a, b, c and 4 more`: a list that is short enough for a message."""
    names = [str(item) for item in items]
    if len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[:limit])} and {len(names) - limit} more"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return `1 row` or `1,200 rows`; `plural` is the noun with an s if missing."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
