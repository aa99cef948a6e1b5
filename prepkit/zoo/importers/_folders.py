"""walked: the folders below one, without those of zoos, for importers whose models may stand at any depth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prepkit.support.files import is_zoo
from prepkit.zoo.write.links import walk_once


def walked(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield what `walk_once` does: a folder, the names of folders in it, of which some may be taken out, and of files.

    raises ZooError for a folder that cannot be read
    """
    for place, folders, names in walk_once(folder):
        if is_zoo(Path(place)) or ".writing" in folders:  # perhaps the zoo that is being made
            folders.clear()
            continue
        yield Path(place), folders, names
