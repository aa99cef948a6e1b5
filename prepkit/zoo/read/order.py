"""In which order a zoo's instances are visited: a function of seed and epoch only, divided among ranks."""

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

    shards: of each instance, for that order
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
        """Instances of this rank in an epoch, the same for all ranks."""
        if self.drop_last:
            return self.num_instances // self.world_size
        return math.ceil(self.num_instances / self.world_size)

    def __len__(self) -> int:
        """Batches of this rank in an epoch, the same for all ranks."""
        return self.num_own // self.batch_size if self.drop_last else math.ceil(self.num_own / self.batch_size)

    def instances(self, epoch: int) -> np.ndarray:
        """The instances that this rank visits in an epoch, in order."""
        if self.shuffle:
            generator = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64)))
            everyone = generator.permutation(self.num_instances)
            if self.shuffle == BY_SHARDS and self.shards is not None:
                group = grouped(generator.permutation(np.unique(self.shards)))
                everyone = everyone[np.argsort(group[self.shards[everyone]], kind="stable")]
        else:
            everyone = np.arange(self.num_instances)
        return np.resize(everyone, self.num_own * self.world_size)[self.rank :: self.world_size]

    def batches(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        """The batches of an epoch from number `start` on."""
        own = self.instances(epoch)
        firsts = range(start * self.batch_size, len(self) * self.batch_size, self.batch_size)
        return [own[first : first + self.batch_size] for first in firsts]


def grouped(shards: np.ndarray) -> np.ndarray:
    """For each number of a shard, the number of its group: one shard, then 2, 4, 8, 8 ... in the order given."""
    group = np.zeros(int(shards.max()) + 1 if len(shards) else 0, dtype=np.int64)
    start, number = 0, 0
    while start < len(shards):
        size = min(1 << number, SHARDS_TOGETHER)
        group[shards[start : start + size]] = number
        start, number = start + size, number + 1
    return group


class Position:
    """How far a loader has come: which epoch, how many of its batches. Shared by all loaders."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.epoch = 0
        self.num_done = 0
        self._begun = False
        self._run = 0

    def begin(self) -> int:
        """Start the next epoch, or go on in one that was loaded; returns what `advance` wants to know."""
        if self._begun:
            self.epoch, self.num_done = self.epoch + 1, 0
        self._begun = True
        self._run += 1
        return self._run

    def advance(self, run: int) -> None:
        """One more batch was given out; an iterator that another has followed counts no more."""
        if run == self._run:
            self.num_done += 1

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: the next batch to give out, and what the order depends on."""
        ended = self._begun and self.num_done >= len(self.order)
        epoch, batch = (self.epoch + 1, 0) if ended else (self.epoch, self.num_done)
        settings = {key: value for key, value in asdict(self.order).items() if key not in ("rank", "shards")}
        return {"epoch": epoch, "batch": batch, **settings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called.

        raises ZooError if the state is that of another order
        """
        mine = self.state_dict()
        if state.keys() != mine.keys():
            raise ZooError(f"not the state of a loader: it has {sorted(state)}, not {sorted(mine)}.")
        different = [key for key in mine if key not in ("epoch", "batch") and state[key] != mine[key]]
        if different:
            told = ", ".join(f"{key} {state[key]} instead of {mine[key]}" for key in different)
            raise ZooError(f"the state is of a loader with {told}; make the loader with the same settings.")
        self.epoch, self.num_done, self._begun = int(state["epoch"]), int(state["batch"]), False
        self._run += 1
