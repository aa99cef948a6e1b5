"""Training as a whole: learning, going on bit for bit, being killed, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from small_zoos import SMALL, digits_zoo

import netspace
import prepkit
from netspace.cli import main
from netspace.recipe import load_recipe
from netspace.run.card import write_card
from netspace.run.run import LOCK, RunError, State
from netspace.training._logs import NotFinite
from netspace.training.memory import OutOfMemory, advice, step_bytes
from netspace.training.trainer import Interrupted
from prepkit.cli.output import with_flags
from prepkit.errors import DeviceError, ZooLocked
from prepkit.support.device import own_device
from prepkit.support.lock import take_lock

pytestmark = pytest.mark.usefixtures("one_thread")
TIMES = ("instances_per_second",)


def recipe_of(name, steps, **changes):
    return load_recipe(name, {**SMALL[name], "training.steps": steps, "training.validate_every": steps, **changes})


def curve(run):
    return [{key: value for key, value in line.items() if key not in TIMES} for line in run.metrics()]


def weights(run, kind="latest"):
    return run.state(kind).tensors


@pytest.mark.parametrize("name", list(SMALL))
def test_every_embedded_recipe_trains_end_to_end(tmp_path, small_zoo, name):
    run = netspace.train(recipe_of(name, 3), small_zoo(name), tmp_path / "run", device="cpu")
    last, validation = run.metrics()
    assert last["step"] == validation["step"] == 3
    assert last["loss"] > 0
    assert validation["best"]
    space = netspace.load(tmp_path / "run")
    zoo = run.open_zoo()
    preps = zoo.split("train").preps()
    with torch.inference_mode():
        again = space.decode(space.encode(preps))
    assert again.shape == preps.shape
    assert not space.training
    # The weights are plain safetensors of NetSpace's own names.
    (file,) = (tmp_path / "run" / "checkpoints").glob("best-*.safetensors")
    assert set(safetensors.torch.load_file(file)) == set(space.state_dict())
    assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize(("steps", "points"), [(180, 0.15), pytest.param(400, 0.05, marks=pytest.mark.slow)])
def test_one_prep_of_one_architecture_is_learnt(tmp_path, steps, points):
    """The predicted instance reaches the accuracy of its target, which was trained well."""
    torch.manual_seed(0)
    network = prepkit.architecture("resnet8@digits").build()
    task = prepkit.load_task(
        {"kind": "images", "dataset": "digits", "split": {"seed": 0, "test": 60, "validation": 40}}
    )
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for epoch in range(3):
        for batch in task.batches([0], [0], epoch, 64):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(batch.inputs[0]), batch.targets[0]).backward()
            optimiser.step()
    registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    with prepkit.ZooWriter(tmp_path / "zoo", width=128, registry=registry, task=task.record) as writer:
        for split in ("train", "validation"):
            writer.add(network.eval(), split=split)
    changes = {"batch.instances": 1, "batch.samples": 64, "training.precision": "float32"}
    recipe = recipe_of("digits_single", steps, **{"training.validate_every": 20, **changes})
    run = netspace.train(recipe, tmp_path / "zoo", tmp_path / "run", device="cpu")
    scores = run.facts("best")["scores"]
    assert scores["target_accuracy"] > 0.85
    assert scores["predicted_accuracy"] > scores["target_accuracy"] - points
    losses = [line["loss"] for line in run.metrics() if "loss" in line]
    assert losses[-1] < losses[0] / 5


# Going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "validate_every", "ends"),
    [
        ("digits_multi", 7, 3, (3, 5)),  # after a validation, and between two
        pytest.param("digits_multi", 26, 12, (12, 17), marks=pytest.mark.slow),
        pytest.param("chairs_mini", 26, 12, (12, 17), marks=pytest.mark.slow),
    ],
)
def test_going_on_is_the_same_bit_for_bit(tmp_path, small_zoo, name, steps, validate_every, ends, monkeypatch):
    recipe = recipe_of(name, steps, **{"training.validate_every": validate_every})
    whole = netspace.train(recipe, small_zoo(name), tmp_path / "whole", device="cpu")

    for end in ends:
        counted = iter(range(1, 100))
        step_of = torch.optim.Adam.step

        def step(self, *args, end=end, counted=counted, step_of=step_of, **kwargs):
            step_of(self, *args, **kwargs)
            if next(counted) == end:
                os.kill(os.getpid(), signal.SIGINT)

        out = tmp_path / f"parts{end}"
        with monkeypatch.context() as patched:
            patched.setattr(torch.optim.Adam, "step", step)
            with pytest.raises(Interrupted, match=f"after step {end}; resume=True goes on"):
                netspace.train(recipe, small_zoo(name), out, device="cpu")
        assert netspace.open_run(out).facts("latest")["step"] == end
        parts = netspace.train(recipe, small_zoo(name), out, device="cpu", resume=True)
        assert curve(parts) == curve(whole)
        for kind in ("latest", "best"):
            assert weights(parts, kind).keys() == weights(whole, kind).keys()
            assert all(torch.equal(value, weights(parts, kind)[key]) for key, value in weights(whole, kind).items())
    # A finished run has nothing left to do, and says so without a step.
    again = netspace.train(recipe, small_zoo(name), out, device="cpu", resume=True)
    assert curve(again) == curve(whole)


def test_a_run_in_former_spellings_is_read_and_gone_on_with(tmp_path, small_zoo):
    name, out = "digits_single", tmp_path / "run"
    recipe = recipe_of(name, 4, **{"training.validate_every": 2})
    whole = netspace.train(recipe, small_zoo(name), tmp_path / "whole", device="cpu")
    netspace.train(recipe_of(name, 2), small_zoo(name), out, device="cpu")
    record = json.loads((out / "run.json").read_text())
    record["recipe"]["optimiser"] = record["recipe"].pop("optimizer")
    assert record["recipe"]["training"]["precision"] == "bfloat16"
    record["recipe"]["training"]["precision"] = "bf16"
    (out / "run.json").write_text(json.dumps(record))
    assert netspace.open_run(out).recipe == recipe_of(name, 2)
    run = netspace.train(recipe, small_zoo(name), out, device="cpu", resume=True)
    assert run.recipe == recipe
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(run).items())


def test_more_steps_go_on_from_the_last(tmp_path, small_zoo):
    name = "digits_single"
    recipes = [recipe_of(name, steps, **{"training.validate_every": 2}) for steps in (2, 4)]
    netspace.train(recipes[0], small_zoo(name), tmp_path / "run", device="cpu")
    run = netspace.train(recipes[1], small_zoo(name), tmp_path / "run", device="cpu", resume=True)
    assert run.facts("latest")["step"] == 4
    assert [line["step"] for line in run.metrics()] == [2, 2, 4, 4]
    assert netspace.open_run(tmp_path / "run").recipe.training.steps == 4


@pytest.mark.parametrize("waits", [(0.13,), pytest.param((0.0, 0.13, 0.31), marks=pytest.mark.slow)], ids=len)
def test_a_kill_at_any_time_leaves_a_run_to_go_on_with(tmp_path, small_zoo, waits):
    out, name = tmp_path / "run", "digits_single"
    settings = {**SMALL[name], "training.validate_every": 1, "training.steps": 400}
    arguments = [argument for key, value in settings.items() for argument in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-m", "netspace", "train", name, "--zoo", str(small_zoo(name)), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    reached = 0
    for wait in waits:
        resume = ["--resume"] if reached else []
        process = subprocess.Popen([*command, *arguments, *resume], env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            state = out / "checkpoints" / "latest.json"
            if state.exists() and json.loads(state.read_text())["step"] > reached + 1:
                break
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        process.wait()
        run = netspace.open_run(out)
        assert run.state("latest").step > reached
        assert run.space().encode(torch.zeros(1, 40, 128)).shape == (1, 256)
        reached = run.state("latest").step
    assert [line["step"] for line in run.metrics() if "loss" in line][:reached] == list(range(1, reached + 1))
    files = {path.name for path in (out / "checkpoints").iterdir()}
    assert {"latest.json", "best.json"} <= files


# What is refused ------------------------------------------------------------------------------------------------


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
    with pytest.raises(ZooLocked, match="being written by process"):
        netspace.train(recipe_of(name, 9), small_zoo(name), out, device="cpu", resume=True)
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


def test_a_run_without_a_state_is_begun_anew(tmp_path, small_zoo, monkeypatch):
    name, out = "digits_single", tmp_path / "run"

    def refuse(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr("netspace.training._objective.Objective.__call__", refuse)
        with pytest.raises(OutOfMemory):
            netspace.train(recipe_of(name, 2), small_zoo(name), out, device="cpu")
    changed = recipe_of(name, 2, **{"training.recompute": True})  # as the message says
    run = netspace.train(changed, small_zoo(name), out, device="cpu")
    assert run.recipe == changed
    assert [line["step"] for line in run.metrics() if "loss" in line] == [2]


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


def test_what_was_learnt_enough_is_not_trained_on(tmp_path, small_zoo):
    name, out = "chairs_mini", tmp_path / "run"
    recipe = recipe_of(name, 3, **{"training.validate_every": 1, "training.stop_at": 0.0})
    run = netspace.train(recipe, small_zoo(name), out, device="cpu")
    assert run.state("latest").step == 1
    run = netspace.train(recipe, small_zoo(name), out, device="cpu", resume=True)
    assert run.state("latest").step == 1


def test_a_column_item_of_the_user_s_means_nothing_to_images(tmp_path):
    counts = {"resnet8@digits": {"train": 2, "validation": 1}}
    path = digits_zoo(tmp_path / "zoo", counts, teacher=False, single=True, columns={"item": "mine"})
    run = netspace.train(recipe_of("digits_single", 1), path, tmp_path / "run", device="cpu")
    assert run.facts("best")["step"] == 1


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


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has mallopt")
def test_only_the_command_line_changes_the_process_s_allocator(tmp_path, small_zoo, mallopt_calls):
    name = "digits_single"
    netspace.train(recipe_of(name, 1), small_zoo(name), tmp_path / "called", device="cpu")
    assert mallopt_calls == []
    options = ["--device", "cpu", "--steps", "1", "--set", "batch.instances=2", "--set", "batch.samples=16"]
    command = ["train", name, "--zoo", str(small_zoo(name)), "--out", str(tmp_path / "commanded"), *options]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert len(mallopt_calls) == 2


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name in ("auto", "cuda"):  # torch.cuda.set_device wants a number
        assert own_device(name) == torch.device("cuda", 0)
    assert own_device("cuda:1") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("auto", "cuda"):
        assert own_device(name) == torch.device("cuda", 1)
    assert own_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match=r"process 2 .* no GPU of its own, torch sees 2; use --nproc-per-node 2"):
        own_device("auto")


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


def test_the_folder_explains_itself(tmp_path, small_zoo):
    name = "digits_single"
    run = netspace.train(recipe_of(name, 1), small_zoo(name), tmp_path / "run", device="cpu")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["recipe"] == json.loads(json.dumps(run.recipe.to_dict()))
    assert record["zoo"]["sha256"] == prepkit.open_zoo(small_zoo(name)).manifest.to_dict()["sha256"]
    train = prepkit.open_zoo(small_zoo(name)).split("train")
    assert record["zoo"]["splits"]["train"] == train.sha256
    assert record["versions"]["torch"] == torch.__version__
    assert run.registry.class_ids == {"resnet8@digits": 0}
    assert Path(record["zoo"]["path"]) == small_zoo(name)
    readme = tmp_path / "run" / "README.md"
    text = readme.read_text()
    best = run.facts("best")
    for expected in (
        f"best after step {best['step']}",
        "| 0 | resnet8@digits | 5,058 |",
        record["zoo"]["sha256"],
        "netspace.load(",
    ):
        assert expected in text
    assert f"| score | {best['scores']['score']:.4f} |" in text
    assert write_card(run) == readme
    readme.write_text("my own words")
    assert write_card(run) is None
    assert readme.read_text() == "my own words"
