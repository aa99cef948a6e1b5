"""Result: what an experiment found, as text, numbers, claims, tables and pictures; a JSON file gives it back unchanged.

claims = [claim("Rank correlation of target and predicted accuracy", spearman, ">=", 0.95, interval=(0.7, 0.98))]
result = Result("accuracy", "Accuracy of unseen instances", "...", {"spearman": spearman}, claims)
result.save(folder)                          # folder/accuracy.json
Result.load(folder / "accuracy.json")        # equal to it
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from netspace.experiments.verdict import Claim as Claim
from netspace.experiments.verdict import ResultError as ResultError
from netspace.experiments.verdict import claim as claim
from prepkit.support.files import replacing
from prepkit.support.json_values import json_value

Cell: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """Rows under column names; a cell is text, a number, true or false, or empty."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Column:
    """A column of measures: each is multiplied by `scale` and rounded to `digits`; whole numbers stay as they are."""

    title: str
    key: str
    scale: float = 1
    digits: int | None = None

    def cell(self, measures: Mapping[str, Any]) -> Cell:
        """Return the measure as a cell; empty if it is missing."""
        value: Cell = measures.get(self.key)
        if value is None or self.digits is None:
            return value
        return round(self.scale * float(value), self.digits)


def table_of_measures(
    title: str, names: Sequence[str], rows: Mapping[Any, Mapping[str, Any]], columns: Sequence[Column]
) -> Table:
    """Return a table of measures.

    names: titles of the first columns, which say what a row is about
    rows:  cells of the first columns, a tuple or one cell -> measures by key
    """
    cells = []
    for first, measures in rows.items():
        about = first if isinstance(first, tuple) else (first,)
        cells.append((*about, *(column.cell(measures) for column in columns)))
    return Table(title, (*names, *(column.title for column in columns)), tuple(cells))


@dataclass(frozen=True)
class Picture:
    """A PNG or SVG in the folder of the result, named without a path."""

    title: str
    file: str


@dataclass(frozen=True)
class Result:
    """What an experiment found.

    name:    name of the experiment
    title:   a heading
    text:    paragraphs, with empty lines between, that say what was done and how to read the pictures
    numbers: all measures, JSON-able
    stamp:   what the result depends on, and how it was made: checkpoint, zoo, seed, sizes, code, versions, seconds
    """

    name: str
    title: str
    text: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    claims: Sequence[Claim] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    stamp: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Values become as JSON has them, so that a result that is loaded equals the one that was saved.
        place = f"result '{self.name}'"
        for name in ("claims", "pictures"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        try:
            for name in ("numbers", "stamp"):
                object.__setattr__(self, name, json_value(getattr(self, name), f"{place}, {name}"))
            object.__setattr__(self, "tables", tuple(_plain_table(table, place) for table in self.tables))
        except TypeError as error:
            raise ResultError(str(error)) from None

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write FOLDER/<name>.json atomically, and return its path.

        raises prepkit's OutputError if it cannot be written
        """
        path = Path(folder) / f"{self.name}.json"
        document = json_value(asdict(self))
        with replacing(path, overwrite=True) as temporary:
            temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Result:
        """Return the result that was saved.

        raises ResultError if the file is missing or holds no result
        """
        try:
            document = json.loads(Path(file).read_text(encoding="utf-8"))
            return cls(
                name=document["name"],
                title=document["title"],
                text=document["text"],
                numbers=document["numbers"],
                claims=[_claim(item) for item in document["claims"]],
                tables=[
                    Table(item["title"], tuple(item["columns"]), tuple(tuple(row) for row in item["rows"]))
                    for item in document["tables"]
                ],
                pictures=[_picture(item) for item in document["pictures"]],
                stamp=document["stamp"],
            )
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ResultError(f"{os.fspath(file)}: not a result ({error!r}). Run the experiment again.") from None


def _plain_table(table: Table, place: str) -> Table:
    rows = json_value(table.rows, f"{place}, table '{table.title}'")
    for row in rows:
        if len(row) != len(table.columns):
            raise ResultError(f"{place}, table '{table.title}': {len(table.columns)} columns, a row of {len(row)}.")
    return Table(table.title, tuple(table.columns), tuple(tuple(row) for row in rows))


def _claim(document: Mapping[str, Any]) -> Claim:
    interval = document["interval"]
    return Claim(
        text=str(document["text"]),
        number=_number(document["number"]),
        bound=str(document["bound"]),
        verdict=document["verdict"],
        kind=document["kind"],
        unit=document["unit"],
        interval=None if interval is None else (_number(interval[0]), _number(interval[1])),
        reason=str(document["reason"]),
        short=str(document["short"]),
    )


def _number(value: float | None) -> float:
    """Return a number of a document; NaN, which JSON does not have, is null there."""
    return math.nan if value is None else float(value)


def _picture(document: Mapping[str, Any]) -> Picture:
    """Read a picture; its file must be in the result's own folder, as results may come from elsewhere."""
    file = document["file"]
    if not isinstance(file, str) or not file or Path(file).name != file:
        raise ResultError(f"picture {file!r}: not the name of a file in the same folder.")
    return Picture(str(document["title"]), file)
