"""Join tables to models by the fields of their paths: one table for all models, or one a run, found by a pattern.

    files    {run}/checkpoint_{epoch:int}/checkpoints
    one      runs.csv                  with a column `run`, or `run` and `epoch`; or with paths in a column `file`
    a run    {run}/result.json         with a column `epoch`; a table that has only one row needs none
    on       {"epoch": "training_iteration"}       for a field that the tables call otherwise

A row is found by its values, never by its place. In JSONL, and in any table of a run, the last row of a key wins, since
a training that was resumed writes some rows twice. It does not where the table lacks a field of the pattern: such rows
may be of several models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError, counted, listed
from prepkit.zoo.format.columns import OWN_COLUMNS
from prepkit.zoo.importers._pattern import Fit, PathPattern
from prepkit.zoo.importers._row_keys import Key, KeyedRows, as_field, key_fields, key_of_fields, rows_by_key
from prepkit.zoo.write.paths_join import joined
from prepkit.zoo.write.tables import FILE, Table, all_types, read_table

TABLES_KEPT = 64  # tables of runs that are kept in memory: files of a list may stand in any order
COUNTERS = ("training_iteration", "epoch", "step", "iteration")  # columns that tell how far a training was


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
        if not self.table.rows:
            raise ZooError(f"{path}: holds no rows; name another table, or leave it out.")
        candidates: Iterable[int]
        fields: dict[str, str] = {}
        lacking: list[str] = []
        by_path = FILE in self.table.columns and not set(on.values()) & {*self.table.columns}
        if by_path:
            names = [str(row.get(FILE)) for row in self.table.rows]
            join = joined([Path(file) for file in files], names, path, self.table.numbers)
            self.numbers, self._notes = join.rows, [*self.table.notes, *join.notes]
            self._left_out, candidates = {FILE}, range(len(names))
        else:
            fields = key_fields(self.table, pattern, on, self.name, ())
            lacking = [name for name in pattern.kinds if name not in fields]
            keyed = rows_by_key(self.table, fields, pattern, self.name, self.table.last_wins, lacking)
            self._notes = [*self.table.notes, *note_on_twice(keyed.twice, self.name)]
            self.numbers = [keyed.rows.get(key_of_fields(fit, fields)) for fit in fits]
            self._left_out = {column for name, column in fields.items() if name == column}
            candidates = [*keyed.rows.values(), *keyed.unread]
        if fits and not any(number is not None for number in self.numbers):
            example = _example(self, files[0] if by_path else _fields_of(fits[0]))
            raise ZooError(f"{path}: no row is of any of {counted(len(fits), 'file')}{example}.")
        used = Counter(number for number in self.numbers if number is not None)
        self.is_one_to_one = max(used.values(), default=0) == 1
        if lacking and not self.is_one_to_one:
            files_of_a_row = _up_to(used.values(), "file")
            self._notes.append(
                f"{self.name} is joined on {listed(fields)} alone, since it has no column for {listed(lacking)}; "
                f"each row is taken for {files_of_a_row}."
            )
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
        self._cache: OrderedDict[str, tuple[Table, KeyedRows, dict[str, str]] | None] = OrderedDict()
        self._fits = fits
        self._wanted: dict[str, array[int]] = {}  # indices of the models of each table
        for index, fit in enumerate(fits):
            self._wanted.setdefault(self._path(fit), array("q")).append(index)
        self._rows_without: Counter[str] = Counter()
        self._files_without: Counter[str] = Counter()
        self._missing: list[str] = []
        self._twice: Counter[str] = Counter()
        self._told: list[str] = []
        self._unkept: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._shared: dict[str, int] = {}
        self._find_types()
        self._check_joined()

    def row(self, index: int, fit: Fit) -> Mapping[str, Any] | None:
        """Return the values of a model's row in its run's table."""
        read = self._read(self._path(fit))
        if read is None:
            return None
        table, keyed, fields = read
        number = keyed.rows.get(key_of_fields(fit, fields))
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
        if self._shared:
            is_all = len(self._shared) == len(self._seen) - len(self._missing)
            of_runs = "one row a run" if is_all else f"one row in {counted(len(self._shared), 'table')}"
            count = max(self._shared.values())
            all_of_them = f"all {count:,}" if len({*self._shared.values()}) == 1 else f"all (up to {count:,})"
            notes.append(f"{self.name}: {of_runs}, taken for {all_of_them} of its models.")
        if self._unkept:
            names = listed(f"{name} ({counted(count, 'row')})" for name, count in self._unkept.items())
            notes.append(f"Left in {self.name}, since a table has no place for it: {names}.")
        return notes + self._note_on_unused_tables()

    def _path(self, fit: Fit) -> str:
        return fit.root + self.own.path_of(fit.texts)

    def _read(self, path: str) -> tuple[Table, KeyedRows, dict[str, str]] | None:
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        read = None
        is_new = path not in self._seen
        self._seen.add(path)
        if Path(path).is_file():
            table = read_table(Path(path), self.types, one_row=True, strict=False)
            fields = self._fields(table, path)
            keyed = rows_by_key(table, fields, self.pattern, path, last_wins=True)
            read = table, keyed, fields
            if is_new:
                self._count(path, table, keyed, fields)
        elif is_new:
            self._missing.append(path)
        self._cache[path] = read
        if len(self._cache) > TABLES_KEPT:
            self._cache.popitem(last=False)
        return read

    def _count(self, path: str, table: Table, keyed: KeyedRows, fields: Mapping[str, str]) -> None:
        """Count what the notes tell of a table."""
        keys = [key_of_fields(self._fits[index], fields) for index in self._wanted[path]]
        self._told += table.notes
        self._unkept.update(table.unkept)
        if keyed.twice:
            self._twice[path] = len(keyed.twice)
        if fields:
            self._rows_without[path] = len(keyed.rows.keys() - set(keys)) + len(keyed.unread)
        elif table.rows and len(keys) > 1:
            self._shared[path] = len(keys)
        self._files_without[path] = sum(key not in keyed.rows for key in keys)

    def _check_joined(self) -> None:
        """Raise ZooError if no file has a row; tables are read until one has."""
        if not any(Path(path).is_file() for path in self._wanted):
            raise ZooError(f"table '{self.name}': none of the files is there: {listed(self._wanted)}.")
        for path, indices in self._wanted.items():
            read = self._read(path)
            if read is not None and any(key_of_fields(self._fits[at], read[2]) in read[1].rows for at in indices):
                return
        path = next(path for path in self._wanted if Path(path).is_file())
        table = read_table(Path(path), self.types, one_row=True, strict=False)
        row = ", ".join(f"{name} {value!r}" for name, value in list(table.rows[0].items())[:4]) if table.rows else ""
        count = counted(sum(map(len, self._wanted.values())), "file")
        raise ZooError(
            f"table '{self.name}': no row is of any of {count}; the first file has "
            f"{_fields_of(self._fits[self._wanted[path][0]])}, the first row of {path} {row or 'nothing'}."
        )

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
        self._refuse_counter(table, path, needed)
        return {}

    def _refuse_counter(self, table: Table, path: str, needed: Sequence[str]) -> None:
        """Raise ZooError if the only row of a run says how far the training was: it is the row of one model."""
        fields = [name for name in needed if self.pattern.kinds[name] == "int" and name not in self.on]
        columns = [name for name in COUNTERS if any(as_field(row.get(name), "int") is not None for row in table.rows)]
        if fields and columns:
            raise ZooError(
                f"{path}: its only row has {columns[0]} {table.rows[0][columns[0]]}, so it is of one model of the run, "
                f"but no column '{fields[0]}' tells which. Name the column: `on` {fields[0]}={columns[0]}."
            )

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


def _example(table: TableForAll, file: str) -> str:
    """Return what a file and a row look like, for an error.

    file: path of the first file, or its fields
    """
    row = ", ".join(f"{name} {value!r}" for name, value in list(table.table.rows[0].items())[:4])
    return f"; the first file has {file}, the first row {row or 'nothing'}"


def _fields_of(fit: Fit) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in fit.fields.items())


def _up_to(counts: Collection[int], noun: str) -> str:
    """Return `3 files`, or `up to 3 files` where there are fewer for some."""
    return f"{'up to ' if len(set(counts)) > 1 else ''}{counted(max(counts), noun)}"
