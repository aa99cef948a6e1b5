"""One pass over the values of a zoo: sums of bytes, what is not finite or constant, and features that find near copies.

A feature is a projection of unit length, so that the distance of two networks' features is never more than that of
their weights. Features of sorted values do not depend on the order of hidden units either. So a search among the
features misses no pair.
Shapes: N instances, B instances in a batch, V values of a network, F features.
"""

# ruff: noqa: N803, N806, N815 - names of arrays end in their axes

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from prepkit.prep.layout import Layout
from prepkit.support.progress import Advance
from prepkit.zoo.read.gather import words
from prepkit.zoo.read.in_shard_order import batches, numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from prepkit.zoo.read.zoo import Zoo

    Array = NDArray[np.float64]
    Rows = NDArray[np.int64]
    Labels = Callable[[Rows, Rows], tuple[Rows, Rows]]

FEATURES = 32  # of each of the two kinds
DENSE = 1_000  # near pairs in a block, from which on those that are known already are left out at once


@dataclass(frozen=True)
class OneLayout:
    """The instances of a zoo that have tensors of the same names and shapes, as far as their values are finite.

    rows:            their rows in the table, [N]
    plain_NF:        projections of the values as they stand
    sorted_NF:       projections of the sorted values of each tensor
    norms_N:         norms of all values
    """

    layout: Layout
    architecture: str
    rows: Rows
    plain_NF: Array
    sorted_NF: Array
    norms_N: Array


@dataclass
class Measured:
    """What one pass over the values found.

    digests:    sum of the bytes of each instance with its tensors' names and shapes
    not_finite: by row, number of values that are NaN or infinite
    one_value:  rows whose weights are all the same value
    zeros:      by row, the tensors of two or more axes that hold only 0
    layouts:    instances by the names and shapes of their tensors
    """

    digests: list[bytes]
    not_finite: dict[int, int] = field(default_factory=dict)
    one_value: list[int] = field(default_factory=list)
    zeros: dict[int, list[str]] = field(default_factory=dict)
    layouts: dict[bytes, OneLayout] = field(default_factory=dict)


def measure(zoo: Zoo, progress: Advance | None = None) -> Measured:
    """Read all values of a zoo once, in the order of its shards, a few instances at a time.

    progress: is called with a number of instances each time that many more were read
    """
    found = Measured([b""] * len(zoo))
    parts: dict[bytes, list[OneLayout]] = {}
    for rows, architecture, layout, values in batches(zoo):
        key = key_of(layout)
        part = _measured(rows, architecture, layout, values, key, found)
        parts.setdefault(key, []).append(part)
        if progress is not None:
            progress(len(rows))
    found.layouts = {key: _joined(own) for key, own in parts.items()}
    return found


def key_of(layout: Layout) -> bytes:
    """Return a sum of the names and shapes of all tensors; networks of different sums are not compared."""
    text = repr([(slot.name, slot.shape) for slot in layout])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _measured(rows: Rows, architecture: str, layout: Layout, values: Tensor, key: bytes, found: Measured) -> OneLayout:
    own_BV = words(values)
    for row, line in zip(rows.tolist(), own_BV, strict=True):
        start = key + str(values.dtype).encode()
        found.digests[row] = hashlib.blake2b(start + line.tobytes(), digest_size=16).digest()
    x_BV = numbers(values)
    wrong_B = (~np.isfinite(x_BV)).sum(1)
    found.not_finite.update((row, count) for row, count in zip(rows.tolist(), wrong_B.tolist(), strict=True) if count)
    finite = wrong_B == 0
    rows, x_BV = rows[finite], x_BV[finite] + 0.0  # -0.0 becomes 0.0
    if x_BV.shape[1] > 1:
        found.one_value += rows[(x_BV == x_BV[:, :1]).all(1)].tolist()
    sorted_BV = np.empty_like(x_BV)
    for slot in layout:
        own = x_BV[:, slot.start : slot.stop]
        if len(slot.shape) > 1:
            for row in rows[~own.any(1)].tolist():
                found.zeros.setdefault(row, []).append(slot.name)
        sorted_BV[:, slot.start : slot.stop] = np.sort(own, axis=1)
    starts = _starts(layout)
    signs_V = np.random.default_rng(0).integers(0, 2, layout.total, dtype=np.int8) * 2 - 1
    return OneLayout(
        layout,
        architecture,
        rows,
        projected(x_BV * signs_V.astype(x_BV.dtype), starts),
        projected(sorted_BV, starts),
        np.sqrt(np.einsum("bv,bv->b", x_BV, x_BV, dtype=np.float64)),
    )


def _starts(layout: Layout) -> NDArray[np.int64]:
    """Return where the blocks of values begin whose sums are features; blocks of small networks keep to one tensor."""
    slots = [slot for slot in layout if slot.size]
    if not slots:
        return np.zeros(0, dtype=np.int64)
    even = np.linspace(0, layout.total, FEATURES + 1)[:-1].astype(np.int64)
    if len(slots) <= FEATURES:
        blocks = FEATURES // len(slots)
        even = np.concatenate([slot.start + np.arange(blocks) * slot.size // blocks for slot in slots])
    return np.unique(even)


def projected(x_BV: NDArray[np.floating], starts: NDArray[np.int64]) -> Array:
    """Return the sums of blocks, divided by the roots of their sizes."""
    if not len(starts):
        return np.zeros((len(x_BV), 0))
    sizes = np.diff([*starts.tolist(), x_BV.shape[1]])
    sums: Array = np.add.reduceat(x_BV, starts, axis=1, dtype=np.float64)
    return sums / np.sqrt(sizes)


def _joined(parts: list[OneLayout]) -> OneLayout:
    arrays = ([getattr(part, name) for part in parts] for name in ("rows", "plain_NF", "sorted_NF", "norms_N"))
    return OneLayout(parts[0].layout, parts[0].architecture, *map(np.concatenate, arrays))


def candidates(
    first_NF: Array,
    first_norms: Array,
    second_NF: Array,
    second_norms: Array,
    tolerance: float,
    labels: Labels | None = None,
) -> Iterator[tuple[int, int]]:
    """Yield all pairs whose features are within `tolerance` times the larger norm, and perhaps a few more.

    first_NF, second_NF: features; the same array twice gives each pair once, and no instance with itself
    labels:              returns a number for each of these first and second instances; a pair whose numbers are equal
                         is known already, and may be left out
    """
    if not len(first_NF) or not len(second_NF):
        return
    same = first_NF is second_NF
    centre_F = second_NF.mean(0)
    a, b = first_NF - centre_F, second_NF - centre_F
    axis = np.linalg.eigh(b.T @ b)[1][:, -1] if b.shape[1] else np.zeros(0)
    order_a, order_b = np.argsort(a @ axis, kind="stable"), np.argsort(b @ axis, kind="stable")
    a, b, norms_a, norms_b = a[order_a], b[order_b], first_norms[order_a], second_norms[order_b]
    along_a, along_b = a @ axis, b @ axis
    squares_a, squares_b = (a * a).sum(1), (b * b).sum(1)
    reach = tolerance * max(float(norms_a.max()), float(norms_b.max())) * (1 + 1e-9)
    reach += 1e-12 * math.sqrt(max(float(squares_a.max()), float(squares_b.max()), 1e-300))
    for start in range(0, len(a), 256):
        rows = slice(start, min(start + 256, len(a)))
        low = int(np.searchsorted(along_b, along_a[rows][0] - reach))
        high = int(np.searchsorted(along_b, along_a[rows][-1] + reach, side="right"))
        for left in range(max(low, start) if same else low, high, 4096):
            columns = slice(left, min(left + 4096, high))
            distance = squares_a[rows, None] + squares_b[columns] - 2 * (a[rows] @ b[columns].T)
            scale = tolerance * np.maximum(norms_a[rows, None], norms_b[columns])
            slack = 1e-12 * (squares_a[rows, None] + squares_b[columns])  # of rounding in the line before
            near = distance <= scale * scale * (1 + 1e-6) + slack
            if labels is not None and np.count_nonzero(near) > DENSE:
                known_a, known_b = labels(order_a[rows], order_b[columns])
                near &= known_a[:, None] != known_b
            for i, j in np.argwhere(near).tolist():
                if not same or start + i < left + j:
                    yield int(order_a[start + i]), int(order_b[left + j])
