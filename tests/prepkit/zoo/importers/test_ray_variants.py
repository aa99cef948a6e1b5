"""`prepkit zoo import ray-tree`: WeightCLIP, vision transformers, CWI; splits; trees that are damaged or half there."""

import json
import os
import pickle
import random
import shutil
import struct
import tarfile

import pytest
import torch
from click.testing import CliRunner
from ray_samples import (
    HALF,
    SmallCNNZooNet,
    balanced,
    filled,
    imported,
    large_cnn,
    settings_of,
    share_right,
    small_cnn,
    write_checkpoint,
    write_images,
    write_lines,
    write_run,
)
from torch.nn import functional

import prepkit
from prepkit.cli import main
from prepkit.errors import CheckpointError, UnsafeCheckpoint, ZooError

pytestmark = pytest.mark.usefixtures("one_thread")


def refused(root, tmp_path, error=ZooError, **options):
    with pytest.raises(error) as caught:
        imported(root, tmp_path, "refused", **options)
    assert not (tmp_path / "refused").exists()
    return " ".join(str(caught.value).split())


@pytest.fixture
def runs(tmp_path):
    """Six runs of one checkpoint."""
    for number in range(6):
        write_run(
            tmp_path / "mnist", number, [filled(small_cnn(), number)], lambda _: 0.5, settings_of("CNN", "tanh", number)
        )
    return tmp_path / "mnist"


def weightclip_network(seed, epoch, data):
    return balanced(filled(large_cnn("tanh"), 100 * seed + epoch), data, HALF)


def write_weightclip(root, seed, data, epochs=(30, 31, 32)):
    """Write a run as WeightCLIP does: percent, NaN between evaluations, and epoch 31 twice, since it was resumed."""
    run = root / f"NN_tune_trainable_seed={seed}"
    networks = {epoch: weightclip_network(seed, epoch, data) for epoch in epochs}
    rows = [{"epoch": epoch, "train_loss": 9.0, "train_acc": 10.0, "test_acc": float("nan")} for epoch in range(32)]
    for epoch in epochs:
        write_checkpoint(run, epoch, networks[epoch], ("optimizer", "scheduler"))
        accuracy = float("nan") if epoch == 31 else 100 * share_right(networks[epoch], data, HALF)
        rows.append(
            {"epoch": epoch, "train_loss": float("nan"), "train_acc": 50.0, "test_acc": accuracy, "learning_rate": 1}
        )
    write_lines(run / "result.json", rows)
    settings = {"seed": seed, "lr": 1e-3, "best_test_acc": 44.0, "model::type": "CNN3", "model::channels_in": 3,
                "model::o_dim": 10, "model::nlin": "tanh", "model::dropout": 0.0}  # fmt: skip
    (run / "params.json").write_text(json.dumps(settings))
    return run


@pytest.mark.parametrize("name", ["runs", "kmnist", "castle"])
def test_names_of_unknown_data_sets_tell_no_normalisation(name, runs, tmp_path):
    shutil.move(runs, tmp_path / "zoos" / name)
    zoo, notes = imported(tmp_path / "zoos" / name, tmp_path)
    assert "How inputs were normalised is unknown: no name tells it." in notes
    assert zoo.task is None


def test_only_accuracies_tell_that_a_run_counts_percent(runs, tmp_path):
    for file in runs.glob("*/result.json"):
        row = json.loads(file.read_text())
        write_lines(file, [row | {"train_acc": 1.0000001, "loss_gap": 1.7, "test_acc_gap": 0.25}])
    zoo, notes = imported(runs, tmp_path)
    row = zoo.metadata(0)
    assert (row["accuracy"], row["loss_gap"], row["test_acc_gap"]) == (0.5, 1.7, 0.25)
    assert "percent" not in notes


def test_weightclip(tmp_path):
    data = write_images(tmp_path / "images", 32, 3)
    root = tmp_path / "ct-images" / "cnn3" / "tune_zoo_ct-images_cnn3"
    for seed in range(3):
        write_weightclip(root, seed, data)
    (root / "NN_tune_trainable_seed=2" / "params.json").unlink()
    (root / "NN_tune_trainable_seed=1" / "checkpoint_000031" / "checkpoints").unlink()
    zoo, notes = imported(root, tmp_path, data=tmp_path / "images")
    row = zoo.metadata("NN_tune_trainable_seed=0/32")
    assert (row["epoch"], row["train_acc"], row["best_test_acc"], row["lr"]) == (32, 0.5, 0.44, 1e-3)
    network = weightclip_network(0, 32, data)
    assert row["accuracy"] == pytest.approx(share_right(network, data, HALF))  # the weights of epoch 32, not of a line
    assert zoo.metadata("NN_tune_trainable_seed=0/31")["accuracy"] is None
    assert zoo.metadata("NN_tune_trainable_seed=0/31")["train_acc"] == 0.5  # the last row of the epoch
    assert len(zoo) == 5
    for said in (
        "1 run is unfinished, since it has no params.json or config.json; left out: NN_tune_trainable_seed=2.",
        "1 folder of a checkpoint lacks the file 'checkpoints'",
        "Left beside the weights: optimizer (9 files), scheduler (9 files).",
        "2 runs count accuracies in percent; the columns have shares of 1.",
        "4 rows of result.json are followed by later ones of its epoch, which is taken",
        "decided for 'half'",
    ):
        assert said in notes
    assert zoo.metadata(0)["architecture"].endswith("_tanh@ct_images_cnn3")
    found = prepkit.verify(
        tmp_path / "zoo", rerun=9, data=tmp_path / "images"
    )  # the two that were measured, of each run
    assert found.function.verified.instances == 4
    assert len(imported(root, tmp_path, "all", unfinished=True)[0]) == 8


def test_vision_transformers_have_parents_and_are_kept_as_tensors(tmp_path):
    root = tmp_path / "vit"
    for name in ("pretraining/P", "finetuning/P/a", "finetuning/P/b", "finetuning/Q/a"):
        network = torch.nn.Module()
        network.vit = torch.nn.Linear(3, 2)
        write_checkpoint(root / name, 4, network, width=4)
        write_lines(root / name / "result.json", [{"training_iteration": 4, "test_acc": 0.25}])
        settings = {"model::type": "vit_s_16", "pretraining::model::path": "/zoos/P/checkpoint_89/checkpoints"}
        (root / name / "config.json").write_text(
            json.dumps(settings if name == "finetuning/P/b" else {"seed": len(name)})
        )
    zoo, notes = imported(root, tmp_path, splits="strict", keep_batch_norm=True)
    parents = {row["run"]: row["parent"] for row in zoo.table.to_pylist()}
    assert parents == {"pretraining/P": None, "finetuning/P/a": "P", "finetuning/P/b": "P", "finetuning/Q/a": "Q"}
    splits = {row["run"]: row["split"] for row in zoo.table.to_pylist()}
    assert splits["pretraining/P"] == splits["finetuning/P/a"] == splits["finetuning/P/b"]
    assert "Networks that prepkit does not rebuild" in notes
    assert "vit_s_16 (1 model)" in notes
    assert zoo.manifest.function.how_to_run is None
    assert zoo.metadata("finetuning/Q/a/4")["accuracy"] == 0.25
    assert "no model can be compared with the images" in refused(root, tmp_path, data=tmp_path)


def test_cwi_has_empty_cells_where_nothing_was_measured(tmp_path):
    run = tmp_path / "unthi" / "NN_unthi_mnist_7_12"
    rows = []
    for epoch in range(9):
        write_checkpoint(run, epoch, filled(SmallCNNZooNet(), epoch))
        value = epoch / 10 if epoch in (0, 4, 8) else -999.0
        rows.append(
            {"training_iteration": epoch, "test_acc": 0.5, **{f"acc_class_{each}": value for each in range(10)}}
        )
    write_lines(run / "result.json", reversed(rows))
    (run / "params.json").write_text(json.dumps({"model::type": "unthi", "config.activation": "relu"}))
    zoo, notes = imported(run.parent, tmp_path)
    assert [row["acc_class_3"] for row in zoo.table.to_pylist()] == [0, None, None, None, 0.4, None, None, None, 0.8]
    assert "60 values of -999 are empty, as not measured" in notes
    assert zoo.manifest.function.how.activation == "config.activation"
    assert zoo.manifest.function.how.stride == "2"


def test_splits(runs, tmp_path):
    names = sorted(path.name for path in runs.iterdir())
    text = refused(runs, tmp_path, splits="paper")
    assert "as a file system lists them, which no copy keeps" in text
    assert "`splits` is paper or sorted or strict, not 'papr'. Did you mean 'paper'?" in refused(
        runs, tmp_path, splits="papr"
    )
    order = tmp_path / "order.txt"
    listed = [*reversed(names), "NN_unfinished"]  # the published loader shuffles every folder
    order.write_text("".join(f"/data/zoo/{name}\n" for name in listed))
    zoo, _ = imported(runs, tmp_path, "paper", splits="paper", order=order)
    random.seed(42)
    random.shuffle(listed)
    train = listed[: int(0.7 * len(listed))]
    for row in zoo.table.to_pylist():
        assert row["split"] == ("train" if row["run"] in train else "test")
    order.write_text("".join(f"{name}\n" for name in names[1:]))
    assert f"lacks 1 run: {names[0]}" in refused(runs, tmp_path, splits="paper", order=order)

    zoo, notes = imported(runs, tmp_path, "sorted", splits="sorted")
    assert "not the published one" in notes
    random.seed(42)
    random.shuffle(names)
    assert [zoo.metadata(f"{name}/0")["split"] for name in names] == [*4 * ["train"], *2 * ["test"]]


def test_copies_of_runs_are_told_and_strict_splits_leave_them_out(runs, tmp_path):
    first = min(runs.iterdir())
    shutil.copytree(first, runs / "again")
    zoo, notes = imported(runs, tmp_path)
    assert f"1 run has the last weights of an earlier run: again of {first.name}" in notes or "of again" in notes
    assert len(zoo) == 7
    zoo, notes = imported(runs, tmp_path, "strict", splits="strict")
    assert len(zoo) == 6
    assert "1 model with the weights of an earlier one left out" in notes


def test_images_are_scaled_to_the_size_that_networks_take(tmp_path):
    images, labels = write_images(tmp_path / "images", 36)
    scaled = functional.interpolate(images, (28, 28), mode="bilinear", antialias=True)
    networks = [balanced(filled(small_cnn(), seed), (scaled, labels), HALF) for seed in range(3)]
    for number, network in enumerate(networks):
        settings = settings_of("CNN", "tanh", number)
        write_run(
            tmp_path / "cifar10", number, [network], lambda net: share_right(net, (scaled, labels), HALF), settings
        )
    zoo, notes = imported(tmp_path / "cifar10", tmp_path, data=tmp_path / "images")
    assert "'half'" in notes
    assert zoo.task["size"] == 28
    assert prepkit.verify(tmp_path / "zoo", rerun=3, data=tmp_path / "images").function.status == "verified"


def test_files_of_torchvision_are_images_too(tmp_path):
    images, labels = write_images(tmp_path / "images")
    pixels = (images[:, 0] * 255).round().byte().numpy()
    for part in ("train", "t10k"):
        head = struct.pack(">4I", 2051, *pixels.shape)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">2I", 2049, len(labels))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.byte().numpy().tobytes())
    networks = [balanced(filled(small_cnn(), seed), (images, labels), HALF) for seed in range(3)]
    for number, network in enumerate(networks):
        right = share_right(network, (images, labels), HALF)
        write_run(tmp_path / "zoo_mnist", number, [network], {network: right}.get, settings_of("CNN", "tanh", number))
    zoo, notes = imported(tmp_path / "zoo_mnist", tmp_path, data=tmp_path)
    assert "'half'" in notes
    assert (zoo.task["dataset"], zoo.task["mean"]) == ("mnist", [0.5])
    assert prepkit.verify(tmp_path / "zoo", rerun=3, data=tmp_path).function.status == "verified"


def test_the_same_command_goes_on_when_a_cut_checkpoint_is_whole(runs, tmp_path):
    fourth = sorted(runs.iterdir())[3] / "checkpoint_000000" / "checkpoints"
    whole = fourth.read_bytes()
    fourth.write_bytes(whole[:700])
    with pytest.raises(CheckpointError, match=str(fourth)) as caught:
        imported(runs, tmp_path)
    assert "3 of 6 models are kept" in " ".join(caught.value.__notes__)
    fourth.write_bytes(whole)
    zoo, notes = imported(runs, tmp_path)
    assert "model::o_dim (6 models)" in notes  # also those from before the interruption
    imported(runs, runs, "inside")  # whose shards are no runs
    assert len(imported(runs, tmp_path, "again")[0]) == 6
    assert len(zoo) == 6
    assert len(zoo.where("`model::o_dim` == 10")) == 6


def test_damaged_tables_are_told_with_their_place(runs, tmp_path):
    run = min(runs.iterdir())
    result = run / "result.json"
    rows = result.read_text()
    result.write_text(f"{rows}{{broken\n{rows}")
    assert f"{result}, line 2: not JSON" in refused(runs, tmp_path)
    result.write_text('{"loss": 1}\n')
    assert f"{result}: no training_iteration or epoch tells which row is of which epoch" in refused(runs, tmp_path)
    result.write_text("<html>")
    assert f"'{result}' holds no JSON object; fetch it again" in refused(runs, tmp_path)
    result.unlink()
    zoo, notes = imported(runs, tmp_path)
    assert f"1 run has no result.json, so no metrics: {run.name}." in notes
    assert zoo.metadata(f"{run.name}/0")["accuracy"] is None
    (run / "params.json").write_text("")
    assert f"'{run / 'params.json'}' is empty; fetch it again" in refused(runs, tmp_path)


def test_folders_without_runs_are_refused(runs, tmp_path):
    archive = tmp_path / "zoo.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(runs, "mnist")
    assert "is a file; unpack an archive first" in refused(archive, tmp_path)
    folder = tmp_path / "only"
    folder.mkdir()
    assert "holds no run with weights" in refused(folder, tmp_path)
    shutil.move(archive, folder)
    assert "there is an archive in it" in refused(folder, tmp_path)
    for run in runs.iterdir():
        (run / "params.json").unlink()
    assert "none of 6 runs" in refused(runs, tmp_path)
    assert len(imported(runs, tmp_path, unfinished=True)[0]) == 6
    (min(runs.iterdir()) / "checkpoint_0").mkdir()
    shutil.copy(min(runs.iterdir()) / "checkpoint_000000/checkpoints", min(runs.iterdir()) / "checkpoint_0")
    assert "has two folders of epoch 0" in refused(runs, tmp_path)


class Calls:
    def __reduce__(self):
        return os.system, ("touch code_ran",)  # not print, in whose place ray puts its own


def test_pickles_that_run_code_are_refused(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = min(runs.iterdir()) / "checkpoint_000000/checkpoints"
    torch.save({"module_list.0.weight": torch.zeros(2), "evil": Calls()}, file, pickle_module=pickle)
    text = refused(runs, tmp_path, UnsafeCheckpoint)
    assert str(file) in text
    assert not (tmp_path / "code_ran").exists()


def test_command(runs, tmp_path):
    def run(*arguments, status=0):
        result = CliRunner().invoke(main, ["zoo", "import", "ray-tree", *map(str, arguments)])
        assert result.exit_code == status, (result.output, result.exception)
        return " ".join(result.output.split())

    text = run(runs, tmp_path / "zoo", "--epoch", 0, "--splits", "strict", "--json")
    assert '"instances": 6' in text
    assert "data set is mnist" in text
    assert "--splits paper and --order go together" in run(runs, tmp_path / "b", "--splits", "paper", status=2)
    assert f"no run in '{runs}' has epoch 9; there are 0." in run(runs, tmp_path / "b", "--epoch", 9, status=2)
    images = tmp_path / "images"
    write_images(images, channels=3)
    text = run(runs, tmp_path / "b", "--data", images, status=2)
    assert f"the networks take images of 1 channel, but those in '{images}' have 3" in text
    write_images(tmp_path / "right")
    text = run(runs, tmp_path / "b", "--data", tmp_path / "right", status=2)
    assert "no convention gives the accuracies that are stored; mean differences for 4 models" in text
    assert not (tmp_path / "b").exists()
