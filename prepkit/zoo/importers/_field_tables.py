"""Join tables to models by the fields of their paths: one table for all models, or one a run, found by a pattern.

    files    {run}/checkpoint_{epoch:int}/checkpoints
    one      runs.csv                  with a column `run`, or `run` and `epoch`; or with paths in a column `file`
    a run    {run}/result.json         with a column `epoch`; a table that has only one row needs none
    on       {"epoch": "training_iteration"}       for a field that the tables call otherwise

A row is found by its values, never by its place. In JSONL, and in any table of a run, the last row of a key wins, since
a training that was resumed writes some rows twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError, counted, listed
from prepkit.zoo.format.columns import OWN_COLUMNS
from prepkit.zoo.importers._pattern import Fit, PathPattern
from prepkit.zoo.write.paths_join import joined
from prepkit.zoo.write.tables import FILE, Table, all_types, read_table

TABLES_KEPT = 64  # tables of runs that are kept in memory: files of a list may stand in any order

Key = tuple[int | float | str, ...]


class JoinedTable(ABC):
    """A table, one for all models or one a run, of which each model has at most one row.

    name: what the user called it
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def row(self, index: int, fit: Fit) -> Mapping[str, Any] | None:
        """Return the values of a model's row, without those of its key; None if it has none."""

    @abstractmethod
    def notes(self, fits: Sequence[Fit]) -> list[str]:
        """Return sentences on rows without a file and files without a row."""

    def column(self, name: str) -> str:
        """Return the name that a column of the table has in the zoo's table."""
        return f"{Path(self.name).stem}.{name}" if name in OWN_COLUMNS else name


class TableForAll(JoinedTable):
    """One table for all models, joined on fields, or on paths where it has a column `file`.

    types: what each of its columns became
    ids:   id of each model by its index, if the table has a column `id` and a row for each model alone
    """

    def __init__(
        self,
        path: Path,
        pattern: PathPattern,
        fits: Sequence[Fit],
        files: Sequence[str],
        on: Mapping[str, str],
        types: Mapping[str, str | type],
    ) -> None:
        super().__init__(str(path))
        self.table = read_table(path, types, strict=False)
        candidates: Iterable[int]
        by_path = FILE in self.table.columns and not set(on.values()) & {*self.table.columns}
        if by_path:
            names = [str(row.get(FILE)) for row in self.table.rows]
            join = joined([Path(file) for file in files], names, path, self.table.numbers)
            self.numbers, self._notes = join.rows, [*self.table.notes, *join.notes]
            self._left_out, candidates = {FILE}, range(len(names))
        else:
            fields = key_fields(self.table, pattern, on, self.name, ())
            rows, twice = rows_by_key(self.table, fields, pattern, self.name)
            self._notes = [*self.table.notes, *note_on_twice(twice, self.name)]
            self.numbers = [rows.get(key_of_fields(fit, fields)) for fit in fits]
            self._left_out, candidates = {column for name, column in fields.items() if name == column}, rows.values()
        if fits and not any(number is not None for number in self.numbers):
            raise ZooError(f"{path}: no row is of any of {counted(len(fits), 'file')}{_example(self, fits)}.")
        used = Counter(number for number in self.numbers if number is not None)
        self.is_one_to_one = max(used.values(), default=0) == 1
        self._unused = sorted(set(candidates) - used.keys())

    def row(self, index: int, fit: Fit) -> Mapping[str, Any] | None:
        """Return the values of a model's row."""
        number = self.numbers[index]
        if number is None:
            return None
        left_out = self._left_out | ({"id"} if self.is_one_to_one else set())
        return {self.column_of(name): value for name, value in self.table.rows[number].items() if name not in left_out}

    def column_of(self, name: str) -> str:
        """Return a column's name in the zoo's table; `split` stays, as it becomes the split."""
        return name if name == "split" else self.column(name)

    def id_of(self, index: int) -> str | None:
        """Return the id that the table gives a model."""
        number = self.numbers[index]
        value = None if number is None or not self.is_one_to_one else self.table.rows[number].get("id")
        return None if value is None else str(value)

    def notes(self, fits: Sequence[Fit]) -> list[str]:
        """Return sentences on rows without a file and files without a row."""
        without = [
            "/".join(fit.texts.values()) for fit, number in zip(fits, self.numbers, strict=True) if number is None
        ]
        lines = [str(self.table.numbers[number]) for number in self._unused]
        return [*self._notes, *_note_on_files(without, self.name), *_note_on_rows(lines, self.name)]


class TablesOfRuns(JoinedTable):
    """A table for each run, read when the first of its models is; the latest are kept in memory."""

    def __init__(
        self,
        root: Path | None,
        text: str,
        pattern: PathPattern,
        fits: Sequence[Fit],
        on: Mapping[str, str],
        types: Mapping[str, str | type],
    ) -> None:
        super().__init__(text)
        self.pattern, self.own, self.on = pattern, PathPattern.parse(text), on
        self.root = root
        self.types = dict(types)
        self.described: dict[str, str] = {}
        self._cache: OrderedDict[str, tuple[Table, dict[Key, int], dict[str, str]] | None] = OrderedDict()
        self._wanted: dict[str, list[Fit]] = {}
        for fit in fits:
            self._wanted.setdefault(self._path(fit), []).append(fit)
        self._rows_without: Counter[str] = Counter()
        self._files_without: Counter[str] = Counter()
        self._missing: list[str] = []
        self._twice: Counter[str] = Counter()
        self._told: list[str] = []
        self._unkept: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._find_types()

    def row(self, index: int, fit: Fit) -> Mapping[str, Any] | None:
        """Return the values of a model's row in its run's table."""
        read = self._read(self._path(fit))
        if read is None:
            return None
        table, rows, fields = read
        number = rows.get(key_of_fields(fit, fields))
        if number is None:
            return None
        same = {column for name, column in fields.items() if name == column}
        return {
            name if name == "split" else self.column(name): value
            for name, value in table.rows[number].items()
            if name not in same
        }

    def notes(self, fits: Sequence[Fit]) -> list[str]:
        """Return sentences on tables, rows and files that have no partner; tables that were not read are read now."""
        for path in self._wanted:
            if path not in self._seen:
                self._read(path)
        notes = list(self._told)
        if self._missing:
            noun = counted(len(self._missing), "table is", "tables are")
            notes.append(f"{noun} missing, whose models have no such columns: {listed(self._missing)}.")
        if total := sum(self._files_without.values()):
            notes.append(f"{counted(total, 'file')} without a row in {self.name}: {_by_path(self._files_without)}.")
        if total := sum(self._rows_without.values()):
            notes.append(f"{counted(total, 'row')} of {self.name} without a file: {_by_path(self._rows_without)}.")
        notes += note_on_twice(self._twice, self.name)
        if self._unkept:
            names = listed(f"{name} ({counted(count, 'row')})" for name, count in self._unkept.items())
            notes.append(f"Left in {self.name}, since a table has no place for it: {names}.")
        return notes + self._note_on_unused_tables()

    def _path(self, fit: Fit) -> str:
        return fit.root + self.own.path_of(fit.texts)

    def _read(self, path: str) -> tuple[Table, dict[Key, int], dict[str, str]] | None:
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        read = None
        is_new = path not in self._seen
        self._seen.add(path)
        if Path(path).is_file():
            table = read_table(Path(path), self.types, one_row=True, strict=False)
            fields = self._fields(table, path)
            rows, twice = rows_by_key(table, fields, self.pattern, path, last_wins=True)
            read = table, rows, fields
            if is_new:
                keys = {key_of_fields(fit, fields) for fit in self._wanted[path]}
                self._told += table.notes
                self._unkept.update(table.unkept)
                if twice:
                    self._twice[path] = len(twice)
                if fields:
                    self._rows_without[path] = len(rows.keys() - keys)
                self._files_without[path] = sum(key_of_fields(fit, fields) not in rows for fit in self._wanted[path])
        elif is_new:
            self._missing.append(path)
        self._cache[path] = read
        if len(self._cache) > TABLES_KEPT:
            self._cache.popitem(last=False)
        return read

    def _fields(self, table: Table, path: str) -> dict[str, str]:
        """Return the fields that a row is found by, with the column of each: those that the table's own path lacks."""
        needed = [name for name in self.pattern.kinds if name not in self.own.kinds]
        has_key = any(self.on.get(name, name) in table.columns for name in needed)
        if needed and (has_key or len(table.rows) > 1):
            return key_fields(table, self.pattern, self.on, path, self.own.kinds)
        if len(table.rows) > 1:
            raise ZooError(
                f"{path}: has {len(table.rows):,} rows, but no field of '{self.pattern.text}' says which of them is a "
                "model's. Give the pattern such a field, as in model_{epoch:int}.pt, or name another table."
            )
        return {}

    def _find_types(self) -> None:
        """Find the types that the columns of text tables have in all runs together."""
        kinds: dict[str, set[str]] = {}
        for path in self._wanted:
            if not Path(path).is_file():
                continue
            table = read_table(Path(path), self.types, one_row=True, strict=False)
            if not table.texts:
                return  # JSON, whose values have types
            for name, described in table.types.items():
                kinds.setdefault(name, set()).add(described.partition(",")[0].partition(";")[0])
        found = {name: all_types(names) for name, names in kinds.items()}
        self.described = found
        self.types = {**{name: kind for name, kind in found.items() if kind in ("int", "float", "text")}, **self.types}

    def _note_on_unused_tables(self) -> list[str]:
        if self.root is None:
            return []
        from prepkit.zoo.importers._pattern import walk

        try:
            tables = walk(self.root, self.own).files
        except ZooError:  # there is none, and those that are missing were told
            return []
        unused = [table for table in tables if f"{self.root}/{table}" not in self._wanted]
        if not unused:
            return []
        return [f"{counted(len(unused), 'table')} of {self.name} without a file: {listed(unused)}."]


def key_fields(
    table: Table, pattern: PathPattern, on: Mapping[str, str], place: str, given: Collection[str]
) -> dict[str, str]:
    """Return the fields that a row is found by, with the column of each.

    given: fields that the table's own path says
    raises ZooError if there is none
    """
    fields = {
        name: on.get(name, name) for name in pattern.kinds if name not in given and on.get(name, name) in table.columns
    }
    needed = [name for name in pattern.kinds if name not in given]
    missing = [name for name in needed if name not in fields]
    if not fields or (given and missing):
        name = (missing or needed)[0]
        raise ZooError(
            f"{place}: no column '{on.get(name, name)}' tells which row is of which {name}; there are "
            f"{listed(table.columns, 12)}. Say which column it is with `on`, such as {name}=COLUMN."
        )
    return fields


def key_of_fields(fit: Fit, fields: Mapping[str, str]) -> Key:
    """Return the key of a model's row."""
    return tuple(fit.fields[name] for name in fields)


def rows_by_key(
    table: Table, fields: Mapping[str, str], pattern: PathPattern, place: str, last_wins: bool = False
) -> tuple[dict[Key, int], list[Key]]:
    """Return the number of the row of each key, and the keys that stand in several rows.

    raises ZooError if a key stands in several rows that differ, unless the last one wins
    """
    rows: dict[Key, int] = {}
    twice: list[Key] = []
    for number, row in enumerate(table.rows):
        key = []
        for name, column in fields.items():
            value = table.texts[column][number] if column in table.texts else row.get(column)
            part = _as_field(value, pattern.kinds[name])
            if part is None:
                break
            key.append(part)
        else:
            whole = tuple(key)
            if whole in rows:
                first = rows[whole]
                if not (last_wins or table.last_wins) and table.rows[first] != row:
                    keys = ", ".join(f"{column} {part}" for column, part in zip(fields.values(), whole, strict=True))
                    raise ZooError(
                        f"{place}, lines {table.numbers[first]} and {table.numbers[number]}: two rows of {keys} "
                        "differ; keep one of them."
                    )
                twice.append(whole)
            rows[whole] = number
    return rows, twice


def _as_field(value: Any, kind: str) -> int | float | str | None:
    """Return a cell as a field of a kind has it; None if it is no such value."""
    if value is None or isinstance(value, bool):
        return None
    try:
        if kind == "text":
            return str(value)
        number = float(value)
        if kind == "float":
            return number
        return int(value) if isinstance(value, str) and value.lstrip("+-").isdigit() else _whole(number)
    except (TypeError, ValueError, OverflowError):
        return None


def _whole(number: float) -> int | None:
    return int(number) if number.is_integer() else None


def note_on_twice(twice: Mapping[str, int] | Sequence[Key], name: str) -> list[str]:
    """Return a sentence on keys that stand in several rows, if there are any."""
    total = sum(twice.values()) if isinstance(twice, Mapping) else len(twice)
    if not total:
        return []
    rows = counted(total, "row")
    return [
        f"{rows} of {name} {'is' if total == 1 else 'are'} followed by a later one of the same key, which is taken."
    ]


def _note_on_files(names: Sequence[str], table: str) -> list[str]:
    return [f"{counted(len(names), 'file')} without a row in {table}: {listed(names)}."] if names else []


def _note_on_rows(lines: Sequence[str], table: str) -> list[str]:
    return [f"{counted(len(lines), 'row')} of {table} without a file: lines {listed(lines)}."] if lines else []


def _by_path(counts: Counter[str]) -> str:
    return listed(f"{path} ({count})" for path, count in counts.items() if count)


def _example(table: TableForAll, fits: Sequence[Fit]) -> str:
    """Return what a file and a row look like, for an error."""
    first = table.table.rows[0] if table.table.rows else {}
    row = ", ".join(f"{name} {value!r}" for name, value in list(first.items())[:4])
    file = ", ".join(f"{name} {value!r}" for name, value in fits[0].fields.items())
    return f"; the first file has {file}, the first row {row or 'nothing'}"
