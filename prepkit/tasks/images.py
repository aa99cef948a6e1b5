"""Image classification: the task record, the data sets at hand, and a split that is the same everywhere and always.

    {"kind": "images", "dataset": "digits", "mean": [0.3], "std": [0.4],
     "split": {"seed": 0, "test": 360, "validation": 180}}

dataset:   a key of DATASETS; digits are scikit-learn's 1,797 images of 8 x 8, scaled to 0 .. 1
mean, std: one number a channel, subtracted and divided by after the scaling; 0 and 1 if missing
split:     how many images the test and the validation set hold ("validation" may be missing); the rest is for training
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from prepkit.errors import PrepkitError, ZooError, listed, nearest

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

DIGITS_LEVELS = 16.0  # pixels of scikit-learn's digits are 0 .. 16


class DataMissing(PrepkitError, ImportError):
    """The package that holds a data set is not installed."""

    exit_code = 1


def test_set(task: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Normalised test images `[N, C, H, W]` float32 and labels `[N]` int64.

    raises ZooError naming the place in the record that is wrong, or what is at hand for an unknown data set
    """
    import torch

    inputs, labels = _dataset(task)
    chosen = split_indices(len(labels), task.get("split"))["test"]
    mean, std = (_per_channel(task, key, default, inputs.shape[1]) for key, default in (("mean", 0.0), ("std", 1.0)))
    if not (std > 0).all():
        raise ZooError(f"task, std: {task.get('std')!r} must be above 0.")
    normalised = (inputs[chosen] - mean) / std
    return torch.from_numpy(normalised.astype("float32")), torch.from_numpy(labels[chosen].astype("int64"))


test_set.__test__ = False  # type: ignore[attr-defined]  # pytest takes imported functions of this name for tests


def split_indices(count: int, split: object) -> dict[str, np.ndarray]:
    """Ascending indices of `test`, `validation` and `train` images out of `count`.

    Images are ordered by the sha256 of seed and index: unlike a generator's stream, it never changes.
    raises ZooError if the record is wrong or asks for more images than there are
    """
    import numpy as np

    record = split if isinstance(split, Mapping) else {}
    sizes = [record.get("test"), record.get("validation", 0)]
    seed = record.get("seed")
    if type(seed) is not int or not all(type(size) is int and size >= 0 for size in sizes) or not sizes[0]:
        raise ZooError(f'task, split: expected {{"seed": 0, "test": 360, "validation": 180}}, found {split!r}.')
    test, validation = (int(size or 0) for size in sizes)
    if test + validation > count:
        raise ZooError(f"task, split: {test} + {validation} images are more than the {count} of the data set.")
    order = np.array(sorted(range(count), key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest()))
    cuts = np.split(order, [test, test + validation])
    return {name: np.sort(part) for name, part in zip(("test", "validation", "train"), cuts, strict=True)}


def _dataset(task: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    name = task.get("dataset")
    if name not in DATASETS:
        near = nearest(str(name), DATASETS)
        raise ZooError(f"task, dataset: {name!r} is not at hand; at hand are: {listed(DATASETS)}.{near}")
    return DATASETS[name]()


def _per_channel(task: Mapping[str, Any], key: str, default: float, channels: int) -> np.ndarray:
    """`[1, C, 1, 1]` float64."""
    import numpy as np

    values = task.get(key, [default] * channels)
    numbers = isinstance(values, list | tuple) and all(type(value) in (int, float) for value in values)
    if not numbers or len(values) != channels:
        raise ZooError(f"task, {key}: expected {channels} numbers, one a channel, found {values!r}.")
    return np.array(values, dtype=np.float64).reshape(1, -1, 1, 1)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataMissing("the digits come with scikit-learn; pip install 'prepkit[train]'.") from None
    digits = load_digits()
    return digits.images[:, None] / DIGITS_LEVELS, digits.target


DATASETS: dict[str, Callable[[], tuple[Any, Any]]] = {"digits": _digits}
