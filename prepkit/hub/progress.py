"""Progress of a pull in bytes and instances, reported by one call at a time although several threads count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock


@dataclass(frozen=True)
class PullProgress:
    """Bytes and instances that came and are right, and how many there will be."""

    bytes: int = 0
    total_bytes: int = 0
    instances: int = 0
    total_instances: int = 0


Report = Callable[[PullProgress], None]


class Counter:
    """Counts bytes and instances for several threads, and reports each change."""

    def __init__(self, report: Report | None) -> None:
        self._state = PullProgress()
        self._report = report
        self._lock = Lock()

    def expect(self, num_bytes: int, instances: int) -> None:
        """Begin anew, with totals."""
        with self._lock:
            self._set(PullProgress(total_bytes=num_bytes, total_instances=instances))

    def add_bytes(self, count: int) -> None:
        """Count bytes that came."""
        with self._lock:
            self._set(replace(self._state, bytes=self._state.bytes + count))

    def add_instances(self, count: int) -> None:
        """Count instances that came and are right."""
        with self._lock:
            self._set(replace(self._state, instances=self._state.instances + count))

    def _set(self, state: PullProgress) -> None:
        self._state = state
        if self._report is not None:
            self._report(state)
