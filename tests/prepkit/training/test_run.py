"""train_zoo end to end: what is in the zoo, the same bytes each time, and what becomes of what diverges."""

import os
from dataclasses import replace

import pytest
import torch
from folder_contents import files_of
from killed_training import TEXTS, spec
from run_samples import Notes, rows_of, trained

import prepkit
from prepkit.api import verify
from prepkit.errors import ZooError
from prepkit.training._plan import STRIDE, plan
from prepkit.training._stack import Stack
from prepkit.training._values import Epochs
from prepkit.training.run import train_zoo
from prepkit.training.spec import load_spec
from prepkit.zoo.change.rerun import run_again

pytestmark = pytest.mark.xdist_group("trainings")  # one worker runs all, since they share zoos


@pytest.mark.parametrize("name", TEXTS)
def test_a_zoo_is_whole_and_its_accuracies_are_reproduced(zoos, name):
    found = verify(zoos / name)
    assert (found.faults, found.notes) == ((), ())
    zoo = prepkit.open_zoo(zoos / name)
    runs = run_again(zoo, len(zoo))
    assert len(runs) == len(zoo)
    assert all(run.agrees for run in runs), runs
    assert len({run.found for run in runs}) > 1
    assert (zoos / name / "README.md").read_text().startswith("---")
    assert not (zoos / name / ".writing").exists()


@pytest.mark.parametrize("name", TEXTS)
def test_trained_twice_it_has_the_same_bytes(zoos, tmp_path, name):
    trained(tmp_path / "again", TEXTS[name])
    assert files_of(tmp_path / "again") == files_of(zoos / name)


def test_ids_splits_and_columns_are_those_of_the_plan(zoos):
    rows = rows_of(zoos / "last")
    jobs = {job.run: job for job in plan(spec()).jobs}
    assert sorted(row["id"] for row in rows) == sorted(jobs)
    for row in rows:
        job = jobs[row["id"]]
        assert (row["split"], row["seed"], row["architecture"]) == (job.split, job.seed, job.architecture)
        assert (row["epochs"], row["epoch"], row["run"]) == (job.epochs, job.epochs, job.run)
        assert (row["learning_rate"], row["momentum"], row["weight_decay"]) == (0.05, 0.9, 5e-4)
        assert (row["batch_size"], row["optimizer"], row["schedule"]) == (128, "sgd", "constant")
        for what in ("accuracy", "train_accuracy", "validation_accuracy"):
            assert 0 < row[what] <= 1
        for what in ("loss", "train_loss", "validation_loss"):
            assert 0 < row[what] < 10
    splits = prepkit.open_zoo(zoos / "last").manifest.splits
    assert splits == {"test": 1, "train": 4, "validation": 1}
    assert {row["epochs"] for row in rows} == {1, 2, 3}


def test_a_trajectory_has_a_row_for_each_epoch_that_is_kept(zoos):
    rows = rows_of(zoos / "trajectory")
    kept = plan(spec(TEXTS["trajectory"])).jobs[0].kept_epochs
    assert len(kept) > 1
    assert sorted(row["id"] for row in rows) == [f"lenet_like-{n:05d}-e{e:04d}" for n in range(3) for e in kept]
    assert {(row["epoch"], row["epochs"], row["schedule"]) for row in rows} == {(e, 4, "cosine") for e in kept}
    by_run = {}
    for row in rows:
        by_run.setdefault(row["run"], set()).add((row["split"], row["seed"]))
    assert all(len(same) == 1 for same in by_run.values())


def test_best_validation_keeps_the_best_epoch(zoos):
    assert min(row["epoch"] for row in rows_of(zoos / "best")) < 3
    for row in rows_of(zoos / "best"):
        assert 1 <= row["epoch"] <= 3
        assert row["epochs"] == 3
    names = [member.name for member in prepkit.open_zoo(zoos / "best").registry]
    assert names == ["resnet8@digits", "lenet_like@digits"]  # in the order of the spec


def test_shapes_have_a_shape_each(zoos):
    rows = rows_of(zoos / "chairs")
    assert sorted(row["item"] for row in rows) == [0, 1, 2]
    assert {row["optimizer"] for row in rows} == {"adam"}
    assert {row["beta1"] for row in rows} == {0.9}


def test_provenance_says_all_that_made_the_zoo(zoos):
    manifest = prepkit.open_zoo(zoos / "last").manifest
    said = dict(manifest.provenance)
    teacher = said.pop("teacher")
    assert said == {
        "command": "zoo train",
        "spec": TEXTS["last"],
        "sizes": {},
        "engine": {"device": "cpu", "threads": 1, "stacks": {"lenet_like@digits": 4, "vanilla_cnn@digits": 2}},
        "versions": {"prepkit": prepkit.__version__, "torch": str(torch.__version__)},
        "machine": os.uname().machine,
        "diverged": [],
    }
    assert (manifest.name, manifest.license, manifest.task["dataset"]) == ("last", "mit", "digits")
    assert teacher["epochs"] == 1
    assert 0 < teacher["accuracy"] < 1
    assert teacher["seed"] == plan(spec()).teacher.seed


def test_the_teacher_is_stored_and_is_as_good_as_is_said(zoos):
    zoo = prepkit.open_zoo(zoos / "last")
    network = zoo.teacher
    inputs, labels = prepkit.tasks.test_set(zoo.manifest.task)
    with torch.inference_mode():
        found = (network(inputs).argmax(-1) == labels).float().mean().item()
    assert found == pytest.approx(zoo.manifest.provenance["teacher"]["accuracy"], abs=1e-6)
    assert zoo.registry.class_ids == {"lenet_like@digits": 0, "vanilla_cnn@digits": 1}
    assert prepkit.open_zoo(zoos / "best").teacher is None


@pytest.mark.parametrize("teacher_epochs", [1, pytest.param(None, marks=pytest.mark.slow)])
def test_a_trial_of_digits_unseen_registers_what_it_does_not_train(tmp_path, teacher_epochs):
    trial = load_spec("digits_unseen")
    if teacher_epochs is not None:  # the trial's sizes leave the teacher its own epochs, which take most of the time
        training = replace(trial.teacher.training, epochs=Epochs((teacher_epochs,)))
        trial = replace(trial, teacher=replace(trial.teacher, training=training))
    told = train_zoo(trial, tmp_path / "zoo", device="cpu", threads=1, instances=1, epochs=1)
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    assert (told.instances, len(zoo)) == (6, 6)
    assert list(zoo.registry.class_ids) == [
        "lenet_like@digits",
        "vanilla_cnn@digits",
        "resnet8@digits",
        "resnet14@digits",
    ]
    assert {row["architecture"] for row in zoo.table.to_pylist()} == {"lenet_like@digits", "resnet14@digits"}
    assert {row["epochs"] for row in zoo.table.to_pylist()} == {1}
    assert zoo.manifest.provenance["sizes"] == {"instances": 1, "epochs": 1}
    assert sum(parameter.numel() for parameter in zoo.teacher.parameters()) == 68_250  # a ResNet20
    assert verify(tmp_path / "zoo").ok


def test_stacks_of_another_size_train_the_same_networks_but_for_rounding(zoos, alone):
    one, other = ({row["id"]: row for row in rows_of(folder)} for folder in (zoos / "last", alone))
    for id in one:
        assert {**one[id], "row": 0}.keys() == other[id].keys()
        assert one[id]["seed"] == other[id]["seed"]
        assert one[id]["loss"] == pytest.approx(other[id]["loss"], rel=0.05)


def diverging(monkeypatch, times):
    """The first attempts of lenet_like-00001 diverge after an epoch."""
    job = next(job for job in plan(spec()).jobs if job.run == "lenet_like-00001")
    bad = {job.reseeded(attempt).seed for attempt in range(times)}
    train_epoch = Stack._train_epoch

    def poisoned(stack):
        losses = train_epoch(stack)
        return [
            float("nan") if each.seed in bad else loss for each, loss in zip(stack.active_jobs, losses, strict=True)
        ]

    monkeypatch.setattr(Stack, "_train_epoch", poisoned)
    return job


def test_an_instance_that_diverges_is_replaced_counted_and_told(tmp_path, monkeypatch, zoos):
    job = diverging(monkeypatch, 2)
    progress = Notes()
    done = trained(tmp_path / "zoo", TEXTS["last"], progress=progress)
    assert done.diverged == 2
    gone = [{"run": job.run, "seed": job.reseeded(attempt).seed, "epoch": 1} for attempt in range(2)]
    said = prepkit.open_zoo(tmp_path / "zoo").manifest.provenance["diverged"]
    assert sorted(said, key=str) == sorted(gone, key=str)
    rows = {row["id"]: row for row in rows_of(tmp_path / "zoo")}
    assert rows[job.run]["seed"] == job.reseeded(2).seed == (job.seed + 2 * STRIDE) % 2**31
    assert len(rows) == 6
    before = {row["id"]: row for row in rows_of(zoos / "last")}
    assert all(rows[id] == before[id] for id in rows if id.startswith("vanilla"))
    assert len(progress.notes) == 2
    assert f"note: {job.run} diverged with seed {job.seed} after epoch 1: replaced." in progress.notes
    assert verify(tmp_path / "zoo").ok


def test_when_everything_diverges_it_is_not_the_seed(tmp_path):
    text = TEXTS["chairs"].replace("learning_rate = 2e-3", "learning_rate = 1e38").replace("epochs = 3", "epochs = 1")
    with pytest.raises(ZooError, match=r"sine_mlp-0000\d: diverged with 101 seeds at learning rate 1e\+38; lower it"):
        trained(tmp_path / "zoo", text)


def test_progress_adds_up_to_all_the_work(tmp_path):
    progress = Notes()
    trained(tmp_path / "zoo", TEXTS["last"], progress=progress)
    assert progress.done == pytest.approx(progress.work, rel=1e-9)
    rows = rows_of(tmp_path / "zoo")
    last = [row["accuracy"] for row in rows if row["architecture"] == rows[-1]["architecture"]]
    assert progress.texts[0] == "0/6 instances"
    assert progress.texts[-1] == f"6/6 instances, accuracy {sum(last) / len(last):.3f} in the last stack"
