"""A cheap reader of a zoo: kernel ridge regression from PReps to outputs, chosen inside the known instances.

Shapes: N known instances, M asked ones, F values of a PRep, V values of an output.
"""

# ruff: noqa: N803, N806, N815 - names of arrays end in their axes

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.support.statistics import library

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Instances = tuple[NDArray[np.float32], Array]  # PReps `[N, F]` and outputs `[N, V]`

FOLDS = 5  # of the cross-validation that chooses
STRENGTHS = np.logspace(-6, 3, 7)  # of the penalty, for kernels whose diagonal is about 1
SHARPNESS = (0.1, 0.3, 1.0, 3.0)  # of Gaussian kernels exp(-sharpness d^2 / median of d^2)
LINEAR = "linear"
VALUES_AT_ONCE = 1 << 14  # of a PRep, since in float64 all values of many large networks would not fit


@dataclass(frozen=True)
class Reading:
    """What the reader makes of PReps.

    guesses_MV: the outputs that it expects of the asked instances
    kernel:     the kernel that was chosen, in words
    strength:   that of the penalty
    inside:     share of the variance of the known instances' outputs that is explained in cross-validation
    explained:  the same of the asked instances, about the mean of the known ones
    """

    guesses_MV: Array
    kernel: str
    strength: float
    inside: float
    explained: float


def read_outputs(known: Instances, asked: Instances, runs_N: NDArray[Any]) -> Reading:
    """Fit kernel ridge regressions on known instances, choose one by cross-validation, and let it guess the asked ones.

    known, asked: PReps and outputs; those of known instances may not all be equal, those of asked ones only measure
    runs_N:       the run of each known instance; cross-validation keeps runs together
    """
    ridge = library("sklearn.kernel_ridge").KernelRidge
    selection = library("sklearn.model_selection")
    outputs_NV, mean_V = known[1], known[1].mean(0)
    centred_NV = outputs_NV - mean_V
    components_NN = _components(centred_NV)
    folds = list(_folds(runs_N, len(centred_NV)))
    found: list[tuple[float, str, float]] = []
    kernels = _kernels(known[0], asked[0])
    for name, (kernel_NN, _) in kernels.items():
        search = selection.GridSearchCV(
            ridge(kernel="precomputed"),
            {"alpha": STRENGTHS},
            scoring="neg_mean_squared_error",
            cv=folds,
            refit=False,
        ).fit(kernel_NN, components_NN)
        best = int(search.cv_results_["rank_test_score"].argmin())
        found.append((-search.cv_results_["mean_test_score"][best], name, float(STRENGTHS[best])))
    error, name, strength = min(found, key=lambda each: each[0])
    kernel_NN, kernel_MN = kernels[name]
    # The guess is linear in the known outputs, so the weights of these are found once for all their values.
    weights_MN = ridge(kernel="precomputed", alpha=strength).fit(kernel_NN, np.eye(len(kernel_NN))).predict(kernel_MN)
    guesses_MV = mean_V + weights_MN @ centred_NV
    apart = ((asked[1] - mean_V) ** 2).sum()
    explained = 1 - ((guesses_MV - asked[1]) ** 2).sum() / apart if apart > 0 else np.nan
    return Reading(guesses_MV, name, strength, float(1 - error / components_NN.var(0).mean()), float(explained))


def _components(centred_NV: Array) -> Array:
    """Return coordinates `[N, N]` with the distances of the outputs, which are as few as instances."""
    sizes_N, directions_NN = np.linalg.eigh(centred_NV @ centred_NV.T)
    components: Array = directions_NN * np.sqrt(sizes_N.clip(min=0))
    return components


def _kernels(known_NF: NDArray[np.float32], asked_MF: NDArray[np.float32]) -> Mapping[str, tuple[Array, Array]]:
    """Return kernels `[N, N]` of the known instances and `[M, N]` of the asked ones with them, by name.

    PReps are taken from the mean of the known ones and scaled by their common deviation.
    """
    count = len(known_NF)
    products = np.zeros((count + len(asked_MF), count))
    squares = np.zeros(count + len(asked_MF))
    for first in range(0, known_NF.shape[1], VALUES_AT_ONCE):
        some = slice(first, first + VALUES_AT_ONCE)
        x = np.concatenate([known_NF[:, some], asked_MF[:, some]]).astype(np.float64)
        x -= x[:count].mean(0)
        # A value that no known instance changes says nothing, and would only move others away.
        x = x[:, np.ptp(x[:count], axis=0) > 0]
        products += x @ x[:count].T
        squares += (x * x).sum(1)
    scale = products.trace() / count or 1.0
    products, squares = products / scale, squares / scale
    apart = (squares[:, None] + squares[:count] - 2 * products).clip(min=0)
    usual = float(np.median(apart[:count][np.triu_indices(count, 1)])) or 1.0
    kernels = {LINEAR: products}
    kernels |= {f"Gaussian, sharpness {each:g}": np.exp(-each / usual * apart) for each in SHARPNESS}
    return {name: (kernel[:count], kernel[count:]) for name, kernel in kernels.items()}


def _folds(runs_N: NDArray[Any], count: int) -> Any:
    """Deal known instances to folds, whole runs together; instances by themselves where there are too few runs."""
    selection = library("sklearn.model_selection")
    runs = len(np.unique(runs_N))
    if runs < 2:
        return selection.KFold(FOLDS, shuffle=True, random_state=0).split(np.empty((count, 1)))
    return selection.GroupKFold(min(FOLDS, runs)).split(np.empty((count, 1)), groups=runs_N)
