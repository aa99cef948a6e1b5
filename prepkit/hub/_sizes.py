"""Sizes of the shards in a repository, which bound the rows of its zoo's table before that is fetched and read."""

from __future__ import annotations

from prepkit.address import HubAddress
from prepkit.errors import ZooError, counted
from prepkit.hub._failures import explained
from prepkit.hub.client import api
from prepkit.hub.snapshot import files_of
from prepkit.zoo.format.manifest import MANIFEST, Manifest

FEW_ROWS = 10_000  # so many cost little, whatever a table says of them, and need no request


def check_rows_on_hub(version: HubAddress, manifest: Manifest, token: str | None) -> None:
    """Ask the Hub whether its shards have enough bytes for the rows of a large table.

    raises ZooError naming the shard that has not, HubError if the Hub does not answer
    """
    if manifest.table.rows <= FEW_ROWS:
        return
    with explained(version.repo_id, "dataset", version.revision):
        files = files_of(api(token), version, "dataset")
    for index, (shard, needed) in enumerate(zip(manifest.shards, manifest.bytes_of_rows, strict=True)):
        size = files[shard.path].size if shard.path in files else 0
        if size < needed:
            raise ZooError(
                f"{version}/{MANIFEST}, shards[{index}]: {shard.rows:,} rows take {counted(needed, 'byte')}, but of "
                f"{shard.path} the repository has {counted(size, 'byte')}. The zoo is not whole; tell its owner."
            )
