"""Rows: the part of a Zoo that loaders use. Loaders name this type, so that zoos and loaders do not import each other.

Shapes: N instances in the zoo or view, B instances in a batch, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from prepkit.prep.shape import PRepShape
from prepkit.zoo.format.manifest import Manifest

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from prepkit.zoo.read.gather import Gatherer


Change = Callable[[Any, Any], Any]  # makes what a learner reads of PReps and their ClassIds


class Rows(Protocol):
    """A zoo or view; indices count within it."""

    shape: PRepShape

    @property
    def manifest(self) -> Manifest:
        """The content of zoo.json."""

    @property
    def name(self) -> str:
        """The zoo's name."""

    @property
    def table(self) -> pa.Table:
        """The table, one row an instance."""

    def __len__(self) -> int: ...

    def numbers(self, indices: Any) -> np.ndarray:
        """Return indices as an array of numbers from 0 to N - 1; raises IndexError."""

    def preps(self, indices: Any = None, *, out: Tensor | None = None) -> Tensor:
        """Return the PReps `[B, H, W]` of these instances."""

    def class_ids(self, indices: Any = None) -> Tensor:
        """Return the ClassIds `[B]`, int64."""

    def gatherer(self, indices: np.ndarray, *, populate: bool) -> Gatherer:
        """Return what gathers the PReps of these instances, in this order, one batch after another."""

    @property
    def is_at_hand(self) -> bool:
        """Whether the values are in mapped files of this machine."""

    @property
    def shard_numbers(self) -> np.ndarray:
        """The number of the shard that holds each instance, `[N]`."""

    @property
    def num_bytes(self) -> int:
        """The number of bytes of the files that hold the instances."""

    def populate(self, indices: Any = None) -> None:
        """Read the files of these instances as a whole, now."""

    def ahead(self, batches: Sequence[np.ndarray]) -> AbstractContextManager[None]:
        """While inside, fetch in the background the remote shards that these batches of indices need, in that order."""
