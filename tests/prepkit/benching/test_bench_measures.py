"""Measures and their intervals against scikit-learn and scipy, draw by draw."""

import numpy as np
import pytest
import scipy.stats
from repeated_runs import GUESS, RUNS, TRUTH, rows_of
from sklearn.metrics import accuracy_score, r2_score

from prepkit.benching.measures import measures_of
from prepkit.support.bootstrap import drawn


def test_numbers():
    found = measures_of(TRUTH, GUESS, RUNS, is_class=False, ceiling=0.8, seed=0)
    tau = scipy.stats.kendalltau(TRUTH, GUESS).statistic
    assert (found["r2"], found["tau"]) == pytest.approx((r2_score(TRUTH, GUESS), tau))
    assert (found["tau_over_ceiling"], found["mean_error"]) == pytest.approx((tau / 0.8, np.abs(TRUTH - GUESS).mean()))
    each = [r2_score(TRUTH[rows_of(d)], GUESS[rows_of(d)]) for d in drawn(RUNS, 0)]
    assert found["interval"]["r2"] == pytest.approx(np.quantile(each, [0.025, 0.975]))
    for name in ("r2", "tau", "tau_over_ceiling", "mean_error"):
        low, high = found["interval"][name]
        assert low < found[name] < high


def test_classes():
    truth, guess = np.arange(30) % 3, np.where(np.arange(30) < 9, 0, np.arange(30) % 3)
    found = measures_of(truth, guess, np.arange(30), is_class=True, ceiling=float("nan"), seed=0)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    # The normal approximation of a binomial share is near the interval of the bootstrap.
    half = 1.96 * np.sqrt(0.8 * 0.2 / 30)
    assert found["interval"]["accuracy"] == pytest.approx((0.8 - half, 0.8 + half), abs=0.04)


def test_an_interval_does_not_promise_more_where_runs_are_drawn():
    """Instances of one run that are all equal count as one."""
    copies = np.repeat(np.arange(10), 20)
    truth, guess = np.repeat(TRUTH[:10], 20), np.repeat(GUESS[:10], 20)
    alone = measures_of(truth, guess, np.arange(200), is_class=False, ceiling=1, seed=0)["interval"]["tau"]
    together = measures_of(truth, guess, copies, is_class=False, ceiling=1, seed=0)["interval"]["tau"]
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])
