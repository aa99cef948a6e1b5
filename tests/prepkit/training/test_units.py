"""Units: which there are, what is kept of one that is interrupted, and that it ends the same."""

import json
import math
import pickle
from dataclasses import replace

import pytest
import torch
from killed_training import BEST, CHAIRS, KILLED, LAST, TRAJECTORY, spec

from prepkit.errors import ZooError
from prepkit.tasks import load_task
from prepkit.training import _results as results
from prepkit.training import _units as units
from prepkit.training._engine import choose_engine
from prepkit.training._plan import plan
from prepkit.training._stack import Stack
from prepkit.training._units import done_epochs, threads, train_unit, units_of

CPU = torch.device("cpu")


def parts(text=LAST, stack=2):
    found = spec(text)
    jobs = plan(found)
    engine = choose_engine(found, jobs, CPU, stack, 1)
    return units_of(found, jobs, engine), load_task(found.task), engine


def same(one, other):
    assert (one.rows.ids, one.rows.splits, one.rows.columns) == (other.rows.ids, other.rows.splits, other.rows.columns)
    assert one.rows.tensors.keys() == other.rows.tensors.keys()
    assert all(torch.equal(tensor, other.rows.tensors[name]) for name, tensor in one.rows.tensors.items())
    assert one.diverged == other.diverged


class Killed(BaseException):
    pass


def interrupted(unit, task, engine, folder, epochs):
    """Train a unit for so many epochs of its stack, and save after each."""
    begun = []

    def stop(stack):
        begun.append(stack.epoch)
        if len(begun) > epochs:
            raise Killed
        return train_epoch(stack)

    train_epoch = Stack._train_epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stack, "_train_epoch", stop)
        patch.setattr(units, "SAVE_SECONDS", 0.0)
        with pytest.raises(Killed):
            train_unit(unit, task, engine, CPU, folder)


def test_a_unit_carries_its_architecture_wherever_it_is_sent(monkeypatch):
    found, task, engine = parts()
    straight = train_unit(found[0], task, engine, CPU)
    sent = pickle.loads(pickle.dumps(found[0]))
    assert sent == found[0]

    def unknown(name):
        raise AssertionError(f"{name} was looked up")

    monkeypatch.setattr(units, "architecture", unknown)
    monkeypatch.setattr("prepkit.families.registry.architecture", unknown)
    same(train_unit(sent, task, engine, CPU), straight)


def test_units_hold_all_jobs_in_order():
    found, task, _ = parts()
    assert [unit.number for unit in found] == [0, 1, 2]
    assert [unit.name for unit in found] == ["unit-00000", "unit-00001", "unit-00002"]
    assert [len(unit.jobs) for unit in found] == [2, 2, 1] or [len(unit.jobs) for unit in found] == [2, 2, 2]
    ids = [id for unit in found for id in unit.ids]
    assert sorted(ids) == sorted(job.run for job in plan(spec()).jobs)
    assert [unit.architecture.name for unit in found] == [
        "lenet_like@digits",
        "lenet_like@digits",
        "vanilla_cnn@digits",
    ]
    assert all(unit.work(task) > 0 for unit in found)


def test_work_counts_epochs_and_grows_with_the_network():
    found, task, _ = parts(stack=1)
    by_epochs = {unit.jobs[0].epochs: unit.work(task) for unit in found if unit.architecture.name.startswith("lenet")}
    assert by_epochs[3] == pytest.approx(3 * by_epochs[1])
    vanilla = next(unit for unit in found if unit.architecture.name.startswith("vanilla"))
    assert vanilla.work(task) / vanilla.jobs[0].epochs > by_epochs[1]


@pytest.mark.parametrize("text", [KILLED, TRAJECTORY, BEST, CHAIRS], ids=["last", "trajectory", "best", "chairs"])
@pytest.mark.parametrize("after", [1, 2])
def test_interrupted_it_goes_on_and_ends_the_same(tmp_path, text, after):
    (*_, unit), task, engine = parts(text)
    straight = train_unit(unit, task, engine, CPU)
    interrupted(unit, task, engine, tmp_path, after)
    assert [file.name for file in tmp_path.iterdir()] == [f"{unit.name}.safetensors"]
    begun, work = [], []
    train_epoch = Stack._train_epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stack, "_train_epoch", lambda stack: (begun.append(stack.epoch), train_epoch(stack))[1])
        done = train_unit(unit, task, engine, CPU, tmp_path, work.append)
    same(done, straight)
    assert begun == list(range(after, unit.jobs[0].epochs))
    assert sum(work) == pytest.approx(unit.work(task))


def test_interrupted_after_a_divergence(tmp_path, monkeypatch):
    """In the first round, and when the one that diverged is on its way again alone."""
    (unit, *_), task, engine = parts(KILLED)
    bad = unit.jobs[1].seed
    train_epoch = Stack._train_epoch

    def poisoned(stack):
        losses = train_epoch(stack)
        jobs = zip(stack.active_jobs, losses, strict=True)
        return [float("nan") if job.seed == bad and stack.epoch == 1 else loss for job, loss in jobs]

    monkeypatch.setattr(Stack, "_train_epoch", poisoned)
    straight = train_unit(unit, task, engine, CPU)
    assert [(gone.run, gone.seed, gone.epoch) for gone in straight.diverged] == [(unit.jobs[1].run, bad, 2)]
    rounds = unit.jobs[0].epochs
    for after in (1, 2, 3, rounds, rounds + 1, rounds + 2):
        folder = tmp_path / str(after)
        folder.mkdir()
        interrupted(unit, task, engine, folder, after)
        work = []
        same(train_unit(unit, task, engine, CPU, folder, work.append), straight)
        assert sum(work) >= unit.work(task) * 0.9


def test_epochs_that_are_done():
    (unit, *_), task, engine = parts(KILLED)
    stack = Stack(units.setup_of(unit, task, engine, CPU), unit.jobs)
    counts = []
    assert done_epochs(stack) == 0
    stack.run(lambda stack: counts.append(done_epochs(stack)))
    long, short = sorted((job.epochs for job in unit.jobs), reverse=True)
    assert counts == [epoch + min(epoch, short) for epoch in range(1, long + 1)]


def test_nothing_is_written_within_the_first_seconds_or_without_a_folder(tmp_path):
    (unit, *_), task, engine = parts()
    train_unit(unit, task, engine, CPU, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["empty", "cut", "noise", "facts", "kinds", "no facts", "tensor", "shape", "others"])
def test_a_damaged_file_is_told(tmp_path, how):
    from safetensors.torch import load_file, save_file

    (unit, other, *_), task, engine = parts(KILLED)
    file = tmp_path / f"{unit.name}.safetensors"
    interrupted(unit, task, engine, tmp_path, 2)
    content, tensors = file.read_bytes(), load_file(file)
    facts = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["facts"])
    if how == "others":
        unit, file = other, file.rename(tmp_path / f"{other.name}.safetensors")
    elif how == "facts":
        save_file(tensors, file, {"facts": json.dumps({**facts, "active": [7]})})
    elif how == "kinds":
        save_file(tensors, file, {"facts": json.dumps({**facts, "attempts": None})})
    elif how == "no facts":
        save_file(tensors, file)
    elif how == "tensor":
        save_file({name: tensors[name] for name in tensors if name != "values"}, file, {"facts": json.dumps(facts)})
    elif how == "shape":
        tensors["values"] = torch.zeros(3, 3)
        save_file(tensors, file, {"facts": json.dumps(facts)})
    else:
        file.write_bytes({"empty": b"", "cut": content[:-9], "noise": b"\xff" * 64}[how])
    with pytest.raises(ZooError, match=rf"{unit.name}\.safetensors: cannot be resumed: .* Delete it to train"):
        train_unit(unit, task, engine, CPU, tmp_path)
    file.unlink()
    same(train_unit(unit, task, engine, CPU, tmp_path), train_unit(unit, task, engine, CPU))


def test_threads_are_set_and_put_back():
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    with pytest.raises(Killed), threads(before + 1):
        raise Killed
    assert torch.get_num_threads() == before
    with threads(None):
        assert torch.get_num_threads() == before


@pytest.mark.parametrize("count", [1, 3])
def test_a_unit_is_trained_on_the_threads_of_its_engine(monkeypatch, count):
    (unit, *_), task, engine = parts()
    found = set()
    train_epoch = Stack._train_epoch
    monkeypatch.setattr(
        Stack, "_train_epoch", lambda stack: (found.add(torch.get_num_threads()), train_epoch(stack))[1]
    )
    train_unit(unit, task, replace(engine, threads=count), CPU)
    assert found == {count}


def test_an_instance_whose_loss_on_unseen_data_is_infinite_has_diverged(monkeypatch):
    (unit, *_), task, engine = parts()
    first, second = unit.jobs
    evaluate = results.evaluation_columns

    def judged(setting, folded, items):
        columns = evaluate(setting, folded, items)
        if not calls:
            columns["validation_loss"] = [columns["validation_loss"][0], math.inf]
        calls.append(len(items))
        return columns

    calls = []
    monkeypatch.setattr(results, "evaluation_columns", judged)
    done = train_unit(unit, task, engine, CPU)
    assert calls == [2, 2]
    assert [(gone.run, gone.seed, gone.epoch) for gone in done.diverged] == [(second.run, second.seed, second.epochs)]
    assert done.rows.columns["seed"] == [first.seed, second.reseeded(1).seed]
    assert all(math.isfinite(loss) for loss in done.rows.columns["validation_loss"])


def test_too_little_memory_is_told_with_what_to_do(monkeypatch):
    (unit, *_), task, engine = parts()

    def exhausted(stack, tell):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Stack, "run", exhausted)
    with pytest.raises(
        ZooError, match=r"2 instances of lenet_like@digits at once, with batches of \d+ samples, do not fit .*`stack`"
    ):
        train_unit(unit, task, engine, CPU)
