"""Experiments on zoos of two architectures or of few instances: they measure what there is, or say what is missing."""

import numpy as np
import pytest
import torch
from small_zoos import digits_zoo, sdf_zoo
from untrained import subject_of, untrained_run

import prepkit
from netspace.data import ZooMismatch
from netspace.experiments import boundaries, chairs
from netspace.experiments.beyond import novelty, representation
from netspace.explore.sampling import PointError
from netspace.space.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")
SMALLEST, BETWEEN, LARGEST = "lenet_like@digits", "vanilla_cnn@digits", "resnet14@digits"
EACH = {"train": 1, "validation": 1, "test": 2}


def test_two_architectures_have_no_gamma_between_them(tmp_path):
    names = (SMALLEST, BETWEEN)
    registry = prepkit.Registry([prepkit.architecture(name) for name in names])
    zoo = digits_zoo(tmp_path / "zoo", dict.fromkeys(names, EACH), registry=registry, height=88)
    subject = subject_of(untrained_run(tmp_path / "run", "digits_multi", zoo, architectures=names), tmp_path)
    found = boundaries.run(subject, pairs=2)
    assert [step["gamma"] for step in found.numbers["along_the_line"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert set(found.numbers["at_gamma"]) == set(names)
    made = novelty._from_new_points(subject, 1)
    assert made[novelty.BETWEEN].ids == [f"{SMALLEST}-train-0 and {BETWEEN}-train-0"]


def test_test_instances_of_an_architecture_that_was_not_trained_on_do_not_count_as_trained(tmp_path):
    """They would raise or lower what unseen architectures are held against, or leave none that is unseen."""
    counts = {SMALLEST: EACH, BETWEEN: {"test": 2}, LARGEST: EACH}
    zoo = digits_zoo(tmp_path / "zoo", counts, height=88)
    subject = subject_of(untrained_run(tmp_path / "run", "digits_unseen", zoo, class_id=1), tmp_path)
    found = boundaries.run(subject, pairs=2).numbers
    assert set(found["unseen"]) == {BETWEEN, "resnet8@digits"}
    table = evaluate(subject.space, subject.run.registry, subject.view("test"), subject.task, "test").table.to_pylist()
    by_name = {
        name: np.mean([row["predicted_accuracy"] for row in table if row["architecture"] == name])
        for name in (SMALLEST, BETWEEN, LARGEST)
    }
    trained = (by_name[SMALLEST] + by_name[LARGEST]) / 2
    there = found["at_gamma"][BETWEEN]["accuracy"]
    assert found["unseen"][BETWEEN]["from_mean"] == pytest.approx(there - trained)


def test_a_line_needs_both_its_ends(tmp_path):
    counts = {SMALLEST: EACH, LARGEST: {"train": 1, "validation": 1}}
    zoo = digits_zoo(tmp_path / "zoo", counts, height=88)
    subject = subject_of(untrained_run(tmp_path / "run", "digits_multi", zoo), tmp_path)
    with pytest.raises(PointError, match="no pair of the boundary architectures among the 2 test instances of 'zoo'"):
        boundaries.run(subject)
    (tmp_path / "other").mkdir()
    run = untrained_run(tmp_path / "other" / "run", "chairs_mini", sdf_zoo(tmp_path / "other" / "zoo", train=1))
    with pytest.raises(PointError, match="'zoo' has 1 training chair; a line between two needs 2"):
        chairs.run(subject_of(run, tmp_path), pairs=1, steps=3, resolution=8)


def test_one_training_instance_is_too_few_for_a_linear_guess(tmp_path):
    torch.manual_seed(0)
    zoo = digits_zoo(tmp_path / "zoo", {"resnet8@digits": EACH}, teacher=False, single=True)
    subject = subject_of(untrained_run(tmp_path / "run", "digits_single", zoo), tmp_path)
    with pytest.raises(ZooMismatch, match="has one training instance; a linear guess is fitted on 2 or more"):
        representation.run(subject)
