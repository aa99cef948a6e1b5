"""A zoo of checkpoints gives back the names that they had, and the versions of their modules."""

import json

import pytest
import torch
from click.testing import CliRunner
from folder_contents import files_of
from torch import nn
from writer_samples import tensors_of, trained

import prepkit
from prepkit.api import create_zoo, open_zoo
from prepkit.cli import main
from prepkit.errors import ZooError
from prepkit.families.registry import architecture_from_callable
from prepkit.packing import pack_checkpoint
from prepkit.prep.file import load_prep, save_prep
from prepkit.zoo.card.card import README
from prepkit.zoo.change.merge import merge
from prepkit.zoo.write.writer import ZooWriter


class Versioned(nn.Linear):
    """A layer that refuses a state dict of another version, as torchvision's MNASNet does."""

    _version = 3

    def _load_from_state_dict(self, state, prefix, local_metadata, *arguments):
        assert local_metadata.get("version") == 3, f"version {local_metadata.get('version')}"
        super()._load_from_state_dict(state, prefix, local_metadata, *arguments)


class Wrapped(nn.Module):
    """Its only child is called `module`, as by DataParallel."""

    def __init__(self, layer=Versioned):
        super().__init__()
        self.module = nn.Sequential(layer(3, 2), nn.Linear(2, 2))

    def forward(self, x):
        return self.module(x)


def same(found, expected):
    """The tensors of an unknown network come in the order of their names."""
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def zoo(tmp_path):
    """A zoo of a wrapped network, one that says nothing, and a PRep of another wrapped one."""
    torch.save(Wrapped().state_dict(), tmp_path / "wrapped.pt")
    torch.save(dict(Wrapped().module.state_dict()), tmp_path / "bare.pt")
    torch.save(Wrapped().state_dict(), tmp_path / "other.pt")
    save_prep(pack_checkpoint(tmp_path / "other.pt").prep, tmp_path / "packed.prep.safetensors")
    models = [tmp_path / name for name in ("wrapped.pt", "bare.pt", "packed.prep.safetensors")]
    create_zoo(tmp_path / "zoo", models, license="mit")
    return tmp_path / "zoo"


def test_an_exported_network_loads_as_the_checkpoint_did(zoo, tmp_path):
    opened = open_zoo(zoo)
    for id_, source in (("wrapped", "wrapped.pt"), ("packed", "other.pt")):
        opened.export(id_, tmp_path / f"{id_}-out.pt")
        state = torch.load(tmp_path / f"{id_}-out.pt")
        same(state, torch.load(tmp_path / source))
        Wrapped().load_state_dict(state)
    same(opened.export("bare", tmp_path / "bare-out.pt"), torch.load(tmp_path / "bare.pt"))
    assert opened.table["source_prefix"].to_pylist() == ["module.", None, "module."]
    assert [text and json.loads(text) for text in opened.table["source_versions"].to_pylist()] == [
        {"0": 3},
        None,
        {"0": 3},
    ]
    text = (zoo / README).read_text()
    assert "text before every name in the checkpoint; `zoo export` puts it back" in text


def test_the_prefix_can_be_left_out(zoo, tmp_path):
    without = open_zoo(zoo).export("wrapped", tmp_path / "a.pt", prefix=False)
    assert sorted(without) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    Wrapped().module.load_state_dict(torch.load(tmp_path / "a.pt"))
    arguments = ["zoo", "export", str(zoo), "wrapped", "-o", str(tmp_path / "b.pt"), "--strip-prefix"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    same(torch.load(tmp_path / "b.pt"), without)
    assert CliRunner().invoke(main, [*arguments[:-1], "--force"]).exit_code == 0
    assert "module.0.weight" in torch.load(tmp_path / "b.pt")


def test_an_instance_is_a_prep_that_knows_them(zoo, tmp_path):
    prep = open_zoo(zoo)[[2, 0]][1][0]  # a view counts its own instances
    save_prep(prep, tmp_path / "again.prep.safetensors")
    origin = load_prep(tmp_path / "again.prep.safetensors").origin
    assert (origin.prefix, dict(origin.versions)) == ("module.", {"0": 3})
    assert list(prep.tensors()) == ["0.bias", "0.weight", "1.bias", "1.weight"]


def test_a_merged_zoo_keeps_them(zoo, tmp_path):
    with ZooWriter(tmp_path / "plain", license="mit") as writer:
        writer.add(tensors_of(0), id="plain")
    merged = open_zoo(merge(tmp_path / "both", [zoo, tmp_path / "plain"]).path)
    same(merged.export("wrapped", tmp_path / "a.pt"), torch.load(tmp_path / "wrapped.pt"))
    same(merged.export("plain", tmp_path / "b.pt"), tensors_of(0))


def build_versioned():
    return nn.Sequential(Versioned(3, 2))


def test_a_network_of_the_zoo_loads_with_them(tmp_path):
    torch.manual_seed(0)
    known = architecture_from_callable(f"{__name__}:build_versioned", (3,))
    network = build_versioned()
    torch.save(network.state_dict(), tmp_path / "m.pt")
    create_zoo(tmp_path / "zoo", [tmp_path / "m.pt"], architecture=known)
    assert pack_checkpoint(tmp_path / "m.pt", architecture=known).prep.origin.versions == {"0": 3}
    built = open_zoo(tmp_path / "zoo", trust_code=True).network("m")
    same(built.state_dict(), network.state_dict())


def test_a_checkpoint_that_says_nothing_adds_no_column(tmp_path):
    torch.save(tensors_of(0), tmp_path / "m.pt")
    torch.save(trained("resnet8@digits", 0).state_dict(), tmp_path / "n.pt")
    create_zoo(tmp_path / "zoo", [tmp_path / "m.pt", tmp_path / "n.pt"])
    assert open_zoo(tmp_path / "zoo").table.column_names[-1] == "source_sha256"


def test_a_batch_norm_that_lost_its_counter_begins_a_new_one(tmp_path):
    """Its version 2 asks for `num_batches_tracked`, for which a zoo has no place."""
    network = trained("resnet8@digits", 0)
    torch.save(network.state_dict(), tmp_path / "m.pt")
    create_zoo(tmp_path / "zoo", [tmp_path / "m.pt"], keep_batch_norm=True)
    opened = open_zoo(tmp_path / "zoo")
    opened.export("m", tmp_path / "out.pt")
    fresh = prepkit.architecture("resnet8@digits").build().eval()
    fresh.load_state_dict(torch.load(tmp_path / "out.pt"))
    inputs = torch.randn(4, 1, 8, 8)
    assert torch.equal(fresh(inputs), network(inputs))
    assert torch.equal(opened.network("m")(inputs), network(inputs))


def test_a_table_cannot_fill_these_columns(tmp_path):
    torch.save(tensors_of(0), tmp_path / "m.pt")
    (tmp_path / "t.csv").write_text("file,source_prefix\nm,x\n")
    with pytest.raises(ZooError, match="the column 'source_prefix' is filled from the models themselves; rename it"):
        create_zoo(tmp_path / "zoo", [tmp_path / "m.pt"], table=tmp_path / "t.csv")


@pytest.mark.parametrize("columns", [{"source_prefix": 3}, {"source_versions": "["}, {"source_versions": '{"a": "b"}'}])
def test_columns_of_these_names_with_other_values(tmp_path, columns):
    with ZooWriter(tmp_path / "zoo") as writer:
        writer.add(tensors_of(0), id="a", **columns)
    with pytest.raises(ZooError, match="instance 0: the columns source_prefix and source_versions are those of"):
        open_zoo(tmp_path / "zoo")["a"]


def test_resuming_gives_the_same_zoo(zoo, tmp_path):
    good = (tmp_path / "bare.pt").read_bytes()
    (tmp_path / "bare.pt").write_bytes(b"no model")
    models = [tmp_path / name for name in ("wrapped.pt", "bare.pt", "packed.prep.safetensors")]
    with pytest.raises(prepkit.PrepkitError):
        create_zoo(tmp_path / "again", models, license="mit", name="zoo")
    (tmp_path / "bare.pt").write_bytes(good)
    create_zoo(tmp_path / "again", models, license="mit", name="zoo", resume=True)
    create_zoo(tmp_path / "once", models, license="mit", name="zoo")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "once")
