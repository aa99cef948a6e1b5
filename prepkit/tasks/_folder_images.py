"""Images in a folder of the user's: each class is a subfolder of `train/` and `test/` (or `val/`), or of the top.

    flowers/train/rose/1.png            flowers/rose/1.png
    flowers/train/tulip/2.png           flowers/tulip/2.png
    flowers/test/rose/3.png

A part is named after its folder; without parts all images are "train". The classes of "train" are numbered by name.
"""

from __future__ import annotations

from pathlib import Path

from prepkit.errors import ZooError, listed, nearest
from prepkit.tasks._image_record import ImageRecord
from prepkit.tasks._image_set import ImageSet, Part, as_channels, count_classes, decode_all, fingerprint
from prepkit.tasks.task import DataMissing

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def folder_images(record: ImageRecord, data: Path | None) -> ImageSet:
    """All images of the parts that a record uses, in the order of their paths.

    raises ZooError naming the file or folder that is wrong, DataMissing if no folder is given
    """
    import torch

    if data is None:
        raise DataMissing("the images are in a folder that only you know; name it: data=PATH")
    if not data.is_dir():
        raise ZooError(f"'{data}' is no folder of images.")
    roots = {name: _root_of(data, name, record.split.train) for name in record.split.parts}
    class_names = tuple(folder.name for folder in _folders(roots[record.split.train]))
    if not class_names:
        raise ZooError(f"'{roots[record.split.train]}' has no subfolders; a class is a subfolder of images.")
    files = {name: _files(root, class_names) for name, root in roots.items()}
    pixels = as_channels(
        {
            name: decode_all(((f"'{f}'", f) for f, _ in found), len(found), name, record.size)
            for name, found in files.items()
        }
    )
    parts = {
        name: Part(torch.from_numpy(pixels[name]), torch.tensor([label for _, label in found]))
        for name, found in files.items()
    }
    return ImageSet(parts, class_names, count_classes(parts, class_names), fingerprint(parts))


def _root_of(data: Path, part: str, train: str) -> Path:
    """The folder of a part."""
    names = [folder.name for folder in _folders(data)]
    if train not in names and train == "train":  # the classes themselves lie there
        if part == train:
            return data
        only = 'all its images are "train"; give numbers of images for test and validation'
        raise ZooError(f"task, split: '{data}' has no folder 'train', so {only}, not '{part}'.")
    if part not in names:
        raise ZooError(f"task, split: '{data}' has no part '{part}'; it has {listed(names)}.{nearest(part, names)}")
    return data / part


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(root: Path, class_names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """The images of a part with their labels."""
    found = []
    for folder in _folders(root):
        if folder.name not in class_names:
            near = nearest(folder.name, class_names)
            raise ZooError(f"'{folder}' is a class that the training images do not have.{near}")
        images = [path for path in sorted(folder.rglob("*")) if _is_image(path)]
        if not images:
            raise ZooError(f"'{folder}' has no images ({listed(SUFFIXES, len(SUFFIXES))}).")
        found += [(path, class_names.index(folder.name)) for path in images]
    if not found:
        raise ZooError(f"'{root}' has no subfolders; a class is a subfolder of images.")
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
