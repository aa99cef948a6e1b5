"""Zoos on the Hub: pulling 1 GB against the Hub's client alone, what opening transfers, the first batch.

The server runs in a process of its own on this machine, so that the network is as fast as it can be and the client,
the hashing and the disk are what is measured. Before each run the disk's queue is emptied, and each run begins with
nothing.
"""

import multiprocessing
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from benchmarks.timing import record, summary
from prepkit.api import open_zoo
from prepkit.families.registry import architecture_from_callable
from prepkit.hub.pull import pull
from prepkit.support.files import sha256_of_file
from prepkit.zoo.format.manifest import MANIFEST, read_manifest
from prepkit.zoo.write.writer import ZooWriter

ROUNDS = 7
GIGABYTE = 1_000_000_000
WIDTH, NUM_PARAMETERS = 1000, 100_000


def tiny() -> nn.Module:
    """32 parameters, four rows of a PRep of width 8."""
    return nn.Linear(7, 4)


def serve(pipe: Connection, roots: dict[str, Path]) -> None:
    """What the server's process does: serve folders, and answer how many bytes it has sent."""
    from tests.support.hub_server import HubServer

    server = HubServer()
    for repo, root in roots.items():
        files = {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}
        server.add(repo, files)
    pipe.send(server.url)
    while pipe.recv() == "served":
        pipe.send(dict(server.served()))
        server.forget()


class Hub:
    """The server, seen from here."""

    def __init__(self, roots: dict[str, Path]) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        # A spawned process would import this file before the paths of pytest are there.
        self.process = multiprocessing.get_context("fork").Process(target=serve, args=(theirs, roots), daemon=True)
        self.process.start()
        self.url: str = self.pipe.recv()

    def served(self) -> dict[str, int]:
        """Bytes of bodies sent since this was asked last, by path."""
        self.pipe.send("served")
        found: dict[str, int] = self.pipe.recv()
        return found

    def stop(self) -> None:
        self.pipe.send("stop")
        self.process.join()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 GB of PReps that do not compress."""
    root = tmp_path_factory.mktemp("large") / "zoo"
    values = torch.rand(GIGABYTE // (4 * NUM_PARAMETERS), NUM_PARAMETERS, generator=torch.Generator().manual_seed(0))
    with ZooWriter(root, width=WIDTH, license="mit") as writer:
        for instance in values:
            writer.add({"w": instance})
    return root


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100,000 instances, small ones, in many shards."""
    root = tmp_path_factory.mktemp("wide") / "zoo"
    tiny = architecture_from_callable("benchmarks.test_hub:tiny", (7,))
    with ZooWriter(root, width=8, license="mit", shard_bytes=1 << 20) as writer:
        for start in range(0, 100_000, 10_000):
            numbers = torch.arange(start, start + 10_000)
            stack = {"weight": numbers.float()[:, None, None].expand(-1, 4, 7), "bias": torch.zeros(10_000, 4)}
            writer.add_stack(stack, architecture=tiny, accuracy=(numbers / 100_000).tolist())
    return root


@pytest.fixture(scope="module")
def hub(large: Path, wide: Path) -> Iterator[Hub]:
    hub = Hub({"me/large": large, "me/wide": wide})
    yield hub
    hub.stop()


@pytest.fixture
def place(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for all that is fetched."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_CACHE", "PREPKIT_CACHE", "PREPKIT_CACHE_BYTES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return tmp_path


def timed(ways: dict[str, Callable[[], object]], clean: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one that is thrown away; what they leave is removed between them."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            clean()
            os.sync()
            start = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def test_pulling_a_gigabyte(benchmark: BenchmarkFixture, large: Path, place: Path) -> None:
    """Target: at least 0.7 of snapshot_download's rate, though each byte is hashed and each file flushed."""
    from huggingface_hub import HfApi

    from prepkit.hub.client import quiet

    client = HfApi(endpoint=os.environ["HF_ENDPOINT"])

    def snapshot(**where: Any) -> None:
        with quiet():
            client.snapshot_download("me/large", repo_type="dataset", **where)

    ways = {
        "snapshot_download": lambda: snapshot(cache_dir=place / "there"),
        "snapshot_download, local_dir": lambda: snapshot(local_dir=place / "there"),
        "pull": lambda: pull("me/large", place / "there"),
    }
    seconds = timed(ways, lambda: shutil.rmtree(place / "there", ignore_errors=True))
    manifest = read_manifest(place / "there")
    assert all(sha256_of_file(place / "there" / shard.path) == shard.sha256 for shard in manifest.shards)
    results: dict[str, Any] = dict(summary(seconds, "pull"))
    for name in ways:
        results[name]["MB a second"] = round(GIGABYTE / 1e6 / statistics.median(seconds[name]), 1)
    results["pull"]["of snapshot_download's rate"] = results["snapshot_download"]["ratio"]
    shutil.rmtree(place / "there")
    benchmark.pedantic(ways["pull"], rounds=1)
    record(benchmark, "hub", f"pulling 1 GB in {len(manifest.shards)} shards", results)


def test_opening_and_first_batch(benchmark: BenchmarkFixture, hub: Hub, wide: Path, place: Path) -> None:
    """Opening 100,000 instances transfers manifest and table; the first batch comes after one shard."""
    manifest = read_manifest(wide)
    cache = place / "home"
    opened, first, moved = [], [], []
    for number in range(ROUNDS + 1):
        shutil.rmtree(cache, ignore_errors=True)
        hub.served()
        start = time.perf_counter()
        zoo = open_zoo("hf://me/wide")
        half = time.perf_counter()
        served = hub.served()
        assert served == {
            MANIFEST: (wide / MANIFEST).stat().st_size,
            manifest.table.path: manifest.table.bytes,
        }
        batches = iter(zoo.loader(64, shuffle="shards", seed=number))
        again = time.perf_counter()
        preps, _, indices = next(batches)
        end = time.perf_counter()
        assert np.array_equal(preps[:, 0, 0].numpy(), indices.numpy())
        assert len(set(zoo.shard_numbers[indices.numpy()].tolist())) == 1
        batches.close()
        while any(thread.name.startswith("prepkit-") for thread in threading.enumerate()):
            time.sleep(0.01)  # what was fetched ahead
        if number:
            opened.append(half - start)
            first.append(end - again)
            moved.append(sum(served.values()))
    results = {
        "instances": len(zoo),
        "shards": len(manifest.shards),
        "bytes transferred": moved[0],
        "bytes of the zoo": sum(shard.bytes for shard in manifest.shards),
        **summary({"open_zoo": opened, "first batch of 64": first}, "open_zoo"),
    }
    benchmark.pedantic(lambda: open_zoo("hf://me/wide"), rounds=3)
    record(benchmark, "hub", "opening 100,000 instances", results)


def test_streaming_a_gigabyte_over_http(benchmark: BenchmarkFixture, hub: Hub, large: Path, place: Path) -> None:
    """All shards of a zoo behind plain HTTP come into the cache, hashed and flushed; beside fsspec's `get` alone."""
    import fsspec

    address = f"{hub.url}/datasets/me/large/resolve/main"
    manifest = read_manifest(large)
    paths = [shard.path for shard in manifest.shards]

    def get() -> None:
        targets = [place / "there" / path for path in paths]
        targets[0].parent.mkdir(parents=True)
        fsspec.filesystem("http").get([f"{address}/{path}" for path in paths], [str(target) for target in targets])

    def stream() -> None:
        open_zoo(address)._store.need(range(len(paths)))

    def clean() -> None:
        for folder in ("there", "home"):
            shutil.rmtree(place / folder, ignore_errors=True)

    seconds = timed({"fsspec": get, "open_zoo": stream}, clean)
    found = sorted(sha256_of_file(path) for path in (place / "home").glob("prepkit/*/*/shards/*"))
    assert found == sorted(shard.sha256 for shard in manifest.shards)
    results: dict[str, Any] = dict(summary(seconds, "open_zoo"))
    for name in seconds:
        results[name]["MB a second"] = round(GIGABYTE / 1e6 / statistics.median(seconds[name]), 1)
    clean()
    benchmark.pedantic(stream, rounds=1)
    record(benchmark, "hub", f"streaming 1 GB over HTTP in {len(paths)} shards", results)
