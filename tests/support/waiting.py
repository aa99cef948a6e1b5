"""Waiting for what another thread or process does."""

import time


def wait_for(condition, seconds=60):
    """Return as soon as `condition()` holds; a test fails where it does not after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
