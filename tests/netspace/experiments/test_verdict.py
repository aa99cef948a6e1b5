"""Verdicts against cases that were worked out by hand, each of the four."""

import math

import pytest

from netspace.experiments.verdict import (
    UNMEASURED,
    VERDICTS,
    Claim,
    ResultError,
    as_shown,
    claim,
    verdict,
    verdict_of_runs,
)

NO_INTERVAL = (math.nan, math.nan)


@pytest.mark.parametrize(
    ("number", "relation", "limit", "interval", "expected"),
    [
        (0.97, ">=", 0.95, (0.96, 0.99), "held"),
        (0.97, ">=", 0.95, (0.95, 0.99), "held"),  # the bound itself is allowed
        (0.97, ">=", 0.95, (0.94, 0.99), "undecided"),
        (0.90, ">=", 0.95, (0.71, 0.98), "undecided"),
        (0.90, ">=", 0.95, (0.71, 0.95), "undecided"),
        (0.90, ">=", 0.95, (0.71, 0.94), "not held"),
        (0.02, "<=", 0.03, (0.01, 0.03), "held"),
        (0.02, "<=", 0.03, (0.01, 0.04), "undecided"),
        (0.09, "<=", 0.03, (0.07, 0.11), "not held"),
        (0.05, ">", 0.0, (0.01, 0.09), "held"),
        (0.05, ">", 0.0, (0.0, 0.09), "undecided"),  # a strict bound is passed, not reached
        (-0.05, ">", 0.0, (-0.09, 0.0), "not held"),
        (-0.01, ">", 0.0, (-0.04, 0.02), "undecided"),
        (-0.02, "<", 0.0, (-0.03, -0.01), "held"),
        # The number may lie outside its own interval: the largest of several means does.
        (0.97, ">=", 0.95, (0.90, 0.94), "undecided"),
        (0.90, ">=", 0.95, (0.96, 0.99), "undecided"),
        # Without an interval the number decides; with too few instances for one, nothing does.
        (0.97, ">=", 0.95, None, "held"),
        (0.94, ">=", 0.95, None, "not held"),
        (0.97, ">=", 0.95, NO_INTERVAL, "undecided"),
        (0.10, ">=", 0.95, NO_INTERVAL, "undecided"),
        # An equality is about the instances at hand.
        (1.0, "==", 1.0, (0.9, 1.0), "held"),
        (0.9, "==", 1.0, (0.8, 1.0), "not held"),
        (math.nan, ">=", 0.95, (0.96, 0.99), "not told"),
        (math.inf, ">=", 0.95, None, "not told"),
    ],
)
def test_the_interval_decides(number, relation, limit, interval, expected):
    assert verdict(number, relation, limit, interval=interval) == expected


@pytest.mark.parametrize("interval", [None, (-0.02, 0.03), (0.0, 0.0), NO_INTERVAL])
@pytest.mark.parametrize(("number", "unit"), [(0.0, "points"), (-0.0, "points"), (0.0004, "points"), (0.0, "")])
def test_nothing_is_not_more_than_nothing(number, unit, interval):
    """What the page would show as "0 points, must be > 0 points" is not held."""
    assert verdict(number, ">", 0.0, unit=unit, interval=interval) == "not held"


def test_what_is_shown_as_more_than_nothing_may_hold():
    assert verdict(0.0006, ">", 0.0, unit="points") == "held"  # 0.1 points
    assert verdict(1e-9, ">", 0.0) == "held"
    assert verdict(0.9504, "<", 0.95, unit="%") == "not held"
    assert verdict(0.0, ">=", 0.0, unit="points") == "held"


def test_what_tells_nothing_says_why():
    made = claim("Distance", 1.4, ">=", 0.5, interval=(1.3, 1.5), untold="predictions are nearly one network")
    assert (made.verdict, made.held, made.reason) == ("not told", False, "predictions are nearly one network")
    assert made.number == 1.4
    assert claim("Distance", math.nan, ">=", 0.5).reason == UNMEASURED
    assert claim("Distance", 1.4, ">=", 0.5).reason == ""
    assert claim("Distance", 1.4, ">=", 0.5).held


def test_runs_that_differ_leave_it_undecided():
    for one in VERDICTS:
        assert verdict_of_runs([one, one, one]) == one
        assert verdict_of_runs([one]) == one
        assert all(verdict_of_runs([one, other]) == "undecided" for other in VERDICTS if other != one)


def test_numbers_are_shown_in_their_unit():
    assert [as_shown(0.97145, unit) for unit in ("%", "points", "")] == [0.971, 0.971, 0.971]
    assert as_shown(-0.0001, "points") == 0
    assert math.copysign(1, as_shown(-0.0001, "points")) == 1
    assert as_shown(4.784e-7, "") == 4.78e-7


@pytest.mark.parametrize("wrong", [{"verdict": "maybe"}, {"kind": "other"}, {"unit": "miles"}])
def test_a_claim_of_another_kind_is_refused(wrong):
    with pytest.raises(ResultError, match=rf"claim 'Distance': {next(iter(wrong))} .* is none of"):
        Claim(**{"text": "Distance", "number": 1.0, "bound": ">= 0", "verdict": "held", **wrong})
