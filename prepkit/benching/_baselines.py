"""Baselines that scikit-learn fits: the constant guess, and boosting and ridge on statistics and on flat weights.

Each is fitted for one architecture at a time. Validation instances choose the number of trees and the penalty.
Shapes: N instances, F features, C classes.
"""

# ruff: noqa: N806 - names of arrays end in their axes

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from prepkit import views
from prepkit.benching.target import Part
from prepkit.errors import PrepkitError
from prepkit.support.statistics import library, ridge_guess
from prepkit.support.text import readable_bytes
from prepkit.zoo.read.memory import available_bytes

Learner = Callable[[Part, Part, Part], Any]
Features = Callable[[Part], np.ndarray]
TREES, LEARNING_RATE, LEAST_IN_LEAF = 200, 0.1, 5
COPIES = 4  # of all flat weights in float64 that fitting a ridge regression holds at once


class LeftOut(PrepkitError):
    """A baseline has no form for these networks, or does not fit into memory; the table says so in place of numbers."""


def by_architecture(learner: Learner) -> Learner:
    """Return a learner that is fitted for each architecture of the test instances by itself.

    Where all training instances of an architecture have the same value, that is the prediction.
    """

    def learn(train: Part, validation: Part, test: Part) -> np.ndarray:
        guesses_N = np.empty(len(test), np.int64 if test.num_classes else np.float64)
        known, chosen_by = train.architectures, validation.architectures
        for name, rows in test.architectures.items():
            own = train.select(known[name]), validation.select(chosen_by[name]), test.select(rows)
            is_constant = len(np.unique(own[0].known)) == 1
            guesses_N[list(rows)] = own[0].known[0] if is_constant else learner(*own)
        return guesses_N

    return learn


def constant(train: Part, validation: Part, test: Part) -> np.ndarray:
    """Guess the mean of the training instances, or their most frequent class."""
    if test.num_classes:
        return np.full(len(test), np.bincount(train.known).argmax())
    return np.full(len(test), train.known.mean())


def statistics_features(part: Part) -> np.ndarray:
    """Return seven statistics of each tensor, `[N, F]` float64."""
    values: np.ndarray = views.statistics(part.zoo)(part.zoo.preps()).flatten(1).double().numpy()
    return values


def flat_features(part: Part) -> np.ndarray:
    """Return all weights, `[N, F]` float64; raises LeftOut if memory does not hold them."""
    view = views.flat(part.zoo)
    needed, free = COPIES * 8 * len(part) * view.shapes["values"][0], available_bytes()
    if free and needed > free:
        raise LeftOut(f"it takes about {readable_bytes(needed)} of memory, and {readable_bytes(free)} are free.")
    values: np.ndarray = view(part.zoo.preps()).double().numpy()
    return values


def ridge(features: Features) -> Learner:
    """Return ridge regression on features; for classes on their indicators, of which the largest is taken."""

    def learn(train: Part, validation: Part, test: Part) -> np.ndarray:
        known, chosen_by = ((features(part), _numbers(part)) for part in (train, validation))
        guess, _ = ridge_guess(known, chosen_by, features(test))
        found: np.ndarray = guess.argmax(1) if test.num_classes else guess
        return found

    return learn


def _numbers(part: Part) -> np.ndarray:
    """Return the target `[N]`, or indicators of classes `[N, C]`."""
    return np.eye(part.num_classes)[part.known] if part.num_classes else part.known


def boosting(features: Features) -> Learner:
    """Return gradient boosting on features, with as many trees as are best on validation instances."""

    def learn(train: Part, validation: Part, test: Part) -> np.ndarray:
        ensemble = library("sklearn.ensemble")
        kind = ensemble.HistGradientBoostingClassifier if test.num_classes else ensemble.HistGradientBoostingRegressor
        model = kind(
            max_iter=TREES,
            learning_rate=LEARNING_RATE,
            min_samples_leaf=LEAST_IN_LEAF,
            early_stopping=False,
            random_state=train.seed,
        ).fit(features(train), train.known)
        errors = [_error(guess, validation) for guess in model.staged_predict(features(validation))]
        best = int(np.argmin(errors))
        guesses = model.staged_predict(features(test))
        found: np.ndarray = next(guess for number, guess in enumerate(guesses) if number == best)
        return found

    return learn


def _error(guess: np.ndarray, part: Part) -> float:
    if part.num_classes:
        return float((guess != part.known).mean())
    return float(((guess - part.known) ** 2).mean())


BASELINES: dict[str, Learner] = {
    "constant": by_architecture(constant),
    "statistics + boosting": by_architecture(boosting(statistics_features)),
    "statistics + ridge": by_architecture(ridge(statistics_features)),
    "flat + ridge": by_architecture(ridge(flat_features)),
}
