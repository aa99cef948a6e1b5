"""Rows: what loaders need of a zoo or view. Zoo is one; a loader names this, so that zoos and loaders form no circle.

Shapes: N instances of the zoo or view, B of a batch, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from prepkit.prep.shape import PRepShape
from prepkit.zoo.format.manifest import Manifest

if TYPE_CHECKING:
    from torch import Tensor


class Rows(Protocol):
    """A zoo or view; indices count within it."""

    shape: PRepShape

    @property
    def manifest(self) -> Manifest:
        """All that zoo.json says."""

    @property
    def name(self) -> str:
        """The zoo's name."""

    def __len__(self) -> int: ...

    def numbers(self, indices: Any) -> np.ndarray:
        """Indices as an array of numbers from 0 to N - 1; raises IndexError."""

    def preps(self, indices: Any = None, *, out: Tensor | None = None) -> Tensor:
        """PReps `[B, H, W]` of these instances."""

    def class_ids(self, indices: Any = None) -> Tensor:
        """ClassIds `[B]`, int64."""

    @property
    def shard_numbers(self) -> np.ndarray:
        """The number of the shard that holds each instance, `[N]`."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the files that hold the instances."""

    def populate(self, indices: Any = None) -> None:
        """Map the files of these instances whole, now."""

    def ahead(self, batches: Sequence[np.ndarray]) -> AbstractContextManager[None]:
        """While inside, what these batches of indices need is fetched in that order, where it is elsewhere."""
