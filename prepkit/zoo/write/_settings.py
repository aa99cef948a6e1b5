"""Settings of a writer: the first line of its journal holds them, and a resuming writer must be given the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, listed
from prepkit.prep.layout import canonical_json

if TYPE_CHECKING:
    from prepkit.families.registry import Registry

DEFAULTS = {"width": 512, "format": "safetensors"}
MAX_VALUE_LENGTH = 60  # characters of a value in an error


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a writer's settings with the defaults of those that were not given."""
    return {key: DEFAULTS.get(key) if value is None else value for key, value in given.items()}


def settings_of_journal(
    chosen: Mapping[str, Any], registry: Registry | None, provenance: Mapping[str, Any], shard_bytes: int
) -> dict[str, Any]:
    """Return what the first line of a journal holds.

    The dtype is not among it: the first instance may choose it, and later lines keep it.
    chosen: width, height, format, name, task and license
    """
    return {
        **{key: chosen[key] for key in ("width", "height", "format", "name")},
        "registry": None if registry is None else registry.class_ids,
        "task": None if chosen["task"] is None else dict(chosen["task"]),
        "license": chosen["license"],
        "provenance": dict(provenance),
        "shard_bytes": shard_bytes,
    }


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
