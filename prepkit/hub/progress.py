"""How far a pull is: bytes and instances, told one call at a time though several threads count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock


@dataclass(frozen=True)
class State:
    """Bytes and instances that are there and right, and how many there will be."""

    bytes: int = 0
    total_bytes: int = 0
    instances: int = 0
    total_instances: int = 0


Progress = Callable[[State], None]


class Counter:
    """Counts, and tells."""

    def __init__(self, progress: Progress | None) -> None:
        self.state = State()
        self._progress = progress
        self._lock = Lock()

    def expect(self, num_bytes: int, instances: int) -> None:
        """Say how many there will be."""
        with self._lock:
            self.state = State(total_bytes=num_bytes, total_instances=instances)
            self._tell()

    def bytes(self, count: int) -> None:
        """So many more bytes are there."""
        with self._lock:
            self.state = replace(self.state, bytes=self.state.bytes + count)
            self._tell()

    def instances(self, count: int) -> None:
        """So many more instances are there, and right."""
        with self._lock:
            self.state = replace(self.state, instances=self.state.instances + count)
            self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self.state)
