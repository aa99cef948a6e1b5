"""What a training refuses, how it ends where it cannot go on, and how damaged runs are told."""

import json

import pytest
import torch
from short_trainings import recipe_of, weights
from small_zoos import SMALL, digits_zoo

import netspace
import prepkit
from netspace.recipe import load_recipe
from netspace.run.run import LOCK, RunError, State
from netspace.training import trainer
from netspace.training._logs import NotFinite
from netspace.training.memory import OutOfMemory, advice, step_bytes
from prepkit.cli.output import with_flags
from prepkit.errors import ZooLocked
from prepkit.support.lock import take_lock

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_folder_that_is_in_the_way(tmp_path, small_zoo):
    name, out = "digits_single", tmp_path / "run"
    with pytest.raises(RunError, match=r"is no run: it has no run.json"):
        netspace.train(recipe_of(name, 1), small_zoo(name), out, device="cpu", resume=True)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is there and no run"):
        netspace.train(recipe_of(name, 1), small_zoo(name), out, device="cpu")
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    run = netspace.train(recipe_of(name, 1), small_zoo(name), out, device="cpu")
    before = weights(run)
    with pytest.raises(RunError, match="holds a run already; resume=True"):
        netspace.train(recipe_of(name, 1), small_zoo(name), out, device="cpu")
    with pytest.raises(RunError, match=r"another recipe: optimizer.learning_rate was 0.001, is 0.5"):
        netspace.train(
            recipe_of(name, 1, **{"optimizer.learning_rate": 0.5}), small_zoo(name), out, device="cpu", resume=True
        )
    counts = {"resnet8@digits": {"train": 4, "validation": 1}}
    other = digits_zoo(tmp_path / "other", counts, teacher=False, single=True)
    with pytest.raises(RunError, match="was begun with another zoo"):
        netspace.train(recipe_of(name, 1), other, out, device="cpu", resume=True)
    lock, record = take_lock(run.path / LOCK, run.path), (out / "run.json").read_bytes()
    longer = recipe_of(name, 9, **{"training.validate_every": 1})
    with pytest.raises(ZooLocked, match="being written by process"):
        netspace.train(longer, small_zoo(name), out, device="cpu", resume=True)
    lock.release()
    assert (out / "run.json").read_bytes() == record
    assert all(torch.equal(value, before[key]) for key, value in weights(run).items())


def test_what_cannot_be_gone_on_with(tmp_path, small_zoo):
    name, out = "digits_single", tmp_path / "run"
    run = netspace.train(recipe_of(name, 2), small_zoo(name), out, device="cpu")
    record = (out / "run.json").read_bytes()
    with pytest.raises(RunError, match=r"has taken 2 steps already, more than the 1 that were asked for"):
        netspace.train(recipe_of(name, 1), small_zoo(name), out, device="cpu", resume=True)
    assert (out / "run.json").read_bytes() == record
    (out / "checkpoints" / "latest.json").unlink()  # killed right before it was written
    again = netspace.train(recipe_of(name, 2), small_zoo(name), out, device="cpu", resume=True)
    assert again.facts("latest")["step"] == 2
    run.save("best", State(7, run.state("best").tensors, {"scores": {"score": 1.0}}))
    (out / "checkpoints" / "latest.json").unlink()  # as in a run from the Hub
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != LOCK}
    with pytest.raises(RunError, match=r"has the best weights, after step 7, but not the state"):
        netspace.train(recipe_of(name, 2), small_zoo(name), out, device="cpu", resume=True)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_another_recipe_is_refused_before_anything_is_loaded(tmp_path, small_zoo, monkeypatch):
    """A batch that is too large for the zoo is no answer to whom a forgotten --set is what is wrong."""
    name, out = "digits_single", tmp_path / "run"
    netspace.train(recipe_of(name, 1), small_zoo(name), out, device="cpu")
    monkeypatch.setattr(trainer, "Training", None)
    with pytest.raises(RunError, match=r"begun with another recipe: batch\.instances was 2, is 8"):
        netspace.train(recipe_of(name, 1, **{"batch.instances": 8}), small_zoo(name), out, device="cpu", resume=True)


def test_a_line_that_was_cut_is_forgotten_and_a_damaged_one_is_told(tmp_path, small_zoo):
    name, out = "digits_single", tmp_path / "run"
    run = netspace.train(recipe_of(name, 1), small_zoo(name), out, device="cpu")
    whole = run.metrics()
    with run.metrics_file.open("a") as file:
        file.write('{"step": 2, "validation": {"score": 0.5}')
    assert run.metrics() == whole
    run.metrics_file.write_text("{nothing\n" + run.metrics_file.read_text())
    with pytest.raises(RunError, match=r"metrics.jsonl, line 1: damaged"):
        run.metrics()


def test_sizes_that_cannot_be_leave_no_folder(tmp_path, small_zoo):
    name = "digits_single"
    with pytest.raises(prepkit.PrepkitError, match="columns 7 do not keep the element counts"):
        netspace.train(recipe_of(name, 1, **{"network.columns": 7}), small_zoo(name), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_training_and_keeps_the_last_good_state(tmp_path, small_zoo):
    name = "digits_single"
    recipe = load_recipe(
        name,
        {
            **SMALL[name],
            "training.steps": 40,
            "training.validate_every": 3,
            "optimizer.learning_rate": 1e30,
            "optimizer.warmup_steps": 0,
        },
    )
    with pytest.raises(NotFinite, match=r"step \d+: (loss|gradient_norm) is (nan|inf), with the training instances \d"):
        netspace.train(recipe, small_zoo(name), tmp_path / "run", device="cpu")
    run = netspace.open_run(tmp_path / "run")
    state = run.state("latest")
    assert state is None or all(value.isfinite().all() for value in state.tensors.values())


def test_out_of_memory_says_what_would_fit(tmp_path, small_zoo, monkeypatch):
    name = "digits_single"
    recipe = recipe_of(name, 1, **{"training.precision": "float32", "batch.instances": 4})

    def refuse(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("netspace.training._objective.Objective.__call__", refuse)
    with pytest.raises(OutOfMemory) as caught:
        netspace.train(recipe, small_zoo(name), tmp_path / "run", device="cpu")
    message = str(caught.value)
    assert "A step of 'digits_single' takes about" in message
    assert "; training.precision=bfloat16 would take" in message
    assert "; training.recompute=true would take" in message
    assert "; batch.instances=2 with batch.accumulate=2 would take" in message
    assert message.endswith(" Change it by load_recipe(name, {key: value}).")
    assert with_flags(message).endswith(" Change it by --set KEY=VALUE.")
    registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    sizes = {"batch.instances": 4, "training.precision": "float32"}

    def needed(**changes):
        return step_bytes(load_recipe(name, {**SMALL[name], **sizes, **changes}), registry, torch.device("cpu"))

    for smaller in ({"training.precision": "bfloat16"}, {"training.recompute": True}, {"batch.instances": 2}):
        assert needed(**smaller) < needed()
    assert "free now" in advice(recipe, registry, torch.device("cpu"))


def test_damaged_runs(tmp_path, small_zoo):
    name = "digits_single"
    run = netspace.train(recipe_of(name, 1), small_zoo(name), tmp_path / "run", device="cpu")
    (file,) = (tmp_path / "run" / "checkpoints").glob("best-*.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"does not match the sha256 in best\.json"):
        netspace.load(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "latest.json").write_text("{")
    with pytest.raises(RunError, match=r"latest\.json: damaged"):
        run.state("latest")
    with pytest.raises(RunError, match="kind 'last' is none of best, latest"):
        netspace.load(tmp_path / "run", kind="last")
    with pytest.raises(RunError, match="is no run"):
        netspace.load(tmp_path)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    for change, message in (
        ({"format": "netspace-run/9"}, "this version reads netspace-run/1"),
        ({"format": "x"}, "not a run"),
    ):
        (tmp_path / "run" / "run.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(RunError, match=message):
            netspace.open_run(tmp_path / "run")
