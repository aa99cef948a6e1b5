"""Measures and their intervals against scikit-learn and scipy, draw by draw."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import accuracy_score, r2_score

from prepkit.benching import measures
from prepkit.benching.measures import drawn, measures_of, r2_of_draws, taus_of_draws

RNG = np.random.default_rng(5)
TRUTH = 100 + RNG.integers(6, size=30) / 10  # there are many equal values
GUESS = TRUTH + RNG.normal(size=30) * 0.2
RUNS = np.repeat(np.arange(10), 3)


def rows_of(draw):
    return np.repeat(np.arange(len(draw)), draw.astype(int))


def test_whole_runs_are_drawn():
    draws = drawn(RUNS, 0)
    assert draws.shape == (1000, 30)
    assert (draws.reshape(1000, 10, 3).std(2) == 0).all()
    assert (draws.sum(1) == 30).all()
    assert draws.mean() == pytest.approx(1)
    assert (draws[:, 0] == 0).mean() == pytest.approx(0.9**10, abs=0.05)  # a run is missing from so many draws
    assert not np.array_equal(draws, drawn(RUNS, 1))


def test_each_draw_has_the_measures_of_its_instances(monkeypatch):
    draws = drawn(RUNS, 0)[:20]
    r2, tau = r2_of_draws(TRUTH, GUESS, draws), taus_of_draws(TRUTH, GUESS, draws)
    monkeypatch.setattr(measures, "MATRIX_UP_TO", 5)
    assert taus_of_draws(TRUTH, GUESS, draws) == pytest.approx(tau)
    for number, draw in enumerate(draws):
        truth, guess = TRUTH[rows_of(draw)], GUESS[rows_of(draw)]
        assert r2[number] == pytest.approx(r2_score(truth, guess))
        assert tau[number] == pytest.approx(scipy.stats.kendalltau(truth, guess).statistic)


def test_draws_of_equal_values_have_no_measure():
    draws = np.array([[0.0, 2.0, 0.0], [1.0, 1.0, 0.0], [2.0, 0.0, 1.0]])
    truth, guess = np.array([1e6, 1e6 + 1, 1e6 + 2]), np.array([1.0, 2.0, 1.0])
    assert np.isnan(r2_of_draws(truth, guess, draws)).tolist() == [True, False, False]
    assert np.isnan(taus_of_draws(truth, guess, draws)).tolist() == [True, False, True]


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
