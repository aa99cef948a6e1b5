"""image_task: the task of networks that classify the images of a data set in the files that torchvision downloads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def image_task(dataset: str, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Return the record of a task.

    dataset:   "mnist", "fashion_mnist", "cifar10" or "svhn"
    mean, std: what is taken from pixels of 0 to 1 in each channel, and what they are then divided by
    """
    split = {"seed": 0, "train": "train", "test": "test"}
    return {"kind": "images", "dataset": dataset, "mean": list(mean), "std": list(std), "split": split}
