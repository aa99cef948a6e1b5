"""Contents: all that a zoo holds while it is being written. A writer that resumes gathers it from the journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError
from prepkit.zoo.format.columns import Schema, plain_columns
from prepkit.zoo.format.manifest import Shard, StoredArchitecture
from prepkit.zoo.write._earlier import Earlier
from prepkit.zoo.write._journal import Begin, Entry, Line, TeacherEntry, ValuesSum


@dataclass
class Contents:
    """The facts in the journal, without the rows of the table, which stay on the disk.

    dtype:         the dtype of the PReps; None until the first instance chooses it
    architectures: those that have instances, by name
    num_instances: number of instances by architecture
    splits:        number of instances by split
    schema:        types of the user's columns
    earlier:       the zoo that the instances are appended to; None if they become a zoo of their own
    published:     published shards by path, when the writer resumed
    sums:          the last sum of each shard by architecture and number, when the writer resumed
    """

    dtype: str | None
    earlier: Earlier | None = None
    architectures: dict[str, StoredArchitecture] = field(default_factory=dict)
    num_instances: Counter[str] = field(default_factory=Counter)
    ids: set[str] = field(default_factory=set)
    splits: Counter[str] = field(default_factory=Counter)
    schema: Schema = field(default_factory=Schema)
    teacher: TeacherEntry | None = None
    published: dict[str, Shard] = field(default_factory=dict)
    sums: dict[tuple[str, int], ValuesSum] = field(default_factory=dict)

    def can_hold(self, columns: Mapping[str, Any]) -> bool:
        """Return whether the table can hold these values, beside those that are in it."""
        try:
            self.extended([plain_columns(columns, "")], "")
        except ZooError:
            return False
        return True

    def extended(self, rows: Iterable[Mapping[str, Any]], place: str) -> Schema:
        """Return the schema that holds these rows too.

        raises ZooError if a value is of another kind than the values before it, also in the zoo that is appended to
        """
        schema = self.schema.extended(rows, place)
        if self.earlier is not None and schema.kinds != self.schema.kinds:
            self.earlier.check_columns(schema, place)
        return schema

    @property
    def all_ids(self) -> frozenset[str]:
        """The ids of these instances, and of those of the zoo that they are appended to."""
        return frozenset(self.ids) if self.earlier is None else self.earlier.ids.union(self.ids)

    def has_id(self, id: object) -> bool:
        """Return whether an id is one of `all_ids`, without gathering them."""
        return id in self.ids or (self.earlier is not None and id in self.earlier.ids)

    def add(self, entries: Iterable[Entry], schema: Schema) -> None:
        """Take in finished instances, and the schema that holds their columns too."""
        self.schema = schema
        for entry in entries:
            self.ids.add(entry.id)
            self.num_instances[entry.architecture] += 1
            if entry.split is not None:
                self.splits[entry.split] += 1

    def remove(self, entries: Iterable[Entry]) -> None:
        """Take out instances that could not be written."""
        for entry in entries:
            self.ids.discard(entry.id)
            self.num_instances[entry.architecture] -= 1
            if entry.split is not None:
                self.splits[entry.split] -= 1

    def replay(self, lines: Iterable[Line], root: Path) -> None:
        """Take in the lines of a journal.

        raises ZooError if the zoo was begun with another dtype
        """
        for line in lines:
            if isinstance(line, Shard):
                self.published[line.path] = line
            elif isinstance(line, ValuesSum):
                self.sums[line.architecture, line.shard] = line
            elif isinstance(line, TeacherEntry):
                self.teacher = line
            elif isinstance(line, Entry):
                self.add([line], self.schema.extended([line.columns], f"instance '{line.id}'"))
            else:
                self._begin(line, root)

    def _begin(self, begin: Begin, root: Path) -> None:
        if self.dtype not in (None, begin.dtype):
            raise ZooError(f"'{root}' was begun with dtype {begin.dtype}, not {self.dtype}.")
        self.dtype = begin.dtype
        self.architectures[begin.stored.name] = begin.stored
