"""Changing a zoo of 1,000,000 instances in place: what `annotate` costs beside the file that it writes.

Its networks are tiny and in one shard, and its table is made at once: adding a million one by one takes an hour.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from safetensors.torch import save_file

from benchmarks.timing import interleaved, record, summary
from prepkit.api import open_zoo
from prepkit.support.files import sha256_of_file
from prepkit.zoo.change.annotating import annotate
from prepkit.zoo.format.manifest import read_manifest, write_manifest
from prepkit.zoo.format.tables import write_table_at_once
from prepkit.zoo.write.writer import ZooWriter

COUNT = 1_000_000
ROUNDS = 5


def large_zoo(root: Path, count: int) -> Path:
    """Write a zoo of `count` instances of 24 parameters with two columns."""
    with ZooWriter(root, width=8) as writer:
        writer.add({"w": torch.arange(24.0)}, id="n0", accuracy=0.5, run=0)
    manifest = read_manifest(root)
    shard = manifest.shards[0]
    values = torch.rand(count, 4, 8)
    values.view(count, -1)[:, 24:] = 0
    (root / shard.path).unlink()
    save_file({"prep": values}, root / "part")
    sha256 = sha256_of_file(root / "part")
    path = f"{shard.path.rpartition('-')[0]}-{sha256[:12]}.safetensors"
    (root / "part").rename(root / path)
    numbers = np.arange(count)
    table = pa.table(
        {
            "id": pa.array([f"n{number}" for number in range(count)]),
            "architecture": pa.array([shard.architecture] * count),
            "class_id": pa.array(np.zeros(count, np.int32)),
            "split": pa.nulls(count, pa.string()),
            "shard": pa.array(np.zeros(count, np.int32)),
            "row": pa.array(numbers),
            "accuracy": pa.array(numbers / count),
            "run": pa.array(numbers // 10),
        }
    )
    stored = write_table_at_once(table, root)
    shards = (replace(shard, path=path, rows=count, bytes=(root / path).stat().st_size, sha256=sha256),)
    write_manifest(replace(manifest, shards=shards, table=stored), root, overwrite=True)
    assert len(open_zoo(root)) == count
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_zoo(tmp_path_factory.mktemp("growing") / "zoo", COUNT)


def test_annotate(benchmark: BenchmarkFixture, root: Path, tmp_path: Path) -> None:
    """A column for all instances by id, one for each run, and the same out of a CSV, against writing the table."""
    ids = [f"n{number}" for number in range(COUNT)]
    values = np.random.default_rng(0).random(COUNT)
    frame = pa.table({"id": ids[::-1], "robust": values})
    runs = pa.table({"run": np.arange(COUNT // 10), "lr": values[: COUNT // 10]})
    table = open_zoo(root).table

    def write() -> None:
        write_table_at_once(table.append_column("robust", pa.array(values)), root, tmp_path)

    ways = {
        "writing the table": write,
        "a value each, by id": lambda: annotate(root, frame, card=False),
        "a value a run": lambda: annotate(root, runs, on="run", card=False),
        "drop both": lambda: annotate(root, drop=["robust", "lr"], card=False),
    }
    seconds = interleaved(ways, rounds=ROUNDS)
    annotate(root, frame, card=False)
    assert open_zoo(root).table["robust"].to_numpy()[:5].tolist() == values[::-1][:5].tolist()
    benchmark.pedantic(write, rounds=1)
    record(benchmark, "growing", f"annotate {COUNT:,} instances", summary(seconds, "writing the table"))
    shutil.rmtree(root)
