"""The record of a shapes task, checked: what prepkit.tasks.shapes explains, as one frozen object."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prepkit.errors import ZooError, listed, nearest

CHAIRS, SDF_FILES, MESHES = "procedural_chairs", "sdf_files", "meshes"
DATASETS = (CHAIRS, SDF_FILES, MESHES)

GIVEN = ("kind", "dataset", "count", "points", "split", "steps_per_epoch", "clamp")
OF_DATASET = {CHAIRS: ("seed",), SDF_FILES: ("sha256",), MESHES: ("sha256",)}
SPLIT_KEYS = ("seed", "test", "validation")
NEAR_SURFACE = 0.5
SIGMA = 0.05


@dataclass(frozen=True)
class ShapeRecord:
    """A checked record; None where a key may be missing and has no default.

    seed:   of the chairs
    pool, validation, test: points of a shape, half of them inside
    split_seed: of all points
    """

    dataset: str
    count: int | None
    sha256: str | None
    seed: int
    pool: int
    near_surface: float
    sigma: float
    split_seed: int
    validation: int
    test: int
    steps_per_epoch: int
    clamp: float | None

    @property
    def sizes(self) -> dict[str, int]:
        """Points of a shape in each split."""
        return {"train": self.pool, "validation": self.validation, "test": self.test}


def check(record: Mapping[str, Any]) -> ShapeRecord:
    """Check all that can be checked without the data.

    raises ZooError naming the place in the record that is wrong
    """
    dataset = record.get("dataset")
    if dataset not in DATASETS:
        near = nearest(str(dataset), DATASETS)
        raise ZooError(f"task, dataset: {dataset!r} is unknown; shapes are: {listed(DATASETS)}.{near}")
    _known("task", record, (*GIVEN, *OF_DATASET[dataset]))
    points = _table(record, "points", ("pool",) if dataset == SDF_FILES else ("pool", "near_surface", "sigma"))
    split = _table(record, "split", SPLIT_KEYS)
    count = record.get("count")
    return ShapeRecord(
        dataset=dataset,
        count=None if count is None else _whole(record, "task", "count", least=1),
        sha256=_sha256(record),
        seed=_whole(record, "task", "seed", least=0) if dataset == CHAIRS else 0,
        pool=_even(points, "task, points", "pool", least=2),
        near_surface=_number(points, "task, points", "near_surface", 0, 1, NEAR_SURFACE),
        sigma=_number(points, "task, points", "sigma", 0, 1, SIGMA),
        split_seed=_whole(split, "task, split", "seed", least=0),
        validation=_even(split, "task, split", "validation", least=0) if "validation" in split else 0,
        test=_even(split, "task, split", "test", least=2),
        steps_per_epoch=_whole(record, "task", "steps_per_epoch", least=1),
        clamp=None if record.get("clamp") is None else _positive(record, "clamp"),
    )


def _known(place: str, found: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in found:
        if key not in keys:
            raise ZooError(f"{place}: unknown key {key!r}; keys are: {listed(keys, 12)}.{nearest(str(key), keys)}")


def _table(record: Mapping[str, Any], key: str, keys: Sequence[str]) -> Mapping[str, Any]:
    found = record.get(key)
    if not isinstance(found, Mapping):
        raise ZooError(f"task, {key}: expected a table of {listed(keys)}, found {found!r}.")
    _known(f"task, {key}", found, keys)
    return found


def _whole(found: Mapping[str, Any], place: str, key: str, least: int) -> int:
    value = found.get(key)
    if type(value) is not int or value < least:
        raise ZooError(f"{place}, {key}: expected a whole number of at least {least}, found {value!r}.")
    return value


def _even(found: Mapping[str, Any], place: str, key: str, least: int) -> int:
    value = _whole(found, place, key, least)
    if value % 2:
        raise ZooError(f"{place}, {key}: {value} is odd; half of the points are inside, half outside.")
    return value


def _number(found: Mapping[str, Any], place: str, key: str, least: float, most: float, default: float) -> float:
    value = found.get(key, default)
    if type(value) not in (int, float) or not least <= value <= most:
        raise ZooError(f"{place}, {key}: expected a number of {least} to {most}, found {value!r}.")
    return float(value)


def _positive(record: Mapping[str, Any], key: str) -> float:
    value = record[key]
    if type(value) not in (int, float) or not (value > 0 and math.isfinite(value)):
        raise ZooError(f"task, {key}: expected a number above 0, found {value!r}.")
    return float(value)


def _sha256(record: Mapping[str, Any]) -> str | None:
    value = record.get("sha256")
    if value is not None and not (isinstance(value, str) and len(value) == 64):
        raise ZooError(f"task, sha256: expected 64 hex digits, found {value!r}.")
    return value
