"""Runs, and experiments that take no time."""

import json

import pytest
from made_up_experiments import FUNCTIONS, LINES
from untrained import untrained_run

from netspace import experiments
from netspace.experiments import Experiment, running


@pytest.fixture
def made_up(monkeypatch):
    """Two experiments alone, one of which cannot be made."""
    known = {name: Experiment(name, ("single",)) for name in FUNCTIONS}
    for module in (experiments, running):  # whole, as the order of the table is that of the report
        monkeypatch.setattr(module, "EXPERIMENTS", known)
    monkeypatch.setattr(running, "experiment_function", FUNCTIONS.__getitem__)


@pytest.fixture
def runs(tmp_path, small_zoo):
    """Two runs of one recipe with other seeds."""
    made = [
        untrained_run(tmp_path / f"run-{seed}", "digits_single", small_zoo("digits_single"), **{"training.seed": seed})
        for seed in (0, 1)
    ]
    made[0].metrics_file.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return made


@pytest.fixture
def variant(tmp_path, small_zoo):
    """A run of another recipe on the same zoo, with a score."""
    run = untrained_run(
        tmp_path / "run-weights", "digits_single_weights", small_zoo("digits_single"), **{"training.seed": 2}
    )
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return run
