"""A map of weights: the first two principal components of PReps, from one pass over them.

PReps of many cells are projected first: each row of SKETCH cells is reordered and its signs are drawn, from a fixed
seed, and all rows are added. Inner products keep their expectation, with an error of about 1 / sqrt(SKETCH) of the
norms (feature hashing, Weinberger et al., 2009, arXiv 0902.2206).
Shapes: N instances, B instances in a batch, V values of a network, D = SKETCH.
"""

# ruff: noqa: N803, N806, N815 - names of arrays end in their axes

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SKETCH = 1024
ROWS_KEPT = 4096  # orders of rows of cells that are kept between batches, of 3 KB each


@dataclass(frozen=True)
class WeightsMap:
    """Where each instance lies.

    places_N2: its first two principal components, NaN for one whose values are not all finite
    explained: share of the variance that each of the two explains
    exact:     whether the components are those of the PReps, not of their projections
    """

    places_N2: NDArray[np.float64]
    explained: tuple[float, float]
    exact: bool


def sketch(values_BV: NDArray[np.floating], exact: bool) -> NDArray[np.float32]:
    """Return `[B, D]`: the values followed by zeros if that is `exact`, else their projection."""
    found_BD = np.zeros((len(values_BV), SKETCH))
    for row, start in enumerate(range(0, values_BV.shape[1], SKETCH)):
        part = values_BV[:, start : start + SKETCH]
        if exact:
            found_BD[:, : part.shape[1]] += part
            continue
        places, signs = _order(row)
        found_BD[:, places[: part.shape[1]]] += part * signs[: part.shape[1]]
    return found_BD.astype(np.float32)


def weights_map(sketches_ND: NDArray[np.float32], exact: bool) -> WeightsMap | None:
    """Return the map of sketches; None for less than three instances that are finite, or where all are equal."""
    finite = np.isfinite(sketches_ND).all(axis=1)
    if finite.sum() < 3:
        return None
    x_ND = sketches_ND[finite].astype(np.float64)
    largest = float(np.abs(x_ND).max()) or 1.0
    x_ND /= largest  # or squares of large values would be infinite
    x_ND -= x_ND.mean(axis=0)
    total = float((x_ND**2).sum())
    if total == 0.0:
        return None
    if len(x_ND) <= SKETCH:
        values, vectors = np.linalg.eigh(x_ND @ x_ND.T)
        found = vectors[:, [-1, -2]] * np.sqrt(np.maximum(values[[-1, -2]], 0))
    else:
        values, vectors = np.linalg.eigh(x_ND.T @ x_ND)
        found = x_ND @ vectors[:, [-1, -2]]
    found *= np.sign(found[np.abs(found).argmax(axis=0), [0, 1]]) + (found == 0).all(axis=0)
    places = np.full((len(sketches_ND), 2), np.nan)
    places[finite] = found * largest
    first, second = (max(float(value), 0.0) / total for value in values[[-1, -2]])
    return WeightsMap(places, (first, second), exact)


@lru_cache(ROWS_KEPT)
def _order(row: int) -> tuple[NDArray[np.int16], NDArray[np.int8]]:
    generator = np.random.default_rng([20_261_127, row])
    places = generator.permutation(SKETCH).astype(np.int16)
    return places, (2 * generator.integers(0, 2, SKETCH) - 1).astype(np.int8)
