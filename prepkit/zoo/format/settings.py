"""What a writer was given, as the first line of its journal: a resuming writer must be given the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError, listed
from prepkit.families.registry import Registry
from prepkit.prep.layout import canonical_json

MAX_TOLD = 60  # characters of a value in an error


def settings_of(
    width: int,
    height: int | None,
    format: str,
    name: str | None,
    registry: Registry | None,
    task: Mapping[str, Any] | None,
    license: str | None,
    provenance: Mapping[str, Any] | None,
    shard_bytes: int,
) -> dict[str, Any]:
    """The arguments of ZooWriter, JSON-able, as they were given: a name that was left out is None.

    dtype is not among them: the journal keeps it with the first instance, which may have chosen it.
    """
    return {
        "width": width,
        "height": height,
        "format": format,
        "name": name,
        "registry": None if registry is None else registry.class_ids,
        "task": None if task is None else dict(task),
        "license": license,
        "provenance": dict(provenance or {}),
        "shard_bytes": shard_bytes,
    }


def check_same(found: Mapping[str, Any], given: Mapping[str, Any], root: Path) -> None:
    """Raise ZooError naming what differs between the journal's settings and those of a resuming writer."""
    told = [difference for key in given for difference in differences(key, found.get(key), given[key])]
    if told:
        raise ZooError(f"'{root}' was begun with other settings: {listed(told)}. Give the same ones to resume.")


def differences(key: str, found: Any, given: Any) -> Iterator[str]:
    """In which values two settings differ, each with its place: `task.split.seed 0, not 1`."""
    if isinstance(found, Mapping) and isinstance(given, Mapping):
        for name in sorted(found.keys() | given.keys()):
            yield from differences(f"{key}.{name}", found.get(name), given.get(name))
    elif canonical_json(found) != canonical_json(given):
        yield f"{key} {_short(found)}, not {_short(given)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_TOLD else text[: MAX_TOLD - 3] + "..."
