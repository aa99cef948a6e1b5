"""Tasks: what the instances of a zoo are trained on, described by the zoo's task record.

A task record is JSON with a `kind`, which says what the rest means:
    images      classify images; see prepkit.tasks.images
    shapes      signed distances of one shape an instance; see prepkit.tasks._shapes

The record of a kind is checked by a light module of its own; its module has `load(record, data) -> Task`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError
from prepkit.support.reading import Key, Place, choice, read_keys

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.tasks.task import Task


def load_task(record: Mapping[str, Any] | None, data: str | os.PathLike[str] | None = None) -> Task:
    """The task of a record, with its data; `load_task(task.record)` is the same task again.

    data: folder of the data, for a data set of the user's
    raises ZooError with the place in the record that is wrong, or that the data differ from the recorded ones
    raises DataMissing with the command that gets the data
    """
    found = _checked(record)
    return LOADERS[found["kind"]](found, None if data is None else Path(data))


def check_record(record: Mapping[str, Any] | None) -> None:
    """Raise ZooError with place and reason if a task record is wrong; no data is loaded."""
    _checked(record)


def test_set(record: Mapping[str, Any] | None) -> tuple[Tensor, Tensor]:
    """The normalised inputs `[N, C, H, W]` float32 and labels `[N]` int64 on which a task's instances are tested.

    raises what `load_task` raises; ZooError for a task where each instance has data of its own
    """
    found = _checked(record)
    if found["kind"] != "images":
        raise ZooError(f"a task of kind {found['kind']!r} has no test set that its instances share; use load_task.")
    from prepkit.tasks import images

    return images.load(found).normalised("test")


test_set.__test__ = False  # type: ignore[attr-defined]  # pytest takes imported functions of this name for tests


def _checked(record: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if record is None:
        raise ZooError(
            "the zoo names no task, so there is no data to run its instances on. A zoo has one if it was written "
            "with it: ZooWriter(task=...), or `prepkit zoo create --task FILE`."
        )
    if not isinstance(record, Mapping):
        raise ZooError(f'task: expected a record such as {{"kind": "images", ...}}; found a {type(record).__name__}.')
    kind = read_keys(KIND, record, Place("task"), strict=False)["kind"]
    CHECKS[kind](record)
    return record


def _check_images(record: Mapping[str, Any]) -> None:
    from prepkit.tasks._image_record import check

    check(record)


def _check_shapes(record: Mapping[str, Any]) -> None:
    from prepkit.tasks._shape_record import check

    check(record)


def _load_images(record: Mapping[str, Any], data: Path | None) -> Task:
    from prepkit.tasks.images import load

    return load(record, data)


def _load_shapes(record: Mapping[str, Any], data: Path | None) -> Task:
    from prepkit.tasks._shapes import load

    return load(record, data)


CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {"images": _check_images, "shapes": _check_shapes}
LOADERS: dict[str, Callable[[Mapping[str, Any], Path | None], Task]] = {"images": _load_images, "shapes": _load_shapes}
KIND = {"kind": Key(choice(*CHECKS))}
