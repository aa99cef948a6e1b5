"""Where runs and their zoos are: folders, and addresses on the Hub and in other stores."""

from __future__ import annotations

import os
from pathlib import Path

from prepkit.address import HUB_SCHEME, is_remote


def local_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a run: the path itself, or the copy in the Hub's cache."""
    if not os.fspath(path).startswith(HUB_SCHEME):
        return Path(path)
    from prepkit.hub.snapshot import fetch_folder

    folder, _ = fetch_folder(os.fspath(path), repo_type="model")
    return folder


def absolute(path: str | os.PathLike[str]) -> str:
    """Return an address that means the same from any working directory."""
    text = os.fspath(path)
    return text if is_remote(text) else os.path.abspath(text)
