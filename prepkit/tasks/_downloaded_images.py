"""Well-known sets of images in the files that torchvision downloads: MNIST, Fashion-MNIST, CIFAR-10, SVHN.

    mnist, fashion_mnist   MNIST/raw/train-images-idx3-ubyte, ...   (FashionMNIST/raw; also with .gz)
    cifar10                cifar-10-batches-py/data_batch_1 to 5, test_batch
    svhn                   train_32x32.mat, test_32x32.mat

The folder that is named holds these, or is the last of these folders. No pickle of the files is run: CIFAR-10's are
read by an unpickler that knows arrays of numpy alone.
"""

from __future__ import annotations

import gzip
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from prepkit.errors import ZooError, listed
from prepkit.tasks._image_record import ImageRecord
from prepkit.tasks._image_set import ImageSet, Part, count_classes, fingerprint, scaled
from prepkit.tasks.task import DataMissing

FOLDERS = {  # in which the files may stand, below the folder that is named
    "mnist": ("MNIST/raw", "raw", "."),
    "fashion_mnist": ("FashionMNIST/raw", "raw", "."),
    "cifar10": ("cifar-10-batches-py", "."),
    "svhn": (".", "svhn"),
}
CLASSES = 10
IMAGE_MAGIC, LABEL_MAGIC = 2051, 2049
IDX = {"train": "train", "test": "t10k"}
BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
ARRAYS = {  # all that an array of numpy needs
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}

Read = Callable[[Path, str], tuple[np.ndarray, np.ndarray]]


def downloaded_images(record: ImageRecord, data: Path | None) -> ImageSet:
    """All images of the parts that a record uses, `[N, C, H, W]`.

    raises ZooError naming the file that is missing or damaged, DataMissing if no folder is given
    """
    import torch

    name = record.dataset
    if data is None:
        raise DataMissing(
            f"the files of {name}, as torchvision keeps them, are in a folder that only you know (a set of the Hub is "
            "called as 'uoft-cs/cifar10' is); name the folder: data=PATH"
        )
    if not data.is_dir():
        raise ZooError(f"'{data}' is no folder with the files of {name}.")
    unknown = [part for part in record.split.parts if part not in IDX]
    if unknown:
        raise ZooError(f"task, split: {name} has no part {listed(unknown)}; it has train and test.")
    parts = {}
    for part in record.split.parts:
        images, labels = READERS[name](data, part)
        if len(images) != len(labels) or not len(labels):
            raise ZooError(f"'{data}': {name} has {len(images):,} images and {len(labels):,} labels for {part}.")
        images = scaled(images, record.size)
        pair = (torch.from_numpy(np.ascontiguousarray(each)) for each in (images, labels.astype(np.int64)))
        parts[part] = Part(*pair)
    names = tuple(map(str, range(CLASSES)))
    return ImageSet(parts, None, count_classes(parts, names), fingerprint(parts))


def _file(data: Path, dataset: str, names: tuple[str, ...]) -> Path:
    """Return the first of these files that is there.

    raises ZooError with all places that were looked into
    """
    places = [data / folder / name for folder in FOLDERS[dataset] for name in names]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ZooError(f"'{data}' has no file of {dataset}: looked for {listed((str(p) for p in places), 8)}.")
    return found


def _idx(dataset: str) -> Read:
    def read(data: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
        images = _idx_array(_gz(data, dataset, f"{IDX[part]}-images-idx3-ubyte"), IMAGE_MAGIC, 3)
        return images[:, None], _idx_array(_gz(data, dataset, f"{IDX[part]}-labels-idx1-ubyte"), LABEL_MAGIC, 1)

    return read


def _gz(data: Path, dataset: str, name: str) -> Path:
    return _file(data, dataset, (name, f"{name}.gz"))


def _idx_array(file: Path, magic: int, axes: int) -> np.ndarray:
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        found, *shape = struct.unpack_from(f">{axes + 1}I", content)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ZooError(f"{file}: damaged ({error}); fetch it again.") from None
    values = np.frombuffer(content, np.uint8, offset=4 * (axes + 1))
    if found != magic or values.size != np.prod(shape, dtype=np.int64):
        raise ZooError(f"{file}: damaged, {values.size:,} bytes of values are not those of its header; fetch it again.")
    return values.reshape(shape).copy()


def _cifar10(data: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    files = [_file(data, "cifar10", (name,)) for name in BATCHES[part]]
    images, labels = zip(*map(_batch, files), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with file.open("rb") as opened:
            batch = _ArrayUnpickler(opened, encoding="bytes").load()
        pixels, labels = batch[b"data"], np.array(batch[b"labels"])
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * 32 * 32) or labels.dtype.kind != "i":
            raise ValueError(f"data {pixels.dtype} {pixels.shape}, labels {labels.dtype} {labels.shape}")
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ZooError(f"{file}: no batch of CIFAR-10 ({_reason(error)}); fetch it again.") from None
    except (pickle.UnpicklingError, ImportError, MemoryError, OverflowError) as error:
        raise ZooError(f"{file}: damaged or no batch of CIFAR-10 ({_reason(error)}); nothing of it was run.") from None
    return pixels.reshape(-1, 3, 32, 32), labels


def _svhn(data: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    file = _file(data, "svhn", (f"{part}_32x32.mat",))
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataMissing(
            "the files of SVHN are read by scipy, which is missing; pip install 'prepkit[train]'."
        ) from None
    try:
        content = loadmat(str(file), variable_names=["X", "y"])
        pixels, labels = content["X"], content["y"].reshape(-1)
        if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, len(labels)):
            raise ValueError(f"X is {pixels.dtype} {pixels.shape}, y {labels.shape}")
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise ZooError(f"{file}: no file of SVHN ({_reason(error)}); fetch it again.") from None
    return pixels.transpose(3, 2, 0, 1), labels % 10  # the digit 0 has the label 10


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what an array is made of, and refuse all else."""
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


READERS: dict[str, Read] = {
    "mnist": _idx("mnist"),
    "fashion_mnist": _idx("fashion_mnist"),
    "cifar10": _cifar10,
    "svhn": _svhn,
}
