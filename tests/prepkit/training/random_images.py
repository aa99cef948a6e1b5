"""A task of random images, without any data set."""

import torch

from prepkit.tasks import _augmentation
from prepkit.tasks._augmentation import Normalisation
from prepkit.tasks._image_record import Augmentation
from prepkit.tasks._image_set import Part
from prepkit.tasks.images import Dealt, ImageTask


def random_images(device, shape, count, kept_normalised=True, dtype=torch.float32):
    """Images of a shape, cropped and mirrored.

    kept_normalised: else they are kept as bytes, as those of large sets are
    """
    draws = torch.Generator().manual_seed(0)

    def part(size):
        pixels = torch.randint(256, (size, *shape), dtype=torch.uint8, generator=draws)
        return Dealt(Part(pixels, torch.randint(10, (size,), generator=draws)))

    parts = {"train": part(count), "validation": part(16), "test": part(16)}
    channels = shape[0]
    normalisation = Normalisation(255, [0.4] * channels, [0.2] * channels)
    task = ImageTask({"kind": "images"}, parts, 10, normalisation, Augmentation(1, True)).to(device, dtype)
    most = _augmentation.MAX_NORMALISED_BYTES
    _augmentation.MAX_NORMALISED_BYTES = most if kept_normalised else 0
    try:
        for split in parts:
            task._on_device(split)
    finally:
        _augmentation.MAX_NORMALISED_BYTES = most
    return task
