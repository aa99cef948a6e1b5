"""Time and peak memory of one learner."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # see the manual page proc(5)


@dataclass
class Meter:
    """What a learner took.

    seconds:    of the clock
    peak_bytes: how much more memory the process held at its peak than before; None where the system does not tell
    """

    seconds: float = 0.0
    peak_bytes: int | None = None


@contextmanager
def metered() -> Iterator[Meter]:
    """Measure what is done inside. Memory on GPUs is not counted."""
    meter = Meter()
    with suppress(OSError, AttributeError):  # freed memory that stays with the process would hide what is allocated
        ctypes.CDLL(None).malloc_trim(0)
    before = _resident_after_reset()
    start = time.perf_counter()
    try:
        yield meter
    finally:
        meter.seconds = time.perf_counter() - start
        if before is not None:
            meter.peak_bytes = max(0, _status("VmHWM") - before)


def _resident_after_reset() -> int | None:
    """Return the bytes that the process holds, from which its peak counts anew; None where that cannot be done."""
    try:
        RESET.write_text(RESET_PEAK)
        return _status("VmRSS")
    except (OSError, ValueError, StopIteration):
        return None


def _status(key: str) -> int:
    return next(int(line.split()[1]) << 10 for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
