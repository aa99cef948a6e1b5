"""The bootstrap: between which values a measure lies when other runs are drawn.

    drawn_RN = drawn(runs_N, seed=0)                           # how often each instance is in each draw
    middle(drawn_RN @ values_N / drawn_RN.sum(1))              # the interval of a mean
    interval_of_means([(values_N, runs_N)], max, seed=0)       # of the largest of several groups' means

Instances of one training run are alike, so runs are drawn as a whole. A single run says nothing about others: there is
no interval.
Shapes: N instances, R draws, G runs.
"""

# ruff: noqa: N803, N806 - names of arrays end in their axes

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from prepkit.support.statistics import grouped, kendall

DRAWS = 1000
SHARE = 0.95  # of the draws lie in an interval
MATRIX_UP_TO = 1000  # instances up to which tau of all draws comes from matrices of their pairs

Draws = np.ndarray  # [R, N]: how often each instance is drawn


def drawn(runs_N: np.ndarray, seed: int) -> Draws:
    """Draw as many runs as there are with replacement, R times: how often each instance is drawn, `[R, N]` float64."""
    groups, number_N = np.unique(runs_N, return_inverse=True)
    chosen_RG = np.random.default_rng(seed).integers(len(groups), size=(DRAWS, len(groups)))
    counts_RG = np.zeros((DRAWS, len(groups)))
    np.add.at(counts_RG, (np.arange(DRAWS)[:, None], chosen_RG), 1.0)
    return counts_RG[:, number_N]


def drawn_pairs(first: Any, second: Any, seed: int) -> Draws:
    """Draw the ends of P pairs with replacement, R times: how often each pair is drawn, `[R, P]` float64.

    first, second: the runs of both ends; all that stand first are drawn among each other, and so are the second
    An instance that is in several pairs makes them alike, so pairs are not drawn by themselves. A draw may be empty.
    """
    pairs_RP: Draws = drawn(np.asarray(first), seed) * drawn(np.asarray(second), seed + 1)
    return pairs_RP


def middle(values_R: np.ndarray) -> tuple[float, float]:
    """Return the interval that holds the middle 95 % of values; those that do not exist are left out."""
    finite = values_R[np.isfinite(values_R)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)


def interval_of(
    statistic: Callable[[Any, Any], Any], first: Any, second: Any, runs: Any, seed: int
) -> tuple[float, float]:
    """Return the interval of a statistic of two lists of N values, such as a correlation.

    statistic: is called with `[D, M]` and `[D, M]`, the M drawn instances of D draws, and works over the last axis
    runs:      the run of each instance
    Draws in which the statistic does not exist are left out. returns NaN and NaN for fewer than two runs
    """
    a_N, b_N, runs_N = np.asarray(first, np.float64), np.asarray(second, np.float64), np.asarray(runs)
    labels = np.unique(runs_N)
    if len(labels) < 2:
        return float("nan"), float("nan")
    rows = [np.flatnonzero(runs_N == label) for label in labels]
    chosen_RG = np.random.default_rng(seed).integers(len(rows), size=(DRAWS, len(rows)))
    draws = grouped((np.concatenate([rows[run] for run in chosen_G]) for chosen_G in chosen_RG), len)
    values = [np.atleast_1d(statistic(a_N[np.stack(same)], b_N[np.stack(same)])) for same in draws.values()]
    return middle(np.concatenate(values))


def interval_of_mean(values: Any, runs: Any, seed: int) -> tuple[float, float]:
    """Return the interval of the mean of the finite values `[N]`; NaN and NaN for fewer than two runs."""
    return interval_of_means([(values, runs)], np.concatenate, seed)


def interval_of_means(
    groups: Iterable[tuple[Any, Any]], reduce: Callable[[Sequence[Any]], Any], seed: int
) -> tuple[float, float]:
    """Return the interval of what `reduce` makes of the means of some groups, such as the largest of them.

    groups: values `[N]` and runs `[N]` of each group; instances without a finite value are left out
    reduce: is called with the means `[R]` of all groups and works draw by draw, such as `numpy.maximum.reduce`
    returns NaN and NaN where a group has fewer than two runs
    """
    means = []
    for number, (values, runs) in enumerate(groups):
        values_N, runs_N = np.asarray(values, np.float64), np.asarray(runs)
        known_N = np.isfinite(values_N)
        values_N, runs_N = values_N[known_N], runs_N[known_N]
        if len(set(runs_N.tolist())) < 2:
            return float("nan"), float("nan")
        drawn_RN = drawn(runs_N, seed + number)  # groups are drawn independently of each other
        means.append(drawn_RN @ values_N / drawn_RN.sum(1))
    return middle(np.asarray(reduce(means))) if means else (float("nan"), float("nan"))


def r2_of_draws(truth_N: np.ndarray, guess_N: np.ndarray, drawn_RN: Draws) -> np.ndarray:
    """Return R2 of each draw, `[R]`; NaN where all values of a draw are equal."""
    count_R = drawn_RN.sum(1)
    centred_N = truth_N - truth_N.mean()  # the square of a large mean would hide the variance
    mean_R = drawn_RN @ centred_N / count_R
    spread_R = drawn_RN @ centred_N**2 - count_R * mean_R**2
    error_R = drawn_RN @ (truth_N - guess_N) ** 2
    exists_R = spread_R > 1e-12 * (centred_N**2).sum()
    return np.where(exists_R, 1 - error_R / np.where(exists_R, spread_R, 1.0), np.nan)


def taus_of_draws(truth_N: np.ndarray, guess_N: np.ndarray, drawn_RN: Draws) -> np.ndarray:
    """Return Kendall's tau-b of each draw, `[R]`; NaN where all values of a draw are equal."""
    if len(truth_N) > MATRIX_UP_TO:
        times = drawn_RN.astype(np.int64)
        return np.array([kendall(np.repeat(truth_N, row), np.repeat(guess_N, row)) for row in times])
    # A pair of instances that are drawn a and b times is a * b pairs of the draw.
    first_NN, second_NN = (np.sign(values[:, None] - values[None, :]) for values in (truth_N, guess_N))

    def pairs(of_NN: np.ndarray) -> np.ndarray:
        total: np.ndarray = ((drawn_RN @ of_NN) * drawn_RN).sum(1)
        return total

    scale_R = np.sqrt(pairs(first_NN**2) * pairs(second_NN**2))
    return np.where(scale_R > 0, pairs(first_NN * second_NN) / np.where(scale_R > 0, scale_R, 1.0), np.nan)
