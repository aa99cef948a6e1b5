"""Markdown of cards: tables, text that cannot break its line, and a README.md that leaves the user's own alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prepkit.support.files import replacing


def markdown_table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    """Return the lines of a table; whole numbers get separators of thousands."""
    cells = [header, ("---",) * len(header), *rows]
    return [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in cells]


def one_line(text: str) -> str:
    """Return text that cannot break out of its line, nor be taken for HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def fenced(text: str) -> list[str]:
    """Return the lines of a block of code, with a fence that the text does not hold."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, *text.strip("\n").splitlines(), fence]


def write_readme(path: Path, text: str, mark: str) -> bool:
    """Write a README.md; returns False for one that the user wrote, which has no mark and stays as it is.

    raises OutputError if it cannot be written
    """
    if path.exists() and mark not in path.read_text(encoding="utf-8", errors="replace"):
        return False
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return True


def _cell(value: Any) -> str:
    return f"{value:,}" if type(value) is int else one_line(str(value)).replace("|", "\\|")
