"""`prepkit zoo import dataset-pt`: pickled data sets of checkpoints, whose class is gone when they are read."""

import math
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from ray_samples import HALF, balanced, filled, share_right, small_cnn, write_images
from torch.utils.data import TensorDataset

import prepkit
from prepkit.cli import main
from prepkit.errors import CheckpointError, UnsafeCheckpoint, ZooError
from prepkit.zoo.format.manifest import read_manifest
from prepkit.zoo.importers.kinds import found_by

MODULE = "checkpoints_to_datasets.dataset_base"
SHAPES = {"module_list.0.weight": (2, 1, 3, 3), "module_list.0.bias": (2,), "module_list.3.weight": (10, 8)}


@pytest.fixture
def kinds(monkeypatch):
    """Return what makes objects of classes that only these tests have, and what forgets the classes."""
    made = []

    def of(name, **attributes):
        module, _, name = name.rpartition(".")
        for place in (module.partition(".")[0], module):
            if place not in sys.modules:
                monkeypatch.setitem(sys.modules, place, types.ModuleType(place))
                made.append(place)
        home = sys.modules[module]
        if not hasattr(home, name):
            setattr(home, name, type(name, (), {"__module__": module}))
        value = getattr(home, name)()
        value.__dict__.update(attributes)
        return value

    def save(file, value):
        torch.save(value, file)
        for module in made:
            sys.modules.pop(module, None)
        made.clear()

    of.save = save
    return of


def state(seed):
    generator = torch.Generator().manual_seed(seed)
    return OrderedDict((name, torch.randn(shape, generator=generator)) for name, shape in SHAPES.items())


def attributes(first, count, of_epochs=(5, 25), **more):
    """What ModelDatasetBase keeps of `count` runs."""
    seen = [(run, epoch) for run in range(first, first + count) for epoch in of_epochs]
    path = "/data/zoo/NN_tune_trainable_{}".format
    return {
        "layer_lst": [(0, "conv2d"), (3, "fc")],
        "epoch_lst": list(of_epochs),
        "mode": "checkpoint",
        "root": [Path("/data/zoo")],
        "data_in": [state(100 * run + epoch) for run, epoch in seen],
        "data_out": [state(100 * run + epoch) for run, epoch in seen],
        "labels_in": [f"{path(run)}#_#epoch_{epoch}#_#layer_[(0, 'conv2d')]" for run, epoch in seen],
        "paths": [Path(path(run)) for run, _ in seen],
        "epochs": [epoch for _, epoch in seen],
        "properties": {
            "test_acc": [run / 10 + epoch / 1000 for run, epoch in seen],
            "training_iteration": [epoch for _, epoch in seen],
            "model::nlin": [("tanh", "relu")[run % 2] for run, _ in seen],
            "optim::wd": [run if run % 2 else run + 0.5 for run, _ in seen],
            "curves": [{"train": [0.1, 0.2]} for _ in seen],
        },
        **more,
    }


def data_set(kinds, *arguments, **more):
    return kinds(f"{MODULE}.ModelDatasetBase", **attributes(*arguments, **more))


def whole(kinds, **more):
    return {
        "trainset": data_set(kinds, 0, 3, **more),
        "valset": data_set(kinds, 3, 1),
        "testset": data_set(kinds, 4, 1),
    }


def imported(tmp_path, **options):
    written = prepkit.import_zoo("dataset-pt", tmp_path / "dataset_x.pt", tmp_path / "zoo", **options)
    return prepkit.open_zoo(tmp_path / "zoo"), written.notes


def refused(tmp_path, match, error=ZooError):
    with pytest.raises(error, match=match):
        imported(tmp_path)
    assert not (tmp_path / "zoo").exists()


def test_sets_are_the_split_and_properties_columns_of_the_same_checkpoints(tmp_path, kinds):
    kinds.save(tmp_path / "dataset_x.pt", whole(kinds))
    assert MODULE not in sys.modules
    zoo, notes = imported(tmp_path)
    rows = zoo.table.to_pylist()
    assert [(row["run"], row["epoch"]) for row in rows] == [
        (f"NN_tune_trainable_{run}", epoch) for run in range(5) for epoch in (5, 25)
    ]
    assert [row["split"] for row in rows] == ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    assert [row["id"] for row in rows][:2] == ["NN_tune_trainable_0/5", "NN_tune_trainable_0/25"]
    assert [row["accuracy"] for row in rows][::2] == [run / 10 + 0.005 for run in range(5)]
    assert [row["model::nlin"] for row in rows][::2] == ["tanh", "relu", "tanh", "relu", "tanh"]
    assert [row["optim::wd"] for row in rows][::2] == [0.5, 1, 2.5, 3, 4.5]
    assert any("test_acc is accuracy" in note for note in notes)
    assert any("no place for it: curves (10 models)" in note for note in notes)
    assert "curves" not in rows[0]
    for number, (run, epoch) in enumerate((run, epoch) for run in range(5) for epoch in (5, 25)):
        tensors = zoo[number][0].state_dict()
        assert all(torch.equal(tensors[name], value) for name, value in state(100 * run + epoch).items())
    assert str(read_manifest(tmp_path / "zoo").function) == "unverified"


def test_what_labels_say_stands_in_for_paths_and_epochs(tmp_path, kinds):
    kinds.save(tmp_path / "dataset_x.pt", {"trainset": data_set(kinds, 0, 2, paths=None, epochs=None, properties=None)})
    zoo, _ = imported(tmp_path)
    assert zoo.table["id"].to_pylist() == [f"NN_tune_trainable_{run}/{epoch}" for run in (0, 1) for epoch in (5, 25)]
    assert zoo.table["epoch"].to_pylist() == [5, 25, 5, 25]


def test_checkpoints_that_stand_twice_and_labels_of_another_epoch_are_told(tmp_path, kinds):
    properties = {"training_iteration": [5, 24]}
    value = {"trainset": data_set(kinds, 0, 1, properties=properties), "testset": data_set(kinds, 0, 2)}
    kinds.save(tmp_path / "dataset_x.pt", value)
    zoo, notes = imported(tmp_path)
    assert zoo.table["split"].to_pylist() == ["train", "train", "test", "test"]
    assert any(note.startswith("2 checkpoints left out") and "NN_tune_trainable_0/5 of train" in note for note in notes)
    assert any(note.startswith("training_iteration is not the epoch of 1 checkpoint") for note in notes)


LISTS = {
    "a property": (
        {"properties": {"test_acc": [0.1] * 5}},
        r"trainset\.properties\['test_acc'\]: has 5 values, but .* 6",
    ),
    "paths": ({"paths": [Path("/a")] * 7}, r"trainset\.paths: has 7 values, but there are 6 networks"),
    "no list": ({"properties": {"test_acc": 0.1}}, r"properties\['test_acc'\]: is no list"),
    "vectors": ({"data_in": torch.zeros(6, 4)}, r"trainset\.data_in: holds no state dicts, but vectors"),
}


@pytest.mark.parametrize(("more", "message"), LISTS.values(), ids=LISTS)
def test_lists_that_do_not_fit_the_networks_are_refused(tmp_path, kinds, more, message):
    kinds.save(tmp_path / "dataset_x.pt", whole(kinds, **more))
    refused(tmp_path, message)


@pytest.mark.parametrize("name", ["none.pt", "empty", "bad.pt"])
def test_a_refusal_comes_first_and_alone(tmp_path, name):
    (tmp_path / "empty").mkdir()
    torch.save({"trainset": 3}, tmp_path / "bad.pt")
    result = CliRunner().invoke(main, ["zoo", "import", "dataset-pt", str(tmp_path / name), str(tmp_path / "zoo")])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1


def test_images_tokens_and_files_of_one_network_are_refused_by_name(tmp_path, kinds):
    images = kinds("__main__.CachedDataset", transform=None, data=torch.zeros(2, 3, 4, 4), targets=torch.zeros(2))
    try:
        kinds.save(tmp_path / "dataset_x.pt", {"trainset": images, "valset": None, "testset": None})
    finally:
        delattr(sys.modules["__main__"], "CachedDataset")
    refused(tmp_path, r"holds the images that networks were trained on \(__main__\.CachedDataset\), not networks")
    torch.save({"trainset": TensorDataset(torch.zeros(2, 3))}, tmp_path / "dataset_x.pt")
    refused(tmp_path, r"holds the images that networks were trained on \(TensorDataset\)")
    torch.save({"w": torch.zeros(2, 3), "m": True, "p": 1, "props": [0.5]}, tmp_path / "dataset_x.pt")
    refused(tmp_path, "cut into tokens")
    torch.save(state(1), tmp_path / "dataset_x.pt")
    refused(tmp_path, "no dict of trainset, valset, testset")
    (tmp_path / "sane/dataset_torch.train").mkdir(parents=True)
    with pytest.raises(ZooError, match=r"dataset_torch\.train holds what SANE makes of networks"):
        prepkit.import_zoo("dataset-pt", tmp_path / "sane", tmp_path / "zoo")
    (tmp_path / "dataset_y.pt").write_bytes(b"")
    with pytest.raises(ZooError, match=r"holds several: dataset_x\.pt, dataset_y\.pt"):
        prepkit.import_zoo("dataset-pt", tmp_path, tmp_path / "zoo")


class Runs:
    def __reduce__(self):
        return exec, ("raise SystemExit",)


def test_code_is_not_run_and_a_half_file_and_nan_are_named(tmp_path, kinds):
    file = tmp_path / "dataset_x.pt"
    kinds.save(file, whole(kinds, extra=Runs()))
    refused(tmp_path, "would import and call", UnsafeCheckpoint)
    nan = [state(1), OrderedDict(state(2), **{"module_list.0.bias": torch.tensor([0.0, math.nan])})]
    kinds.save(file, {"trainset": data_set(kinds, 0, 1, data_in=nan), "testset": data_set(kinds, 1, 1)})
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    refused(tmp_path, "truncated or damaged", CheckpointError)
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"dataset_x\.pt, trainset\.data_in\[1\].*NaN"):
        imported(tmp_path)
    result = CliRunner().invoke(
        main, ["zoo", "import", "dataset-pt", str(tmp_path), str(tmp_path / "zoo"), "--drop-nan"]
    )
    assert result.exit_code == 0, result.output
    assert "1 model that holds NaN or infinity left out: NN_tune_trainable_0/25" in result.output
    assert len(prepkit.open_zoo(tmp_path / "zoo")) == 3


def write_networks(tmp_path, kinds, **properties):
    """Write two networks of MNIST with their accuracies, and return them with the images."""
    data = write_images(tmp_path / "images")
    networks = [balanced(filled(small_cnn("tanh"), seed), data, HALF) for seed in (1, 2)]
    more = {
        "data_in": [network.state_dict() for network in networks],
        "paths": [Path(f"/data/tune_zoo_mnist_uniform/NN_{seed}") for seed in (1, 2)],
        "epochs": [50, 50],
        "labels_in": None,
        "properties": {"test_acc": [share_right(network, data, HALF) for network in networks], **properties},
    }
    kinds.save(tmp_path / "dataset_x.pt", {"testset": data_set(kinds, 0, 1, **more)})
    return networks, data


def test_networks_are_rebuilt_and_running_finds_their_normalisation_and_proves_it(tmp_path, kinds):
    networks, (images, _) = write_networks(tmp_path, kinds, **{"model::nlin": ["tanh", "tanh"]})
    zoo, notes = imported(tmp_path, data=tmp_path / "images")
    for number, network in enumerate(networks):
        with torch.no_grad():
            assert torch.allclose(zoo.network(number)(images), network(images), atol=1e-5)
    assert any("Running 2 models decided for 'half'" in note for note in notes)  # the folder's name says otherwise
    arguments = ["zoo", "verify", tmp_path / "zoo", "--rerun", 2, "--data", tmp_path / "images"]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    function = read_manifest(tmp_path / "zoo").function
    assert function.verified.instances == 2
    assert function.how.mean == (0.5,)


def test_the_activation_may_be_named_where_no_property_says_it(tmp_path, kinds):
    write_networks(tmp_path, kinds)
    _, notes = imported(tmp_path)
    assert any("nothing rebuilds them: without model::nlin (2 models)" in note for note in notes)
    source = found_by("dataset-pt", tmp_path / "dataset_x.pt", {"activation": "tanh"})
    assert source.read(0).architecture.name.endswith("_tanh@mnist")
    assert any("normalised as 'mnist', which nothing proves" in note for note in source.notes())
    with pytest.raises(ZooError, match=r"there is no 'tan'; there are .* Did you mean 'tanh'"):
        found_by("dataset-pt", tmp_path / "dataset_x.pt", {"activation": "tan"})
    with pytest.raises(ZooError, match="Where all have one activation"):
        found_by("dataset-pt", tmp_path / "dataset_x.pt", {"data": tmp_path / "images"})
