"""Ridge regression in closed form, its strength chosen on validation instances.

Shapes: N instances, F features, L strengths.
"""

# ruff: noqa: N803, N806 - names of arrays end in their axes

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

STRENGTHS = np.logspace(-6, 6, 49)  # of the penalty, per training instance, for features of variance 1


@dataclass(frozen=True)
class Scaling:
    """Features with the mean of the training instances at 0, divided by their deviation there, both `[F]`."""

    mean: Array
    deviation: Array

    @classmethod
    def of(cls, features_NF: Array, *, each: bool = True) -> Scaling:
        """each: by a feature's own deviation (where it has one), else by that of all features together."""
        mean_F = features_NF.mean(0)
        own_F = features_NF.std(0)
        deviation_F = own_F if each else np.full_like(own_F, np.sqrt((own_F**2).mean()))
        # A feature that never changes says nothing: it becomes 0, also where a test instance differs by rounding.
        return cls(mean_F, np.where(deviation_F > 1e-12 * (1 + np.abs(mean_F)), deviation_F, np.inf))

    def __call__(self, features_NF: Array) -> Array:
        """Scaled features."""
        return (features_NF - self.mean) / self.deviation


@dataclass(frozen=True)
class Ridge:
    """A linear guess: features times weights, plus an offset that is not penalised.

    weights:  `[F]`, of scaled features
    strength: of the penalty, per training instance
    """

    scaling: Scaling
    weights: Array
    offset: float
    strength: float

    def __call__(self, features_NF: Array) -> Array:
        """Guesses `[N]`."""
        return self.scaling(features_NF) @ self.weights + self.offset


def fit(
    train: tuple[Array, Array], validation: tuple[Array, Array], strengths: Array = STRENGTHS, *, each: bool = True
) -> Ridge:
    """Fitted on training instances; the strength is the one with the least squared error on validation instances.

    train, validation: features `[N, F]` and what is to be guessed `[N]`
    each:              every feature scaled by its own deviation; see Scaling
    """
    scaling = Scaling.of(train[0], each=each)
    x_NF, y_N = scaling(train[0]), train[1]
    offset = float(y_N.mean())
    left_NR, size_R, right_RF = np.linalg.svd(x_NF, full_matrices=False)
    along_R = left_NR.T @ (y_N - offset)
    shrunk_LR = size_R / (size_R**2 + strengths[:, None] * len(y_N)) * along_R
    guesses_LN = shrunk_LR @ (right_RF @ scaling(validation[0]).T) + offset
    best = int(((guesses_LN - validation[1]) ** 2).mean(1).argmin())
    return Ridge(scaling, right_RF.T @ shrunk_LR[best], offset, float(strengths[best]))
