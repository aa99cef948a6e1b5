"""The journal of a zoo that is being written: an append-only file of JSON lines, in which each append ends with a sum.

The first append holds the writer's settings, which a resuming writer must share. Then there are lines of these kinds:
    {"id": ..., "architecture": ..., "split": ..., "columns": {...}}     an instance is finished; a date among its
                                                                         columns is {"date": "2026-11-27"}
    {"values": {...}}                                                    the sum of the values in a shard that is open
    {"begin": {...}, "dtype": ...}                                       an architecture's first instance comes next
    {"shard": {...}}                                                     a shard is published
    {"teacher": {...}, "sha256": ...}                                    a teacher is kept; the last such line counts
    {"sum": ...}                                                         the append ends here
A sum covers all lines since the sum before, and that sum too, so a line that was changed, lost or moved is found. What
follows the last sum was torn by a kill; it is cut off, and with it all instances of an `add` that had not returned.
The first version of the journal had no sums; it gets them when its zoo is resumed.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from prepkit.errors import ZooError
from prepkit.support.files import output_error, system_errors_as_output
from prepkit.zoo.format.columns import tagged, untagged
from prepkit.zoo.format.manifest import Shard, StoredArchitecture, architecture_from_dict, architecture_to_dict

VERSION = "journal"  # key of the settings, which the first version lacks
SUM = b'{"sum":'
LINES_AT_ONCE = 1000  # lines of an older journal that get one sum


@dataclass(frozen=True)
class Entry:
    """A finished instance; the order of the lines gives its row among its architecture's instances."""

    id: str
    architecture: str
    split: str | None
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Begin:
    """An architecture whose first instance follows, and the dtype of the zoo."""

    stored: StoredArchitecture
    dtype: str


@dataclass(frozen=True)
class TeacherEntry:
    """The teacher: its architecture, and the sha256 of its file."""

    stored: StoredArchitecture
    sha256: str


@dataclass(frozen=True)
class ValuesSum:
    """The sha256 of an unfinished shard up to its last row: the frame of a full shard, then the values."""

    architecture: str
    shard: int
    rows: int
    sha256: str


Line = Entry | ValuesSum | Shard | Begin | TeacherEntry


class Journal:
    """An append-only file of lines, in which each append is one write that counts as a whole or not at all."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self._file = file
        self._stat = os.fstat(file)
        self._lock = threading.Lock()  # another thread publishes shards
        self._end = 0, ""  # offset after the last append, and its sum

    @classmethod
    def create(cls, path: Path, settings: Mapping[str, Any]) -> Journal:
        """Make a new journal with its first append.

        raises OutputError
        """
        with system_errors_as_output(path):
            journal = cls(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666))
        try:
            journal._append([_json({VERSION: 2, **settings})])
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def reopen(cls, path: Path) -> Journal:
        """Open an existing journal, and cut off what follows its last sum.

        raises ZooError naming the lines that are damaged, OutputError
        """
        with system_errors_as_output(path):
            _give_sums(path)
            journal = cls(path, os.open(path, os.O_RDWR | os.O_APPEND))
        try:
            for append in _appends(path):
                journal._end = append.end, append.sum
            os.ftruncate(journal._file, journal._end[0])
        except BaseException:
            journal.close()
            raise
        return journal

    def settings(self) -> dict[str, Any]:
        """Read the first line."""
        with open(self.path, encoding="utf-8") as file:
            return _parsed(file.readline(), f"{self.path}, line 1")

    def add(self, entries: Iterable[Entry], sums: Iterable[ValuesSum] = ()) -> None:
        """Append finished instances, and the sums of the shards that their values are in, all or none.

        raises OutputError
        """
        values = [_json({"values": vars(values)}) for values in sums]
        self._append([_json(_line(entry)) for entry in entries] + values)

    def begin(self, stored: StoredArchitecture, dtype: str) -> None:
        """Append an architecture before its first instance, and the zoo's dtype."""
        self._append([_json({"begin": architecture_to_dict(stored), "dtype": dtype})])

    def publish(self, shard: Shard) -> None:
        """Append a published shard."""
        self._append([_json({"shard": vars(shard)})])

    def set_teacher(self, teacher: TeacherEntry) -> None:
        """Append the teacher whose file is in the working folder.

        raises OutputError
        """
        self._append([_json({"teacher": architecture_to_dict(teacher.stored), "sha256": teacher.sha256})])

    def lines(self, width: int) -> Iterator[Line]:
        """Read all lines after the settings, in order, from the disk: they are not kept in memory.

        raises ZooError naming the line that is damaged
        """
        return lines_of(self.path, width)

    def entries(self, width: int) -> Iterator[Entry]:
        """Read the finished instances, in order."""
        return (line for line in self.lines(width) if isinstance(line, Entry))

    def check_own(self) -> None:
        """Raise ZooError if this journal was deleted, so that the folder is not its writer's any more."""
        with suppress(OSError):
            if os.path.samestat(os.stat(self.path), self._stat):
                return
        raise ZooError(
            f"'{self.path}' was deleted or replaced while this process wrote the zoo, so the folder is not its own any "
            "more and it writes nothing there. Write the zoo again, in a folder that is not deleted meanwhile."
        )

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _append(self, lines: list[bytes]) -> None:
        with self._lock:
            end, sum = self._end
            sum = _sum(sum, lines)
            data = b"".join([*lines, _sum_line(sum)])
            try:
                if os.fstat(self._file).st_size > end:  # an append before was interrupted, and counts as failed
                    os.ftruncate(self._file, end)
                written = os.write(self._file, data)
                while written < len(data):
                    written += os.write(self._file, data[written:])
            except OSError as error:
                with suppress(OSError):
                    os.ftruncate(self._file, end)
                raise output_error(self.path, error) from error
            self._end = end + len(data), sum


def has_begun(path: Path) -> bool:
    """Return whether the first append of a journal is whole; one without it, after a kill at the start, holds nothing.

    raises ZooError for a first append that is damaged
    """
    try:
        with open(path, "rb") as file:
            first = file.readline()
    except (FileNotFoundError, IsADirectoryError):  # of a folder, who makes the journal tells
        return False
    if not first.endswith(b"\n"):
        return False
    is_of_first_version = VERSION not in _parsed(first, f"{path}, line 1")
    return is_of_first_version or next(_appends(path), None) is not None


def settings_of(path: Path) -> dict[str, Any]:
    """Read the settings of a journal that another process may be writing; empty if they are not whole yet.

    raises ZooError for a damaged line, and for a journal without sums, which can only be resumed
    """
    if not has_begun(path):
        return {}
    with open(path, "rb") as file:
        settings = _parsed(file.readline(), f"{path}, line 1")
    if VERSION not in settings:
        raise ZooError(f"{path}: an older version of prepkit began this zoo; run the command that wrote it again.")
    return settings


def lines_of(path: Path, width: int) -> Iterator[Line]:
    """Read all whole appends of a journal after the settings, line by line; another process may be writing it.

    raises ZooError naming the line that is damaged
    """
    for append in islice(_appends(path), 1, None):
        for number, line in enumerate(append.lines, append.number):
            place = f"{path}, line {number}"
            data = _parsed(line, place)
            try:
                yield _read(data, width, place)
            except (TypeError, KeyError):
                raise _damaged(place) from None


@dataclass(frozen=True)
class Append:
    """The lines of one append without its sum.

    number: number of the first line in the file
    end:    offset after the append
    """

    lines: list[bytes]
    number: int
    sum: str
    end: int


def _appends(path: Path) -> Iterator[Append]:
    """Read the appends that are whole, in order.

    raises ZooError for lines that do not have their sum
    """
    with open(path, "rb") as file:
        lines: list[bytes] = []
        number, sum, end = 1, "", 0
        for line in file:
            end += len(line)
            if not line.startswith(SUM) or not line.endswith(b"\n"):
                lines.append(line)
                continue
            sum = _sum(sum, lines)
            if line != _sum_line(sum):
                _name_damaged(lines, number, path)
            yield Append(lines, number, sum, end)
            number += len(lines) + 1
            lines = []


def _name_damaged(lines: list[bytes], number: int, path: Path) -> NoReturn:
    """Raise ZooError for the first of the lines that is no JSON, or for all of them."""
    for place, line in enumerate(lines, number):
        _parsed(line, f"{path}, line {place}")
    raise _damaged(f"{path}, lines {number} to {number + len(lines)}")


def _give_sums(path: Path) -> None:
    """Give the lines of a journal of the first version sums; a last line without its end is left out."""
    with open(path, "rb") as file:
        first = file.readline()
        if not first.endswith(b"\n") or VERSION in _parsed(first, f"{path}, line 1"):
            return
        new = path.with_suffix(".new")
        journal = Journal.create(new, _parsed(first, f"{path}, line 1"))
        try:
            while lines := [line for line in islice(file, LINES_AT_ONCE) if line.endswith(b"\n")]:
                journal._append(lines)
        finally:
            journal.close()
    os.replace(new, path)


def _sum(before: str, lines: Iterable[bytes]) -> str:
    digest = hashlib.sha256(before.encode())
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


def _sum_line(sum: str) -> bytes:
    return SUM + f'"{sum}"}}\n'.encode()


def _json(data: Mapping[str, Any]) -> bytes:
    # A column may hold NaN, which JSON of Python keeps.
    text = json.dumps(data, separators=(",", ":"), default=tagged) + "\n"
    return text.encode()


def _line(entry: Entry) -> dict[str, Any]:
    return {**vars(entry), "columns": dict(entry.columns)}


def _read(data: dict[str, Any], width: int, place: str) -> Line:
    if "values" in data:
        return ValuesSum(**data["values"])
    if "shard" in data:
        return Shard(**data["shard"])
    if "begin" in data:
        return Begin(architecture_from_dict(data["begin"], width, place), data["dtype"])
    if "teacher" in data:
        return TeacherEntry(architecture_from_dict(data["teacher"], width, place), data["sha256"])
    try:
        columns = {name: untagged(value) for name, value in data.pop("columns").items()}
    except (ValueError, AttributeError):
        raise _damaged(place) from None
    return Entry(**data, columns=columns)


def _parsed(line: bytes | str, place: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise _damaged(place)
    return data


def _damaged(place: str) -> ZooError:
    return ZooError(f"{place}: damaged. Delete the folder in which `.writing` lies, and write its instances again.")
