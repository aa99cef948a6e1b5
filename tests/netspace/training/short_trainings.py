"""Trainings of a few steps on small zoos, and what tests compare of their runs."""

import torch
from small_zoos import SMALL

from netspace.recipe import load_recipe

TIMES = ("instances_per_second",)


def recipe_of(name, steps, **changes):
    return load_recipe(name, {**SMALL[name], "training.steps": steps, "training.validate_every": steps, **changes})


def curve(run):
    return [{key: value for key, value in line.items() if key not in TIMES} for line in run.metrics()]


def weights(run, kind="latest"):
    return run.state(kind).tensors


def assert_same_weights(one, other, kind="latest"):
    found, expected = weights(one, kind), weights(other, kind)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
