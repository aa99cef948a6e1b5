"""The record of an image task, checked: its keys, what each may hold, and what it means."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from prepkit.errors import ZooError, counted, nearest
from prepkit.support.reading import (
    FINITE,
    Place,
    Reader,
    checked,
    keys_of,
    list_of,
    missing,
    number,
    read_keys,
    reader_of,
    whole,
    wrong,
)

if TYPE_CHECKING:
    import numpy as np

TASK = Place("task")
DIGITS = "digits"
FOLDER = "folder"
DOWNLOADED = ("mnist", "fashion_mnist", "cifar10", "svhn")  # in the files that torchvision downloads
LOCAL = (DIGITS, FOLDER, *DOWNLOADED)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_KEYS = ("revision", "config", "columns")
SIZE = "size"  # key that the digits do not have, as they are no files of images
WELL_KNOWN = ("uoft-cs/cifar10", "zh-plus/tiny-imagenet")  # sets of the Hub, for hints where a name is nearly theirs


def _dataset(value: Any, place: Place) -> str:
    if isinstance(value, str) and (value in LOCAL or HUB_NAME.fullmatch(value)):
        return value
    raise wrong(place, DATASET.words, value, nearest(str(value), (*LOCAL, *WELL_KNOWN)))


DATASET = Reader(
    f"'{DIGITS}', '{FOLDER}', {', '.join(map(repr, DOWNLOADED))} or an image set of the Hub such as '{WELL_KNOWN[0]}'",
    _dataset,
)
NAME = checked("a name", lambda value: isinstance(value, str) and value)
PART = checked(
    "a number of images or the name of a part of the set",
    lambda value: value >= 0 if type(value) is int else isinstance(value, str) and value,
)
ADDED = checked("added when the data is loaded", lambda value: True)


@dataclass(frozen=True)
class Split:
    """How images are dealt: a number of images is taken from the training part, a name is a part of its own."""

    EXAMPLE: ClassVar[str] = "{seed = 0, test = 360, validation = 180}"

    test: Annotated[int | str, PART, 'a number of images, or the name of a part such as "test" or "valid"']
    validation: Annotated[int | str, PART, "the same for validation"] = 0
    seed: Annotated[int | None, "seed of the draw, which is the same everywhere and always; not with `last`"] = None
    last: Annotated[
        bool, "take the last images of the training part as they stand there: those for the test last of all"
    ] = False
    train: Annotated[str, NAME, "name of the part for training, which the others are taken from"] = "train"

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the set that are used, each once, `train` first."""
        named = (part for part in (self.train, self.validation, self.test) if isinstance(part, str))
        return tuple(dict.fromkeys(named))


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images, and to no others."""

    crop_padding: Annotated[int, whole(0), "zeros on each side before a random crop back to the size of the image"] = 0
    horizontal_flip: Annotated[bool, "mirror every second image"] = False


@dataclass(frozen=True)
class Columns:
    """Names of columns of a set of the Hub, None where they are to be found."""

    image: Annotated[str | None, NAME, "column of the images"] = None
    label: Annotated[str | None, NAME, "column of the labels"] = None


@dataclass(frozen=True)
class ImageRecord:
    """Classify images. Loading adds what tells two machines that they hold the same data, or compares it."""

    kind: Annotated[Literal["images"], "kind of the task"]
    dataset: Annotated[
        str,
        DATASET,
        "scikit-learn's 1,797 digits of 8 x 8, a folder of images (`--data`), a set in the files that torchvision "
        "downloads (`--data` too), or a set of the Hub",
    ]
    split: Split
    mean: Annotated[
        tuple[float, ...] | None,
        list_of(FINITE, "numbers, one a channel", least=1),
        "what is subtracted after pixels are scaled to 0 .. 1; 0 if missing",
    ] = None
    std: Annotated[
        tuple[float, ...] | None,
        list_of(number("a number above 0", lambda value: value > 0), "numbers, one a channel", least=1),
        "what is divided by then; 1 if missing",
    ] = None
    gray: Annotated[bool, "average the channels of coloured images into one, before `mean` and `std`"] = False
    size: Annotated[
        int | None,
        whole(1),
        "height and width to which images are scaled, bilinear as Pillow and torchvision do it; their own if missing",
    ] = None
    augmentation: Augmentation = Augmentation()
    revision: Annotated[
        str | None, NAME, "(Hub) branch, tag or commit; the main branch if missing. Loading puts the commit there"
    ] = None
    config: Annotated[str | None, NAME, "(Hub) name of the configuration, where a set has several"] = None
    columns: Columns = Columns()
    input_shape: Annotated[Any, ADDED, "channels, height and width"] = None
    classes: Annotated[Any, ADDED, "number of classes"] = None
    class_names: Annotated[Any, ADDED, "names of the classes, where the set has them"] = None
    samples: Annotated[Any, ADDED, "number of images in train, validation and test"] = None
    sha256: Annotated[Any, ADDED, "sha256 of the decoded images and labels of the parts that are used"] = None


def check(record: Mapping[str, Any]) -> ImageRecord:
    """Check all that can be checked without the data.

    raises ZooError naming the place in the record that is wrong
    """
    keys = dict(keys_of(ImageRecord))
    if record.get("dataset") in LOCAL:
        keys = {name: key for name, key in keys.items() if name not in HUB_KEYS}
    if record.get("dataset") == DIGITS:
        keys = {name: key for name, key in keys.items() if name != SIZE}
    values = {key: value for key, value in record.items() if value is not None}
    task = ImageRecord(**read_keys(keys, values, TASK))
    split = task.split
    if split.seed is None and not split.last:
        raise missing(TASK["split"]["seed"], reader_of(int))
    if split.seed is not None and split.last:
        raise wrong(TASK["split"]["seed"], "no seed, as `last` draws nothing", split.seed)
    if not split.test:
        raise wrong(TASK["split"]["test"], "at least one image", split.test)
    if split.train in (split.test, split.validation) or (
        split.test == split.validation and isinstance(split.test, str)
    ):
        raise ZooError(f"{TASK['split']}: one part of the set stands twice: {record['split']!r}.")
    return task


def per_channel(values: tuple[float, ...] | None, key: str, default: float, channels: int) -> list[float]:
    """`mean` or `std` as one number a channel.

    raises ZooError if there are more or fewer
    """
    if values is not None and len(values) != channels:
        raise ZooError(f"{TASK[key]}: expected {counted(channels, 'number')}, one a channel; found {list(values)}.")
    return [default] * channels if values is None else list(values)


def split_indices(count: int, seed: int | None, test: int, validation: int) -> dict[str, np.ndarray]:
    """Ascending indices of `test`, `validation` and `train` images out of `count`.

    seed: images are ordered by the sha256 of seed and index, which never changes, unlike a generator's stream; without
          one, test images are the last, and those for validation stand before them
    raises ZooError if more images are asked for than there are
    """
    import numpy as np

    if test + validation > count:
        raise ZooError(f"task, split: {test} + {validation} images are more than the {count} of the data set.")
    order = np.arange(count)[::-1]
    if seed is not None:
        order = np.array(sorted(range(count), key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest()))
    cuts = np.split(order, [test, test + validation])
    return {name: np.sort(part) for name, part in zip(("test", "validation", "train"), cuts, strict=True)}
