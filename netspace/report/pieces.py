"""Pieces of a report's page as HTML: tables, marks, pictures, links; all text is escaped."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace.report.words import bound, cell, found, number, told, verdict

if TYPE_CHECKING:
    from netspace.experiments.result import Claim, Picture, Table
    from netspace.report.model import RecipeClaim

MEDIA = {".png": "image/png", ".svg": "image/svg+xml"}
LONG_TABLE = 12  # rows; longer ones are folded
LONG_CELL = 25  # characters; such a cell is given room where the window is narrow


class Cell:
    """A table's cell that is marked up already, and what it is sorted by."""

    def __init__(self, html: str, value: float | str, numeric: bool = False) -> None:
        self.html, self.value, self.numeric = html, value, numeric


def claim_list(claims: Sequence[Claim]) -> str:
    """Each with its mark, its number and what it must be."""
    items = [
        f"<li>{chip('held' if one.held else 'NOT held', one.held).html} {inline(one.text)}: "
        f"<strong>{told(one.number, one.unit)}</strong> "
        f'<span class="soft">(must be {limit(one).html})</span></li>'
        for one in claims
    ]
    return f'<ul class="claims">{"".join(items)}</ul>' if items else ""


def limit(one: RecipeClaim | Claim) -> Cell:
    """What a number must be, as it is printed in books, on one line; sorted as text."""
    text = bound(one)
    for written, printed in ((">=", "≥"), ("<=", "≤"), ("==", "=")):
        text = text.replace(written, printed)
    return Cell(unbroken(text), text)


def unbroken(text: str) -> str:
    """What was found, or must be, with line breaks before `(3 runs)` alone."""
    return " ".join(f'<span class="one-line">{escape(part)}</span>' for part in re.split(r" (?=\()", text))


def chip(text: str, held: bool) -> Cell:
    """A mark that says its meaning in words as well as in colour."""
    sign, kind = ("✓", "held") if held else ("✗", "not")
    return Cell(f'<span class="chip {kind}">{f"{sign} {escape(text)}".strip()}</span>', int(held))


def marked(one: RecipeClaim) -> Cell:
    """What was found, with a mark that says in how many runs it held where that is not all or none."""
    text = f"{one.held} of {len(one.numbers)}" if 0 < one.held < len(one.numbers) else ""
    mark = f'<span title="{escape(verdict(one))}">{chip(text, one.holds).html}</span>'
    return Cell(f"{mark} {unbroken(found(one))}", one.mean)


def table_of(one: Table) -> str:
    """A result's table; a long one is folded."""
    made = table(one.title if len(one.rows) <= LONG_TABLE else "", one.columns, one.rows)
    return made if len(one.rows) <= LONG_TABLE else folded(f"{one.title} ({len(one.rows)} rows)", made)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose columns can be sorted; one of numbers stands to the right."""
    numeric = [bool(rows) and all(is_number(row[place]) for row in rows) for place in range(len(columns))]
    heads = "".join(
        f'<th scope="col"{right(numeric[place])}>'
        f'<button type="button" aria-label="sort by {escape(name or "mark")}">{escape(name)}</button></th>'
        for place, name in enumerate(columns)
    )
    body = "".join(
        "<tr>" + "".join(cell_html(value, numeric[place]) for place, value in enumerate(row)) + "</tr>" for row in rows
    )
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    head = f"<thead><tr>{heads}</tr></thead>"
    return f'<div class="wide"><table>{caption}{head}<tbody>{body}</tbody></table></div>'


def cell_html(value: Any, numeric: bool) -> str:
    """One cell; `data-value` is what it is sorted by where that is not its text."""
    if isinstance(value, Cell):
        key = "" if isinstance(value.value, float) and not math.isfinite(value.value) else value.value
        return f'<td{right(numeric)} data-value="{escape(str(key))}">{value.html}</td>'
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td{right(numeric)} data-value="{value!r}">{number(value)}</td>'
    kind = ' class="words"' if isinstance(value, str) and len(value) > LONG_CELL else right(numeric)
    return f"<td{kind}>{inline(cell(value))}</td>"


def is_number(value: Any) -> bool:
    """Whether a cell may stand in a column of numbers; an empty one may."""
    if isinstance(value, Cell):
        return value.numeric
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def right(numeric: bool) -> str:
    """The class of a cell of numbers."""
    return ' class="number"' if numeric else ""


def picture_of(folder: Path, picture: Picture) -> str:
    """A picture of a result, whole within the page; what is missing is said."""
    path = folder / picture.file
    if path.suffix.lower() not in MEDIA or not path.is_file():
        return f'<p class="failed">The picture {escape(picture.file)} is missing.</p>'
    return image(picture.title, path.read_bytes(), path.suffix.lower())


def image(title: str, content: bytes, suffix: str) -> str:
    """A figure whose bytes stand in the page."""
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<figure><img alt="{escape(title)}" src="data:{MEDIA[suffix]};base64,{data}">'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )


def folded(title: str, html: str, id: str = "") -> str:
    """What is shown when it is asked for, or when a link leads into it."""
    named = f' id="{id}"' if id else ""
    return f"<details{named}><summary>{escape(title)}</summary>{html}</details>"


def link(place: str, text: str) -> str:
    """To an id within the page."""
    return f'<a href="#{place}">{escape(text)}</a>'


def paragraphs(text: str) -> str:
    """Plain text with empty lines between paragraphs."""
    return "".join(f"<p>{inline(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def inline(text: str) -> str:
    """Escaped, with `code` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def anchor(*names: str) -> str:
    """An id within the page."""
    return "-".join(re.sub(r"[^A-Za-z0-9_]+", "-", name) for name in names)
