"""Start of a command line as a process of its own: settings of the process, and Ctrl-C while Python still imports.

The settings hold for the whole process and for those that it starts, so only a command line makes them; a library must
not change its caller's process.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import FrameType

KEPT_BYTES = 512 << 20
LOAD = Path("/proc/loadavg")


def spins(load: Path = LOAD) -> str:
    """Return how often a waiting thread of GNU's OpenMP looks for work before it sleeps.

    Sleeping at once costs a quiet machine a fifth of a training's speed, and looking long takes the time that others
    need where cores are busy (benchmarks/results/README.md). A machine is quiet if at most half of its cores run
    something now; where that cannot be read, it counts as busy.
    """
    try:
        running = int(load.read_text().split()[3].partition("/")[0])  # this process is one of them
    except (OSError, ValueError, IndexError):
        return "1000"
    return "10000" if 2 * running <= (os.cpu_count() or 1) else "1000"


# OpenMP and glibc read these when they are loaded. Threads of OpenMP that wait for work would spin for milliseconds.
# The thresholds let workers of Ray and torchrun keep freed memory, see cli/allocator.py.
WAIT_POLICY, SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
ENVIRONMENT = {
    WAIT_POLICY: "PASSIVE",
    SPINS: spins(),
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
