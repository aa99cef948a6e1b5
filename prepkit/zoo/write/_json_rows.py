"""Read the rows of a JSON or JSONL file, whatever its suffix: Ray calls JSONL result.json.

    {"training_iteration": 1, "acc": 0.5}        JSONL: a row a line; NaN and Infinity are read
    {"training_iteration": 2, "acc": NaN}
    [{"file": "a.pt", "acc": 0.5}, ...]          JSON: a list of rows,
    {"file": ["a.pt", ...], "acc": [0.5, ...]}   columns,
    {"a.pt": {"acc": 0.5}, ...}                  rows by the file that they are of,
    {"lr": 0.1, "model": {"nlin": "relu"}}       or one row

Objects inside a row become columns with dotted names, as `model.nlin`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError
from prepkit.support.json_values import by_dotted_key
from prepkit.zoo.write._table_text import FILE


@dataclass(frozen=True)
class JsonRows:
    """Rows by number of line, or of place in a JSON file, from 1 on.

    is_lines: whether each line is a row, so that a later one may correct an earlier one
    notes:    sentences on how the file was read
    """

    numbers: list[int]
    rows: list[dict[str, Any]]
    is_lines: bool
    notes: tuple[str, ...] = ()


def is_json(content: bytes) -> bool:
    """Return whether a file's first letter is one of JSON's."""
    return content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def read_json_rows(path: Path, content: bytes, *, one_row: bool) -> JsonRows:
    """Read a JSON or JSONL file.

    one_row: whether a JSON object is one row, whatever its values are
    raises ZooError naming the line that is wrong
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ZooError(f"{path}: not JSON in UTF-8: {error}; save it in UTF-8.") from None
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if not _is_object(lines[0]):
            place = f", line {error.lineno}: not JSON: {error.msg}" if isinstance(error, ValueError) else ": too deep"
            raise ZooError(f"{path}{place}. Write it again, or leave it out.") from None
        return _lines(path, text)
    if path.suffix == ".jsonl":
        return _lines(path, text)
    rows = _rows(value, one_row)
    wrong = next((number for number, row in enumerate(rows, 1) if not isinstance(row, Mapping)), None)
    if wrong is not None:
        raise ZooError(f"{path}, item {wrong}: holds a {type(rows[wrong - 1]).__name__}; a row is an object.")
    flat = [_flat(row, f"{path}, item {number}") for number, row in enumerate(rows, 1)]
    return JsonRows(list(range(1, len(rows) + 1)), flat, is_lines=False)


def _flat(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    try:
        return by_dotted_key(row)
    except ValueError as error:
        raise ZooError(f"{place}: two values would be the column '{error}'. Rename one of their keys.") from None


def _rows(value: Any, one_row: bool) -> list[Any]:
    if isinstance(value, list):
        return value
    items = list(value.values())
    if one_row or not items:
        return [value]
    if all(isinstance(item, Mapping) for item in items):
        return [{FILE: name, **row} for name, row in value.items()]
    if all(isinstance(item, list) for item in items) and len({len(item) for item in items}) == 1:
        return [dict(zip(value, row, strict=True)) for row in zip(*items, strict=True)]
    return [value]


def _lines(path: Path, text: str) -> JsonRows:
    numbers, rows = [], []
    notes: tuple[str, ...] = ()
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # the program that wrote it was stopped in the midst of a line
                notes = (f"The last line of {path} is cut short, and left out.",)
                break
            fault = error.msg if isinstance(error, json.JSONDecodeError) else "too deep"
            raise ZooError(f"{path}, line {number}: not JSON: {fault}. Mend the line, or take it out.") from None
        if not isinstance(row, Mapping):
            raise ZooError(f"{path}, line {number}: holds a {type(row).__name__}; a row is an object.")
        numbers.append(number)
        rows.append(_flat(row, f"{path}, line {number}"))
    return JsonRows(numbers, rows, is_lines=True, notes=notes)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), Mapping)
    except (ValueError, RecursionError):
        return False
