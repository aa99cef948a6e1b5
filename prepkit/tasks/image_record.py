"""The record of an image task, checked: what prepkit.tasks.images explains, as one frozen object."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, listed, nearest

if TYPE_CHECKING:
    import numpy as np

DIGITS = "digits"
FOLDER = "folder"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
WELL_KNOWN = ("uoft-cs/cifar10", "zh-plus/tiny-imagenet")  # of the Hub, to suggest where a name is nearly one of these
EXAMPLE = '{"seed": 0, "test": 360, "validation": 180}'

HUB_KEYS = ("revision", "config", "columns")
GIVEN = ("kind", "dataset", "mean", "std", "split", "augmentation")
RESOLVED = ("input_shape", "classes", "class_names", "samples", "sha256")
SPLIT_KEYS = ("seed", "train", "test", "validation")
AUGMENTATION_KEYS = ("crop_padding", "horizontal_flip")
COLUMN_KEYS = ("image", "label")


@dataclass(frozen=True)
class Split:
    """How images are dealt: `test` and `validation` are numbers of drawn images, or names of parts of the set."""

    seed: int
    train: str
    test: int | str
    validation: int | str

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the set that are used, each once, `train` first."""
        named = (part for part in (self.train, self.validation, self.test) if isinstance(part, str))
        return tuple(dict.fromkeys(named))


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images: zeros on each side before a random crop; mirroring every second image."""

    crop_padding: int = 0
    horizontal_flip: bool = False


@dataclass(frozen=True)
class ImageRecord:
    """A checked record. `columns` are the names of the image and the label column, None where they are to be found."""

    dataset: str
    split: Split
    augmentation: Augmentation
    revision: str | None
    config: str | None
    columns: tuple[str | None, str | None]


def check(record: Mapping[str, Any]) -> ImageRecord:
    """Check all that can be checked without the data.

    raises ZooError naming the place in the record that is wrong
    """
    dataset = _dataset(record)
    hub = dataset not in (DIGITS, FOLDER)
    _known("task", record, (*GIVEN, *RESOLVED, *(HUB_KEYS if hub else ())))
    for key in ("mean", "std"):
        if key in record:
            _numbers(record, key)
    if any(value <= 0 for value in record.get("std", ())):
        raise ZooError(f"task, std: {record['std']!r} must be above 0.")
    columns = _table(record, "columns", COLUMN_KEYS)
    names = [_text(columns, key, "task, columns") for key in COLUMN_KEYS]
    return ImageRecord(
        dataset,
        _split(record),
        _augmentation(record),
        _text(record, "revision", "task"),
        _text(record, "config", "task"),
        (names[0], names[1]),
    )


def per_channel(record: Mapping[str, Any], key: str, default: float, channels: int) -> list[float]:
    """`mean` or `std` as one number a channel.

    raises ZooError if there are more or fewer
    """
    values = record.get(key, [default] * channels)
    if len(values) != channels:
        raise ZooError(f"task, {key}: expected {channels} numbers, one a channel, found {values!r}.")
    return [float(value) for value in values]


def split_indices(count: int, seed: int, test: int, validation: int) -> dict[str, np.ndarray]:
    """Ascending indices of `test`, `validation` and `train` images out of `count`.

    Images are ordered by the sha256 of seed and index: unlike a generator's stream, it never changes.
    raises ZooError if more images are asked for than there are
    """
    import numpy as np

    if test + validation > count:
        raise ZooError(f"task, split: {test} + {validation} images are more than the {count} of the data set.")
    order = np.array(sorted(range(count), key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest()))
    cuts = np.split(order, [test, test + validation])
    return {name: np.sort(part) for name, part in zip(("test", "validation", "train"), cuts, strict=True)}


def _dataset(record: Mapping[str, Any]) -> str:
    name = record.get("dataset")
    if isinstance(name, str) and (name in (DIGITS, FOLDER) or HUB_NAME.fullmatch(name)):
        return name
    near = nearest(str(name), (DIGITS, FOLDER, *WELL_KNOWN))
    known = f"'{DIGITS}', '{FOLDER}' and any image set of the Hub, such as '{WELL_KNOWN[0]}'"
    raise ZooError(f"task, dataset: {name!r} is unknown; there are {known}.{near}")


def _split(record: Mapping[str, Any]) -> Split:
    split = _table(record, "split", SPLIT_KEYS)
    seed, train = split.get("seed"), split.get("train", "train")
    test, validation = split.get("test"), split.get("validation", 0)
    sizes = all(_is_name(part) or _is_count(part) for part in (test, validation))
    if type(seed) is not int or not _is_name(train) or not sizes or not test:
        raise ZooError(f"task, split: expected {EXAMPLE} or names of parts, found {record.get('split')!r}.")
    if train in (test, validation) or (test == validation and _is_name(test)):
        raise ZooError(f"task, split: one part of the set stands twice: {record['split']!r}.")
    return Split(seed, train, test, validation)


def _augmentation(record: Mapping[str, Any]) -> Augmentation:
    table = _table(record, "augmentation", AUGMENTATION_KEYS)
    found = Augmentation(**table)
    if not _is_count(found.crop_padding):
        raise ZooError(f"task, augmentation, crop_padding: expected a whole number, found {found.crop_padding!r}.")
    if type(found.horizontal_flip) is not bool:
        raise ZooError(f"task, augmentation, horizontal_flip: expected true or false, found {found.horizontal_flip!r}.")
    return found


def _table(record: Mapping[str, Any], key: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    table = record.get(key)
    if table is None:
        return {}
    if not isinstance(table, Mapping):
        example = f" {EXAMPLE}" if key == "split" else f" a table of {listed(known)}"
        raise ZooError(f"task, {key}: expected{example}, found {table!r}.")
    _known(f"task, {key}", table, known)
    return table


def _known(place: str, table: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in table:
        if key not in keys:
            near = nearest(str(key), keys)
            raise ZooError(f"{place}: unknown key {key!r}; known are: {listed(keys, len(keys))}.{near}")


def _numbers(record: Mapping[str, Any], key: str) -> None:
    values = record[key]
    numbers = isinstance(values, list | tuple) and all(type(value) in (int, float) for value in values)
    if not numbers or not values or not all(map(math.isfinite, values)):
        raise ZooError(f"task, {key}: expected numbers, one a channel, found {values!r}.")


def _text(table: Mapping[str, Any], key: str, place: str) -> str | None:
    value = table.get(key)
    if value is None or _is_name(value):
        return value
    raise ZooError(f"{place}, {key}: expected a name, found {value!r}.")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
