"""Ctrl-C and SIGTERM at a time of the program's own choosing, and Ctrl-C that is not forgotten."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_noting: list[list[int]] = []  # the lists of `noted_interruption`, the innermost last


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list instead of dying of them, so that a step of work can be finished first.

    A second signal acts as it always did. Outside of the main thread no signal is deferred.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, handlers[signal.Signals(number)])

    for number in handlers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def noted_interruption() -> Iterator[list[int]]:
    """Collect each Ctrl-C in a list, beside the KeyboardInterrupt that it raises.

    Code in C or C++ that is interrupted while it calls Python, such as torch.save, makes another error of it; the list
    tells what the error came from. Where this is used inside itself, each list is told. Nothing is noted outside of the
    main thread, or where Ctrl-C is ignored.
    """
    received: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        for interruptions in _noting:
            interruptions.append(number)
        raise KeyboardInterrupt

    _noting.append(received)
    signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, handler)
        _noting.pop()
