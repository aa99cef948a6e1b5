"""Changing zoos in place: what `annotate`, append, `drop` and `merge --link` cost beside the files that they write.

A zoo of 1,000,000 tiny networks is made at once, since adding them one by one takes long.
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
from prepkit.zoo.change.choosing import drop
from prepkit.zoo.change.merge import merge
from prepkit.zoo.format.manifest import read_manifest, write_manifest
from prepkit.zoo.format.shards import Extent, shard_format
from prepkit.zoo.format.tables import write_table_at_once
from prepkit.zoo.write.writer import ZooWriter

COUNT = 1_000_000
APPENDED = 1_000
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


def test_append(benchmark: BenchmarkFixture, root: Path, tmp_path: Path) -> None:
    """1,000 tiny networks are appended one by one, against writing the table and against writing them alone."""
    before, table, numbers = len(open_zoo(root)), open_zoo(root).table, iter(range(ROUNDS + 1))

    def add(writer: ZooWriter, name: str) -> None:
        with writer:
            for number in range(APPENDED):
                writer.add({"w": torch.full((24,), number / 7)}, id=f"{name}-{number}", accuracy=0.5, run=number)

    def alone() -> None:
        shutil.rmtree(tmp_path / "alone", ignore_errors=True)
        add(ZooWriter(tmp_path / "alone", width=8), "alone")

    ways = {
        "writing the table": lambda: write_table_at_once(table, tmp_path),
        "writing the 1,000 alone": alone,
        "append 1,000": lambda: add(ZooWriter(root, append=True), f"new{next(numbers)}"),
    }
    seconds = interleaved(ways, rounds=ROUNDS)
    zoo = open_zoo(root)
    assert len(zoo) == before + (ROUNDS + 1) * APPENDED
    assert zoo["new3-70"][0].values.flatten()[:24].tolist() == [10.0] * 24
    benchmark.pedantic(alone, rounds=1)
    record(benchmark, "growing", f"append to {COUNT:,} instances", summary(seconds, "writing the table"))


def test_drop(benchmark: BenchmarkFixture, root: Path, tmp_path: Path) -> None:
    """One instance of a shard of 128 MB goes, against copying that shard and writing the table."""
    shard, table = read_manifest(root).shards[0], open_zoo(root).table
    before = len(table)
    numbers = iter(range(ROUNDS + 2))

    def copy() -> None:
        shutil.copyfile(root / shard.path, tmp_path / "copy")
        write_table_at_once(table, root, tmp_path)

    ways = {
        "copying shard and table": copy,
        "drop": lambda: drop(root, ids=[f"n{next(numbers)}"], card=False),
    }
    seconds = interleaved(ways, rounds=ROUNDS)
    assert len(open_zoo(root)) == before - ROUNDS - 1
    benchmark.pedantic(copy, rounds=1)
    record(benchmark, "growing", f"drop one of {COUNT:,} instances", summary(seconds, "copying shard and table"))
    shutil.rmtree(root)


def test_link(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Ten zoos of 1 GB of 10,000 instances each become one, against writing only the table of the new zoo."""
    sources = []
    for number in range(10):
        with ZooWriter(tmp_path / f"zoo{number}", width=512, name=f"zoo{number}") as writer:
            layer = torch.zeros(26_000)
            for instance in range(10):
                writer.add({"w": layer + instance}, id=f"n{number}-{instance}", accuracy=0.5)
        sources.append(of_a_gigabyte(tmp_path / f"zoo{number}", number))

    def link() -> None:
        shutil.rmtree(tmp_path / "all", ignore_errors=True)
        merge(tmp_path / "all", sources, link=True, card=False)

    def write() -> None:
        write_table_at_once(table, tmp_path)

    link()
    table = open_zoo(tmp_path / "all").table
    assert len(table) == 100_000
    assert sum(shard.bytes for shard in read_manifest(tmp_path / "all").shards) > 10e9
    seconds = interleaved({"writing the table": write, "merge --link": link}, rounds=ROUNDS)
    assert open_zoo(tmp_path / "all").preps([0, 99_999]).shape == (2, 52, 512)
    benchmark.pedantic(write, rounds=1)
    record(benchmark, "growing", "link 10 zoos of 1 GB", summary(seconds, "writing the table"))


def of_a_gigabyte(root: Path, number: int) -> Path:
    """Give a zoo 10,000 rows in a shard that takes no space: its values are a hole in the file, all 0."""
    count = 10_000
    manifest = read_manifest(root)
    shard = manifest.shards[0]
    extent = Extent(count, 52, 512, "float32")
    frame = shard_format("safetensors").frame(extent)
    path = f"shards/hole-00000-{number:012x}.safetensors"
    with open(root / path, "wb") as file:
        file.write(frame.before)
        file.truncate(len(frame.before) + count * extent.row_bytes)
    rows = np.arange(count)
    table = pa.table(
        {
            "id": [f"n{number}-{row}" for row in range(count)],
            "architecture": [shard.architecture] * count,
            "class_id": pa.array(np.zeros(count, np.int32)),
            "split": pa.nulls(count, pa.string()),
            "shard": pa.array(np.zeros(count, np.int32)),
            "row": pa.array(rows),
            "accuracy": rows / count,
        }
    )
    size = (root / path).stat().st_size
    shards = (replace(shard, path=path, rows=count, bytes=size, sha256=f"{number:064x}"),)
    write_manifest(replace(manifest, shards=shards, table=write_table_at_once(table, root)), root, overwrite=True)
    return root
