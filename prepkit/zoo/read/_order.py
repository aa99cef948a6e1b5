"""The order in which a zoo's instances are visited: it depends on seed and epoch only, and is divided among ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from prepkit.errors import ZooError

BY_SHARDS = "shards"
SHARDS_TOGETHER = 8


@dataclass(frozen=True)
class Order:
    """The batches of every epoch for one rank.

    Each rank takes every `world_size`-th instance of one common order. So that all ranks have the same number of
    batches, the order is cut to a multiple of `world_size` if `drop_last`, and otherwise continued from its beginning.
    drop_last also leaves out a last batch that is smaller than the others.
    shuffle is "shards" to visit shards in random order, one at first, then two, four, and eight together, each group's
    instances shuffled: a zoo that comes from elsewhere can be trained on when its first shard is here.

    shards: number of the shard of each instance, `[N]`; needed for that order
    """

    num_instances: int
    batch_size: int
    shuffle: bool | str
    seed: int
    drop_last: bool
    rank: int
    world_size: int
    shards: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.shuffle not in (True, False, BY_SHARDS):
            raise ZooError(f"shuffle is {self.shuffle!r}; use True, False or '{BY_SHARDS}'.")
        if self.shuffle == BY_SHARDS and self.shards is None:
            raise ZooError(f"shuffle='{BY_SHARDS}' is for a zoo in files; in memory, True costs nothing.")
        if self.batch_size < 1:
            raise ZooError(f"batch_size is {self.batch_size}; a batch has at least one instance.")
        if not 0 <= self.seed < 1 << 64:
            raise ZooError(f"seed is {self.seed}; use a whole number from 0 to 2^64 - 1.")
        if not 0 <= self.rank < self.world_size:
            raise ZooError(f"rank is {self.rank} of a world of {self.world_size}; ranks count from 0.")

    @property
    def num_own(self) -> int:
        """The number of instances of this rank in an epoch, the same for all ranks."""
        if self.drop_last:
            return self.num_instances // self.world_size
        return math.ceil(self.num_instances / self.world_size)

    def __len__(self) -> int:
        """The number of batches of this rank in an epoch, the same for all ranks."""
        return self.num_own // self.batch_size if self.drop_last else math.ceil(self.num_own / self.batch_size)

    def instances(self, epoch: int) -> np.ndarray:
        """Return the instances that this rank visits in an epoch, in order."""
        if self.shuffle:
            generator = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64)))
            order_of_all = generator.permutation(self.num_instances)
            if self.shuffle == BY_SHARDS and self.shards is not None:
                group = grouped(generator.permutation(np.unique(self.shards)))
                order_of_all = order_of_all[np.argsort(group[self.shards[order_of_all]], kind="stable")]
        else:
            order_of_all = np.arange(self.num_instances)
        return np.resize(order_of_all, self.num_own * self.world_size)[self.rank :: self.world_size]

    def batches(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        """Return the batches of an epoch, from number `start` on."""
        own = self.instances(epoch)
        firsts = range(start * self.batch_size, len(self) * self.batch_size, self.batch_size)
        return [own[first : first + self.batch_size] for first in firsts]


def grouped(shards: np.ndarray) -> np.ndarray:
    """Return the number of the group of each shard, by the shard's number.

    shards: numbers in random order; the first is a group, then the next 2, 4, 8, 8 ... are
    """
    group = np.zeros(int(shards.max()) + 1 if len(shards) else 0, dtype=np.int64)
    start, number = 0, 0
    while start < len(shards):
        size = min(1 << number, SHARDS_TOGETHER)
        group[shards[start : start + size]] = number
        start, number = start + size, number + 1
    return group


class Position:
    """The epoch of a loader, and the number of batches that it has given."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.epoch = 0
        self.num_done = 0
        self._begun = False
        self._run = 0

    def begin(self) -> int:
        """Start the next epoch, or go on in one that was loaded, and return the number that `advance` asks for."""
        if self._begun:
            self.epoch, self.num_done = self.epoch + 1, 0
        self._begun = True
        self._run += 1
        return self._run

    def advance(self, run: int) -> None:
        """Count one more batch, unless a newer iterator has begun since."""
        if run == self._run:
            self.num_done += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the next batch to give, and the settings on which the order depends, JSON-able."""
        ended = self._begun and self.num_done >= len(self.order)
        epoch, batch = (self.epoch + 1, 0) if ended else (self.epoch, self.num_done)
        settings = {key: value for key, value in asdict(self.order).items() if key not in ("rank", "shards")}
        return {"epoch": epoch, "batch": batch, **settings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called.

        raises ZooError if the state is from another order
        """
        mine = self.state_dict()
        if state.keys() != mine.keys():
            raise ZooError(f"this is not the state of a loader: it has {sorted(state)}, not {sorted(mine)}.")
        different = [key for key in mine if key not in ("epoch", "batch") and state[key] != mine[key]]
        if different:
            values = ", ".join(f"{key} {state[key]} instead of {mine[key]}" for key in different)
            raise ZooError(f"the state is from a loader with {values}; make the loader with the same settings.")
        self.epoch, self.num_done, self._begun = int(state["epoch"]), int(state["batch"]), False
        self._run += 1
