"""Keys of the rows of a table: the fields of a pattern, as the row's cells say them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prepkit.errors import ZooError, listed
from prepkit.zoo.importers._pattern import Fit, PathPattern
from prepkit.zoo.write.tables import Table

Key = tuple[int | float | str, ...]


@dataclass(frozen=True)
class KeyedRows:
    """Rows of a table by their keys.

    rows:   number of the row of each key
    twice:  keys that stand in several rows
    unread: numbers of the rows whose key cannot be read, such as one with `final` for {epoch:int}
    """

    rows: dict[Key, int] = field(default_factory=dict)
    twice: list[Key] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)


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
    table: Table,
    fields: Mapping[str, str],
    pattern: PathPattern,
    place: str,
    last_wins: bool,
    lacking: Sequence[str] = (),
) -> KeyedRows:
    """Find the row of each key.

    lacking: fields of the pattern that neither the table nor its path says; the last row of a key wins only without
    raises ZooError if a key stands in several rows that differ, unless the last one wins
    """
    keyed = KeyedRows()
    for number, row in enumerate(table.rows):
        key = _key(table, number, fields, pattern)
        if key is None:
            keyed.unread.append(number)
            continue
        first = keyed.rows.get(key)
        if first is not None:
            if (lacking or not last_wins) and table.rows[first] != row:
                raise _two_rows(table, (first, number), fields, key, place, lacking)
            keyed.twice.append(key)
        keyed.rows[key] = number
    return keyed


def _key(table: Table, number: int, fields: Mapping[str, str], pattern: PathPattern) -> Key | None:
    key = []
    for name, column in fields.items():
        value = table.texts[column][number] if column in table.texts else table.rows[number].get(column)
        part = as_field(value, pattern.kinds[name])
        if part is None:
            return None
        key.append(part)
    return tuple(key)


def _two_rows(
    table: Table, rows: tuple[int, int], fields: Mapping[str, str], key: Key, place: str, lacking: Sequence[str]
) -> ZooError:
    """Return the error for two rows of one key that differ."""
    first, second = (table.numbers[row] for row in rows)
    keys = ", ".join(f"{column} {part}" for column, part in zip(fields.values(), key, strict=True))
    start = f"{place}, lines {first} and {second}: two rows of {keys} differ"
    if not lacking:
        return ZooError(f"{start}; keep one of them.")
    return ZooError(
        f"{start}, and no column tells which row is of which {lacking[0]}; there are {listed(table.columns, 12)}. "
        f"Name the column: `on` {lacking[0]}=COLUMN. If there is none, keep one row of each {listed(fields.values())}."
    )


def as_field(value: Any, kind: str) -> int | float | str | None:
    """Return a cell as a field of a kind has it; None if it is no such value."""
    if value is None or value == "" or isinstance(value, bool):
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
