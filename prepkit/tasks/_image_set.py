"""A set of equally large images decoded from files, and a checksum that tells two sets apart."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, counted
from prepkit.support.progress import ProgressBar
from prepkit.tasks.task import DataMissing

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

BYTE_LEVELS = 255
DECODING_THREADS = 4  # Threads help, as Pillow lets go of the interpreter while it decodes.
CHUNK = 256  # So many images are handed to the threads at a time, which bounds the memory for encoded ones.
GRAY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX")


@dataclass(frozen=True)
class Part:
    """A part of a set: images `[N, C, H, W]` uint8, labels `[N]` int64, on the CPU."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ImageSet:
    """Decoded images.

    parts:       parts by name, such as "train" and "test"; all images have one shape
    class_names: names in the order of the labels; None if the set has no names
    classes:     number of classes
    levels:      the pixel value that stands for 1
    revision:    the commit of a set of the Hub
    sha256:      `fingerprint(parts)`
    """

    parts: Mapping[str, Part]
    class_names: tuple[str, ...] | None
    classes: int
    sha256: str
    levels: int = BYTE_LEVELS
    revision: str | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return tuple(next(iter(self.parts.values())).images.shape[1:])


def averaged(images: ImageSet) -> ImageSet:
    """Return a set whose images have one channel, the mean of three: their sum, and three times the levels.

    The sha256 stays that of the coloured images, since it tells which data these are.
    """
    import torch

    if images.image_shape[0] == 1:
        return images
    parts = {
        name: Part(part.images.sum(1, keepdim=True, dtype=torch.int16), part.labels)
        for name, part in images.parts.items()
    }
    return replace(images, parts=parts, levels=images.levels * images.image_shape[0])


def fingerprint(parts: Mapping[str, Part]) -> str:
    """The sha256 of the names, shapes, images and labels of all parts, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        part = parts[name]
        digest.update(f"{name}:{list(part.images.shape)};".encode())
        for values in (part.images, part.labels):
            digest.update(values.contiguous().numpy().data.cast("B"))
    return digest.hexdigest()


def count_classes(parts: Mapping[str, Part], class_names: tuple[str, ...] | None) -> int:
    """The number of classes of a set: of its names, or else the largest label plus one.

    raises ZooError if a label is not one of them
    """
    classes = len(class_names) if class_names else int(max(part.labels.max() for part in parts.values())) + 1
    for name, part in parts.items():
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= classes:
            hint = " Its labels are withheld: judge on another part." if low == high == -1 else ""
            raise ZooError(
                f"part '{name}' has labels {low} to {high}, but there are {counted(classes, 'class', 'classes')}.{hint}"
            )
    return classes


def decode_all(encoded: Iterable[tuple[str, Any]], count: int, name: str, size: int | None = None) -> np.ndarray:
    """Decode images into `[count, C, H, W]` uint8; C is 1 if all are gray, else 3. A terminal shows a bar.

    encoded: the place of each image, and the bytes of a file or what `PIL.Image.open` takes
    name:    name of the part, for the bar
    size:    height and width to which they are scaled; their own if missing
    raises ZooError naming the place of an image that cannot be read or is not as large as the first
    """
    import numpy as np

    images: np.ndarray | None = None
    colour = False
    pool = ThreadPoolExecutor(DECODING_THREADS, "prepkit-decode")
    with pool, ProgressBar(f"decoding {name}", "image") as bar:
        bar.begin(count)
        for number, (place, pixels) in enumerate(_in_chunks(pool, encoded, size)):
            if images is None:
                images = np.empty((count, 3, *pixels.shape[:2]), dtype=np.uint8)
            if pixels.shape[:2] != images.shape[2:]:
                first, other = (f"{size[1]} x {size[0]}" for size in (images.shape[2:], pixels.shape[:2]))
                raise ZooError(
                    f"images of a task must be equally large: {place} is {other} pixels, the first image is {first}; "
                    "scale them first."
                )
            colour = colour or pixels.ndim == 3
            images[number] = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
            bar.advance(1)
    if images is None:
        raise ZooError(f"part '{name}' has no images.")
    return images if colour else images[:, :1].copy()


def as_channels(parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give all parts the same number of channels: gray images are repeated in three if another part is coloured.

    raises ZooError if their images differ in size
    """
    import numpy as np

    sizes = {name: images.shape[2:] for name, images in parts.items()}
    if len(set(sizes.values())) > 1:
        different = ", ".join(f"{name} {width} x {height}" for name, (height, width) in sizes.items())
        raise ZooError(f"images of a task must be equally large; the parts are not: {different}.")
    channels = max(images.shape[1] for images in parts.values())
    return {
        name: images if images.shape[1] == channels else np.repeat(images, channels, axis=1)
        for name, images in parts.items()
    }


def _in_chunks(
    pool: ThreadPoolExecutor, encoded: Iterable[tuple[str, Any]], size: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    left = iter(encoded)
    while chunk := list(islice(left, CHUNK)):
        yield from pool.map(lambda item: (item[0], decoded(item[0], item[1], size)), chunk)


def scaled(images: np.ndarray, size: int | None) -> np.ndarray:
    """Scale images `[N, C, H, W]` uint8, C 1 or 3, to height and width `size` as those of files; None keeps them."""
    import numpy as np

    if size in (None, images.shape[2]) and size in (None, images.shape[3]):
        return images
    pillow = _pillow()
    found = np.empty((*images.shape[:2], size, size), np.uint8)
    for number, image in enumerate(images):
        pixels = pillow.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0).copy())
        small = np.asarray(pixels.resize((size, size), pillow.Resampling.BILINEAR))
        found[number] = small if small.ndim == 2 else small.transpose(2, 0, 1)
    return found


def _pillow() -> Any:
    """Return the module of Pillow that reads and scales images."""
    try:
        from PIL import Image
    except ImportError:
        raise DataMissing("images are decoded by Pillow, which is missing; pip install 'prepkit[train]'.") from None
    return Image


def decoded(place: str, encoded: Any, size: int | None = None) -> np.ndarray:
    """Decode a gray image into `[H, W]` uint8, a coloured one into `[H, W, 3]`.

    size: height and width to which it is scaled; its own if missing
    """
    import numpy as np

    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            mode = image.mode
            if mode in (*GRAY_MODES, *COLOUR_MODES):
                plain = image.convert("L" if mode in GRAY_MODES else "RGB")
                return np.asarray(plain.resize((size, size), pillow.Resampling.BILINEAR) if size else plain)
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise ZooError(f"{place} is no image that can be read: {str(error).splitlines()[0]}.") from None
    raise ZooError(f"{place} has pixels of mode {mode}; convert them to 8 bits a channel, gray or RGB.")
