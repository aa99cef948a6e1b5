"""Thirty guesses of ten runs, and the rows that a draw of the bootstrap takes."""

import numpy as np

_RNG = np.random.default_rng(5)
TRUTH = 100 + _RNG.integers(6, size=30) / 10  # there are many equal values
GUESS = TRUTH + _RNG.normal(size=30) * 0.2
RUNS = np.repeat(np.arange(10), 3)


def rows_of(draw):
    return np.repeat(np.arange(len(draw)), draw.astype(int))
