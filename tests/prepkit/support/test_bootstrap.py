"""Draws and intervals of the bootstrap, against scipy, scikit-learn and numpy draw by draw."""

import math

import numpy as np
import pytest
import scipy.stats
from repeated_runs import GUESS, RUNS, TRUTH, rows_of
from sklearn.metrics import r2_score

from prepkit.support import bootstrap
from prepkit.support.bootstrap import drawn, interval_of, interval_of_means, middle, r2_of_draws, taus_of_draws
from prepkit.support.statistics import pearson, spearman


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
    monkeypatch.setattr(bootstrap, "MATRIX_UP_TO", 5)
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


def test_the_interval_of_a_correlation_holds_the_middle_of_the_draws():
    random = np.random.default_rng(0)
    first = random.normal(size=40)
    second, alone = first + random.normal(size=40), np.arange(40)
    low, high = interval_of(pearson, first, second, alone, seed=3)
    assert (low, high) == interval_of(pearson, first, second, alone, seed=3)
    assert (low, high) != interval_of(pearson, first, second, alone, seed=4)
    assert low < pearson(first, second) < high
    drawn = np.random.default_rng(3).integers(40, size=(1000, 40))
    slow = sorted(np.corrcoef(first[rows], second[rows])[0, 1] for rows in drawn)
    assert slow[24] <= low <= slow[25]
    assert slow[974] <= high <= slow[975]
    # Fisher's z is the textbook's interval for normal variables.
    fisher = np.tanh(np.arctanh(pearson(first, second)) + np.array([-1.96, 1.96]) / np.sqrt(40 - 3))
    assert (low, high) == pytest.approx(tuple(fisher), abs=0.08)
    assert np.isnan(interval_of(spearman, [0.5], [0.7], ["a"], seed=0)).all()


def test_a_correlation_is_drawn_by_whole_runs_also_where_they_differ_in_size():
    runs = np.array([*"aaabbcdefgh"])
    first, second = np.random.default_rng(5).normal(size=(2, 11))
    found = interval_of(spearman, first, second, runs, seed=2)
    draws = drawn(runs, 2)
    slow = [scipy.stats.spearmanr(first[rows_of(draw)], second[rows_of(draw)]).statistic for draw in draws]
    assert found == pytest.approx(np.nanquantile(slow, [0.025, 0.975]))


def test_the_interval_of_the_largest_mean():
    groups = [(TRUTH, RUNS), (np.append(GUESS, math.nan), np.append(RUNS, 10))]
    found = interval_of_means(groups, np.maximum.reduce, seed=0)
    slow = [
        max(TRUTH[rows_of(first)].mean(), GUESS[rows_of(second)].mean())
        for first, second in zip(drawn(RUNS, 0), drawn(RUNS, 1), strict=True)
    ]
    assert found == pytest.approx(np.quantile(slow, [0.025, 0.975]))


def test_one_run_says_nothing_about_others():
    assert np.isnan(interval_of_means([(TRUTH, RUNS), ([1.0, 2.0], ["a", "a"])], np.minimum.reduce, 0)).all()
    assert np.isnan(interval_of_means([([1.0, math.nan], ["a", "b"])], np.minimum.reduce, 0)).all()
    assert np.isnan(interval_of_means([], np.minimum.reduce, 0)).all()
    assert np.isnan(middle(np.full(3, np.nan))).all()
    assert interval_of_means([([1.0, 1.0], ["a", "b"])], np.minimum.reduce, 0) == (1.0, 1.0)
