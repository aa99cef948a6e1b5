"""A start that is fitted to many items at once: the task of its one network, whose batches hold points of all items.

Only items of training instances may be among them: a network that has seen a test item would bring it into the zoo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from prepkit.tasks.randomness import stream_seed
from prepkit.tasks.task import EVALUATION_BATCH, Task, TaskBatch


@dataclass(frozen=True)
class Fit:
    """What a start is fitted to: the items, and in how many steps."""

    items: tuple[int, ...]
    steps: int

    def epochs(self, task: Task, batch_size: int) -> int:
        """The number of epochs that hold the steps; the last one may be cut short."""
        return -(-self.steps // task.num_batches(batch_size))


class TaskOfAll:
    """The task of one network that is trained on all items of a fit at once; it is evaluated on none.

    Each batch holds as many points of every item, an even number, together at least the batch size. So half of them
    are inside a shape, as in the batches of one item.
    """

    def __init__(self, task: Task, fit: Fit) -> None:
        self.task, self.fit = task, fit
        self.record: Mapping[str, Any] = task.record
        self.splits: Mapping[str, int] = task.splits
        self.input_shape, self.num_outputs = task.input_shape, task.num_outputs

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        return self.task.device

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TaskOfAll:
        """The same task with its data on a device."""
        return TaskOfAll(self.task.to(device, dtype), self.fit)

    def num_batches(self, batch_size: int) -> int:
        """The number of steps of an epoch that is not cut short."""
        return self.task.num_batches(batch_size)

    def batches(self, seeds: Sequence[int], items: Sequence[int], epoch: int, batch_size: int) -> Iterator[TaskBatch]:
        """The batches of an epoch for one network, `[1, B, ...]`; `items` are not used."""
        (seed,) = seeds
        of_each = 2 * -(-batch_size // (2 * len(self.fit.items)))
        own_seeds = [self.seed_of(seed, item) for item in self.fit.items]
        left = self.fit.steps - epoch * self.num_batches(batch_size)
        for batch in islice(self.task.batches(own_seeds, self.fit.items, epoch, of_each), left):
            yield TaskBatch(batch.inputs.flatten(0, 1)[None], batch.targets.flatten(0, 1)[None])

    def seed_of(self, seed: int, item: int) -> int:
        """The seed of the points of an item, as no two shapes should have the same draws."""
        return stream_seed("points of a start", seed, item)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of the network, `[1]`."""
        return self.task.losses(outputs, targets)

    def evaluate(
        self, run: Callable[[Tensor], Tensor], items: Sequence[int], split: str, batch_size: int = EVALUATION_BATCH
    ) -> dict[str, Tensor]:
        """Evaluate the network on items of the task."""
        return self.task.evaluate(run, items, split, batch_size)
