"""Rows of a zoo: what the columns say is computed here again, with one plain network after another."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

import prepkit
from prepkit.fusion.fold import fold
from prepkit.running.instances import runner
from prepkit.training._hyperparameters import Training
from prepkit.training._plan import Job
from prepkit.training._results import rows_of
from prepkit.training._stack import Snapshot, Stack
from prepkit.training._step import StackSetup
from prepkit.training._values import Epochs, Range, Schedule

CPU = torch.device("cpu")
DIGITS = {
    "kind": "images",
    "dataset": "digits",
    "mean": [0.3053],
    "std": [0.3761],
    "split": {"seed": 0, "test": 360, "validation": 180},
}
CHAIRS = {
    "kind": "shapes",
    "dataset": "procedural_chairs",
    "seed": 0,
    "points": {"pool": 256},
    "split": {"seed": 0, "test": 200},
    "steps_per_epoch": 3,
}
SGD = Training(
    "sgd", Range(0.05, 0.05), 64, Epochs((2,)), nesterov=True, schedule=Schedule("step", at=(150, 0.5), factor=0.1)
)
ADAM = Training(
    "adam", Range(1e-3, 1e-3), 64, Epochs((2,)), betas=(0.8, 0.9), eps=1e-6, decoupled=True, precision="bfloat16"
)
SPLITS = ("train", "test", "validation")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits():
    return prepkit.load_task(DIGITS)


def job(architecture, index, **changes):
    own = {"learning_rate": 0.01 * (index + 1), "momentum": 0.8 + 0.05 * index, "weight_decay": 1e-4 * index}
    run, split = f"run-{index:05d}", SPLITS[index % 3]
    made = Job(architecture, index, split, 70 + index, index, 2, **own, run=run, kept_epochs=(2,))
    return replace(made, **changes)


def trained(name, training, task, jobs, stacked=True, stack=2):
    known = prepkit.architecture(name)
    setting = StackSetup(known, training, task, runner(known, False, stacked, CPU), CPU, stack)
    made = Stack(setting, jobs)
    made.run()
    return made, rows_of(setting, made.jobs, made.snapshots)


def plain_folded(name, tensors):
    """The folded network of one snapshot, by prepkit.fusion.fold."""
    known = prepkit.architecture(name)
    network = known.build()
    network.load_state_dict(tensors)
    folded = fold(network.eval(), known.example_input()).network
    stored = known.build_folded().eval()
    stored.load_state_dict(folded.state_dict())
    return stored.requires_grad_(False)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("name", ["lenet_like@digits", "resnet8@digits"])
def test_accuracy_and_loss_are_those_of_the_folded_networks_on_digits(name, stacked, digits):
    jobs = [job(name, index) for index in range(3)]
    stack, rows = trained(name, SGD, digits, jobs, stacked)
    assert rows.ids == ["run-00000", "run-00001", "run-00002"]
    assert rows.splits == ["train", "test", "validation"]
    known = prepkit.architecture(name)
    assert list(rows.tensors) == [slot.name for slot in known.layout]
    by_position = {shot.position: shot for shot in stack.snapshots}
    for index in range(3):
        network = plain_folded(name, by_position[index].tensors)
        for slot in known.layout:
            assert torch.equal(rows.tensors[slot.name][index], network.state_dict()[slot.name])
        for split, prefix in (("train", "train_"), ("validation", "validation_"), ("test", "")):
            images, labels = digits.normalised(split)
            outputs = network(images)
            hits = (outputs.argmax(1) == labels).sum().item()
            assert rows.columns[f"{prefix}accuracy"][index] == pytest.approx(hits / len(labels), abs=1.5 / len(labels))
            loss = cross_entropy(outputs, labels).item()
            assert rows.columns[f"{prefix}loss"][index] == pytest.approx(loss, rel=1e-4)
    assert len(set(rows.columns["loss"])) == 3


COMMON = [
    *("run", "seed", "start", "epoch", "epochs", "learning_rate", "momentum", "weight_decay", "batch_size", "schedule")
]
JUDGED = [f"{prefix}{what}" for prefix in ("train_", "validation_", "") for what in ("accuracy", "loss")]


def test_the_columns_of_sgd(digits):
    jobs = [job("lenet_like@digits", index) for index in range(3)]
    _, rows = trained("lenet_like@digits", SGD, digits, jobs)
    columns = rows.columns
    assert list(columns) == [*COMMON, "precision", "optimizer", "nesterov", *JUDGED]
    assert columns["run"] == [f"run-{index:05d}" for index in range(3)]
    assert columns["seed"] == [70, 71, 72]
    assert columns["epoch"] == columns["epochs"] == [2, 2, 2]
    assert columns["learning_rate"] == [job.learning_rate for job in jobs]
    assert columns["momentum"] == [job.momentum for job in jobs]
    assert columns["weight_decay"] == [job.weight_decay for job in jobs]
    assert columns["batch_size"] == [64] * 3
    assert columns["schedule"] == ["step 0.1 at 150, 0.5"] * 3
    assert columns["precision"] == ["float32"] * 3
    assert columns["optimizer"] == ["sgd"] * 3
    assert columns["nesterov"] == [True] * 3
    assert {len(values) for values in columns.values()} == {3}


def test_the_columns_of_adam(digits):
    _, rows = trained("lenet_like@digits", ADAM, digits, [job("lenet_like@digits", 0)])
    own = ["precision", "optimizer", "beta1", "beta2", "eps", "decoupled"]
    assert list(rows.columns) == [*COMMON, *own, *JUDGED]
    assert [rows.columns[name] for name in own] == [["bfloat16"], ["adam"], [0.8], [0.9], [1e-6], [True]]
    assert rows.columns["schedule"] == ["constant"]


def test_the_rows_of_trajectories_come_job_by_job(digits):
    """However their snapshots were taken: epoch by epoch."""
    kept = {"kept_epochs": (1, 3), "epochs": 3, "trajectory": True}
    jobs = [
        job("lenet_like@digits", 0, **kept),
        job("lenet_like@digits", 1, **{**kept, "epochs": 1, "kept_epochs": (1,)}),
    ]
    stack, rows = trained("lenet_like@digits", SGD, digits, jobs)
    assert [(shot.position, shot.epoch) for shot in stack.snapshots] == [(0, 1), (1, 1), (0, 3)]
    assert rows.ids == ["run-00000-e0001", "run-00000-e0003", "run-00001-e0001"]
    assert rows.columns["run"] == ["run-00000", "run-00000", "run-00001"]
    assert rows.columns["epoch"] == [1, 3, 1]
    assert rows.columns["epochs"] == [3, 3, 1]
    assert rows.splits == ["train", "train", "test"]
    for row, shot in enumerate([stack.snapshots[0], stack.snapshots[2], stack.snapshots[1]]):
        for name, tensor in rows.tensors.items():
            assert torch.equal(tensor[row], shot.tensors[name])


def test_the_seed_is_that_of_the_attempt_that_was_kept(digits):
    known = prepkit.architecture("lenet_like@digits")
    setting = StackSetup(known, SGD, digits, runner(known, False, True, CPU), CPU, 2)
    again = job(known.name, 0).reseeded(3)
    shot = Snapshot(0, 2, dict(known.build().requires_grad_(False).state_dict()))
    assert rows_of(setting, [again], [shot]).columns["seed"] == [again.seed] != [70]


def test_the_epoch_is_that_of_the_best_weights(digits):
    known = prepkit.architecture("lenet_like@digits")
    setting = StackSetup(known, SGD, digits, runner(known, False, True, CPU), CPU, 2)
    shot = Snapshot(0, 1, dict(known.build().requires_grad_(False).state_dict()))
    rows = rows_of(setting, [job(known.name, 0)], [shot])
    assert (rows.ids, rows.columns["epoch"], rows.columns["epochs"]) == (["run-00000"], [1], [2])


def test_each_shape_is_judged_on_its_own_points():
    """And there are no columns for a split that the task does not have."""
    task = prepkit.load_task(CHAIRS)
    jobs = [job("sine_mlp@sdf_small", index, item=item) for index, item in enumerate((4, 0, 2))]
    _, rows = trained("sine_mlp@sdf_small", ADAM, task, jobs)
    assert rows.columns["item"] == [4, 0, 2]
    assert [name for name in rows.columns if "accuracy" in name] == ["train_accuracy", "accuracy"]
    for row, one in enumerate(jobs):
        network = prepkit.architecture(one.architecture).build().requires_grad_(False)
        network.load_state_dict({name: tensor[row] for name, tensor in rows.tensors.items()})
        for split, prefix in (("train", "train_"), ("test", "")):
            points, distances = task.points(one.item, split)
            error = network(points)[:, 0] - distances
            assert rows.columns[f"{prefix}loss"][row] == pytest.approx(error.square().mean().item(), rel=1e-4)
            right = (error.abs() <= 1e-2).double().mean().item()
            assert rows.columns[f"{prefix}accuracy"][row] == pytest.approx(right, abs=1.5 / len(points))
    assert len(set(rows.columns["loss"])) == 3


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Schedule(), "constant"),
        (Schedule("cosine"), "cosine"),
        (Schedule("step", at=(150, 180), factor=0.1), "step 0.1 at 150, 180"),
        (Schedule("exponential", every=1, factor=0.9), "exponential 0.9 every 1"),
    ],
)
def test_a_schedule_in_words(schedule, text):
    assert str(schedule) == text
