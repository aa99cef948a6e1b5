"""Take the shards of a zoo into another one as they are, by hard links, without reading their values."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prepkit.errors import ZooError
from prepkit.support.files import flush
from prepkit.support.progress import Advance
from prepkit.zoo.change._merged_table import SourceZoo
from prepkit.zoo.change.copying import rows_of_shard
from prepkit.zoo.format.manifest import MANIFEST, Manifest, Shard, read_manifest
from prepkit.zoo.format.paths import inside
from prepkit.zoo.format.shards import ShardFormat
from prepkit.zoo.format.sizes import check_sizes
from prepkit.zoo.write.staging import SHARDS

SUM_IN_NAME = 12  # digits of a shard's sha256 that stand in its name


def whole_manifest(source: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of a zoo whose shards have the right sizes and headers; their values are not read.

    raises ZooError naming the file
    """
    manifest = read_manifest(source)
    check_sizes(Path(source), manifest)
    for shard in manifest.shards:
        rows_of_shard(Path(source), manifest, shard)
    return manifest


def check_linkable(zoos: Sequence[SourceZoo], kind: ShardFormat) -> None:
    """Raise ZooError unless all zoos have the width of the first and the format of the new zoo."""
    width = zoos[0].manifest.width
    for zoo in zoos:
        manifest = zoo.manifest
        if (manifest.width, manifest.shard_format) != (width, kind.name):
            raise ZooError(
                f"'{zoo.root}' has the width {manifest.width} and {manifest.shard_format} shards, the new zoo has the "
                f"width {width} and {kind.name} shards; without link=True they are written anew."
            )


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
