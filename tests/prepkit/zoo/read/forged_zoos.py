"""Zoos with another manifest, shard or table in place of theirs, as a forger would write them."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prepkit.zoo.format.manifest import MANIFEST, checksum, read_manifest


def rewrite_manifest(root: Path, change) -> None:
    """Change zoo.json and give it a right checksum, as a forger would."""
    data = json.loads((root / MANIFEST).read_text())
    change(data)
    data["sha256"] = checksum(data)
    (root / MANIFEST).write_text(json.dumps(data))


def replace_shard(root: Path, number: int, write) -> Path:
    """Put another file in a shard's place, with a manifest that names its size."""
    shard = read_manifest(root).shards[number]
    file = root / shard.path
    file.unlink()
    write(file)
    rewrite_manifest(root, lambda data: data["shards"][number].update(bytes=file.stat().st_size))
    return file


def table_of(root: Path) -> pa.Table:
    return pq.read_table(root / read_manifest(root).table.path)


def replace_table(root: Path, table: pa.Table) -> None:
    """Put another table in the zoo's table's place, with its right size and sha256."""
    file = root / read_manifest(root).table.path
    pq.write_table(table, file)
    content = file.read_bytes()
    change = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite_manifest(root, lambda data: data["table"].update(change))
