"""`prepkit zoo import cnn-wild-park`: rebuilt networks, the proof by running, splits, bad input."""

import hashlib
import json
import os
import shutil
import zipfile
from collections import OrderedDict

import pytest
import torch
import wild_samples as wild
from click.testing import CliRunner

import prepkit
from prepkit.cli import main, zoo_text
from prepkit.errors import CheckpointError, UnsafeCheckpoint, ZooError
from prepkit.zoo.card import _picture, card
from prepkit.zoo.importers._wild_config import arguments_of


@pytest.fixture
def park(tmp_path):
    wild.write_park(tmp_path / "src/cifar10_zooV2")
    return tmp_path / "src/cifar10_zooV2"


def imported(tmp_path, name="zoo", **options):
    written = prepkit.import_zoo("cnn-wild-park", tmp_path / "src", tmp_path / name, **options)
    return prepkit.open_zoo(tmp_path / name), written


def test_networks_compute_what_their_configs_describe(park, tmp_path):
    zoo, _ = imported(tmp_path)
    images = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert len(zoo) == 8
    assert len(zoo.registry.class_ids) == len(wild.CONFIGS)
    for run in range(4):
        config = wild.config_of(run)
        with torch.no_grad():
            outputs = zoo.network(f"run_{run}/20").double()(images)
        expected = wild.oracle(config, wild.weights_of(config, 100 * run + 20), images)
        torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)


def test_what_files_say_becomes_columns(park, tmp_path):
    zoo, written = imported(tmp_path)
    row = zoo.metadata("run_1/20")
    config = wild.config_of(1)
    assert {name: row[f"config.{name}"] for name in config} == config
    assert (row["run"], row["checkpoint"], row["iteration"], row["accuracy"]) == ("run_1", 20, 20, 0.5)
    assert row["last_result.test/loss"] == 2.0
    assert any("optimizer (8 models)" in note for note in written.notes)
    assert any("last_result.test/acc is the column accuracy" in note for note in written.notes)
    function = zoo.manifest.function
    assert (function.status, function.how.activation) == ("unverified", "config.activation")
    assert zoo.task["mean"] == wild.MEAN
    assert zoo.task["dataset"] == "uoft-cs/cifar10"


def test_a_config_of_omegaconf_is_read_without_it(tmp_path):
    config = wild.config_of(1)
    file = wild.checkpoint(tmp_path / "src", "run_1", 20)
    wild.save_as_omegaconf(file, wild.contents(config, wild.weights_of(config, 120), 0.25, 20))
    row = imported(tmp_path)[0].metadata(0)
    assert {name: row[f"config.{name}"] for name in config} == config
    assert row["accuracy"] == 0.25


@pytest.mark.parametrize("prefix", ["cnn_wild", "."])
def test_the_folder_of_the_runs_may_be_called_otherwise(tmp_path, prefix):
    wild.write_park(tmp_path / "src" / prefix, runs=1, steps=(10,))
    assert imported(tmp_path)[0].table["id"].to_pylist() == ["run_0/10"]


def test_running_proves_the_zoo(tmp_path):
    images, labels = wild.write_pictures(tmp_path / "pictures")

    def accuracy(config, state):
        found = (wild.oracle(config, state, images).argmax(1) == labels).double().mean().item()
        assert 0 < found < 1
        return found

    wild.write_park(tmp_path / "src", runs=3, steps=(10,), accuracy_of=accuracy)
    imported(tmp_path, task=wild.TASK)
    found = prepkit.verify(tmp_path / "zoo", rerun=3, data=tmp_path / "pictures")
    assert [run.agrees for run in found.reruns] == [True] * 3
    assert found.function.status == "verified"


def test_a_residual_sum_in_another_place_is_found(tmp_path):
    images, labels = wild.write_pictures(tmp_path / "pictures")
    config = wild.config_of(1)
    state = wild.weights_of(config, 3)
    wrong = {**config, "residual": [-1] * 4}
    accuracies = [
        (wild.oracle(one, state, images).argmax(1) == labels).double().mean().item() for one in (config, wrong)
    ]
    assert accuracies[0] != accuracies[1]
    wild.save(wild.checkpoint(tmp_path / "src", "run_1", 10), wild.contents(config, state, accuracies[1], 10))
    imported(tmp_path, task=wild.TASK)
    found = prepkit.verify(tmp_path / "zoo", rerun=1, data=tmp_path / "pictures")
    assert not found.reruns[0].agrees
    assert found.function.status == "unverified"


def test_texts_and_the_picture_of_many_architectures_stay_short(park, tmp_path, monkeypatch):
    for module, name in ((card, "ARCHITECTURES_SHOWN"), (zoo_text, "ARCHITECTURES_SHOWN"), (_picture, "MAX_BOXES")):
        monkeypatch.setattr(module, name, 2)
    zoo, written = imported(tmp_path)
    assert "And 1 more, which `zoo.json` describes." in (tmp_path / "zoo/README.md").read_text()
    text = zoo_text.description(written.manifest)
    assert text.endswith("\nand 1 more architecture, which --json lists")
    names = [name for name in zoo.registry.class_ids if name in text]
    assert len(names) == 2
    assert _picture.accuracy_by_architecture(zoo) == {"all 3 architectures": [0.5] * 8}


# Splits -------------------------------------------------------------------------------------------------------


def write_split(file, **parts):
    lists = {
        name: {
            "path": [f"cifar10_zooV2/run_{run}/checkpoint_{step:06d}/checkpoint.pt" for run, step, _ in models],
            "score": [score for _, _, score in models],
            "step": [step for _, step, _ in models],
        }
        for name, models in parts.items()
    }
    file.write_text(json.dumps(lists))


def test_the_published_split(park, tmp_path):
    write_split(
        park.parent / "cnn_park_splits.json",
        train=[(2, 10, 0.5), (0, 20, 0.5), (0, 10, 0.75)],
        val=[(1, 10, 0.5)],
        test=[(7, 10, 0.5)],
    )
    zoo, written = imported(tmp_path, splits="paper")
    splits = dict(zip(zoo.table["id"].to_pylist(), zoo.table["split"].to_pylist(), strict=True))
    assert {id_: split for id_, split in splits.items() if split} == {
        "run_2/10": "train",
        "run_0/20": "train",
        "run_0/10": "train",
        "run_1/10": "validation",
    }
    notes = " ".join(written.notes)
    assert "4 models have no row in cnn_park_splits.json" in notes
    assert "1 row of cnn_park_splits.json names no model here: run_7/checkpoint_000010/checkpoint.pt" in notes
    assert "The split has another score than last_result.test/acc of the file, which is kept: 1 model." in notes
    assert zoo.manifest.provenance["options"]["split_file"]["name"] == "cnn_park_splits.json"


def test_strict_keeps_runs_together_and_leaves_copies_out(park, tmp_path):
    shutil.copytree(park / "run_2", park / "run_9")
    assert any("2 models have the weights of an earlier one" in note for note in imported(tmp_path, "whole")[1].notes)
    zoo, written = imported(tmp_path, splits="strict")
    assert len(zoo) == 8
    assert any("2 models with the weights of an earlier one left out: run_9/10, run_9/20" in n for n in written.notes)
    rows = zoo.table.to_pylist()
    assert all(len({row["split"] for row in rows if row["run"] == run}) == 1 for run in {row["run"] for row in rows})
    runs = sorted({"run_9", *(row["run"] for row in rows)}, key=lambda run: hashlib.sha256(run.encode()).hexdigest())
    expected = dict(zip(runs, ["test", "test", "train", "train", "validation"], strict=True))
    assert all(row["split"] == expected[row["run"]] for row in rows)
    assert zoo.task["dataset"] == "uoft-cs/cifar10"


def test_splits_that_cannot_be_are_refused(park, tmp_path):
    with pytest.raises(ZooError, match=r"paper needs the published cnn_park_splits\.json, which is in none of"):
        imported(tmp_path, splits="paper")
    with pytest.raises(ZooError, match=r"`split_file` goes with `splits` paper"):
        imported(tmp_path, split_file=tmp_path / "s.json")
    write_split(tmp_path / "s.json", train=[(50, 10, 0.5)])
    with pytest.raises(ZooError, match=r"s\.json: names none of 8 models"):
        imported(tmp_path, splits="paper", split_file=tmp_path / "s.json")
    assert not (tmp_path / "zoo").exists()


# Bad input ----------------------------------------------------------------------------------------------------


class Runs:
    def __reduce__(self):
        return os.system, ("exit 1",)


CONFIGS = {
    "activation": (
        {"activation": ["tanh", "reluu", "tanh", "tanh"]},
        r"activation\[1\] is 'reluu'; expected one of relu, .*Did you mean 'relu'",
    ),
    "source": ({"residual": [-1, -1, 2, 1]}, r"residual\[2\] is 2; expected the number of an earlier layer, or -1"),
    "length": ({"stride": [1, 1]}, r"stride is \[1, 1\]; expected a list of 4, as n_layers is 4"),
    "kernel": ({"kernel_size": [3, 3, "7", 3]}, r"kernel_size is .*expected whole numbers from 1 on"),
    "missing": ({"n_layers": None, "padding": None}, r"its config says nothing of n_layers, padding"),
    "layers": ({"n_layers": True}, r"n_layers is True; expected a whole number from 1 on"),
    "sizes": ({"stride": [2, 2, 1, 1]}, r"residual\[2\] adds layer 0, whose output has 16 x 16 pixels, to 8 x 8"),
    "too-small": ({"stride": [9, 9, 1, 1], "padding": [0] * 4}, r"layer 2 has a kernel of 7, which is more than its"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_describe_no_network_are_refused(case):
    changes, message = CONFIGS[case]
    config = {**wild.config_of(1), **changes}
    with pytest.raises(ZooError, match=f"^'a/b.pt': .*{message}"):
        arguments_of({f"config.{name}": value for name, value in config.items()}, "'a/b.pt'")


def with_tensor(name, tensor):
    return lambda content: {**content, "model": OrderedDict({**content["model"], name: tensor})}


BROKEN = {
    "shape": (
        with_tensor("layers.1.weight", torch.zeros(4, 6, 5, 5)),
        ZooError,
        r"layers\.1\.weight is \[4, 6, 3, 3\] by the config, and \[4, 6, 5, 5\] in the file",
    ),
    "code": (
        lambda content: {**content, "last_result": Runs()},
        UnsafeCheckpoint,
        r"would import and call posix\.system",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_files_are_refused_by_name_and_the_same_call_goes_on(park, tmp_path, case):
    spoil, error, message = BROKEN[case]
    config = wild.config_of(1)
    content = wild.contents(config, wild.weights_of(config, 120), 0.5, 20)
    file = wild.checkpoint(park, "run_1", 20)
    wild.save(file, spoil(content))
    with pytest.raises(error, match=message) as caught:
        imported(tmp_path)
    assert "run_1/checkpoint_000020/checkpoint.pt" in str(caught.value)
    assert "3 of 8 models are kept" in caught.value.__notes__[0]
    assert not (tmp_path / "zoo/zoo.json").exists()
    wild.save(file, content)
    assert len(imported(tmp_path)[0]) == 8


def test_half_a_download_is_told(park, tmp_path):
    shutil.rmtree(park / "run_3/checkpoint_000010")
    (park / "run_2/checkpoint_000020/checkpoint.pt").unlink()
    (park / "run_8").mkdir()
    notes = " ".join(imported(tmp_path)[1].notes)
    assert "1 run without any checkpoint: run_8." in notes
    assert "1 folder that holds no file 'checkpoint.pt'" in notes
    file = wild.checkpoint(park, "run_0", 20)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"run_0/checkpoint_000020/checkpoint\.pt"):
        imported(tmp_path, "other")


def test_archives_and_two_parks_are_refused(park, tmp_path):
    archive = tmp_path / "src.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("cifar10_zooV2/x", "x")
    with pytest.raises(ZooError, match=r"src\.zip' is a file; unpack an archive first"):
        prepkit.import_zoo("cnn-wild-park", archive, tmp_path / "zoo")
    (tmp_path / "packed").mkdir()
    shutil.move(archive, tmp_path / "packed/cifar10_zooV2.zip")
    with pytest.raises(
        ZooError, match=r"holds no file RUN/checkpoint_xxxxxx/checkpoint\.pt.*there is cifar10_zooV2\.zip"
    ):
        prepkit.import_zoo("cnn-wild-park", tmp_path / "packed", tmp_path / "zoo")
    wild.write_park(tmp_path / "src/cnn_wild", runs=1)
    with pytest.raises(ZooError, match=r"models are in .*cifar10_zooV2, .*cnn_wild; name one of the two"):
        imported(tmp_path)
    assert not (tmp_path / "zoo").exists()


def test_models_with_nan_are_dropped_and_counted(park, tmp_path):
    config = wild.config_of(0)
    content = wild.contents(config, wild.weights_of(config, 10), None, 10)
    content["model"]["fc.bias"][0] = float("nan")
    wild.save(wild.checkpoint(park, "run_0", 10), content)
    wild.save(wild.checkpoint(park, "run_0", 20), wild.contents(config, wild.weights_of(config, 20), None, 20))
    with pytest.raises(CheckpointError, match=r"drop_nan=True"):
        imported(tmp_path)
    zoo, written = imported(tmp_path, drop_nan=True)
    assert len(zoo) == 7
    notes = " ".join(written.notes)
    assert "1 model that holds NaN or infinity left out: run_0/10" in notes
    assert "No last_result.test/acc in the file, so the column accuracy is empty: 1 model." in notes


def test_the_command(park, tmp_path):
    write_split(tmp_path / "s.json", test=[(0, 10, 0.5)])
    arguments = ["zoo", "import", "cnn-wild-park", park, tmp_path / "zoo", "--splits", "paper"]
    result = CliRunner().invoke(main, [*map(str, arguments), "--split-file", str(tmp_path / "s.json"), "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads(result.stdout)["instances"] == 8
    result = CliRunner().invoke(main, [*map(str, arguments[:-2]), "--split-file", str(tmp_path / "s.json")])
    assert result.exit_code == 2
    assert "--split-file goes with --splits paper" in result.stderr
