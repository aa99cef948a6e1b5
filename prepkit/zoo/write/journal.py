"""The journal of a zoo that is being written: one JSON line an instance, appended after its values.

The first line holds the writer's settings, which a resuming writer must share. Then there are lines of four kinds:
    {"id": ..., "architecture": ..., "split": ..., "columns": {...}}     an instance is finished
    {"begin": {...}, "dtype": ...}                                       an architecture's first instance comes next
    {"shard": {...}}                                                     a shard is published
    {"teacher": {...}, "sha256": ...}                                    a teacher is kept; the last such line counts
A kill can leave a last line without its end; it is cut off, and with it an instance whose `add` had not returned.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError
from prepkit.files import output_error
from prepkit.zoo.format.manifest import Shard, StoredArchitecture, architecture_from_dict, architecture_to_dict


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


Line = Entry | Shard | Begin | TeacherEntry


class Journal:
    """An append-only file of lines, in which each append is one write."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self._file = file
        self._lock = threading.Lock()  # another thread publishes shards

    @classmethod
    def create(cls, path: Path, settings: Mapping[str, Any]) -> Journal:
        """Make a new journal with its first line."""
        journal = cls(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666))
        journal._append(_json(settings))
        return journal

    @classmethod
    def reopen(cls, path: Path) -> Journal:
        """Open an existing journal, and cut off a torn last line."""
        journal = cls(path, os.open(path, os.O_RDWR | os.O_APPEND))
        content_end = _end_of_last_line(path)
        os.ftruncate(journal._file, content_end)
        return journal

    def settings(self) -> dict[str, Any]:
        """Read the first line; it is empty if the writer was killed before the line was written."""
        with open(self.path, encoding="utf-8") as file:
            line = file.readline()
        return _parsed(line, f"{self.path}, line 1") if line else {}

    def add(self, entries: Iterable[Entry]) -> None:
        """Append finished instances in one write, all or none.

        raises OutputError
        """
        self._append("".join(_json(_line(entry)) for entry in entries))

    def begin(self, stored: StoredArchitecture, dtype: str) -> None:
        """Append an architecture before its first instance, and the zoo's dtype."""
        self._append(_json({"begin": architecture_to_dict(stored), "dtype": dtype}))

    def publish(self, shard: Shard) -> None:
        """Append a published shard."""
        self._append(_json({"shard": dict(vars(shard))}))

    def set_teacher(self, teacher: TeacherEntry) -> None:
        """Append the teacher whose file is in the working folder.

        raises OutputError
        """
        self._append(_json({"teacher": architecture_to_dict(teacher.stored), "sha256": teacher.sha256}))

    def lines(self, width: int) -> Iterator[Line]:
        """Read all lines after the settings, in order, from the disk: they are not kept in memory.

        raises ZooError naming the line that is damaged
        """
        with open(self.path, encoding="utf-8") as file:
            next(file, None)
            for number, line in enumerate(file, 2):
                place = f"{self.path}, line {number}"
                data = _parsed(line, place)
                try:
                    yield _read(data, width, place)
                except (TypeError, KeyError):
                    raise ZooError(f"{place}: damaged. Delete the zoo and write it again.") from None

    def entries(self, width: int) -> Iterator[Entry]:
        """Read the finished instances, in order."""
        return (line for line in self.lines(width) if isinstance(line, Entry))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _append(self, text: str) -> None:
        data = text.encode()
        with self._lock:
            end = os.fstat(self._file).st_size
            try:
                written = os.write(self._file, data)
                while written < len(data):
                    written += os.write(self._file, data[written:])
            except OSError as error:
                os.ftruncate(self._file, end)
                raise output_error(self.path, error) from error


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":")) + "\n"  # a column may hold NaN, which JSON of Python keeps


def _line(entry: Entry) -> dict[str, Any]:
    return {**vars(entry), "columns": dict(entry.columns)}


def _read(data: dict[str, Any], width: int, place: str) -> Line:
    if "shard" in data:
        return Shard(**data["shard"])
    if "begin" in data:
        return Begin(architecture_from_dict(data["begin"], width, place), data["dtype"])
    if "teacher" in data:
        return TeacherEntry(architecture_from_dict(data["teacher"], width, place), data["sha256"])
    return Entry(**data)


def _parsed(line: str, place: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise ZooError(f"{place}: damaged. Delete the zoo and write it again.")
    return data


def _end_of_last_line(path: Path) -> int:
    """Return the offset after the last newline."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        while size:
            start = max(0, size - 65_536)
            file.seek(start)
            newline = file.read(size - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            size = start
    return 0
