"""A training that was interrupted or killed goes on, and ends as if nothing had happened."""

import json
import os
import signal
import time

import pytest
import torch
from short_trainings import assert_same_weights, curve, recipe_of
from small_zoos import SMALL

import netspace
from netspace.training import _logs
from netspace.training.memory import OutOfMemory
from netspace.training.trainer import Interrupted
from prepkit.support.processes import Ranks
from prepkit.support.progress import Progress

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("name", "steps", "validate_every", "ends"),
    [
        ("digits_multi", 5, 2, (2, 3)),  # after a validation, and between two
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
            assert_same_weights(parts, whole, kind)
    # A finished run has nothing left to do, and says so without a step.
    again = netspace.train(recipe, small_zoo(name), out, device="cpu", resume=True)
    assert curve(again) == curve(whole)


def test_the_speed_is_that_of_the_steps_since_the_training_goes_on(tmp_path, small_zoo, monkeypatch):
    """Nine steps of an interrupted training and one more are a line, but one step's time is not that of ten."""
    run = netspace.train(recipe_of("digits_single", 1), small_zoo("digits_single"), tmp_path / "run", device="cpu")
    run.metrics_file.write_text("")
    now = [100.0]
    monkeypatch.setattr(_logs.time, "monotonic", lambda: now[0])
    log = _logs.MetricsLog(run, Ranks(), Progress(), instances=4, since=now[0], last_step=9)
    log.restore(["loss", "gradient_norm"], [[0.5, 1.0]] * 9, torch.device("cpu"))
    for seconds in (2.0, *[1.0] * 10):
        now[0] += seconds
        log.step(10, {"loss": torch.tensor(1.5), "gradient_norm": torch.tensor(1.0)}, [0], 0.1)
    first, second = run.metrics()
    assert first["loss"] == pytest.approx(0.6)
    assert (first["instances_per_second"], second["instances_per_second"]) == (2.0, 4.0)


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
    assert_same_weights(run, whole)


def test_more_steps_go_on_from_the_last(tmp_path, small_zoo):
    name = "digits_single"
    recipes = [recipe_of(name, steps, **{"training.validate_every": 2}) for steps in (2, 4)]
    netspace.train(recipes[0], small_zoo(name), tmp_path / "run", device="cpu")
    run = netspace.train(recipes[1], small_zoo(name), tmp_path / "run", device="cpu", resume=True)
    assert run.facts("latest")["step"] == 4
    assert [line["step"] for line in run.metrics()] == [2, 2, 4, 4]
    assert netspace.open_run(tmp_path / "run").recipe.training.steps == 4


@pytest.mark.parametrize("waits", [(0.13,), pytest.param((0.0, 0.13, 0.31), marks=pytest.mark.slow)], ids=len)
def test_a_kill_at_any_time_leaves_a_run_to_go_on_with(tmp_path, small_zoo, waits, forked_python):
    out, name = tmp_path / "run", "digits_single"
    settings = {**SMALL[name], "training.validate_every": 1, "training.steps": 400}
    arguments = [argument for key, value in settings.items() for argument in ("--set", f"{key}={json.dumps(value)}")]
    command = ["-m", "netspace", "train", name, "--zoo", small_zoo(name), "--out", out, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    reached = 0
    for wait in waits:
        resume = ["--resume"] if reached else []
        process = forked_python.start(*command, *resume, env=environment)
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


def test_what_was_learnt_enough_is_not_trained_on(tmp_path, small_zoo):
    name, out = "chairs_mini", tmp_path / "run"
    recipe = recipe_of(name, 3, **{"training.validate_every": 1, "training.stop_at": 0.0})
    run = netspace.train(recipe, small_zoo(name), out, device="cpu")
    assert run.state("latest").step == 1
    run = netspace.train(recipe, small_zoo(name), out, device="cpu", resume=True)
    assert run.state("latest").step == 1
