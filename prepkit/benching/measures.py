"""How good predictions are: R2, Kendall's tau, accuracy, and intervals from a bootstrap over runs.

Shapes: N test instances, R draws of the bootstrap, G groups.
"""

# ruff: noqa: N803, N806 - names of arrays end in their axes

from __future__ import annotations

from typing import Any

import numpy as np

from prepkit.support.bootstrap import drawn, middle, r2_of_draws, taus_of_draws
from prepkit.support.statistics import kendall, r2


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
