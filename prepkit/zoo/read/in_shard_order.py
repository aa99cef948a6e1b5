"""Reading the values of a zoo or view in the order of its shards, a few instances of one architecture at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from prepkit.prep.layout import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from prepkit.zoo.read.zoo import Zoo

BATCH_BYTES = 16 << 20  # of values in float64 that are looked at together


def batches(zoo: Zoo) -> Iterator[tuple[NDArray[np.int64], str, Layout, Tensor]]:
    """Yield rows of the table with architecture, layout and values `[B, V]`, in the order of the shards."""
    manifest = zoo.manifest
    shards = np.array(zoo.table["shard"].to_pylist(), dtype=np.int64)
    order = np.lexsort((np.array(zoo.table["row"].to_pylist(), dtype=np.int64), shards))
    for own in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
        if not len(own):
            continue
        stored = manifest.architecture(manifest.shards[int(shards[own[0]])].architecture)
        step = max(1, BATCH_BYTES // (8 * max(1, stored.layout.total)))
        for first in range(0, len(own), step):
            rows = own[first : first + step]
            yield rows, stored.name, stored.layout, zoo.values(rows)


def numbers(values: Tensor) -> NDArray[np.floating]:
    """Return values of any dtype as float32 or float64, which hold them exactly."""
    import torch

    return values.to(torch.promote_types(values.dtype, torch.float32)).numpy()
