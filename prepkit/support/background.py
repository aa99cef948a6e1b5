"""Calls that are made beside the caller, one after another, such as the writing of files.

with Background() as background:
    background.call(write, values)     # waits for the call before it, and raises its error
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """A thread that makes one call at a time. Its errors are raised by the next `call`, or at the end of the block."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._last: Future[Any] | None = None

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
        finally:
            self._threads.shutdown()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Make a call once the one before is done; its arguments must not be changed meanwhile."""
        self.wait()
        self._last = self._threads.submit(function, *arguments)

    def wait(self) -> None:
        """Wait for the last call, and raise its error."""
        if self._last is None:
            return
        error = self._last.exception()  # where waiting is interrupted, the call is waited for again
        self._last = None
        if error is not None:
            raise error
