"""Settings of a writer: the first line of its journal holds them, and a resuming writer must be given the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError, listed
from prepkit.prep.layout import canonical_json

MAX_VALUE_LENGTH = 60  # characters of a value in an error


def check_same(found: Mapping[str, Any], given: Mapping[str, Any], root: Path) -> None:
    """Raise ZooError naming what differs between the journal's settings and those of a resuming writer."""
    different = [difference for key in given for difference in differences(key, found.get(key), given[key])]
    if different:
        raise ZooError(f"'{root}' was begun with other settings: {listed(different)}. Give the same ones to resume.")


def differences(key: str, found: Any, given: Any) -> Iterator[str]:
    """Name each value in which two settings differ, with its place: `task.split.seed 0, not 1`."""
    if isinstance(found, Mapping) and isinstance(given, Mapping):
        for name in sorted(found.keys() | given.keys()):
            yield from differences(f"{key}.{name}", found.get(name), given.get(name))
    elif canonical_json(found) != canonical_json(given):
        yield f"{key} {_short(found)}, not {_short(given)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 3] + "..."
