"""Experiments are computed once for a state, a seed and sizes, and again when anything of these is another."""

import shutil

import pytest
import torch

from netspace.experiments import (
    EXPERIMENTS,
    Experiment,
    UnknownExperiment,
    running,
)
from netspace.experiments.result import (
    Picture,
    Result,
)
from netspace.experiments.running import ExperimentRunner
from netspace.run.run import RunError, State
from prepkit.support.files import sha256_of_code

pytestmark = pytest.mark.usefixtures("one_thread")


class Counted:
    """An experiment that counts how often it runs."""

    def __init__(self):
        self.seeds, self.subjects = [], []

    def __call__(self, subject, *, factor=1):
        self.seeds.append(subject.seed)
        self.subjects.append(subject)
        subject.progress("counting")
        (subject.folder / "c.png").write_bytes(b"picture")
        numbers = {"instances": len(subject.zoo) * factor, "drawn": float(torch.rand(()))}
        return Result("counted", "C", "", numbers, pictures=[Picture("", "c.png")])


@pytest.fixture
def counted(monkeypatch):
    function = Counted()
    monkeypatch.setitem(EXPERIMENTS, "counted", Experiment("counted", ("single",)))
    monkeypatch.setattr(running, "experiment_function", lambda name: function)
    return function


def test_an_experiment_is_made_once_for_a_state_a_seed_and_sizes(run, counted):
    before, told = torch.get_rng_state(), []
    first = ExperimentRunner(run, "cpu").result("counted", progress=told.append)
    assert told == ["counting"]
    assert torch.equal(torch.get_rng_state(), before)
    assert first.numbers["instances"] == 9
    assert first.stamp["checkpoint"] == {key: run.facts("best")[key] for key in ("step", "sha256")}
    assert first.stamp["zoo"] == run.record["zoo"]["sha256"]
    assert {"seconds", "hardware", "device", "versions"} <= set(first.stamp)
    assert ExperimentRunner(run, "cpu").result("counted") == first
    assert len(counted.seeds) == 1
    assert (
        ExperimentRunner(run, "cpu").result("counted", again=True).numbers == first.numbers
    )  # what is drawn follows the seed
    assert ExperimentRunner(run, "cpu", seed=3).result("counted").numbers["drawn"] != first.numbers["drawn"]
    runner = ExperimentRunner(run, "cpu", seed=3, sizes={"counted": {"factor": 2}})
    assert runner.result("counted").numbers["instances"] == 18
    assert counted.seeds == [0, 0, 3, 3]


def test_what_is_damaged_or_of_another_state_is_made_again(run, counted):
    runner = ExperimentRunner(run, "cpu")
    runner.result("counted")
    file = runner.folder / "counted.json"
    file.write_text(file.read_text()[:40])
    runner.result("counted")
    (runner.folder / "c.png").unlink()
    runner.result("counted")
    assert len(counted.seeds) == 3
    run.save("best", State(9, run.new_space().state_dict(), {"scores": {"score": 1.0}}))
    assert runner.result("counted").stamp["checkpoint"]["step"] == 9
    assert len(counted.seeds) == 4


def test_experiments_on_one_state_share_its_space_and_predictions(run, counted):
    runner = ExperimentRunner(run, "cpu")
    for _ in range(2):
        runner.result("counted", again=True)
    first, second = counted.subjects
    assert first.space is second.space
    assert first.predicted() is second.predicted()
    run.save("best", State(9, run.new_space().state_dict(), {"scores": {"score": 1.0}}))
    runner.result("counted")
    assert counted.subjects[2].space is not first.space
    runner.release()
    runner.result("counted", again=True)
    assert counted.subjects[3].space is not counted.subjects[2].space


def test_another_code_makes_an_experiment_again(run, counted, tmp_path, monkeypatch):
    runner = ExperimentRunner(run, "cpu")
    first = runner.result("counted")
    monkeypatch.setattr(running, "code_sum", lambda: "another")
    assert runner.saved("counted") is None
    assert runner.result("counted").numbers == first.numbers
    assert len(counted.seeds) == 2


def test_one_byte_of_code_in_either_package_changes_the_sum(tmp_path, monkeypatch):
    packages = [tmp_path / "netspace", tmp_path / "prepkit"]
    for copy, package in zip(packages, running.PACKAGES, strict=True):
        assert copy.name == package.name
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("*.toml", "__pycache__"))
    sums = [sha256_of_code(packages, running.LIBRARIES)]
    assert sums == [running.code_sum()]  # wherever the packages stand
    for file in ("prepkit/tasks/chairs.py", "netspace/experiments/accuracy.py", "netspace/space/network.py"):
        text = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(text.replace(b"e", b"a", 1))
        sums.append(sha256_of_code(packages, running.LIBRARIES))
    (tmp_path / "prepkit/tasks/new.py").touch()
    sums.append(sha256_of_code(packages, running.LIBRARIES))
    monkeypatch.setattr("importlib.metadata.version", lambda library: "9" if library == "torch" else "1")
    sums.append(sha256_of_code(packages, running.LIBRARIES))
    assert len(set(sums)) == len(sums)


def test_a_failed_experiment_leaves_no_result(run, counted, monkeypatch):
    runner = ExperimentRunner(run, "cpu")
    runner.result("counted")

    def fail(*_, **__):
        raise ValueError("broken")

    monkeypatch.setattr(running, "experiment_function", lambda name: fail)
    with pytest.raises(ValueError, match="broken"):
        runner.result("counted", again=True)
    assert runner.saved("counted") is None  # or half of its pictures might be of another one


def test_an_experiment_for_other_settings_is_refused(run):
    with pytest.raises(UnknownExperiment, match=r"'boundaries' is for the settings multi, unseen; .* has 'single'"):
        ExperimentRunner(run, "cpu").result("boundaries")


def test_a_run_without_a_best_state_has_nothing_to_judge(run):
    (run.path / "checkpoints" / "best.json").unlink()
    with pytest.raises(RunError, match="no best checkpoint yet"):
        ExperimentRunner(run, "cpu").result("hygiene")
