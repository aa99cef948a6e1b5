"""Memory that a training gives back a thousand times a second, kept for the next time."""

from __future__ import annotations

import ctypes
import sys

KEPT_BYTES = 512 << 20
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of mallopt(3)


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks instead of returning them to the system, which costs their page faults.

    Of this process, from now on. Does nothing where the C library is another one than glibc.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(MMAP_THRESHOLD, KEPT_BYTES)
