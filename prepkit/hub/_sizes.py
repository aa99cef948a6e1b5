"""Sizes of the shards in a store, which bound the rows of its zoo's table before that is fetched and read."""

from __future__ import annotations

from prepkit.errors import ZooError, counted
from prepkit.hub._source import Source
from prepkit.zoo.format.manifest import MANIFEST, Manifest

FEW_ROWS = 10_000  # so many cost little, whatever a table says of them, and need no request


def check_rows(source: Source, manifest: Manifest) -> None:
    """Ask the store whether its shards have enough bytes for the rows of a large table.

    raises ZooError naming the shard that has not, HubError if the store does not answer
    """
    if manifest.table.rows <= FEW_ROWS:
        return
    sizes = source.sizes([shard.path for shard in manifest.shards])
    for index, (shard, needed) in enumerate(zip(manifest.shards, manifest.bytes_of_rows, strict=True)):
        size = sizes.get(shard.path, 0)
        if size is not None and size < needed:
            raise ZooError(
                f"{source}/{MANIFEST}, shards[{index}]: {shard.rows:,} rows take {counted(needed, 'byte')}, but of "
                f"{shard.path} {source.holder} has {counted(size, 'byte')}. The zoo is not whole; tell its owner."
            )
