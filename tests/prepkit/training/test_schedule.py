"""Schedules: the factors of torch's own schedulers, which are written independently, and places given as shares."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prepkit.training._schedule import factor
from prepkit.training._values import Schedule

SHARES = Schedule("step", at=(0.5, 0.6, 0.7), factor=0.1)


def factors(schedule, epochs):
    return [factor(schedule, epoch, epochs) for epoch in range(epochs)]


def torch_factors(scheduler, epochs):
    """What one of torch's schedulers multiplies a learning rate of 1 by, epoch after epoch."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = scheduler(optimiser)
    found = []
    for _ in range(epochs):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return found


LR = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("schedule", "scheduler"),
    [
        (Schedule(), lambda o: LR.LambdaLR(o, lambda _: 1.0)),
        (Schedule("step", at=(150, 180, 210), factor=0.1), lambda o: LR.MultiStepLR(o, [150, 180, 210], 0.1)),
        (Schedule("step", at=(210, 150), factor=0.5), lambda o: LR.MultiStepLR(o, [150, 210], 0.5)),
        (Schedule("exponential", every=1, factor=0.9), lambda o: LR.ExponentialLR(o, 0.9)),
        (Schedule("exponential", every=7, factor=0.9), lambda o: LR.StepLR(o, 7, 0.9)),
        (Schedule("cosine"), lambda o: LR.CosineAnnealingLR(o, 300)),
    ],
    ids=["constant", "step", "step, unordered", "exponential", "exponential every 7", "cosine"],
)
def test_the_factors_are_those_of_torch(schedule, scheduler):
    assert factors(schedule, 300) == pytest.approx(torch_factors(scheduler, 300), rel=1e-9, abs=1e-12)


def test_shares_are_of_the_instances_own_epochs():
    assert factors(SHARES, 30) == pytest.approx(torch_factors(lambda o: LR.MultiStepLR(o, [15, 18, 21], 0.1), 30))
    assert factors(SHARES, 10) == pytest.approx([1] * 5 + [0.1] + [0.01] + [0.001] * 3)


def test_a_training_of_one_epoch_has_the_whole_learning_rate():
    assert factors(SHARES, 1) == [1.0]
    assert factors(Schedule("cosine"), 1) == [1.0]


@pytest.mark.parametrize(("share", "epochs"), [(0.55, 20), (0.57, 100), (0.7, 10), (0.29, 100), (0.07, 100), (0.1, 30)])
def test_a_share_is_the_decimal_that_was_written(share, epochs):
    """0.55 * 20 is 11.000000000000002 and 0.57 * 100 is 56.99999999999999."""
    first = factors(Schedule("step", at=(share,), factor=0.1), epochs).index(0.1)
    assert first == round(share * epochs)


@settings(deadline=None)
@given(st.integers(1, 200), st.sampled_from([SHARES, Schedule("cosine"), Schedule("exponential", every=3, factor=0.5)]))
def test_factors_start_at_one_and_never_grow_or_vanish(epochs, schedule):
    found = factors(schedule, epochs)
    assert found[0] == 1.0
    assert all(later <= earlier for earlier, later in pairwise(found))
    assert all(value > 0 and math.isfinite(value) for value in found)
