"""Reading a zoo in shuffled batches against a tensor in memory and one .pt file an instance; results are checked.

The fastest of three plain ways to gather from memory is the base: torch.index_select and numpy.take into a reused
buffer, and indexing; all with one thread, which is the fastest for each of them on a busy machine. A first pass opens
the zoo anew, so that its mapping is fresh; the page cache is warm for all. Without mapping, each batch is read anew.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from benchmarks.timing import interleaved, record, summary
from prepkit.api import open_zoo
from prepkit.families.registry import architecture
from prepkit.zoo.read.zoo import Zoo
from prepkit.zoo.write.writer import ZooWriter

BATCH = 32
ROUNDS = 7
FILE_BATCHES = 8  # of .pt files a round; their time is scaled to an epoch


class Files:
    """The same instances as a zoo in both formats, as one tensor in memory and as .pt files."""

    def __init__(self, root: Path, count: int, num_parameters: int, width: int) -> None:
        self.root = root
        self.count = count
        for name in ("safetensors", "hdf5"):
            with ZooWriter(root / name, width=width, format=name) as writer:
                for number in range(count):
                    values = torch.full((num_parameters,), number / 2)
                    values[0] = number
                    values[1:9] = torch.arange(8) / 8
                    writer.add({"w": values}, accuracy=number / count, label=number % 10)
                    if name == "hdf5":
                        torch.save(values, root / f"{number}.pt")
        self.zoos = {name: open_zoo(root / name) for name in ("safetensors", "hdf5")}
        self.zoos["without mapping"] = open_zoo(root / "safetensors", mmap=False)
        self.ram = self.zoos["safetensors"].preps().clone()
        self.out = torch.zeros(BATCH, *self.ram.shape[1:])
        order = np.random.default_rng(0).permutation(count)[: count // BATCH * BATCH]
        self.batches = order.reshape(-1, BATCH)
        self.tensors = [torch.from_numpy(batch) for batch in self.batches]

    def index_select(self) -> None:
        for batch in self.tensors:
            torch.index_select(self.ram, 0, batch, out=self.out)

    def take(self) -> None:
        values, out = self.ram.numpy(), self.out.numpy()
        for batch in self.batches:
            np.take(values, batch, axis=0, out=out, mode="clip")

    def index(self) -> None:
        for batch in self.tensors:
            _ = self.ram[batch]

    def read(self, zoo: Zoo) -> None:
        for batch in self.batches:
            zoo.preps(batch, out=self.out)

    def first_pass(self, name: str, populate: bool) -> None:
        zoo = open_zoo(self.root / name)
        if populate:
            zoo.populate()
        self.read(zoo)

    def load(self, name: str) -> None:
        for preps, _, _ in self.zoos[name].loader(BATCH):
            preps[:, 0, 0].sum()

    def load_columns(self, name: str) -> None:
        for preps, _, _, _ in self.zoos[name].loader(BATCH, columns=["accuracy", "label"]):
            preps[:, 0, 0].sum()

    def pt_files(self) -> None:
        for batch in self.batches[:FILE_BATCHES]:
            torch.stack([torch.load(self.root / f"{number}.pt") for number in batch])

    def check(self) -> None:
        for zoo in self.zoos.values():
            for batch in self.batches[:4]:
                self.out.fill_(7)
                zoo.preps(batch, out=self.out)
                assert torch.equal(self.out, self.ram[torch.from_numpy(batch)])
                assert self.out.view(BATCH, -1)[:, 0].tolist() == batch.tolist()
        for zoo in self.zoos.values():
            for preps, _, indices, columns in zoo.loader(BATCH, columns=["label"]):
                assert preps[:, 0, 0].tolist() == indices.tolist()
                assert columns["label"].tolist() == (indices % 10).tolist()


@pytest.fixture(scope="module", params=[(2000, 80_000, 10_000), (4000, 2464, 64)], ids=["2000x80000", "4000x2464"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    count, num_parameters, width = request.param
    files = Files(tmp_path_factory.mktemp("reading"), count, num_parameters, width)
    yield files
    for file in files.root.glob("*.pt"):
        file.unlink()


def test_shuffled_epoch(benchmark: BenchmarkFixture, files: Files, request: pytest.FixtureRequest) -> None:
    """A shuffled epoch, warm page cache: first pass over a mapping, later passes, the loader, .pt files."""
    files.check()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ways = {
        "memory, index_select": files.index_select,
        "memory, take": files.take,
        "memory, indexing": files.index,
        "safetensors, later pass": lambda: files.read(files.zoos["safetensors"]),
        "hdf5, later pass": lambda: files.read(files.zoos["hdf5"]),
        "safetensors, first pass": lambda: files.first_pass("safetensors", populate=False),
        "safetensors, first pass, populated": lambda: files.first_pass("safetensors", populate=True),
        "hdf5, first pass, populated": lambda: files.first_pass("hdf5", populate=True),
        "without mapping, later pass": lambda: files.read(files.zoos["without mapping"]),
        "loader": lambda: files.load("safetensors"),
        "loader, two columns": lambda: files.load_columns("safetensors"),
        "loader, without mapping": lambda: files.load("without mapping"),
        "pt files": files.pt_files,
    }
    try:
        seconds = interleaved(ways, rounds=ROUNDS)
    finally:
        torch.set_num_threads(threads)
    scale = len(files.batches) / FILE_BATCHES
    seconds["pt files"] = [value * scale for value in seconds["pt files"]]
    base = min((name for name in ways if name.startswith("memory")), key=lambda name: statistics.median(seconds[name]))
    results = summary(seconds, base)
    benchmark.pedantic(ways["safetensors, later pass"], rounds=ROUNDS)
    files.check()
    record(benchmark, "zoo_reading", f"shuffled epoch, {request.node.callspec.id}, base {base}", results)


def test_networks(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """A ready network of each instance, against building one and loading the same tensors by hand."""
    known = architecture("resnet8@cifar10")
    with ZooWriter(tmp_path / "zoo") as writer:
        for _ in range(8):
            writer.add(known.build_folded())
    zoo = open_zoo(tmp_path / "zoo")

    def by_hand(index: int) -> nn.Module:
        network = known.build_folded()
        network.load_state_dict(zoo[index][0].tensors())
        return network.eval()

    ways = {
        "build and load by hand": lambda: [by_hand(index) for index in range(8)],
        "zoo.network(i)": lambda: [zoo.network(index) for index in range(8)],
    }
    result = summary(interleaved(ways, rounds=25), "build and load by hand")
    inputs = known.example_input()
    for index in range(8):
        assert torch.equal(zoo.network(index)(inputs), by_hand(index)(inputs))
    benchmark.pedantic(ways["zoo.network(i)"], rounds=3)
    record(benchmark, "zoo_reading", f"8 networks of a zoo, ResNet8, threads: {torch.get_num_threads()}", result)
