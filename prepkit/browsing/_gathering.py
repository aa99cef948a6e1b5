"""One pass over the values of a zoo or view: what its page shows of each instance's weights.

Shapes: N instances, n instances of one architecture, B instances in a batch, V values of a network, T its tensors,
C = THUMBNAIL_CELLS.
"""

# ruff: noqa: N803, N806, N815 - names of arrays end in their axes

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prepkit.browsing._weights_map import SKETCH, WeightsMap, sketch, weights_map
from prepkit.prep.layout import Layout
from prepkit.support.progress import Advance
from prepkit.views.slot_statistics import slot_statistics
from prepkit.zoo.read.in_shard_order import batches, numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from prepkit.zoo.read.zoo import Zoo

THUMBNAIL_SHAPE = (8, 32)
THUMBNAIL_CELLS = THUMBNAIL_SHAPE[0] * THUMBNAIL_SHAPE[1]
FULL = 127  # of a thumbnail's cell, at the end of its range of colours
NOT_FINITE = -128  # of a thumbnail's cell whose values are not all finite
ROBUST_PERCENTILE = 99.0
# Of the seven statistics of slot_statistics, those that a page shows.
STATISTICS = {"mean": 0, "deviation": 1, "least": 2, "median": 4, "largest": 6}
LARGEST_STATISTICS = 6_000_000  # numbers on one page, as a browser must hold them


@dataclass(frozen=True)
class OfArchitecture:
    """What is known of the instances of one architecture.

    rows_n:          their rows in the table
    statistics_nTS:  STATISTICS of each tensor, float32; None where the page would hold too many numbers
    thumbnails_nC:   means of C blocks of equally many values in packing order, -127 to 127 of `limit`, int8
    limit:           the mean at the end of the range of colours
    """

    name: str
    layout: Layout
    rows_n: NDArray[np.int64]
    statistics_nTS: NDArray[np.float32] | None
    thumbnails_nC: NDArray[np.int8]
    limit: float


@dataclass(frozen=True)
class Gathered:
    """What one pass over the values found."""

    architectures: tuple[OfArchitecture, ...]
    map: WeightsMap | None


def gather_weights(zoo: Zoo, progress: Advance | None = None) -> Gathered:
    """Read all values of a zoo or view once, in the order of its shards.

    progress: is called with a number of instances each time that many more were read
    """
    exact = all(stored.layout.total <= SKETCH for stored in zoo.manifest.architectures)
    sketches_ND = np.zeros((len(zoo), SKETCH), dtype=np.float32)
    parts: dict[str, list[tuple[NDArray[np.int64], Layout, NDArray[np.float32], NDArray[np.float32]]]] = {}
    for rows, architecture, layout, values in batches(zoo):
        x_BV = numbers(values)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is shown as that
            sketches_ND[rows] = sketch(x_BV, exact)
            parts.setdefault(architecture, []).append((rows, layout, _statistics(values, layout), block_means(x_BV)))
        if progress is not None:
            progress(len(rows))
    kept = sum(found.size for own in parts.values() for _, _, found, _ in own) <= LARGEST_STATISTICS
    architectures = []
    for name, own in parts.items():
        rows_n, statistics, means_nC = (np.concatenate([part[i] for part in own]) for i in (0, 2, 3))
        thumbnails_nC, limit = _in_bytes(means_nC)
        found = OfArchitecture(name, own[0][1], rows_n, statistics if kept else None, thumbnails_nC, limit)
        architectures.append(found)
    return Gathered(tuple(architectures), weights_map(sketches_ND, exact))


def block_means(x_BV: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the means `[B, C]` of C blocks of values; the blocks of a small network overlap or hold one value."""
    total = x_BV.shape[1]
    if total == 0:
        return np.zeros((len(x_BV), THUMBNAIL_CELLS), dtype=np.float32)
    edges = np.linspace(0, total, THUMBNAIL_CELLS + 1)
    starts, stops = np.floor(edges[:-1]).astype(int), np.ceil(edges[1:]).astype(int)
    # A column of zeros stands at the end, since reduceat takes no index behind the last value.
    sums = np.add.reduceat(np.pad(x_BV, ((0, 0), (0, 1))), np.stack([starts, stops], 1).ravel(), axis=1)[:, ::2]
    means_BC: NDArray[np.float32] = (sums / (stops - starts)).astype(np.float32)
    return means_BC


def _statistics(values: Tensor, layout: Layout) -> NDArray[np.float32]:
    found = slot_statistics(values, layout, "deviation")[..., list(STATISTICS.values())]
    return found.float().numpy()


def _in_bytes(means_nC: NDArray[np.float32]) -> tuple[NDArray[np.int8], float]:
    finite = np.abs(means_nC[np.isfinite(means_nC)])
    limit = float(np.percentile(finite, ROBUST_PERCENTILE)) if finite.size else 0.0
    limit = limit or float(finite.max(initial=0.0)) or 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.clip(np.nan_to_num(means_nC / limit, nan=0.0), -1, 1) * FULL
    found = np.round(scaled).astype(np.int8)
    found[~np.isfinite(means_nC)] = NOT_FINITE
    return found, limit
