"""A report as one HTML file and as Markdown, from the templates beside this module.

The HTML file needs no other file and no request. All text that comes from runs, zoos and results is escaped in it, and
its own policy forbids it to load anything.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from netspace.experiments.result import Table
from netspace.report import words
from netspace.report._summary import WORDS, sentence_text, small_figures, summary
from netspace.report._variants import spread, variants, without_variants
from netspace.report.model import Report
from prepkit.errors import counted
from prepkit.support.text import duration, short_number

HTML, MARKDOWN = "page.html.jinja", "page.md.jinja"
MEDIA = {".png": "image/png", ".svg": "image/svg+xml"}


def html_page(report: Report) -> str:
    """Return the whole HTML document."""
    return _render(HTML, report)


def markdown_page(report: Report, folder: Path) -> str:
    """Return the whole Markdown document; pictures stay in the runs' folders.

    folder: the document's own, from which it names the pictures
    """
    return re.sub(r"\n{3,}", "\n\n", _render(MARKDOWN, report, folder=folder)).strip() + "\n"


def _render(template: str, report: Report, **more: Any) -> str:
    return ENVIRONMENT.get_template(template).render(
        report=report,
        variants=variants(report),
        without_variants=without_variants(report),
        spread=spread(report),
        sentences=summary(report),
        small=small_figures(report),
        explained=WORDS,
        **more,
    )


# What the templates use -----------------------------------------------------------------------------------------


def anchor(*names: str) -> str:
    """Return an id within the page."""
    return "-".join(re.sub(r"[^A-Za-z0-9_]+", "-", name) for name in names)


def inline(text: str) -> Markup:
    """Escape a text and set `code` as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def unbroken(text: str) -> Markup:
    """Print `>= 95 %` as `≥ 95 %`, and let a line break only before `(3 runs)`."""
    printed = text.replace(">=", "≥").replace("<=", "≤")
    parts = (Markup('<span class="one-line">{}</span>').format(part) for part in re.split(r" (?=\()", printed))
    return Markup(" ").join(parts)


def numeric_columns(table: Table) -> set[int]:
    """Return the positions of columns that hold only numbers and empty cells; true and false are no numbers."""
    types = (int, float, type(None))
    return {place for place in range(len(table.columns)) if all(type(row[place]) in types for row in table.rows)}


def as_json(value: Any) -> str:
    """Return a value as indented JSON."""
    return json.dumps(value, indent=1)


def data_uri(content: bytes, media: str = "image/png") -> str:
    """Return a picture's bytes as an address."""
    return f"data:{media};base64,{base64.b64encode(content).decode('ascii')}"


def picture_uri(path: Path) -> str | None:
    """Return a picture's file as an address; None if it is missing."""
    media = MEDIA.get(path.suffix.lower())
    return data_uri(path.read_bytes(), media) if media and path.is_file() else None


def row(cells: Iterable[Any]) -> str:
    """Return a row of a Markdown table; a `|` in a cell would end it."""
    return f"| {' | '.join(words.cell(value).replace('|', chr(92) + '|') for value in cells)} |"


def relative_path(path: Path, folder: Path) -> str:
    """Return a path from a folder, with slashes."""
    return os.path.relpath(path, folder).replace(os.sep, "/")


ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=lambda name: name != MARKDOWN,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
USED: tuple[Callable[..., Any], ...] = (
    *(anchor, as_json, counted, data_uri, inline, numeric_columns, picture_uri, relative_path, row, unbroken),
    *(words.bound, words.cell, words.heading, words.in_unit, words.interval_text, words.kind_counts, words.measured),
    *(duration, sentence_text, short_number, words.score, words.tally, words.verdict, words.versions_text),
)
ENVIRONMENT.globals |= {function.__name__: function for function in USED}
ENVIRONMENT.filters |= {function.__name__: function for function in USED}
