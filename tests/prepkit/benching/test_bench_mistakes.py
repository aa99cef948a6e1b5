"""Bad columns, zoos and learners: each is named with what to do, before or beside the results of the others."""

import bench_samples
import numpy as np
import pytest
import torch

import prepkit
from prepkit.errors import PrepkitError, ZooError

QUICK = {"baselines": ["constant"]}


@pytest.mark.parametrize(
    ("column", "options", "told"),
    [
        ("scroe", {}, "there is no such column; .* Did you mean 'score'"),
        ("split", {}, "is one that the zoo keeps for itself"),
        ("same", {}, "all 24 train instances have the same value"),
        ("side", {"kind": "number"}, "it holds text, which is no number"),
        ("side", {"log": True}, "holds classes, which have no logarithm"),
        ("score", {"kind": "class"}, "have 24 different values.* too many for classes"),
        ("score", {"kind": "klass"}, "kind is 'number' or 'class'"),
        ("score", {"where": "score < 0.6"}, "needs at least"),
        ("score", {"rerun": True}, "measures the luck of the samples in the column 'accuracy'"),
        ("score", {"data": "x"}, "give rerun=True too"),
        ("score", {"seed": -1}, "at least 0"),
        ("score", {"baselines": ["statistics + rigde"]}, "Did you mean 'statistics \\+ ridge'"),
        ("score", {"baselines": []}, "there is nothing to run"),
        ("score", {"learners": {"constant": print}}, "is the name of a baseline"),
        ("score", {"learners": {"mine": 3}}, "expected a function .* found int"),
    ],
)
def test_what_cannot_be_asked(zoo_folder, column, options, told):
    with pytest.raises(PrepkitError, match=told):
        prepkit.bench(zoo_folder, column, **{**QUICK, **options})


def test_a_zoo_without_a_split(tmp_path):
    root = bench_samples.write_zoo(tmp_path / "zoo", sizes={"": 12})
    with pytest.raises(ZooError, match=r"has no split into train and test .*`prepkit zoo split DIR` draws one"):
        prepkit.bench(root, "score", **QUICK)


def test_without_a_validation_split_whole_runs_are_held_out(tmp_path):
    root = bench_samples.write_zoo(
        tmp_path / "zoo", sizes={"train": 30, "test": 6}, columns=lambda number: {"run": f"run{number // 2}"}
    )
    question = prepkit.bench(root, "score", **QUICK).question
    runs = [set(part.zoo.table["run"].to_pylist()) for part in (question.train, question.validation, question.test)]
    assert [len(run) for run in runs] == [13, 2, 3]
    assert not runs[0] & runs[1]
    assert "held out for validation" in question.notes[0]
    assert question.grouped is True
    assert question.runs.tolist() == [0, 0, 1, 1, 2, 2]


def test_runs_in_several_splits_are_told(tmp_path):
    root = bench_samples.write_zoo(tmp_path / "zoo", columns=lambda number: {"run": f"run{number % 40}"})
    result = prepkit.bench(root, "score", **QUICK)
    assert result.about["split"]["grouped"] is False
    assert any(note.startswith("6 runs have instances both in test") for note in result.notes)


def test_instances_without_a_value_are_left_out(tmp_path):
    values = {0: None, 1: float("nan"), 45: float("inf")}
    root = bench_samples.write_zoo(tmp_path / "zoo", columns=lambda number: {"value": values.get(number, number / 7)})
    result = prepkit.bench(root, "value", **QUICK)
    sizes = [len(part) for part in (result.question.train, result.question.validation, result.question.test)]
    assert sizes == [22, 10, 11]
    assert result.notes[0] == "3 instances without a value in 'value' are left out."
    assert result.question.truth.tolist() == [number / 7 for number in range(34, 45)]


def test_classes_that_only_test_instances_have(tmp_path):
    root = bench_samples.write_zoo(
        tmp_path / "zoo", columns=lambda number: {"kind": "xyz"[2 if number > 43 else number % 2]}
    )
    result = prepkit.bench(root, "kind", **QUICK)
    assert result.question.classes == ("x", "y", "z")
    assert result.notes[0].startswith("2 test instances are of classes that no training instance has (z)")
    assert result.rows["constant"].measures["accuracy"] == pytest.approx(5 / 12)


def raising(train, validation, test):
    raise KeyError("weights")


@pytest.mark.parametrize(
    ("learner", "told"),
    [
        (raising, "test_bench_mistakes.py, line [0-9]+: KeyError: 'weights'"),
        (lambda train, validation, test: np.zeros((12, 1)), r"12 predictions of shape \[12\].*found \[12, 1\]"),
        (lambda train, validation, test: [1.0, 2.0], r"found \[2\]"),
        (lambda train, validation, test: None, "found NoneType"),
        (lambda train, validation, test: torch.full((12,), torch.nan), "12 of 12 predictions are NaN or infinite"),
        (lambda train, validation, test: test.known, "the true values of test instances are not given"),
    ],
)
def test_a_learner_that_fails_leaves_the_others(zoo_folder, learner, told):
    result = prepkit.bench(zoo_folder, "score", learners={"mine": learner}, **QUICK)
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(result.rows["mine"].error)
    assert result.rows["constant"].measures
    assert result.to_dict()["results"]["mine"]["predictions"] is None


def test_class_numbers_are_checked(zoo_folder):
    for answer in (np.full(12, 0.5), np.full(12, 2), np.full(12, -1)):
        row = prepkit.bench(zoo_folder, "side", learners={"mine": lambda *_, a=answer: a}, **QUICK).rows["mine"]
        assert "whole numbers from 0 to 1" in row.error


def test_a_learner_sees_seeded_generators_and_leaves_no_trace(zoo_folder):
    seen = []

    def learner(train, validation, test):
        seen.append((torch.rand(()).item(), np.random.rand(), train.seed))
        return torch.zeros(len(test))

    torch.manual_seed(11)
    before = torch.get_rng_state()
    for seed in (4, 4, 5):
        prepkit.bench(zoo_folder, "score", learners={"mine": learner}, baselines=[], seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert seen[0] == seen[1] != seen[2]
    assert seen[2][2] == 5
