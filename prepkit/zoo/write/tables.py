"""Read tables of metadata: CSV and its kin (`_table_text`), JSON and JSONL (`_json_rows`), with typed values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError, listed
from prepkit.support.files import like_in_folder
from prepkit.zoo.format.columns import OWN_COLUMNS, plain_columns
from prepkit.zoo.write._json_rows import is_json, read_json_rows
from prepkit.zoo.write._table_text import FILE as FILE
from prepkit.zoo.write._table_text import ROLES, read_text
from prepkit.zoo.write.cell_types import checked_types, read_as, typed


@dataclass(frozen=True)
class Table:
    """The rows of a table.

    numbers: number of each row's line
    rows:    values by column, None for an empty cell; a row of JSON lacks the columns that it does not name
    columns: names of all columns, in order
    types:   what each of the user's columns became; empty for JSON, whose values have types
    texts:   cells of each column as they stand in a CSV file; empty for JSON
    unkept:  columns of JSON with the number of values that no table holds, such as lists of objects
    last_wins: whether a later row corrects an earlier one
    """

    numbers: list[int]
    rows: list[dict[str, Any]]
    columns: list[str]
    types: dict[str, str] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unkept: Counter[str] = field(default_factory=Counter)
    last_wins: bool = False


def read_table(
    path: Path, types: Mapping[str, str | type] | None = None, *, one_row: bool = False, strict: bool = True
) -> Table:
    """Read a table of any kind.

    types:   types of columns; the narrowest that fits all cells if missing
    one_row: whether a JSON object is one row, whatever its values are
    strict:  whether types may name only columns that are there
    raises ZooError naming the line that is wrong
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        like = like_in_folder(path) if isinstance(error, FileNotFoundError) else ""
        raise ZooError(f"{path}: cannot be read: {error.strerror}.{like}") from None
    if is_json(content):
        return _of_json(path, content, types or {}, one_row)
    return _of_csv(path, content, types or {}, strict)


def _of_csv(path: Path, content: bytes, types: Mapping[str, str | type], strict: bool) -> Table:
    text = read_text(path, content)
    repeated = sorted({name for name in text.header if text.header.count(name) > 1})
    if repeated:
        raise ZooError(f"{path}: the columns {listed(repeated)} stand twice.")
    users = [name for name in text.header if name not in ROLES]
    types = types if strict else {name: kind for name, kind in types.items() if name in users}
    asked = checked_types(types, users, str(path))
    numbers = [number for number, _ in text.lines]
    texts = {name: [line[place] for _, line in text.lines] for place, name in enumerate(text.header)}
    columns: dict[str, list[Any]] = {}
    described = {}
    for name, cells in texts.items():
        if name in ROLES:
            columns[name] = [cell or None for cell in cells]
            continue
        if name in asked:
            column = read_as(asked[name], cells, numbers, f"{path}, column '{name}'")
        else:
            column = typed(cells, decimal_comma=text.delimiter in ";\t", lines=numbers)
        columns[name], described[name] = column.values, str(column)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Table(numbers, rows, list(columns), described, texts, text.notes)


def _of_json(path: Path, content: bytes, types: Mapping[str, str | type], one_row: bool) -> Table:
    read = read_json_rows(path, content, one_row=one_row)
    columns = list(dict.fromkeys(name for row in read.rows for name in row))
    named = [name for name in types if name in columns]
    if named:
        raise ZooError(
            f"{path}: types= is for tables of text; values of JSON have the types that they are written in: "
            f"{listed(named)}."
        )
    unkept: Counter[str] = Counter()
    rows = [_kept(row, unkept) for row in read.rows]
    return Table(read.numbers, rows, columns, notes=read.notes, unkept=unkept, last_wins=read.is_lines)


def _kept(row: Mapping[str, Any], unkept: Counter[str]) -> dict[str, Any]:
    """Return the values of a row that a table holds; the others are counted."""
    kept = {}
    for name, value in row.items():
        role = name in ROLES and isinstance(value, str | int)
        if role:
            kept[name] = value
            continue
        try:
            kept[name] = holdable({name: value})[name]
        except ZooError:
            unkept[name] += 1
    return kept


def holdable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as a zoo's table holds them, also under names that are the zoo's own.

    raises ZooError for a value that no table holds, or a name that no column may have
    """
    under_a_prefix = {f"own.{name}" if name in OWN_COLUMNS else name: value for name, value in values.items()}
    return dict(zip(values, plain_columns(under_a_prefix, "").values(), strict=True))


def all_types(kinds: Iterable[str]) -> str:
    """Return the narrowest type of text tables that holds columns of all these types."""
    found = set(kinds) - {"empty"}
    if found <= {"int", "float"}:
        return "float" if "float" in found else "int" if found else "text"
    return found.pop() if len(found) == 1 else "text"
