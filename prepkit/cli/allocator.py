"""Settings of the C library for freed memory: a training frees and requests it a thousand times a second.

They hold for the whole process, so only a command line makes them; a library must not change its caller's process.
"""

from __future__ import annotations

import ctypes
import sys

from prepkit.program import KEPT_BYTES

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)


def keep_freed_memory() -> None:
    """Let this process keep freed memory instead of returning it to the system: asking again costs page faults.

    Nothing changes where the C library is not glibc.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(MMAP_THRESHOLD, KEPT_BYTES)
