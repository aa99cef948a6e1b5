"""Settings of a writer: the first line of its journal holds them, and a resuming writer must be given the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError, listed
from prepkit.prep.layout import canonical_json

MAX_VALUE_LENGTH = 60  # characters of a value in an error


def check_same(old: Mapping[str, Any], given: Mapping[str, Any], root: Path) -> None:
    """Raise ZooError naming what differs between the journal's settings and those of a resuming writer."""
    different = [difference for key in given for difference in differences(key, old.get(key), given[key])]
    if different:
        raise ZooError(f"'{root}' was begun with other settings: {listed(different)}. Give the same ones to resume.")


def differences(key: str, old: Any, given: Any) -> Iterator[str]:
    """Name each value in which two settings differ, with its place: `task.split.seed 0, not 1`."""
    if isinstance(old, Mapping) and isinstance(given, Mapping):
        for name in sorted(old.keys() | given.keys()):
            yield from differences(f"{key}.{name}", old.get(name), given.get(name))
    elif canonical_json(old) != canonical_json(given):
        yield f"{key} {_short(old)}, not {_short(given)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 3] + "..."
