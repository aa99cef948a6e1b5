"""Order and budget of threads that fetch shards ahead of a loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from threading import Condition, Lock


class SharedIterator:
    """Gives numbers to several threads that take turns: each number once, in their order."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = iter(numbers)
        self._given: set[int] = set()
        self._lock = Lock()

    def __iter__(self) -> Iterator[int]:
        while (number := self._next()) is not None:
            yield number

    def _next(self) -> int | None:
        with self._lock:
            number = next((number for number in self._numbers if number not in self._given), None)
            if number is not None:
                self._given.add(number)
            return number


class PrefetchBudget:
    """Limits the bytes of shards that were fetched ahead and are not in use yet; who would exceed it waits."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._unused: dict[int, int] = {}  # number of a shard -> its size
        self._changed = Condition()
        self._round = 0

    def reserve(self, number: int, size: int) -> bool:
        """Wait until there is room for one more shard; return False if the budget was cleared meanwhile."""
        with self._changed:
            current = self._round
            self._changed.wait_for(lambda: current != self._round or self._has_room_for(size))
            if current == self._round:
                self._unused[number] = size
            return current == self._round

    def release(self, number: int) -> None:
        """Note that a shard is in use now."""
        if number in self._unused:
            with self._changed:
                self._unused.pop(number, None)
                self._changed.notify_all()

    def clear(self) -> None:
        """Forget all shards, and send those who wait away."""
        with self._changed:
            self._unused.clear()
            self._round += 1
            self._changed.notify_all()

    def _has_room_for(self, size: int) -> bool:
        return not self._unused or sum(self._unused.values()) + size <= self.num_bytes
