"""Tests of instances that are unlike the usual ones: kept BatchNorm, ties, unknown networks, bfloat16."""

import pytest
import torch
from torch import nn
from writer_samples import tensors_of, trained

import prepkit
from prepkit.api import open_zoo
from prepkit.errors import RegistryError, ZooError
from prepkit.prep.file import Origin, PRep
from prepkit.tensors import same_bits
from prepkit.zoo.write.writer import ZooWriter


def test_batch_norm_that_was_kept(tmp_path):
    network = trained("resnet8@digits", 5)
    layout = prepkit.Layout.of(network)
    prep = PRep(layout.pack(network.state_dict(), layout.shape(512)), layout, Origin("resnet8@digits"))
    with ZooWriter(tmp_path / "zoo") as writer:
        writer.add(prep)
        writer.add(network)
    zoo = open_zoo(tmp_path / "zoo")
    assert zoo.table["architecture"].to_pylist() == ["resnet8@digits+bn", "resnet8@digits"]
    inputs = torch.randn(4, 1, 8, 8)
    unfused = zoo.network(0)
    assert [m for m in unfused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert torch.equal(unfused(inputs), network(inputs))
    torch.testing.assert_close(zoo.network(1)(inputs), network(inputs), rtol=1e-4, atol=1e-4)
    assert len(zoo.registry) == 2


def test_unknown_architecture_gives_tensors_but_no_network(tmp_path):
    with ZooWriter(tmp_path / "zoo") as writer:
        writer.add(tensors_of(1))
    zoo = open_zoo(tmp_path / "zoo")
    assert zoo.table["architecture"][0].as_py().startswith("layout-")
    assert zoo[0][0].tensors().keys() == tensors_of(1).keys()
    for ask in (lambda: zoo.network(0), lambda: zoo.registry):
        with pytest.raises(ZooError, match=r"knows only the layout of .*zoo\[index\]\[0\]\.tensors\(\)"):
            ask()


class Tied(nn.Module):
    """A network of two layers with the same weight, and a buffer of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))) * self.scale


def test_tied_parameters_stay_tied_and_foreign_code_needs_trust(tmp_path):
    from prepkit.families.registry import architecture_from_callable

    known = architecture_from_callable(f"{__name__}:Tied", (4,), "tied")
    torch.manual_seed(0)
    network = known.build().eval()
    network.scale.fill_(2.5)
    with ZooWriter(tmp_path / "zoo", width=8) as writer:
        writer.add(network, architecture=known)
    with pytest.raises(RegistryError, match="trust_code=True"):
        open_zoo(tmp_path / "zoo").network(0)
    again = open_zoo(tmp_path / "zoo", trust_code=True).select([0]).network(0)
    assert again.first.weight is again.second.weight
    inputs = torch.randn(3, 4)
    assert torch.equal(again(inputs), network(inputs))


def test_bfloat16_zoo(tmp_path):
    with ZooWriter(tmp_path / "zoo", width=8, shard_bytes=200) as writer:
        for seed in range(6):
            writer.add(tensors_of(seed, (3, 4 + seed % 2, 2), torch.bfloat16), split="train")
    zoo = open_zoo(tmp_path / "zoo")
    assert zoo.preps().dtype == torch.bfloat16
    for preps, _, indices in zoo.loader(4):
        assert same_bits(preps, zoo.preps(indices))
        assert [int(prep.reshape(-1)[0]) for prep in preps] == indices.tolist()
    assert same_bits(zoo.to("cpu").preps(), zoo.preps())


def test_natural_order_preps_of_a_known_architecture_join_the_others(tmp_path):
    """A PRep packed by names alone has another order; the zoo stores all instances of an architecture in one."""
    network = trained("lenet_like@digits", 1)
    layout = prepkit.Layout.of_tensors(network.state_dict())
    assert layout != prepkit.architecture("lenet_like@digits").layout
    with ZooWriter(tmp_path / "zoo") as writer:
        writer.add(PRep(layout.pack(network.state_dict(), layout.shape(64)), layout))
        writer.add(network)
    zoo = open_zoo(tmp_path / "zoo")
    assert torch.equal(zoo.preps(0), zoo.preps(1))
    assert zoo.table["architecture"].to_pylist() == ["lenet_like@digits"] * 2


def test_batches_from_a_single_shard(tmp_path):
    with ZooWriter(tmp_path / "zoo", width=8) as writer:
        for seed in range(6):
            writer.add(tensors_of(seed))
    zoo = open_zoo(tmp_path / "zoo")
    assert zoo.preps([4, 0, 5, 4])[:, 0, 0].tolist() == [4, 0, 5, 4]
    assert zoo.preps([3, 1], height=8)[:, 0, 0].tolist() == [3, 1]
    assert not zoo.preps([3, 1], height=8)[:, 4:].any()
