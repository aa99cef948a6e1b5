"""Take the shards of a zoo into another one as they are, by hard links, without reading their values."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from prepkit.support.files import flush
from prepkit.support.progress import Advance
from prepkit.zoo.format.manifest import MANIFEST, Manifest, Shard
from prepkit.zoo.format.paths import inside
from prepkit.zoo.format.shards import ShardFormat
from prepkit.zoo.write.staging import SHARDS

SUM_IN_NAME = 12  # digits of a shard's sha256 that stand in its name


def link_shards(
    source: Path, manifest: Manifest, kind: ShardFormat, root: Path, numbers: dict[str, int], progress: Advance | None
) -> list[Shard]:
    """Give all shards of a zoo names in `root`, and describe them in the same order.

    numbers: number of shards of each architecture that `root` has already; raised by those that are linked
    """
    shards = []
    for shard in manifest.shards:
        number = numbers.get(shard.architecture, 0)
        numbers[shard.architecture] = number + 1
        path = f"{SHARDS}/{shard.architecture}-{number:05d}-{shard.sha256[:SUM_IN_NAME]}{kind.suffix}"
        _link(inside(source, shard.path, str(source / MANIFEST)), root / path)
        shards.append(replace(shard, path=path))
        if progress is not None:
            progress(shard.bytes)
    flush(root / SHARDS)
    return shards


def _link(file: Path, name: Path) -> None:
    """Give a file a second name, or copy it where the disk cannot do that."""
    try:
        os.link(file.resolve(), name)
    except OSError:  # another disk, a file system without hard links, or a file that is not the user's own
        shutil.copyfile(file, name)
        flush(name)
