"""The examples of learners run on one small zoo, and beat what they compare themselves with."""

import re
import runpy
from pathlib import Path

import pytest
import torch

import prepkit

pytestmark = pytest.mark.xdist_group("learners")  # one worker runs all, since they share a zoo
EXAMPLES = Path(__file__).parents[2] / "examples"
VIEWS = ["flat", "graph", "layers", "outputs", "statistics", "tokens"]
# The largest error, in parts of the constant's; each is a third above what was measured, as processors round otherwise.
LARGEST = {"flat": 0.95, "graph": 0.6, "layers": 0.5, "outputs": 0.5, "statistics": 0.5, "tokens": 0.6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, one_thread):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)  # where the examples find each other, as when they are run
        folder = tmp_path_factory.mktemp("examples") / "zoo"
        patch.setattr("sys.argv", ["digits_zoo.py", str(folder)])
        runpy.run_path(str(EXAMPLES / "digits_zoo.py"), run_name="__main__")
        yield folder


@pytest.fixture
def run(folder, monkeypatch, capsys, tmp_path):
    """A function that runs an example on the zoo and returns the numbers that it prints; its picture is drawn there."""
    monkeypatch.chdir(tmp_path)

    def run(name):
        monkeypatch.setattr("sys.argv", [name, str(folder)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", capsys.readouterr().out)]

    return run


def test_the_zoo_of_the_examples(folder):
    zoo = prepkit.open_zoo(folder)
    assert (len(zoo.split("train")), len(zoo.split("test"))) == (384, 128)
    runs = {name: set(zoo.split(name).table["run"].to_pylist()) for name in ("train", "test")}
    assert len(runs["train"]) == 48
    assert runs["test"] == set(range(64)) - runs["train"]
    assert prepkit.verify(folder)
    last = torch.tensor(zoo.where("epoch == 8").table["accuracy"].to_pylist())
    assert last.min() < 0.3
    assert last.max() > 0.85


def test_there_is_a_learner_of_each_view_in_under_40_lines():
    files = sorted(EXAMPLES.glob("learn_*.py"))
    assert [file.stem for file in files] == [f"learn_{name}" for name in VIEWS]
    assert all(len(file.read_text().splitlines()) < 40 for file in files)


@pytest.mark.parametrize("view", VIEWS)
def test_a_learner_beats_a_constant_on_unseen_runs(view, run, folder):
    error, constant, networks, runs = run(f"learn_{view}")
    train, test = (prepkit.open_zoo(folder).split(name).to_pandas()["accuracy"] for name in ("train", "test"))
    assert constant == pytest.approx((test - train.mean()).abs().mean(), abs=6e-4)
    assert (networks, runs) == (len(test), 16)
    assert error < LARGEST[view] * constant


def test_epochs_are_predicted_better_than_by_no_change(run):
    _, _, windows, *told = run("predict_epochs")
    assert windows == 48
    distances, accuracies = told[::2], told[1::2]
    assert len(distances) == 3  # of no change, of the guess and of what was trained
    assert distances[1] < 0.7 * distances[0]
    assert distances[2] == 0
    assert accuracies[0] < accuracies[1] < accuracies[2]


@pytest.mark.parametrize(("arguments", "told"), [([], "python examples/digits_zoo.py"), (["nowhere"], "not exist")])
def test_an_example_without_a_zoo_says_what_it_needs(arguments, told, folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["learn_flat.py", *arguments])
    with pytest.raises(SystemExit, match=told):
        runpy.run_path(str(EXAMPLES / "learn_flat.py"), run_name="__main__")
