"""Result: what an experiment found, in words, numbers, claims, tables and pictures; a JSON file that comes back whole.

claims = [claim("Rank correlation of target and predicted accuracy", spearman, ">=", 0.95)]
result = Result("accuracy", "Accuracy of unseen instances", "...", {"spearman": spearman}, claims)
result.save(folder)                          # folder/accuracy.json
Result.load(folder / "accuracy.json")        # equal to it
"""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import prepkit
from prepkit.figures import new_figure as new_figure
from prepkit.files import replacing

Progress: TypeAlias = Callable[[str], None]  # told in words what is being done
Cell: TypeAlias = str | int | float | bool | None

RELATIONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
# Whose claim it is. "paper": the paper's, or an aim set for the embedded zoos; "beyond": a question that the paper does
# not ask; "check": that the measurement itself is sound, which says nothing of the method.
KINDS = ("paper", "beyond", "check")
# How a number is told: a share as per cent, a difference of shares as points, or as it is.
UNITS = ("%", "points", "")
DOTS_PER_INCH = 144


class ResultError(prepkit.PrepkitError, ValueError):
    """A result cannot be read, or holds what JSON has no form for."""


@dataclass(frozen=True)
class Claim:
    """What a number decides.

    text:   what the number is, so that `text: number` is understood without what stands around it
    number: what was found; NaN if there was nothing to find, then it is not held
    bound:  what it must be, such as ">= 0.95"
    kind:   one of KINDS
    unit:   one of UNITS; number and bound are shares all the same: 0.03 is told as 3 points
    """

    text: str
    number: float
    bound: str
    held: bool
    kind: str = "paper"
    unit: str = ""


def claim(text: str, number: float, relation: str, limit: float, *, kind: str = "paper", unit: str = "") -> Claim:
    """A claim, judged: held where `number relation limit` is true.

    relation: one of RELATIONS
    raises ResultError for an unknown kind or unit
    """
    if kind not in KINDS or unit not in UNITS:
        raise ResultError(f"claim '{text}': kind {kind!r} or unit {unit!r} is none of {KINDS} and {UNITS}.")
    held = bool(RELATIONS[relation](float(number), limit))
    return Claim(text, float(number), f"{relation} {limit:g}", held, kind, unit)


@dataclass(frozen=True)
class Table:
    """Rows under column names; a cell is text, a number, true or false, or nothing."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A PNG or SVG in the folder of the result, named without a path."""

    title: str
    file: str


@dataclass(frozen=True)
class Result:
    """What an experiment found.

    name:    of the experiment
    title:   a heading
    text:    a paragraph or more (empty lines between) in plain words: what was done and how to read the pictures
    numbers: all that was found, JSON-able
    stamp:   what it was found on (the caller's): checkpoint, seed, sizes, versions, seconds
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
        """Plain values in place of numpy's and torch's, None in place of NaN, so that a result comes back as it was."""
        place = f"result '{self.name}'"
        for name in ("claims", "pictures"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "numbers", plain(self.numbers, f"{place}, numbers"))
        object.__setattr__(self, "stamp", plain(self.stamp, f"{place}, stamp"))
        object.__setattr__(self, "tables", tuple(_plain_table(table, place) for table in self.tables))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write FOLDER/<name>.json, whole or not at all, and give its path.

        raises prepkit's OutputError if it cannot be written
        """
        path = Path(folder) / f"{self.name}.json"
        document = plain(asdict(self), f"result '{self.name}'")
        with replacing(path, overwrite=True) as temporary:
            temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Result:
        """The result that was saved.

        raises ResultError if the file is missing or holds none
        """
        try:
            document = json.loads(Path(file).read_text(encoding="utf-8"))
            return cls(
                name=document["name"],
                title=document["title"],
                text=document["text"],
                numbers=document["numbers"],
                claims=[_claim(one) for one in document["claims"]],
                tables=[
                    Table(one["title"], tuple(one["columns"]), tuple(tuple(row) for row in one["rows"]))
                    for one in document["tables"]
                ],
                pictures=[_picture(one) for one in document["pictures"]],
                stamp=document["stamp"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"{os.fspath(file)}: not a result ({error!r}). Run the experiment again.") from None


def plain(value: Any, place: str) -> Any:
    """A value as JSON has it: mappings, lists, text, whole numbers, floats, true, false; None for what is not finite.

    raises ResultError with the place of what has no such form
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(one, f"{place}, {key}") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one, f"{place}, [{index}]") for index, one in enumerate(value)]
    if hasattr(value, "tolist"):  # arrays, tensors, and scalars of numpy
        return plain(value.tolist(), place)
    raise ResultError(f"{place}: a {type(value).__name__} has no form in JSON.")


def save_figure(figure: Any, folder: str | os.PathLike[str], file: str) -> str:
    """Write a matplotlib Figure as PNG into a folder, the same bytes for the same figure, and give back its name.

    raises prepkit's OutputError if it cannot be written
    """
    with replacing(Path(folder) / file, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return file


def _plain_table(table: Table, place: str) -> Table:
    rows = plain(table.rows, f"{place}, table '{table.title}'")
    for row in rows:
        if len(row) != len(table.columns):
            raise ResultError(f"{place}, table '{table.title}': {len(table.columns)} columns, a row of {len(row)}.")
    return Table(table.title, tuple(table.columns), tuple(tuple(row) for row in rows))


def _claim(document: Mapping[str, Any]) -> Claim:
    number = math.nan if document["number"] is None else float(document["number"])
    kind, unit = document["kind"], document["unit"]
    if kind not in KINDS or unit not in UNITS:
        raise ResultError(f"claim of kind {kind!r} and unit {unit!r}: known are {KINDS} and {UNITS}.")
    return Claim(str(document["text"]), number, str(document["bound"]), bool(document["held"]), kind, unit)


def _picture(document: Mapping[str, Any]) -> Picture:
    """Of a file in the same folder: a result may have come from elsewhere, and what it names is read."""
    file = document["file"]
    if not isinstance(file, str) or not file or Path(file).name != file:
        raise ResultError(f"picture {file!r}: not the name of a file in the same folder.")
    return Picture(str(document["title"]), file)
