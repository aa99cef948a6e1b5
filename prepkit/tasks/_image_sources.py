"""The sources of images: one function for each, all in one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prepkit.errors import ZooError
from prepkit.tasks._image_record import DIGITS, DOWNLOADED, FOLDER, ImageRecord
from prepkit.tasks._image_set import ImageSet, Part, count_classes, fingerprint
from prepkit.tasks.task import DataMissing

DIGITS_LEVELS = 16  # pixels of scikit-learn's digits are 0 .. 16


def image_set(record: ImageRecord, data: Path | None = None) -> ImageSet:
    """The decoded images of the parts that a record uses.

    data: the folder of a "folder" set, or a local copy of a repository of the Hub
    raises ZooError if the set does not have what the record says, DataMissing if it is not at hand
    """
    return SOURCES.get(record.dataset, _hub)(record, data)


def _digits(record: ImageRecord, data: Path | None) -> ImageSet:
    import torch

    if data is not None:
        raise ZooError("the digits come with scikit-learn; leave out the path of the data.")
    if record.split.parts != ("train",):
        raise ZooError('task, split: the digits have one part, "train"; give numbers of images for the other two.')
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataMissing(
            "the digits come with scikit-learn, which is missing; pip install 'prepkit[train]'."
        ) from None
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype("uint8"))[:, None].contiguous()
    parts = {"train": Part(images, torch.from_numpy(digits.target.astype("int64")))}
    return ImageSet(parts, None, count_classes(parts, None), fingerprint(parts), DIGITS_LEVELS)


def _folder(record: ImageRecord, data: Path | None) -> ImageSet:
    from prepkit.tasks._folder_images import folder_images

    return folder_images(record, data)


def _downloaded(record: ImageRecord, data: Path | None) -> ImageSet:
    from prepkit.tasks._downloaded_images import downloaded_images

    return downloaded_images(record, data)


def _hub(record: ImageRecord, data: Path | None) -> ImageSet:
    from prepkit.tasks._hub_images import hub_images

    return hub_images(record, data)


SOURCES: dict[str, Callable[[ImageRecord, Path | None], ImageSet]] = {
    DIGITS: _digits,
    FOLDER: _folder,
    **dict.fromkeys(DOWNLOADED, _downloaded),
}
