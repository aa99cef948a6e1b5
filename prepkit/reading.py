"""Values of a TOML file, read one by one. Each error says the place, what is expected there and what was found.

A reader takes a value and its place and returns what the value means, or raises ZooError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prepkit.errors import ZooError, listed, nearest

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
MISSING: Any = object()  # what a reader is given where a key must stand and does not

Reader = Callable[[Any, "Place"], Any]


@dataclass(frozen=True)
class Place:
    """Where a value stands: a file, and the keys that lead to it. `str` gives `zoo_specs/x.toml, training.epochs`."""

    file: str
    keys: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Place:
        return Place(self.file, (*self.keys, key))

    def __str__(self) -> str:
        dotted = ".".join(key if BARE_KEY.fullmatch(key) else f'"{key}"' for key in self.keys)
        return f"{self.file}, {dotted}" if dotted else self.file


@dataclass(frozen=True)
class Limit:
    """Which numbers are allowed, in words and as a test."""

    words: str
    holds: Callable[[float], bool]


def wrong(place: Place, expected: str, value: Any) -> ZooError:
    """The error for a value that is not what its place needs."""
    return ZooError(f"{place}: expected {expected}; found {told(value)}.")


def told(value: Any) -> str:
    """A value as TOML writes it, shortened."""
    if value is MISSING:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def unknown(place: Place, what: str, asked: object, choices: Iterable[str]) -> ZooError:
    """The error for a name that is none of the choices."""
    names = list(choices)
    known = listed(names, 20) or "none"
    return ZooError(f"{place}: unknown {what} {asked!r}; known are {known}.{nearest(str(asked), names)}")


# Readers ------------------------------------------------------------------------------------------------------


def text(value: Any, place: Place) -> str:
    """One line of text."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise wrong(place, "one line of text", value)
    return value


def boolean(value: Any, place: Place) -> bool:
    """`true` or `false`."""
    if not isinstance(value, bool):
        raise wrong(place, "true or false", value)
    return value


def whole(least: int, most: int | None = None) -> Reader:
    """A whole number within limits, which are allowed themselves."""
    words = f"a whole number of at least {least}" if most is None else f"a whole number from {least:,} to {most:,}"

    def read(value: Any, place: Place) -> int:
        if type(value) is not int or value < least or (most is not None and value > most):
            raise wrong(place, words, value)
        return value

    return read


def number(limit: Limit) -> Reader:
    """A finite number within a limit."""

    def read(value: Any, place: Place) -> float:
        if not is_number(value) or not limit.holds(value):
            raise wrong(place, limit.words, value)
        return float(value)

    return read


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; `true` is none."""
    return type(value) in (int, float) and math.isfinite(value)


def choice(what: str, choices: Iterable[str]) -> Reader:
    """One of several names."""
    names = tuple(choices)

    def read(value: Any, place: Place) -> str:
        if not isinstance(value, str):
            raise wrong(place, f"one of {listed(names, 20)}", value)
        if value not in names:
            raise unknown(place, what, value, names)
        return value

    return read


def table(value: Any, place: Place) -> dict[str, Any]:
    """A table, its values unread."""
    if not isinstance(value, dict):
        raise wrong(place, "a table", value)
    return value


def given(data: Mapping[str, Any], readers: Mapping[str, Reader], place: Place) -> dict[str, Any]:
    """All values of a table, read; raises ZooError for a key that has no reader."""
    for key in data:
        if key not in readers:
            raise unknown(place[key], "key", key, readers)
    return {key: readers[key](value, place[key]) for key, value in data.items()}


def require(data: Mapping[str, Any], keys: Iterable[str], readers: Mapping[str, Reader], place: Place) -> None:
    """Raise ZooError for a key that must stand in a table and does not, saying what is expected there."""
    for key in keys:
        if key not in data:
            readers[key](MISSING, place[key])
