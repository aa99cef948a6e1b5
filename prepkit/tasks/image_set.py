"""A set of decoded images: files in, equally large uint8 images out, and a checksum that tells two sets apart."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError
from prepkit.tasks.task import DataMissing

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

BYTE_LEVELS = 255
DECODING_THREADS = 4  # Pillow lets go of the interpreter while it decodes
CHUNK = 256  # images handed to the threads at a time, which bounds the memory for encoded ones
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

    parts:       by name, such as "train" and "test"; all of one image shape
    class_names: in the order of the labels; None if the set has no names
    classes:     how many
    levels:      the pixel value that stands for 1
    revision:    the commit of a set of the Hub
    sha256:      of `fingerprint(parts)`
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


def fingerprint(parts: Mapping[str, Part]) -> str:
    """The sha256 of names, shapes, images and labels of all parts, in order of their names."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        part = parts[name]
        digest.update(f"{name}:{list(part.images.shape)};".encode())
        for values in (part.images, part.labels):
            digest.update(values.contiguous().numpy().data.cast("B"))
    return digest.hexdigest()


def count_classes(parts: Mapping[str, Part], class_names: tuple[str, ...] | None) -> int:
    """How many classes a set has: its names, or else the largest label and one.

    raises ZooError if a label is not one of them
    """
    classes = len(class_names) if class_names else int(max(part.labels.max() for part in parts.values())) + 1
    for name, part in parts.items():
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= classes:
            hint = " Its labels are withheld: judge on another part." if low == high == -1 else ""
            raise ZooError(f"part '{name}' has labels {low} to {high}, but there are {classes} classes.{hint}")
    return classes


def decode_all(encoded: Iterable[tuple[str, Any]], count: int, name: str) -> np.ndarray:
    """`[count, C, H, W]` uint8 of images; C is 1 if all are gray, else 3. Shows a bar on a terminal.

    encoded: place, and what `PIL.Image.open` takes or the bytes of a file
    name:    of the part, for the bar
    raises ZooError naming the place of an image that cannot be read or is not as large as the first
    """
    import numpy as np
    from tqdm import tqdm

    images: np.ndarray | None = None
    colour = False
    with ThreadPoolExecutor(DECODING_THREADS, "prepkit-decode") as pool:
        decoded = _in_chunks(pool, encoded)
        for number, (place, pixels) in enumerate(tqdm(decoded, f"decode {name}", count, leave=False, disable=None)):
            if images is None:
                images = np.empty((count, 3, *pixels.shape[:2]), dtype=np.uint8)
            if pixels.shape[:2] != images.shape[2:]:
                first, other = (f"{size[1]} x {size[0]}" for size in (images.shape[2:], pixels.shape[:2]))
                told = f"{place} is {other} pixels, the first image is {first}"
                raise ZooError(f"images of a task must be equally large: {told}; scale them first.")
            colour = colour or pixels.ndim == 3
            images[number] = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
    if images is None:
        raise ZooError(f"part '{name}' has no images.")
    return images if colour else images[:, :1].copy()


def as_channels(parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parts with the same number of channels: gray ones in colours if another is coloured.

    raises ZooError if their images differ in size
    """
    import numpy as np

    sizes = {name: images.shape[2:] for name, images in parts.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {width} x {height}" for name, (height, width) in sizes.items())
        raise ZooError(f"images of a task must be equally large; the parts are not: {told}.")
    channels = max(images.shape[1] for images in parts.values())
    return {
        name: images if images.shape[1] == channels else np.repeat(images, channels, axis=1)
        for name, images in parts.items()
    }


def _in_chunks(pool: ThreadPoolExecutor, encoded: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
    source = iter(encoded)
    while chunk := list(islice(source, CHUNK)):
        yield from pool.map(lambda item: (item[0], _decode(*item)), chunk)


def _decode(place: str, encoded: Any) -> np.ndarray:
    """`[H, W]` uint8 of a gray image, `[H, W, 3]` of a coloured one."""
    import numpy as np

    try:
        from PIL import Image
    except ImportError:
        raise DataMissing("images are decoded by Pillow, which is missing; pip install 'prepkit[train]'") from None
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            mode = image.mode
            if mode in GRAY_MODES:
                return np.asarray(image.convert("L"))
            if mode in COLOUR_MODES:
                return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ZooError(f"{place} is no image that can be read: {str(error).splitlines()[0]}.") from None
    raise ZooError(f"{place} has pixels of mode {mode}; convert them to 8 bits a channel, gray or RGB.")
