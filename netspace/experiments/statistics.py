"""How well two lists of numbers go together: correlations, R2, Kendall's tau and its ceilings. scipy is in `[train]`.

A statistic that does not exist, as a correlation with numbers that are all equal, is NaN.
Shapes: N instances, R draws, B samples.
"""

# ruff: noqa: N803, N806 - names of arrays end in their axes

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

import prepkit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

DRAWS = 1000  # of a bootstrap
SHARE = 0.95  # of the draws that lie in its interval


class StatisticsMissing(prepkit.PrepkitError, ImportError):
    """scipy is not installed."""

    exit_code = 1


def pearson(first: Any, second: Any) -> Any:
    """Pearson's correlation over the last axis, `[..., N]` each -> `[...]`."""
    a, b = (np.asarray(one, np.float64) for one in (first, second))
    a, b = (one - one.mean(-1, keepdims=True) for one in (a, b))
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 0, (a * b).sum(-1) / size, np.nan)[()]


def spearman(first: Any, second: Any) -> Any:
    """Spearman's rank correlation over the last axis, `[..., N]` each -> `[...]`; equal values share a rank."""
    rankdata = _scipy_stats().rankdata
    return pearson(rankdata(first, axis=-1), rankdata(second, axis=-1))


def kendall(first: Any, second: Any) -> float:
    """Kendall's tau-b of `[N]` and `[N]`: equal values neither agree nor disagree."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(_scipy_stats().kendalltau(first, second).statistic)


def r2(truth: Any, guess: Any) -> float:
    """1 - squared error of the guess / squared error of guessing the mean of the truth."""
    truth, guess = np.asarray(truth, np.float64), np.asarray(guess, np.float64)
    spread = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((truth - guess) ** 2).sum()) / spread if spread > 0 else float("nan")


def interval(
    statistic: Callable[[Any, Any], Any], first: Any, second: Any, seed: int, draws: int = DRAWS
) -> tuple[float, float]:
    """The middle 95 % of a statistic over draws of the N instances with replacement (percentile bootstrap).

    statistic: of `[R, N]` and `[R, N]` over the last axis
    """
    a_N, b_N = np.asarray(first, np.float64), np.asarray(second, np.float64)
    drawn_RN = np.random.default_rng(seed).integers(len(a_N), size=(draws, len(a_N)))
    found_R = statistic(a_N[drawn_RN], b_N[drawn_RN])
    found_R = found_R[np.isfinite(found_R)]
    if not len(found_R):
        return float("nan"), float("nan")
    low, high = np.quantile(found_R, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)


# Ceilings of tau --------------------------------------------------------------------------------------------------


def tau_of_halves(right_NB: Any, draws: int, seed: int) -> float:
    """Mean tau between accuracies on two halves of the samples: what is left to predict after the luck of the samples.

    right_NB: whether each instance is right about each sample
    A half is luckier than the whole, so an accuracy on all samples can be predicted a little better than this.
    """
    right_NB = np.asarray(right_NB, np.float64)
    generator = np.random.default_rng(seed)
    taus = []
    for _ in range(draws):
        order = generator.permutation(right_NB.shape[1])
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        taus.append(kendall(*(right_NB[:, half].mean(1) for half in halves)))
    finite = [tau for tau in taus if np.isfinite(tau)]
    return float(np.mean(finite)) if finite else float("nan")


def tau_of_ties(truth: Any) -> float:
    """The largest tau-b with `[N]` values, some of them equal, that a guess without equal values can have."""
    pairs = len(truth) * (len(truth) - 1) / 2
    counts = np.unique(np.asarray(truth), return_counts=True)[1]
    tied = float((counts * (counts - 1) / 2).sum())
    return float(np.sqrt((pairs - tied) / pairs)) if pairs > tied else float("nan")


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError:
        raise StatisticsMissing("rank correlations need scipy; pip install 'prepkit[train]'.") from None
    return stats
