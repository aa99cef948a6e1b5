"""Tests of what a reader gets from a zoo: instances, networks, other shapes."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn
from writer_samples import ARCHITECTURES, tensors_of, trained, write_digits

import prepkit
from prepkit.api import open_zoo
from prepkit.errors import InvalidShape, LayoutMismatch, OutputError, ZooError
from prepkit.packing import prepare
from prepkit.prep.file import Origin
from prepkit.tensors import same_bits
from prepkit.zoo import read
from prepkit.zoo.write.writer import ZooWriter

NUM_INSTANCES = 12


def folded(network: nn.Module) -> dict[str, torch.Tensor]:
    return dict(prepare(network.state_dict(), None, False, "test")[0])


def test_facts(zoo):
    assert len(zoo) == NUM_INSTANCES
    assert (zoo.name, zoo.shape.height, zoo.shape.width) == ("digits", 12, 512)
    assert zoo.task == {"kind": "images", "dataset": "digits", "mean": [0.5]}
    assert (zoo.manifest.license, zoo.manifest.provenance) == ("mit", {"spec": "hand"})
    assert zoo.teacher is None
    assert repr(zoo) == "<Zoo 'digits': 12 instances, PReps 12 x 512 float32>"
    assert repr(zoo.select([0])) == "<Zoo 'digits': 1 of 12 instances, PReps 12 x 512 float32>"
    assert zoo.manifest.splits == {"test": 3, "train": 9}


def test_registry_is_ascending_in_parameters(zoo):
    assert [member.name for member in zoo.registry] == ["lenet_like@digits", "vanilla_cnn@digits", "resnet8@digits"]
    assert zoo.registry["resnet8@digits"] == prepkit.architecture("resnet8@digits")
    for prep, metadata in zoo:
        assert prep.origin == Origin(metadata["architecture"], metadata["class_id"])
        assert metadata["class_id"] == zoo.registry.class_id(metadata["architecture"])


def test_instances_are_the_folded_networks_in_order_of_adding(zoo):
    index = 0
    for seed in range(4):
        for name in ARCHITECTURES:
            prep, metadata = zoo[index]
            expected = folded(trained(name, seed))
            assert all(same_bits(prep.tensors()[key], tensor) for key, tensor in expected.items())
            assert (metadata["architecture"], metadata["run"], metadata["accuracy"]) == (name, seed, seed / 10)
            assert metadata["note"] == ("first" if seed == 0 else None)
            by_id, same = zoo[metadata["id"]]
            assert same == metadata
            assert torch.equal(by_id.values, prep.values)
            assert zoo.layout(index) == prep.layout
            index += 1


def test_networks_compute_what_was_trained(zoo):
    inputs = torch.randn(5, 1, 8, 8)
    for index, name in enumerate(ARCHITECTURES):
        network = zoo.network(index)
        assert not network.training
        assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        torch.testing.assert_close(network(inputs), trained(name, 0)(inputs), rtol=1e-4, atol=1e-4)
        assert all(parameter.requires_grad for parameter in network.parameters())


def test_networks_own_their_parameters_and_leave_the_generator_alone(zoo):
    before = zoo.preps(1).clone()
    state = torch.get_rng_state()
    network = zoo.network(1)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7)
    assert torch.equal(zoo.preps(1), before)
    assert torch.equal(zoo.preps(1), before)


@pytest.mark.parametrize("key", [1, "resnet8-0"])
def test_a_write_into_an_instance_changes_nothing_that_is_read_later(zoo, key):
    before, values = zoo.preps().clone(), zoo[key][0].values.clone()
    zoo[key][0].values.fill_(3)
    for tensor in zoo[key][0].tensors().values():
        tensor.fill_(4)
    for prep, _ in zoo.select([1]):
        prep.values.fill_(5)
    for tensor in zoo.export(key, zoo._store.root.parent / f"{key}.pt").values():
        tensor.fill_(6)
    zoo.preps([1]).fill_(7)
    assert torch.equal(zoo.preps(), before)
    assert torch.equal(zoo[key][0].values, values)
    assert torch.equal(open_zoo(zoo._store.root).preps(), before)


def test_an_instance_is_saved_and_pickled_without_its_shard(tmp_path):
    with ZooWriter(tmp_path / "zoo", width=8) as writer:
        for seed in range(1000):
            writer.add(tensors_of(seed))
    zoo = open_zoo(tmp_path / "zoo")
    torch.save(zoo[500][0].tensors(), tmp_path / "tensors.pt")
    assert (tmp_path / "tensors.pt").stat().st_size < 5000 < zoo.num_bytes / 10
    assert len(pickle.dumps(zoo[500])) < 5000
    assert len(pickle.dumps(next(iter(zoo)))) < 5000


def test_a_slice_or_a_row_of_indices_gives_a_view(zoo):
    ids = zoo.table["id"].to_pylist()
    for key in (slice(0, 3), slice(None, None, -5), [7, 8], [4], [], np.array([1, 7]), torch.tensor([4, 4])):
        rows = key if not isinstance(key, list) else np.array(key, dtype=int)
        assert isinstance(zoo[key], prepkit.Zoo)
        assert zoo[key].table["id"].to_pylist() == np.array(ids)[rows].tolist()
    assert [row["id"] for _, row in zoo[2:4]] == ids[2:4]
    assert zoo[np.int64(5)][1]["id"] == zoo[torch.tensor(5)][1]["id"] == zoo[-7][1]["id"] == ids[5]


def test_what_belongs_to_one_instance_takes_one_index_or_id(zoo, tmp_path):
    calls = (zoo.metadata, zoo.layout, zoo.network, lambda key: zoo.export(key, tmp_path / "m.pt"))
    for call in calls:
        for several in ([7, 8], [7], slice(0, 3), np.array([1, 2]), torch.tensor([4]), (1, 2)):
            with pytest.raises(IndexError, match=r"one index or id was expected, not a .*; zoo\[\.\.\.\]"):
                call(several)
    assert zoo.metadata("resnet8-1") == zoo.metadata(zoo.index("resnet8-1")) == zoo["resnet8-1"][1]
    assert zoo.layout("resnet8-1") == zoo["resnet8-1"][0].layout
    with pytest.raises(IndexError, match=r"whole numbers, not text; zoo\.index\(id\)"):
        zoo[["resnet8-1", 2]]
    with pytest.raises(ZooError, match="an id is text; found int"):
        zoo.index(3)


def test_in_asks_for_ids(zoo, monkeypatch):
    monkeypatch.delattr(read.zoo.Zoo, "__iter__")  # no walk through the zoo
    assert "resnet8-1" in zoo
    assert "resnet8-1" not in zoo.where("run == 0")
    assert "resnet8-9" not in zoo
    with pytest.raises(ZooError, match="which is text; found int"):
        3 in zoo  # noqa: B015


def test_preps_are_padded_and_masks_say_where(zoo):
    preps, masks = zoo.preps(), zoo.masks()
    assert preps.shape == masks.shape == (NUM_INSTANCES, 12, 512)
    assert not preps[~masks].any()
    for index in range(NUM_INSTANCES):
        layout = zoo.layout(index)
        assert int(masks[index].sum()) == layout.total
        assert torch.equal(preps[index].reshape(-1)[: layout.total], zoo[index][0].values.reshape(-1)[: layout.total])


@pytest.mark.parametrize("indices", [3, -1, [5, 0, 5], slice(2, 9, 3), np.array([1, 7]), torch.tensor([4]), []])
def test_preps_takes_many_kinds_of_indices(zoo, indices):
    kinds = indices if not isinstance(indices, list) else np.array(indices, dtype=int)
    numbers = np.arange(NUM_INSTANCES)[kinds].reshape(-1)
    out = torch.full((len(numbers), 12, 512), 7.0)
    assert zoo.preps(indices, out=out) is out
    assert torch.equal(out, zoo.preps()[torch.from_numpy(numbers)])
    assert torch.equal(zoo.class_ids(indices), zoo.class_ids()[torch.from_numpy(numbers)])
    assert torch.equal(zoo.masks(indices), zoo.masks()[torch.from_numpy(numbers)])
    assert zoo.select(indices).table["id"].to_pylist() == [zoo[int(number)][1]["id"] for number in numbers]


@pytest.mark.parametrize("wrong", [12, -13, [0, 99], [0.5], [True] * 12, [[0, 1]]])
def test_wrong_indices(zoo, wrong):
    for ask in (zoo.preps, zoo.select, zoo.class_ids, zoo.masks):
        with pytest.raises(IndexError):
            ask(wrong)


def test_wrong_out(zoo):
    for out in (torch.empty(2, 12, 512), torch.empty(1, 12, 512).double(), torch.empty(1, 512, 12).mT):
        with pytest.raises(InvalidShape, match=r"needed is \[1, 12, 512\] float32"):
            zoo.preps(0, out=out)


@pytest.mark.parametrize(("width", "height", "found"), [(256, None, 20), (5064, None, 4), (None, 40, 40), (64, 80, 80)])
def test_another_width_is_the_same_values(zoo, width, height, found):
    shape = (NUM_INSTANCES, found, width or 512)
    preps = zoo.preps(width=width, height=height)
    assert preps.shape == zoo.masks(width=width, height=height).shape == shape
    reopened = open_zoo(zoo._store.root, width=width, height=height)
    assert torch.equal(reopened.preps(), preps)
    assert torch.equal(reopened.select([1]).preps(), preps[1:2])
    for index in range(NUM_INSTANCES):
        flat, own = preps[index].reshape(-1), zoo[index][0]
        assert torch.equal(flat[: own.layout.total], own.values.reshape(-1)[: own.layout.total])
        assert not flat[own.layout.total :].any()


def test_shapes_that_do_not_fit(zoo):
    with pytest.raises(InvalidShape, match=r"5,058 parameters do not fit a PRep of 4 x 512 .* use height >= 12"):
        zoo.preps(0, height=4)
    with pytest.raises(InvalidShape, match="multiple of 8"):
        open_zoo(zoo._store.root, width=100)


def test_preps_of_several_architectures_are_not_unpacked_by_the_layout_of_one(zoo):
    """The values alone do not tell: a small network's PRep looks like a large one that ends in zeros."""
    inputs = torch.randn(2, 1, 8, 8)
    for architecture in zoo.registry:
        own = zoo.where(f"architecture == '{architecture.name}'")
        for preps in (zoo.preps(), zoo.to("cpu").preps(), next(iter(zoo.loader(12)))[0], zoo.preps(width=256)):
            with pytest.raises(
                LayoutMismatch, match=r"read as those of .*@digits, whose .* one architecture at a time"
            ):
                architecture.layout.unpack(preps)
            with pytest.raises(LayoutMismatch, match="one architecture at a time"):
                prepkit.run_instances(architecture, preps, inputs)
        for preps in (own.preps(), own.to("cpu").preps(), zoo.preps([]), own[0][0].values):
            architecture.layout.unpack(preps)
        assert prepkit.run_instances(architecture, own.preps(), inputs).shape == (4, 2, 10)
        other = next(member for member in zoo.registry if member.name != architecture.name)
        with pytest.raises(LayoutMismatch, match=f"read as those of {architecture.name},"):
            other.layout.unpack(own.preps())


def test_memory_that_is_written_anew_is_unpacked_as_what_it_holds_now(zoo):
    layout = zoo.layout("resnet8-0")
    memory = zoo.preps(out=torch.empty(NUM_INSTANCES, 12, 512))
    memory.copy_(
        torch.rand(NUM_INSTANCES, 12, 512)
    )  # such as PReps that a network predicted, with values in the padding
    assert torch.equal(
        layout.unpack(memory)[layout.slots[0].name].flatten(), memory[:, 0, : layout.slots[0].size].flatten()
    )
    rows = [index for index in range(NUM_INSTANCES) if zoo.layout(index) == layout]
    assert layout.unpack(zoo.preps()[rows]).keys() == layout.names
    assert layout.unpack(zoo.preps(rows, out=memory[: len(rows)])).keys() == layout.names


def test_opening_and_reading_imports_no_pandas(root, forked_python):
    """Importing pandas takes a fifth of a second, and a Ctrl-C is lost while pyarrow imports it."""
    reading = (
        "import sys; from prepkit.api import open_zoo; zoo = open_zoo(sys.argv[1]); zoo[0]; zoo.preps([1, 2]); "
        "zoo.class_ids(); zoo.split('train')[0]; print('pandas' in sys.modules)"
    )
    done = forked_python.run("-c", reading, root)
    assert done.stdout == "False\n"


def test_export_writes_a_plain_state_dict_outside_the_zoo(tmp_path):
    zoo = open_zoo(write_digits(tmp_path / "zoo", rounds=1))
    tensors = zoo.export("lenet-0", tmp_path / "m.pt")
    read = torch.load(tmp_path / "m.pt", weights_only=True)
    assert read.keys() == tensors.keys() == zoo["lenet-0"][0].tensors().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in zoo["lenet-0"][0].tensors().items())
    with pytest.raises(OutputError, match="exists already"):
        zoo.export(0, tmp_path / "m.pt")
    zoo.export(0, tmp_path / "m.pt", overwrite=True)
    with pytest.raises(OutputError, match="lies in the zoo"):
        zoo.export(0, tmp_path / "zoo" / "m.pt")
    with pytest.raises(ZooError, match=r"no instance 'lenet-1'\. Did you mean"):
        zoo.export("lenet-1", tmp_path / "n.pt")
    assert not (tmp_path / "n.pt").exists()
