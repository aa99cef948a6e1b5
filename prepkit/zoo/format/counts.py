"""Count what a zoo holds, from its manifest alone. Importing this module imports neither torch nor pyarrow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prepkit.zoo.format.manifest import Manifest

ARCHITECTURES_SHOWN = 50  # of those that a text lists; zoos of networks that all differ have thousands


def counts_of(manifest: Manifest) -> dict[str, int]:
    """Return the number of instances of each architecture, which may be 0."""
    counts = {stored.name: 0 for stored in manifest.architectures}
    for shard in manifest.shards:
        counts[shard.architecture] += shard.rows
    return counts


def num_bytes_of(manifest: Manifest) -> int:
    """Return the number of bytes of the table and all shards."""
    return manifest.table.bytes + sum(shard.bytes for shard in manifest.shards)
