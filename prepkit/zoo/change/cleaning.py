"""clean: remove what earlier versions of a zoo left in its folder: old tables, shards that nothing names, half files.

A change in place leaves the old table where it is, since somebody may be reading it. Only files with names that prepkit
gives are removed; all others are the user's.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from prepkit.support.files import output_error
from prepkit.support.lock import changing
from prepkit.support.text import Brief
from prepkit.zoo.format.manifest import Manifest, read_manifest
from prepkit.zoo.format.paths import APPENDING, VIEWER, WORKING_FOLDERS, unnamed_files
from prepkit.zoo.write.working import remove_unbegun

OURS = re.compile(
    r"models-[0-9a-f]{12}\.parquet"
    rf"|{VIEWER}/[^/]+-[0-9a-f]{{12}}\.parquet"
    r"|shards/[^/]+-[0-9]{5}-[0-9a-f]{12}\.[a-z0-9]+"
    r"|teacher-[0-9a-f]+\.prep\.safetensors"
    r"|preprocessing-[0-9a-f]{12}\.safetensors"
    r"|\.prepkit-[^/]+(/.*)?"
    rf"|({'|'.join(map(re.escape, WORKING_FOLDERS))})/.*"
)


@dataclass(frozen=True)
class UnneededFile:
    """A file that no manifest needs any more: its path in the zoo, and its size."""

    path: str
    bytes: int


@dataclass(frozen=True, repr=False)
class Cleaning(Brief):
    """Result of cleaning a zoo.

    removed: files that were removed, or would be
    others:  paths of files that the manifest does not name but prepkit did not write; they are left alone
    """

    removed: tuple[UnneededFile, ...]
    others: tuple[str, ...]


def clean(path: str | os.PathLike[str], *, dry_run: bool = False) -> Cleaning:
    """Remove the files of earlier versions of a zoo, and of an interrupted pull or writing in its folder.

    Whoever opened the zoo before it was changed may lose the table then; what is open already stays readable.
    dry_run: only tell what would be removed
    raises ZooError if the folder is no zoo, ZooLocked if another process changes it, OutputError
    """
    root = Path(path)
    manifest = read_manifest(root)  # before a lock is put into the folder
    if dry_run:
        return _unneeded(root, manifest)
    with changing(root):
        cleaning = _unneeded(root, read_manifest(root))
        try:
            for file in cleaning.removed:
                (root / file.path).unlink(missing_ok=True)
        except OSError as error:
            raise output_error(root, error) from error
        for folder in (*(root / name for name in WORKING_FOLDERS), *root.glob(".prepkit-*")):
            shutil.rmtree(folder, ignore_errors=True)
        remove_unbegun(root / APPENDING)
    return cleaning


def is_ours(path: str) -> bool:
    """Return whether prepkit gives files of a zoo such a name."""
    return OURS.fullmatch(path) is not None


def _unneeded(root: Path, manifest: Manifest) -> Cleaning:
    paths = list(unnamed_files(root, manifest.paths))
    removed = tuple(UnneededFile(path, (root / path).lstat().st_size) for path in paths if is_ours(path))
    return Cleaning(removed, tuple(path for path in paths if not is_ours(path)))
