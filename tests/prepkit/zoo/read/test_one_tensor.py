"""Tests of zoo.tensors: one tensor of each instance, of which only its own bytes are read, from both formats."""

import re
from pathlib import Path

import pytest
import torch

from prepkit.api import open_zoo
from prepkit.errors import ZooError
from prepkit.zoo.read import shard_values
from prepkit.zoo.write.writer import ZooWriter

KINDS = ("safetensors", "hdf5")


def tensors(number, **shapes):
    generator = torch.Generator().manual_seed(int(number))
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def instance(number):
    """A state dict of one of two architectures, which share `conv.weight` and not the rest."""
    if number % 3:
        return tensors(number, **{"conv.weight": (4, 3, 2), "head.bias": (5,)})
    return tensors(number, **{"a.first": (7,), "conv.weight": (4, 3, 2), "head.bias": (6,)})


@pytest.fixture(scope="module", params=[(kind, mmap) for kind in KINDS for mmap in (True, False)], ids=str)
def zoo(request, tmp_path_factory):
    kind, mmap = request.param
    root = tmp_path_factory.mktemp("tensors") / "zoo"
    with ZooWriter(root, width=8, shard_bytes=600, format=kind) as writer:
        for number in range(13):
            writer.add(instance(number), id=str(number))
    return open_zoo(root, mmap=mmap)


@pytest.mark.parametrize("indices", [None, [5, 0, 12, 5], slice(2, 9), []])
def test_values_are_those_of_the_state_dicts(zoo, indices):
    numbers = zoo.numbers(slice(None) if indices is None else indices)
    found = zoo.tensors("conv.weight", indices)
    assert found.shape == (len(numbers), 4, 3, 2)
    for row, number in zip(found, numbers, strict=True):
        assert torch.equal(row, instance(number)["conv.weight"])


def test_of_a_view(zoo):
    view = zoo.select(["9", "3"])
    assert torch.equal(view.tensors("a.first"), torch.stack([instance(number)["a.first"] for number in (9, 3)]))


def test_errors_say_who_has_it(zoo):
    with pytest.raises(ZooError, match=r"no instance has a tensor 'conv.wight'.*Did you mean 'conv.weight'"):
        zoo.tensors("conv.wight")
    with pytest.raises(ZooError, match=r"'head.bias' has shape .*read one architecture at a time") as error:
        zoo.tensors("head.bias")
    assert zoo.where(remedy(error)).tensors("head.bias").shape[1] in (5, 6)
    with pytest.raises(
        ZooError, match=r"8 instances of 13 have no tensor 'a.first'.*choose those that have it"
    ) as error:
        zoo.tensors("a.first")
    assert zoo.where(remedy(error)).tensors("a.first").shape == (5, 7)


def remedy(error):
    return re.search(r'zoo\.where\("(.*)"\)', str(error.value))[1]


@pytest.mark.parametrize("kind", KINDS)
def test_tied_names_and_narrower_dtypes(tmp_path, kind):
    weight = torch.arange(6.0).view(2, 3).half()
    with ZooWriter(tmp_path / "zoo", width=8, format=kind, dtype="float32") as writer:
        writer.add({"first": weight, "tied": weight})
    zoo = open_zoo(tmp_path / "zoo")
    for name in ("first", "tied"):
        found = zoo.tensors(name)
        assert found.dtype == torch.float16
        assert torch.equal(found[0], weight)


@pytest.mark.parametrize("kind", KINDS)
def test_only_its_bytes_are_read(tmp_path, monkeypatch, kind):
    """From a file: the bytes of its reads. From a mapping: its pages that are in this process."""
    with ZooWriter(tmp_path / "zoo", width=512, format=kind) as writer:
        for number in range(8):
            writer.add(tensors(number, a=(800, 512), b=(10, 10), c=(800, 512)))
    counts = []
    read = shard_values._read_at
    monkeypatch.setattr(shard_values, "_read_at", lambda *which: counts.append(read(*which)) or counts[-1])
    expected = torch.stack([tensors(number, a=(800, 512), b=(10, 10))["b"] for number in range(8)])
    zoo = open_zoo(tmp_path / "zoo", mmap=False)
    assert torch.equal(zoo.tensors("b"), expected)
    assert sum(counts) == 8 * 100 * 4
    zoo = open_zoo(tmp_path / "zoo", mmap=True)
    assert torch.equal(zoo.tensors("b"), expected)
    (shard,) = zoo.manifest.shards
    maps = Path("/proc/self/smaps").read_text()
    resident = re.search(rf"{re.escape(str(tmp_path / 'zoo' / shard.path))}\n(?:.*\n)*?Rss: +(\d+) kB", maps)
    assert int(resident[1]) << 10 <= shard.bytes * 3 / 4  # the system maps up to 2 MiB around each of 8 touches
