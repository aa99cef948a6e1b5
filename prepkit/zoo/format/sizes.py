"""Sizes of shards, which bound the rows of a table before it is read.

Reading a table takes memory for each row, even where a small file says that all of them are equal.
"""

from __future__ import annotations

from pathlib import Path

from prepkit.errors import ZooError, counted
from prepkit.zoo.format.manifest import MANIFEST, Manifest
from prepkit.zoo.format.paths import inside


def check_sizes(root: Path, manifest: Manifest) -> None:
    """Compare the sizes of the shards in a folder with the manifest.

    raises ZooError for a shard that is missing, has another size or cannot be read
    """
    for shard in manifest.shards:
        file = inside(root, shard.path, str(root / MANIFEST))
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            raise ZooError(f"{file}: missing; the zoo is not whole. Fetch it again.") from None
        except OSError as error:
            raise ZooError(f"{file}: cannot be read: {error.strerror}.") from None
        if size != shard.bytes:
            found = counted(size, "byte")
            raise ZooError(f"{file}: it has {found}, the manifest says {shard.bytes:,}; fetch it again.")
