"""How good predictions are: R2, Kendall's tau, accuracy, and intervals from a bootstrap over runs.

Shapes: N test instances, R draws of the bootstrap, G groups.
"""

# ruff: noqa: N803, N806 - names of arrays end in their axes

from __future__ import annotations

from typing import Any

import numpy as np

from prepkit.support.statistics import DRAWS, SHARE, kendall, r2

MATRIX_UP_TO = 1000  # instances up to which tau of all draws comes from matrices of their pairs

Draws = np.ndarray  # [R, N]: how often each instance is drawn


def measures_of(
    truth_N: np.ndarray, guess_N: np.ndarray, runs_N: np.ndarray, *, is_class: bool, ceiling: float, seed: int
) -> dict[str, Any]:
    """Return the measures of predictions, and the interval that holds the middle 95 % of each over the draws.

    runs_N:  the run of each instance; runs are drawn as a whole
    ceiling: the tau that a perfect ranker of what is measured can reach; NaN for classes
    returns `accuracy`, or `r2`, `tau`, `tau_over_ceiling` and `mean_error`; and `interval` with pairs by the same names
    """
    drawn_RN = drawn(runs_N, seed)
    if is_class:
        right_N = (truth_N == guess_N).astype(np.float64)
        return {
            "accuracy": float(right_N.mean()),
            "interval": {"accuracy": middle(drawn_RN @ right_N / drawn_RN.sum(1))},
        }
    tau = kendall(truth_N, guess_N)
    tau_R = taus_of_draws(truth_N, guess_N, drawn_RN)
    return {
        "r2": r2(truth_N, guess_N),
        "tau": tau,
        "tau_over_ceiling": tau / ceiling if ceiling > 0 else float("nan"),
        "mean_error": float(np.abs(truth_N - guess_N).mean()),
        "interval": {
            "r2": middle(r2_of_draws(truth_N, guess_N, drawn_RN)),
            "tau": middle(tau_R),
            "tau_over_ceiling": middle(tau_R / ceiling if ceiling > 0 else np.full(len(tau_R), np.nan)),
            "mean_error": middle(drawn_RN @ np.abs(truth_N - guess_N) / drawn_RN.sum(1)),
        },
    }


# The bootstrap ----------------------------------------------------------------------------------------------------


def drawn(runs_N: np.ndarray, seed: int) -> Draws:
    """Draw as many runs as there are with replacement, R times: how often each instance is drawn, `[R, N]` float64."""
    groups, number_N = np.unique(runs_N, return_inverse=True)
    chosen_RG = np.random.default_rng(seed).integers(len(groups), size=(DRAWS, len(groups)))
    counts_RG = np.zeros((DRAWS, len(groups)))
    np.add.at(counts_RG, (np.arange(DRAWS)[:, None], chosen_RG), 1.0)
    return counts_RG[:, number_N]


def middle(values_R: np.ndarray) -> tuple[float, float]:
    """Return the interval that holds the middle 95 % of values; those that do not exist are left out."""
    finite = values_R[np.isfinite(values_R)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)


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
