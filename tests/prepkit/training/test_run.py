"""train_zoo end to end: what is in the zoo, the same bytes each time, whoever finished first, and after any kill."""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import killed_training
import pytest
import torch
from killed_training import TEXTS, spec

import prepkit
from prepkit.api import verify
from prepkit.errors import DeviceError, ZooError
from prepkit.support.progress import Progress
from prepkit.training import run as running
from prepkit.training._plan import STRIDE, plan
from prepkit.training._stack import Stack
from prepkit.training._units import train_unit
from prepkit.training._values import Epochs
from prepkit.training.run import TrainingLog, train_zoo
from prepkit.training.spec import load_spec
from prepkit.zoo.change.rerun import run_again


def files_of(root):
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def trained(folder, text, **options):
    return train_zoo(spec(text), folder, **{"device": "cpu", "threads": 1, **options})


@pytest.fixture(scope="module")
def zoos(tmp_path_factory):
    """A zoo of each spec, by name."""
    root = tmp_path_factory.mktemp("zoos")
    for name, text in TEXTS.items():
        trained(root / name, text)
    return root


def rows_of(folder):
    return prepkit.open_zoo(folder).table.to_pylist()


# What is in it ------------------------------------------------------------------------------------------------


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


def test_stacks_of_another_size_train_the_same_networks_but_for_rounding(zoos, tmp_path):
    trained(tmp_path / "alone", TEXTS["last"], stack=1)
    one, other = ({row["id"]: row for row in rows_of(folder)} for folder in (zoos / "last", tmp_path / "alone"))
    for id in one:
        assert {**one[id], "row": 0}.keys() == other[id].keys()
        assert one[id]["seed"] == other[id]["seed"]
        assert one[id]["loss"] == pytest.approx(other[id]["loss"], rel=0.05)


# Divergence ---------------------------------------------------------------------------------------------------


class Notes(Progress):
    def __init__(self):
        self.notes, self.texts, self.done, self.work = [], [], 0.0, None

    def begin(self, total, done=0.0, text=""):
        self.work, self.done = total, done
        self.texts.append(text)

    def advance(self, amount, text=None):
        self.done += amount
        self.texts += [] if text is None else [text]

    def say(self, text):
        self.notes.append(text)


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


# Any order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_units_may_finish_in_any_order(zoos, tmp_path, monkeypatch, seed):
    spooled = []

    def disorderly(task, engine, device, run, ray, gpus):
        def execute(units):
            order = list(reversed(units))
            if seed is not None:
                random.Random(seed).shuffle(order)
            for unit in order:
                yield train_unit(unit, task, engine, device)
                spooled.append(len(list(run.folder.glob("done-*"))))

        return execute

    trained(tmp_path / "in order", TEXTS["last"], stack=1)
    monkeypatch.setattr(running, "executor", disorderly)
    trained(tmp_path / "zoo", TEXTS["last"], stack=1)
    assert files_of(tmp_path / "zoo") == files_of(tmp_path / "in order")
    assert len(spooled) == 7  # six instances and the teacher
    assert max(spooled) > 1
    assert spooled[-1] == 0


def test_units_that_wait_are_not_trained_again(tmp_path, monkeypatch):
    """Interrupted when all but the first unit had finished, only the first is trained."""
    orders = []

    def reversed_until_the_last(task, engine, device, run, ray, gpus):
        def execute(units):
            orders.append([unit.ids for unit in units])
            for unit in reversed(units):
                if len(orders) == 1 and unit.number == 0:
                    raise KeyboardInterrupt
                yield train_unit(unit, task, engine, device)

        return execute

    trained(tmp_path / "straight", TEXTS["last"], stack=1)
    monkeypatch.setattr(running, "executor", reversed_until_the_last)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "zoo", TEXTS["last"], stack=1)
    assert len(list((tmp_path / "zoo/.writing/training").glob("done-*"))) == 5
    trained(tmp_path / "zoo", TEXTS["last"])  # the engine, and its stacks of 1, is the record's
    assert [len(order) for order in orders] == [7, 2]  # the teacher is last of the reversed, so it is due again
    assert files_of(tmp_path / "zoo") == files_of(tmp_path / "straight")


one_worker = pytest.mark.xdist_group("killed trainings")  # they share a zoo that takes long to train


# Killed -------------------------------------------------------------------------------------------------------


class Killer:
    """The process of killed_training.py."""

    def __init__(self, folder):
        script = Path(killed_training.__file__)
        environment = {**os.environ, "PYTHONPATH": f"{script.parents[3]}"}
        command = [sys.executable, str(script), str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, **pipes, env=environment)
        if self.process.stdout.readline() != "ready\n":
            self.stop()
            raise RuntimeError("it does not start")

    def run(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    killer = Killer(tmp_path_factory.mktemp("warm"))
    yield killer
    killer.stop()


@pytest.fixture(scope="module")
def straight(killer, tmp_path_factory):
    """Files of a zoo that was not interrupted, the epochs it took, and its seconds."""
    root = tmp_path_factory.mktemp("straight") / "zoo"
    whole = killer.run(root=str(root))
    assert whole["told"].pop() == "finished"
    return files_of(root), whole["told"], whole["seconds"]


@one_worker
@pytest.mark.parametrize("num_kills", [3, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["seconds", "epochs"])
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(killer, straight, tmp_path, how, num_kills):
    """Killed again and again in one folder until it ends, at random moments."""
    seed = int(os.environ.get("PREPKIT_KILL_SEED", random.SystemRandom().randrange(1 << 30)))
    print("PREPKIT_KILL_SEED =", seed)
    chance = random.Random(seed)
    files, epochs, seconds = straight
    begun, kills = [], 0
    while True:
        limit = chance.uniform(0.1, 0.6) * seconds if how == "seconds" else chance.randint(1, len(epochs) // 2)
        told = killer.run(root=str(tmp_path / "zoo"), **({how: limit} if kills < num_kills else {}))["told"]
        if kills and any("holds a finished zoo" in line for line in told):
            break  # the last kill came after its end, before it could tell
        assert not [line for line in told if line.startswith("error")], (seed, told)
        begun += [line for line in told if line.startswith("epoch")]
        if "finished" in told:
            break
        kills += 1
    print(f"{kills} kills; {len(begun)} epochs begun, {len(epochs)} without kills")
    assert files_of(tmp_path / "zoo") == files, seed
    # What a kill costs: the epoch on its way, the one whose state was being written, and the last of a unit again
    # where its rows were not yet in the zoo. Were units begun anew, it would be many more.
    assert len(begun) <= len(epochs) + 3 * kills, seed


def test_killed_before_its_card_is_written_it_gets_one(zoos, tmp_path):
    name, other = list(TEXTS)[:2]
    whole = files_of(zoos / name)
    shutil.copytree(zoos / name, tmp_path / "zoo")
    (tmp_path / "zoo" / "README.md").unlink()
    with pytest.raises(ZooError, match="holds a finished zoo"):
        trained(tmp_path / "zoo", TEXTS[other])  # not its own
    assert not (tmp_path / "zoo" / "README.md").exists()
    with pytest.raises(ZooError, match="holds a finished zoo"):
        trained(tmp_path / "zoo", TEXTS[name])
    assert files_of(tmp_path / "zoo") == whole


@one_worker
def test_a_unit_goes_on_in_its_middle(killer, straight, tmp_path):
    files, epochs, _ = straight
    first = killer.run(root=str(tmp_path / "zoo"), epochs=6)["told"]  # an epoch of the teacher, 5 of the first unit
    assert len(first) < len(epochs)
    saved = list((tmp_path / "zoo/.writing/training").glob("unit-*.safetensors"))
    assert len(saved) == 1
    rest = killer.run(root=str(tmp_path / "zoo"))["told"]
    assert rest.pop() == "finished"
    assert len(epochs) <= len(first) + len(rest) <= len(epochs) + 2
    assert 0 < rest.count(first[-1]) < epochs.count(first[-1])
    assert not any("teacher" in line for line in rest)
    assert files_of(tmp_path / "zoo") == files


# What was begun -----------------------------------------------------------------------------------------------


@pytest.fixture
def unfinished(tmp_path, monkeypatch):
    """A zoo of LAST whose teacher and first unit are there."""
    real = running.executor

    def two(*arguments):
        def execute(units):
            for number, done in enumerate(real(*arguments)(units)):
                if number == 2:
                    raise KeyboardInterrupt
                yield done

        return execute

    with monkeypatch.context() as patch:
        patch.setattr(running, "executor", two)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "zoo", TEXTS["last"], stack=1)
    return tmp_path / "zoo"


def test_what_was_begun_otherwise_is_not_gone_on_with(unfinished, monkeypatch):
    before = files_of(unfinished)
    other = TEXTS["last"].replace("0.05", "0.06")
    with pytest.raises(ZooError, match="holds the unfinished zoo of another spec"):
        trained(unfinished, other)
    with pytest.raises(ZooError, match="was begun with neither `instances` nor `epochs`; go on with the same"):
        trained(unfinished, TEXTS["last"], epochs=1)
    monkeypatch.setattr(running, "choose_device", lambda name: torch.device("meta" if name == "another" else "cpu"))
    with pytest.raises(ZooError, match="was begun on cpu, and goes on there: meta gives other last bits"):
        trained(unfinished, TEXTS["last"], device="another")
    for options in ({"stack": 2}, {"threads": 2}):
        with pytest.raises(ZooError, match=r"was begun with stacks of .* 1 and 1 thread, and goes on so"):
            trained(unfinished, TEXTS["last"], **options)
    monkeypatch.setattr("prepkit.training._provenance.versions", lambda: {"prepkit": "9", "torch": "9"})
    with pytest.raises(ZooError, match=r"here is prepkit 9, torch 9\. Install those to go on, or begin anew"):
        trained(unfinished, TEXTS["last"])
    assert files_of(unfinished) == before


def test_sizes_that_were_begun_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "executor", lambda *arguments: stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "zoo", TEXTS["last"], instances=2, epochs=1)
    with pytest.raises(ZooError, match="was begun with `instances` 2 `epochs` 1; go on with the same"):
        trained(tmp_path / "zoo", TEXTS["last"])


def stopped(units):
    raise KeyboardInterrupt


def test_progress_counts_what_was_finished_before(unfinished):
    progress = Notes()
    trained(unfinished, TEXTS["last"], progress=progress)
    assert progress.texts[0] == "1/6 instances"
    assert progress.texts[-1] == f"6/6 instances, accuracy {rows_of(unfinished)[-1]['accuracy']:.3f} in the last stack"


def test_a_damaged_record_is_told(unfinished):
    record = unfinished / ".writing/training/record.json"
    good = record.read_text()
    for bad in ("", "{", "[]", "{}", good.replace('"engine"', '"motor"'), b"\xff\xfe"):
        record.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
        with pytest.raises(ZooError, match=r"record\.json: is damaged: .*Delete .* and train it again"):
            trained(unfinished, TEXTS["last"])
    record.write_text(good)
    trained(unfinished, TEXTS["last"])


def test_a_damaged_line_of_what_was_told(unfinished, monkeypatch):
    """A line that a kill cut is left out, and none is joined to it; one that is whole but no entry is an error."""
    file = unfinished / ".writing/training/told.jsonl"
    good = file.read_text()
    assert "teacher" in good
    file.write_text(good + '{"diverged"\n')
    with pytest.raises(ZooError, match=r"told\.jsonl: is damaged: .*Delete '.*zoo' and train it again"):
        trained(unfinished, TEXTS["last"])
    file.write_text(good + '{"diverged": {"run": "x"}')
    with monkeypatch.context() as patch:
        patch.setattr(running, "executor", lambda *arguments: stopped)
        with pytest.raises(KeyboardInterrupt):
            trained(unfinished, TEXTS["last"])
    assert file.read_text() == good
    trained(unfinished, TEXTS["last"])
    assert prepkit.open_zoo(unfinished).manifest.provenance["diverged"] == []
    assert prepkit.open_zoo(unfinished).manifest.provenance["teacher"]["epochs"] == 1


def test_a_task_that_does_not_fit(tmp_path):
    other = TEXTS["last"].replace('digits"]', 'cifar10"]').replace("@digits", "@cifar10")
    with pytest.raises(ZooError, match="lenet_like@cifar10 takes inputs of 3x32x32, but those of the task are 1x8x8"):
        trained(tmp_path / "zoo", other)
    assert not (tmp_path / "zoo").exists()


def test_classes_that_do_not_fit(tmp_path, monkeypatch):
    def fewer(record, data):
        task = running_load(record, data)
        task.num_outputs = 7
        return task

    running_load = running.load_task
    monkeypatch.setattr(running, "load_task", fewer)
    with pytest.raises(ZooError, match="lenet_like@digits has 10 outputs, but the task needs 7"):
        trained(tmp_path / "zoo", TEXTS["last"])
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("what", ["stack", "threads", "instances", "epochs"])
def test_numbers_below_one(tmp_path, what):
    with pytest.raises(ZooError, match=f"{what}: expected a whole number of at least 1; found 0"):
        trained(tmp_path / "zoo", TEXTS["last"], **{what: 0})
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there(tmp_path, name):
    with pytest.raises(DeviceError, match=f"device '{name}'"):
        trained(tmp_path / "zoo", TEXTS["last"], device=name)


def test_of_a_teacher_trained_twice_the_last_counts(tmp_path):
    told = TrainingLog(tmp_path / "told.jsonl")
    for accuracy in (0.5, 0.75):
        told.add({"teacher": {"accuracy": accuracy}})
    assert TrainingLog(told.file).teacher == {"accuracy": 0.75}
