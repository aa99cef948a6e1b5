"""Types of a table's columns: the narrowest that fits all cells, or the one that is asked for.

int, float, bool, text, date (2026-11-27), timestamp (2026-11-27 13:50, also with seconds and a time zone) or list
([0.9, 0.5]).

Nothing is guessed that may be wrong: `0,81` and `82%` are numbers only in a column that is asked to be float (and 0,81
also between semicolons or tabs, where a comma is the decimal one), and codes such as `007` or `12e5` are text. Each
column tells what it became.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from prepkit.errors import ZooError, listed
from prepkit.zoo.format.columns import ZONED

ASKED = ("int", "float", "bool", "text", "date", "timestamp", "list")
KINDS: dict[object, str] = {
    **{kind: kind for kind in ASKED},
    "str": "text",
    int: "int",
    float: "float",
    bool: "bool",
    str: "text",
    date: "date",
    datetime: "timestamp",
    list: "list",
}
INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")  # 007 is a name; 18 digits fit 64 bits
# A float holds whole numbers of up to 15 digits exactly; longer ones stay text. 12e5 may be a code, unlike 1e5.
FLOAT = re.compile(
    r"[+-]?((0|[1-9][0-9]{0,14})|[0-9][eE][+-]?[0-9]+|[1-9][0-9]{1,14}[eE][+-][0-9]+"
    r"|(0|[1-9][0-9]*)?\.[0-9]*([eE][+-]?[0-9]+)?|inf|nan)",
    re.IGNORECASE,
)
ANY_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(inf|nan)", re.IGNORECASE)
DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?")
THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+")
MISSING = ("na", "n/a", "none", "null", "-")  # an empty cell in a column that is asked to be no text
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
TIME = DATE.pattern + r"[ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?"
ZONE = r"(Z|[+-][0-9]{2}:?[0-9]{2})"
BRACKETED = re.compile(r"\[.*\]|\(.*\)", re.DOTALL)
NUMPY = re.compile(r"np\.(?:float|int)[0-9]+\(([^()]*)\)")  # how numpy shows a number in a list
UNMISTAKABLE = {
    "date": DATE,
    "timestamp": re.compile(TIME),
    ZONED: re.compile(TIME + ZONE),
    "list": re.compile(r"\[.*\]", re.DOTALL),
}
BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


@dataclass(frozen=True)
class Column:
    """A column's values, their type, and what is to be said about how they were read, often nothing."""

    values: list[Any]
    kind: str
    remark: str = ""

    def __str__(self) -> str:
        empty = sum(value is None for value in self.values)
        missing = f", {empty:,} of {len(self.values):,} empty" if empty else ""
        return f"{self.kind}{missing}{'; ' if self.remark else ''}{self.remark}"


def checked_types(types: Mapping[str, str | type], columns: Sequence[str], place: str) -> dict[str, str]:
    """Return the types that are asked for.

    raises ZooError for a column that is not there, or a type that no column has
    """
    for name, kind in types.items():
        if name not in columns:
            raise ZooError(f"{place}: types= names the column '{name}'; there are {listed(columns, 20)}.")
        if kind not in KINDS:
            known = f"{', '.join(ASKED[:-1])} or {ASKED[-1]}"
            raise ZooError(f"{place}, column '{name}': there is no type {kind!r}; use {known}.")
    return {name: KINDS[kind] for name, kind in types.items()}


def typed(cells: Sequence[str], *, decimal_comma: bool = False, lines: Sequence[int] = ()) -> Column:
    """Read the cells of a column as the narrowest type that fits all of them, empty cells as None.

    decimal_comma: whether a comma may be the decimal one
    lines:         numbers of the cells' lines, for the remark
    """
    filled = [cell for cell in cells if cell]
    if not filled:
        return Column([None] * len(cells), "empty")
    if all(INTEGER.fullmatch(cell) for cell in filled):
        return _column(cells, "int", int)
    if all(_is_float(cell) for cell in filled):
        return _column(cells, "float", float)
    if all(cell.lower() in ("true", "false") for cell in filled):
        return _column(cells, "bool", _boolean)
    for kind, looks_like in UNMISTAKABLE.items():
        with suppress(ValueError):
            if all(map(looks_like.fullmatch, filled)):
                return _column(cells, kind, READERS[kind])
    commas = [cell for cell in filled if DECIMAL_COMMA.fullmatch(cell)]
    if (
        decimal_comma
        and commas
        and all(cell in commas or _is_float(cell) for cell in filled)
        and not _thousands(commas)
    ):
        return _column(
            cells, "float", _with_comma, f"the comma is a decimal one: {commas[0]} is {_with_comma(commas[0])}"
        )
    return _column(cells, "text", str, _why_text(cells, filled, lines))


def read_as(kind: str, cells: Sequence[str], lines: Sequence[int], place: str) -> Column:
    """Read the cells of a column as the type that is asked for; numbers may have a decimal comma or end in %.

    raises ZooError naming the line of a cell that has another type
    """
    if kind == "text":
        return _column(cells, "text", str)
    if kind == "float" and _thousands([cell for cell in cells if DECIMAL_COMMA.fullmatch(cell)]):
        cell = next(cell for cell in cells if THOUSANDS.fullmatch(cell))
        raise ZooError(f"{place}: '{cell}' may be {cell.replace(',', '.')} or {cell.replace(',', '')}; write it so.")
    values = []
    for cell, line in zip(cells, lines, strict=True):
        try:
            values.append(None if not cell or cell.lower() in MISSING else READERS[kind](cell))
        except (ValueError, KeyError, OverflowError):
            raise ZooError(
                f"{place}, line {line}: '{cell}' is no {kind}, as which the column is to be read (types=). Correct the "
                "cell, or read the column as text."
            ) from None
    special = next((cell for cell in cells if "%" in cell or "," in cell), None) if kind != "list" else None
    return Column(values, kind, f"{special} is {READERS[kind](special)}" if special else "")


def _column(cells: Sequence[str], kind: str, read: Callable[[str], Any], remark: str = "") -> Column:
    return Column([read(cell) if cell else None for cell in cells], kind, remark)


def _is_float(cell: str) -> bool:
    return FLOAT.fullmatch(cell) is not None and any(character.isalnum() for character in cell)


def _thousands(commas: Sequence[str]) -> bool:
    """Return whether the commas of a column may all stand between thousands."""
    return bool(commas) and all(THOUSANDS.fullmatch(cell) for cell in commas)


def _why_text(cells: Sequence[str], filled: Sequence[str], lines: Sequence[int]) -> str:
    """Return why a column that looks like numbers is text, and what reads it as numbers; nothing for other text."""
    like = [cell for cell in filled if _like_number(cell)]
    if 2 * len(like) < len(filled):
        return ""
    odd = next((cell for cell in filled if not _is_float(cell)), filled[0])
    line = f" in line {lines[cells.index(odd)]}" if lines else ""
    if not _like_number(odd):
        return f"'{odd}'{line} is no number"
    return f"'{odd}'{line} may be a number; types= reads the column as float"


def _like_number(cell: str) -> bool:
    try:
        _float(cell)
    except ValueError:
        return False
    return not re.fullmatch(r"[+-]?0[0-9]+", cell)  # 007


def _boolean(cell: str) -> bool:
    return BOOLEANS[cell.lower()]


def _with_comma(cell: str) -> float:
    return float(cell.replace(",", "."))


def _float(cell: str) -> float:
    """Read a number that may have a decimal comma, or end in %."""
    number = cell.removesuffix("%").rstrip()
    if DECIMAL_COMMA.fullmatch(number):
        number = number.replace(",", ".")
    if not ANY_FLOAT.fullmatch(number):
        raise ValueError(cell)
    return float(number) / 100 if cell.endswith("%") else float(number)


def _int(cell: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]+", cell) or not -(2**63) <= int(cell) < 2**63:
        raise ValueError(cell)
    return int(cell)


def _date(cell: str) -> date:
    if not DATE.fullmatch(cell):
        raise ValueError(cell)
    return date.fromisoformat(cell)


def _timestamp(cell: str) -> datetime:
    """Read a date with a time; without one it is midnight."""
    if not re.fullmatch(f"{DATE.pattern}|{TIME}{ZONE}?", cell):
        raise ValueError(cell)
    return datetime.fromisoformat(cell)


def _list(cell: str) -> list[float | int | None]:
    """Read numbers in brackets or without, between spaces, semicolons or bars, and in brackets also between commas."""
    inside = cell[1:-1].strip() if BRACKETED.fullmatch(cell) else cell
    inside = NUMPY.sub(r"\1", inside)
    separator = next((mark for mark in ";|," if mark in inside), None)
    if separator == "," and not BRACKETED.fullmatch(cell):
        raise ValueError(cell)  # 0,9 may be one number or two
    return [_number(item.strip()) for item in inside.split(separator)] if inside else []


def _number(item: str) -> float | int | None:
    if item.lower() in MISSING:
        return None
    if INTEGER.fullmatch(item):
        return int(item)
    if not ANY_FLOAT.fullmatch(item):
        raise ValueError(item)
    return float(item)


READERS: dict[str, Callable[[str], Any]] = {
    "int": _int,
    "float": _float,
    "bool": _boolean,
    "date": _date,
    "timestamp": _timestamp,
    ZONED: _timestamp,
    "list": _list,
}
