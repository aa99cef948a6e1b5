"""Which given row is of which instance: a join of a zoo's table with given columns, on ids, paths or other columns."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.errors import ZooError, counted, listed, nearest
from prepkit.zoo.change._given_columns import GivenColumns, is_text
from prepkit.zoo.write.model_paths import slashed, without_suffix
from prepkit.zoo.write.tables import FILE

if TYPE_CHECKING:
    import pyarrow as pa

On = str | Sequence[str] | Mapping[str, str] | None


@dataclass(frozen=True)
class Match:
    """The given row of each instance.

    rows:    number of the row of each instance, -1 for none
    columns: names of the given columns that rows were found by
    notes:   sentences on rows and instances without a partner
    """

    rows: np.ndarray
    columns: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def count(self) -> int:
        """The number of instances that have a row."""
        return int((self.rows >= 0).sum())


def matched(table: pa.Table, given: GivenColumns, on: On) -> Match:
    """Find the row of each instance.

    on: see `annotate`
    raises ZooError for unknown columns, two rows of one key, or if no row is of any instance
    """
    names: Mapping[str, str] = {}
    columns: tuple[str, ...] = (FILE,)
    if on is None and "id" not in given.table.column_names and FILE in given.table.column_names:
        rows, corrected = _by_path(table, given)
    else:
        names = _key_columns(table, given, on)
        columns = tuple(names.values())
        rows, corrected = _by_values(table, given, names)
    if not (rows >= 0).any():
        raise ZooError(_no_match(table, given, columns, names))
    return Match(rows, columns, tuple(_without_partner(table, given, rows, corrected)))


def _key_columns(table: pa.Table, given: GivenColumns, on: On) -> dict[str, str]:
    """Return the zoo's columns that rows are found by, with the given column of each."""
    names = {"id": "id"} if on is None else {on: on} if isinstance(on, str) else on
    names = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
    for name, given_name in names.items():
        for column, known, place in (
            (given_name, given.table.column_names, given.name),
            (name, table.column_names, "the zoo"),
        ):
            if column not in known:
                raise ZooError(
                    f"{place}: there is no column '{column}' to find rows by; there are {listed(known, 12)}."
                    f"{nearest(column, known)} Name the columns with `on`."
                )
    if not names:
        raise ZooError("`on` names no column to find rows by.")
    return names


def _by_values(table: pa.Table, given: GivenColumns, names: Mapping[str, str]) -> tuple[np.ndarray, list[int]]:
    """Return the row of each instance by the values of columns, and the rows that later ones correct."""
    corrected = []
    keys = [_values(table[name], given, given_name) for name, given_name in names.items()]
    numbers: dict[Any, int] = {}
    for number, key in enumerate(zip(*(theirs for _, theirs in keys), strict=True)):
        if None in key:
            continue
        first = numbers.setdefault(key, number)
        if first != number:
            if not given.last_wins:
                text = ", ".join(f"{name} {value!r}" for name, value in zip(names.values(), key, strict=True))
                places = f"{given.place(first)} and {given.place(number)}"
                raise ZooError(f"{given.name}: {places} are both of {text}; keep one of them.")
            corrected.append(numbers[key])
            numbers[key] = number
    ours = zip(*(values for values, _ in keys), strict=True)
    return np.array([numbers.get(key, -1) for key in ours], dtype=np.int64), corrected


def _values(column: pa.ChunkedArray, given: GivenColumns, name: str) -> tuple[list[Any], list[Any]]:
    """Return the values of a key in the zoo and in the given rows, in the same type: text where either is text."""
    import pyarrow as pa

    theirs = given.table[name]
    if pa.types.is_nested(column.type) or pa.types.is_nested(theirs.type):
        raise ZooError(
            f"{given.name}: the column '{name}' holds lists, by which no row is found; choose another column."
        )
    if is_text(column.type):
        theirs = given.as_text(name)
    if is_text(column.type) != is_text(theirs.type) and not pa.types.is_null(theirs.type):
        raise ZooError(
            f"{given.name}: the column '{name}' holds {theirs.type}, but the zoo's holds {column.type}, so no value of "
            "the one equals a value of the other."
        )
    return column.to_pylist(), theirs.to_pylist()


def _by_path(table: pa.Table, given: GivenColumns) -> tuple[np.ndarray, list[int]]:
    """Return the row of each instance by the path of its file, and the rows that later ones correct.

    An id is the path, or its last parts, without suffix.
    """
    corrected: list[int] = []
    ids = {id: number for number, id in enumerate(table["id"].to_pylist())}
    rows = np.full(len(ids), -1, dtype=np.int64)
    for row, file in enumerate(given.table[FILE].to_pylist()):
        parts = without_suffix(posixpath.normpath(slashed(str(file)))).split("/")
        endings = ("/".join(parts[start:]) for start in range(len(parts)))
        instance = next((ids[ending] for ending in endings if ending in ids), None)
        if instance is None:
            continue
        if rows[instance] >= 0:
            corrected.append(int(rows[instance]))
        if rows[instance] >= 0 and not given.last_wins:
            first, second = given.place(rows[instance]), given.place(row)
            raise ZooError(
                f"{given.name}: {first} and {second} may both be of '{table['id'][instance].as_py()}'; name "
                "instances by their ids in a column `id`."
            )
        rows[instance] = row
    return rows, corrected


def _no_match(table: pa.Table, given: GivenColumns, columns: Sequence[str], names: Mapping[str, str]) -> str:
    """Return the message that no row is of any instance, with an example of both."""
    theirs = ", ".join(f"{name} {given.table[name][0].as_py()!r}" for name in columns) if len(given.table) else "none"
    ours = ", ".join(f"{name} {table[name][0].as_py()!r}" for name in names or ("id",)) if len(table) else "none"
    return (
        f"{given.name}: no row is of any of {counted(len(table), 'instance')}; the first row has {theirs}, the first "
        f"instance {ours}."
    )


def _without_partner(table: pa.Table, given: GivenColumns, rows: np.ndarray, corrected: Sequence[int]) -> list[str]:
    """Return sentences on instances without a row, and rows without an instance."""
    notes = []
    lacking = np.flatnonzero(rows < 0)
    if len(lacking):
        ids = listed(table["id"][int(number)].as_py() for number in lacking[:6])
        more = f" and {len(lacking) - 6:,} more" if len(lacking) > 6 else ""
        have = "has" if len(lacking) == 1 else "have"
        notes.append(f"{counted(len(lacking), 'instance')} {have} no row in {given.name}: {ids}{more}.")
    is_used = np.zeros(len(given.table), dtype=bool)
    is_used[rows[rows >= 0]] = True
    is_used[list(corrected)] = True
    if corrected:
        are = "is" if len(corrected) == 1 else "are"
        several = counted(len(corrected), "row")
        notes.append(f"{several} of {given.name} {are} followed by a later one of the same key, which is taken.")
    unused = np.flatnonzero(~is_used)
    if len(unused):
        lines = listed(given.place(int(number)) for number in unused[:6])
        more = f" and {len(unused) - 6:,} more" if len(unused) > 6 else ""
        are = "is" if len(unused) == 1 else "are"
        notes.append(f"{counted(len(unused), 'row')} of {given.name} {are} of no instance: {lines}{more}.")
    return notes
