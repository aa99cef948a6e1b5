"""Signals that wait until a step of work is finished."""

import os
import signal
import threading

import pytest

from prepkit.support.signals import deferred_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_collected_and_the_second_acts_as_always(number: signal.Signals) -> None:
    acted: list[int] = []
    before = signal.signal(number, lambda received, frame: acted.append(received))
    try:
        with deferred_signals() as received:
            assert received == []
            os.kill(os.getpid(), number)
            assert (received, acted) == ([number], [])
            os.kill(os.getpid(), number)
            assert (received, acted) == ([number], [number])
        os.kill(os.getpid(), number)
        assert (received, acted) == ([number], [number, number])
    finally:
        signal.signal(number, before)


def test_other_threads_defer_nothing() -> None:
    handlers = []

    def work() -> None:
        with deferred_signals() as received:
            handlers.append((signal.getsignal(signal.SIGINT), received))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [(before, [])]
