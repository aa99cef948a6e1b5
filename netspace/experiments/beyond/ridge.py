"""Ridge regression whose strength is chosen on validation instances. scikit-learn is in the extra `[train]`.

Shapes: N instances, F features.
"""

# ruff: noqa: N803 - names of arrays end in their axes

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.experiments.statistics import library

if TYPE_CHECKING:
    from netspace.experiments.statistics import Array

STRENGTHS = np.logspace(-6, 6, 49)  # of the penalty, per training instance, for features of variance 1


def ridge_guess(
    train: tuple[Array, Array], validation: tuple[Array, Array], test_NF: Array, *, each: bool = True
) -> tuple[Array, float]:
    """Fit on training instances, with the strength that has the least squared error on validation instances.

    train, validation: features `[N, F]` and the true values `[N]`
    each:              scale every feature by its own deviation, not all by their common one
    returns guesses `[N]` for the test features, and the strength
    """
    scaler = library("sklearn.preprocessing").StandardScaler().fit(train[0])
    if not each:
        scaler.scale_ = np.full_like(scaler.var_, np.sqrt(scaler.var_.mean()))
    scaler.scale_[np.ptp(train[0], axis=0) == 0] = np.inf  # a feature that never changes says nothing
    # All principal components span the same features. They are as few as instances, so that 49 fits cost little.
    rotation = library("sklearn.decomposition").PCA(svd_solver="full").fit(scaler.transform(train[0]))
    known, chosen_by, asked = (rotation.transform(scaler.transform(x)) for x in (train[0], validation[0], test_NF))
    ridge = library("sklearn.linear_model").Ridge

    def fitted(strength: float) -> Any:
        return ridge(alpha=strength * len(known)).fit(known, train[1])

    errors = [((fitted(strength).predict(chosen_by) - validation[1]) ** 2).mean() for strength in STRENGTHS]
    best = float(STRENGTHS[int(np.argmin(errors))])
    return fitted(best).predict(asked), best
