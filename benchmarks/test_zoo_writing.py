"""Writing and opening zoos: against plain write + fsync, the raw read rate of the file, and `python -c pass`.

The disk of a shared machine is noisy: each round does all ways after another, and ratios are of medians.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

import prepkit
from benchmarks.timing import interleaved, record, summary
from prepkit.api import verify
from prepkit.families.registry import Architecture
from prepkit.prep.layout import Layout, Slot

ROWS, HEIGHT, WIDTH = 2_000, 8, 10_000
BATCH = 100


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)


def write_plain(values: torch.Tensor, path: Path) -> None:
    """All bytes into one file, fsynced: no checksum, no name, no metadata."""
    with open(path, "wb") as file:
        for batch in values.split(BATCH):
            file.write(batch.numpy().data)
        file.flush()
        os.fsync(file.fileno())


def write_hashed(values: torch.Tensor, path: Path) -> None:
    """The same with the file's sha256, computed by a thread meanwhile: what a writer that checks nothing can reach."""
    digest = hashlib.sha256()
    with open(path, "wb") as file, ThreadPoolExecutor(1) as thread:
        for batch in values.split(BATCH):
            content = batch.view(-1).view(torch.uint8).numpy().data
            thread.submit(digest.update, content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_zoo(values: torch.Tensor, path: Path, kind: str) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with prepkit.ZooWriter(path, width=WIDTH, format=kind) as writer:
        for batch in values.split(BATCH):
            writer.add_stack(batch, architecture="resnet8@cifar10", accuracy=[0.5] * len(batch))


def with_statistics(architecture: Architecture, seed: int) -> nn.Module:
    """A network in evaluation whose BatchNorms have statistics as trained ones have them."""
    torch.manual_seed(seed)
    network = architecture.build().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3.0)
    return network


def test_add_with_batch_norm(benchmark: BenchmarkFixture, folder: Path) -> None:
    """`add` of networks one by one: one is proved, the outputs of the others are compared."""
    known = prepkit.architecture("resnet8@cifar10")
    networks = [with_statistics(known, seed) for seed in range(8)]
    example = known.example_input()
    with ExitStack() as writers:
        ours, proving, plain = (writers.enter_context(prepkit.ZooWriter(folder / name)) for name in "abc")
        ours.add(networks[0])
        ways = {
            "add": lambda: [ours.add(network) for network in networks],
            "a proof for each, add": lambda: [
                proving.add(prepkit.fuse_batch_norm(network, example), architecture=known) for network in networks
            ],
            "add without BatchNorm": lambda: [plain.add(network) for network in folded],
        }
        folded = [prepkit.fuse_batch_norm(network, example) for network in networks]
        with torch.no_grad():
            result = summary(interleaved(ways, rounds=9), "add")
        benchmark.pedantic(ways["add"], rounds=1)
    zoos = [prepkit.open_zoo(folder / name) for name in "abc"]
    assert torch.equal(zoos[0].preps(range(1, 73)), zoos[1].preps(range(72)))
    record(benchmark, "zoo_writing", f"add 8 ResNet8 with BatchNorm, threads: {torch.get_num_threads()}", result)


def drop_from_cache(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_write(benchmark: BenchmarkFixture, folder: Path) -> None:
    values = torch.zeros(ROWS, HEIGHT * WIDTH)
    values[:, :77_706] = torch.randn(ROWS, 77_706)
    values = values.view(ROWS, HEIGHT, WIDTH)
    ways = {
        "plain write + fsync": lambda: write_plain(values, folder / "plain"),
        "plain write + fsync, sha256 in a thread": lambda: write_hashed(values, folder / "hashed"),
        "zoo, safetensors": lambda: write_zoo(values, folder / "safetensors", "safetensors"),
        "zoo, hdf5": lambda: write_zoo(values, folder / "hdf5", "hdf5"),
    }
    result = summary(interleaved(ways, rounds=5), "plain write + fsync")
    for name in ("safetensors", "hdf5"):
        zoo = prepkit.open_zoo(folder / name)
        assert torch.equal(zoo.preps(range(0, ROWS, 97)), values[::97])
        assert not verify(folder / name).faults
    benchmark.pedantic(ways["zoo, safetensors"], rounds=1)
    record(benchmark, "zoo_writing", "write 640 MB with sha256", result)


def test_cold_sequential_read(benchmark: BenchmarkFixture, folder: Path) -> None:
    values = torch.randn(ROWS, HEIGHT, WIDTH) * 0.1
    values.view(ROWS, -1)[:, 77_706:] = 0
    write_zoo(values, folder / "zoo", "safetensors")
    shards = sorted((folder / "zoo" / "shards").iterdir())
    out = torch.empty(BATCH, HEIGHT, WIDTH)
    buffer = bytearray(8 << 20)

    def raw() -> None:
        for shard in shards:
            drop_from_cache(shard)
        for shard in shards:
            with open(shard, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def through_the_zoo() -> None:
        for shard in shards:
            drop_from_cache(shard)
        zoo = prepkit.open_zoo(folder / "zoo")
        for start in range(0, ROWS, BATCH):
            zoo.preps(range(start, start + BATCH), out=out)

    result = summary(interleaved({"raw file read": raw, "zoo": through_the_zoo}, rounds=5), "raw file read")
    assert torch.equal(out, values[-BATCH:])
    benchmark.pedantic(through_the_zoo, rounds=1)
    record(benchmark, "zoo_writing", "cold sequential read of 640 MB", result)


def large_zoo(path: Path, instances: int) -> None:
    layout = Layout((Slot("weight", (32,), "float32", "parameter", 0),))
    tensors = {"weight": torch.randn(32)}
    with prepkit.ZooWriter(path, width=8) as writer:
        for index in range(instances):
            prep = prepkit.PRep(layout.pack(tensors, layout.shape(8)), layout)
            writer.add(prep, split="train", accuracy=index / instances, run=index // 10, seed=index)


def test_open_100_000_instances(benchmark: BenchmarkFixture, folder: Path) -> None:
    large_zoo(folder / "zoo", 100_000)
    prepkit.open_zoo(folder / "zoo")  # imports
    result = summary(interleaved({"open_zoo": lambda: prepkit.open_zoo(folder / "zoo")}, rounds=11), "open_zoo")
    zoo = prepkit.open_zoo(folder / "zoo")
    assert len(zoo) == 100_000
    assert len(zoo.where("accuracy >= 0.5 and split == 'train'")) == 50_000
    run = [sys.executable, "-c", "pass"]
    info = [str(Path(sys.executable).with_name("prepkit")), "zoo", "info", str(folder / "zoo")]
    ways = {
        "python -c pass": lambda: subprocess.run(run, check=True),
        "prepkit zoo info": lambda: subprocess.run(info, check=True, capture_output=True),
    }
    result |= summary(interleaved(ways, rounds=9), "python -c pass")
    benchmark.pedantic(ways["prepkit zoo info"], rounds=3)
    record(benchmark, "zoo_writing", "100,000 instances", result)


@pytest.mark.skipif(sys.platform != "linux", reason="reads RssAnon of /proc")
def test_memory_of_a_shuffled_epoch_over_4_gb(benchmark: BenchmarkFixture, folder: Path) -> None:
    chunk = torch.zeros(500, HEIGHT * WIDTH)
    chunk[:, :77_706] = torch.randn(500, 77_706)
    with prepkit.ZooWriter(folder / "zoo", width=WIDTH) as writer:
        for _ in range(26):
            writer.add_stack(chunk.view(500, HEIGHT, WIDTH), architecture="resnet8@cifar10")
    script = (
        "import sys, json, prepkit, torch\n"
        "def now(key):\n"
        "    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key))\n"
        "zoo = prepkit.open_zoo(sys.argv[1])\n"
        "before, peak, count = now('RssAnon'), 0, 0\n"
        "for number, (preps, class_ids, indices) in enumerate(zoo.loader(32, shuffle=True)):\n"
        "    count += len(preps)\n"
        "    if number % 20 == 0: peak = max(peak, now('RssAnon'))\n"
        "print(json.dumps([before, peak, count]))"
    )
    command = [sys.executable, "-c", script, str(folder / "zoo")]
    done = benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True, text=True), rounds=1)
    before, peak, count = json.loads(done.stdout)
    assert count == 13_000
    gigabytes = round(sum(file.stat().st_size for file in (folder / "zoo" / "shards").iterdir()) / 1e9, 2)
    record(
        benchmark,
        "zoo_writing",
        "memory of an epoch",
        {"zoo GB": gigabytes, "anonymous MB beyond opening": round((peak - before) / 1024, 1)},
    )


def test_rows_are_what_was_written(folder: Path) -> None:
    """The values that the benchmarks above write are found by an independent reader too."""
    from safetensors import safe_open

    values = torch.randn(10, HEIGHT, WIDTH)
    values.view(10, -1)[:, 77_706:] = 0
    write_zoo(values, folder / "zoo", "safetensors")
    with safe_open(next((folder / "zoo" / "shards").iterdir()), framework="np") as file:
        assert np.array_equal(file.get_tensor("prep"), values.numpy())
