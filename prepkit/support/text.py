"""Text as people read it: numbers, times and tables on a terminal; and whether a file can hold a text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

LINE = 120  # letters in the text of an object
VALUE = 50  # letters in the text of one of its values


class Brief:
    """Shows a dataclass, declared with `repr=False`, on one line: a large value by its type and size, not as it is."""

    def __repr__(self) -> str:
        fields = [field.name for field in dataclasses.fields(self) if field.repr]  # type: ignore[arg-type]
        text, close = f"{type(self).__name__}(", ")"
        for number, name in enumerate(fields):
            part = f"{', ' if number else ''}{name}={brief(getattr(self, name))}"
            if len(text) + len(part) > LINE - len(", ...)"):
                close = ", ...)" if number else "...)"
                break
            text += part
        return text + close


def brief(value: Any) -> str:
    """Return a short text of a value: `3`, `'a.pt'`, `Tensor[3, 12, 512]`, `tuple of 20`, `<Manifest my-zoo>`."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and type(value).__module__.partition(".")[0] in ("torch", "numpy", "pyarrow"):
        return f"{type(value).__name__}{list(shape)}"
    if isinstance(value, str | PurePath):
        text = str(value)
        return repr(text if len(text) <= VALUE else f"{text[: VALUE - 3]}...")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping | Sequence | Set) and type(value).__module__ == "builtins":
        plain = len(value) <= 6 and all(isinstance(entry, str | int | float | None) for entry in value)
        text = repr(value) if plain and not isinstance(value, Mapping) else ""
        return text if text and len(text) <= VALUE else f"{type(value).__name__} of {len(value):,}"
    text = repr(value)
    is_short = len(text) <= VALUE and "\n" not in text and " object at 0x" not in text
    name = getattr(value, "name", None)
    return text if is_short else f"<{type(value).__name__}{f' {name}' if isinstance(name, str) else ''}>"


def table(rows: Sequence[tuple[Any, ...]], header: tuple[str, ...]) -> str:
    """Align rows under a header: columns of whole numbers to the right, all others to the left."""
    cells = [header, *[tuple(f"{cell:,}" if type(cell) is int else str(cell) for cell in row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [bool(rows) and all(isinstance(row[column], int) for row in rows) for column in range(len(header))]
    lines = []
    for row in cells:
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def shape_text(shape: Sequence[int]) -> str:
    """Return `64x3x7x7`, or `scalar` for no axis."""
    return "x".join(map(str, shape)) or "scalar"


def readable_bytes(count: float) -> str:
    """Return `512 bytes` or `1.5 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def readable_seconds(seconds: float) -> str:
    """Return `02:03`, or `1:02:03` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def duration(seconds: float) -> str:
    """Return `42 s`, `3 min 20 s` or `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def short_number(value: float) -> str:
    """Return a number with four digits, or all digits of an integer; `none` for one that is not finite."""
    if not math.isfinite(value):
        return "none"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def is_unicode(text: str) -> bool:
    """Return whether a file can hold a text; halves of surrogate pairs cannot be written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
