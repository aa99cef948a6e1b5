"""Batches that loaders give, and what stands in them beside the PReps: cut from tensors that are made once an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from prepkit.zoo.read._rows import Rows

Transform = Callable[[Any], Any]


class Batch(NamedTuple):
    """A batch of a loader that was asked for no columns.

    preps:     PReps `[B, H, W]`, or what a view made of them
    class_ids: ClassIds `[B]`, int64
    indices:   indices of the instances in the zoo or view `[B]`, int64
    """

    preps: Any
    class_ids: Tensor
    indices: Tensor


class BatchWithColumns(NamedTuple):
    """A batch of a loader that was asked for columns: what a Batch holds, and then the columns `[B]` by name."""

    preps: Any
    class_ids: Tensor
    indices: Tensor
    columns: dict[str, Tensor]


class Beside:
    """What stands beside the PReps in the batches of an epoch, on the device of the batches.

    indices: the epoch's instances in order, indices within the zoo
    columns: values of all instances of the zoo `[N]` by name; None if no columns were asked for
    """

    def __init__(
        self, zoo: Rows, indices: np.ndarray, columns: Mapping[str, Tensor] | None, device: torch.device
    ) -> None:
        import torch

        own = torch.from_numpy(indices)
        self.class_ids = zoo.class_ids(indices).to(device)
        self.indices = own.to(device)
        self.columns = None if columns is None else {name: values[own].to(device) for name, values in columns.items()}

    def batch(self, preps: Any, first: int, last: int) -> Batch | BatchWithColumns:
        """Return the batch of instances number `first` to `last` of the epoch, whose PReps these are."""
        class_ids, indices = self.class_ids[first:last], self.indices[first:last]
        if self.columns is None:
            return Batch(preps, class_ids, indices)
        return BatchWithColumns(
            preps, class_ids, indices, {name: values[first:last] for name, values in self.columns.items()}
        )
