"""Check the zoos whose shards a merge takes as they are, without reading their values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from prepkit.errors import ZooError
from prepkit.zoo.change.copying import rows_of_shard
from prepkit.zoo.format.manifest import Manifest, read_manifest
from prepkit.zoo.format.shards import ShardFormat
from prepkit.zoo.format.sizes import check_sizes
from prepkit.zoo.write.joined_table import SourceZoo


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
