"""Paths in a manifest: they are relative and lead to files inside the zoo; only the Hub's own cache may have links."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from prepkit.errors import ZooError
from prepkit.support.files import ZOO_LOCK, ZOO_MANIFEST

SAFE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")
SAFE_PATH = re.compile(f"{SAFE_PART.pattern}(/{SAFE_PART.pattern})*")
BESIDE = frozenset((ZOO_MANIFEST, ZOO_LOCK, "README.md", "card.png", ".gitattributes", ".gitignore"))
VIEWER = "viewer"  # folder of the tables that a push writes for the Hub's viewer
FOREIGN_FOLDERS = frozenset((".git", ".cache"))  # git and the Hub's client make them
APPENDING = ".appending"  # in a finished zoo: the zoo of instances that are being appended to it
WORKING_FOLDERS = (".writing", ".pulling")  # they are left in a finished zoo only by a kill, or by an interrupted pull


def check_relative(path: str, place: object) -> str:
    """Return the path itself if it can only name a file inside the zoo.

    raises ZooError for an absolute path, a drive, `..`, a backslash or an odd character
    """
    if not SAFE_PATH.fullmatch(path):
        raise ZooError(f"{place}: {path!r} is refused; a zoo names files inside itself, as in shards/name.safetensors.")
    return path


def check_part(name: str, place: object) -> str:
    """Return the name itself if it can be part of a file name.

    raises ZooError
    """
    if not SAFE_PART.fullmatch(name):
        raise ZooError(f"{place}: {name!r} is refused; it would stand in file names.")
    return name


def inside(root: Path, path: str, place: str) -> Path:
    """Return the file that a relative path names, if the path is safe and no link leads out of the zoo.

    The Hub's cache keeps a snapshot's files as links to `blobs` beside `snapshots`; those are followed.
    raises ZooError for any other link, or if a folder on the way may not be searched
    """
    name = str(root)
    for part in check_relative(path, place).split("/"):
        name = os.path.join(name, part)
        try:
            is_link = stat.S_ISLNK(os.lstat(name).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            break
        except OSError as error:
            raise ZooError(f"{name}: cannot be read: {error.strerror}.") from None
        if is_link and Path(name).resolve().parent != hub_blobs(root):
            raise ZooError(
                f"{place}: {path!r} is a link to '{Path(name).resolve()}'; links are refused, copy the file."
            )
    return root / path


def unnamed_files(root: Path, named: Collection[str]) -> Iterator[str]:
    """Give the paths of the files in a zoo's folder that belong to nothing.

    Copies of splits for the Hub's viewer belong to the card that names them; a clone of a repository has them.
    named: paths of the files that its manifest names
    """
    try:
        card = (root / "README.md").read_bytes()
    except OSError:
        card = b""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in FOREIGN_FOLDERS and name != APPENDING)
        paths = [(Path(folder) / name).relative_to(root).as_posix() for name in sorted(files)]
        paths = [path for path in paths if path not in named and path not in BESIDE]
        yield from (path for path in paths if not (path.startswith(f"{VIEWER}/") and path.encode() in card))


def hub_blobs(root: Path) -> Path | None:
    """Return the `blobs` folder of the Hub's cache if `root` is a snapshot in it: .../snapshots/<commit>."""
    snapshots = root.absolute().parent
    return snapshots.parent.resolve() / "blobs" if snapshots.name == "snapshots" else None
