"""Start of a command line as a process of its own: settings of the process, and Ctrl-C while Python still imports.

The settings hold for the whole process and for those that it starts, so only a command line makes them; a library must
not change its caller's process.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from types import FrameType

KEPT_BYTES = 512 << 20
# OpenMP and glibc read these when they are loaded. Threads of OpenMP that wait for work would spin for milliseconds,
# and on busy cores take the time that the working ones need. Those of GNU's OpenMP, which torch has on Linux, spin for
# some microseconds before they sleep, as sleeping at once costs a quiet machine more (benchmarks/results/README.md).
# The thresholds let workers of Ray and torchrun keep freed memory, see cli/allocator.py.
WAIT_POLICY, SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
ENVIRONMENT = {
    WAIT_POLICY: "PASSIVE",
    SPINS: "1000",
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
    "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),
}
INTERRUPTED = 130  # exit status; shells give 128 + the number of the signal
MESSAGE = "interrupted; no file is half written."


def run(module: str, name: str) -> None:
    """Run the command line `main` of a module as the program of that name; what the user set in advance is kept."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell lets background jobs ignore it
        signal.signal(signal.SIGINT, _leave)
    left_alone = {SPINS} if WAIT_POLICY in os.environ else set()  # a number of spins would overrule the user's policy
    for variable in ENVIRONMENT.keys() - left_alone:
        os.environ.setdefault(variable, ENVIRONMENT[variable])
    import_module(module).main(prog_name=name)


def _leave(number: int, frame: FrameType | None) -> None:
    """End the process at once, since an exception amid imports ends in a traceback; nothing is being written."""
    if "--json" in sys.argv:
        os.write(1, f'{{"error": {{"kind": "Interrupted", "message": "{MESSAGE}"}}}}\n'.encode())
    os.write(2, f"{MESSAGE}\n".encode())
    os._exit(INTERRUPTED)
