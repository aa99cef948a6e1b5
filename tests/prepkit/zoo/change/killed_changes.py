"""Kill a change of a zoo at each call that changes a file or a folder, in processes of their own."""

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

CHANGES = (
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.truncate",
    "shutil.rmtree",
    "shutil.copyfile",
)
CONTEXT = multiprocessing.get_context("fork")


def _changes_a_file(event: str, arguments: tuple[object, ...]) -> bool:
    if event == "open":
        flags = arguments[2]
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in CHANGES


def _run(change: Callable[[Path], object], root: Path, last: int, counted: object) -> None:
    """Make the change in this process, and kill it at the call number `last`, counted from 0."""

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if _changes_a_file(event, arguments):
            if counted.value == last:  # type: ignore[attr-defined]
                os.kill(os.getpid(), signal.SIGKILL)
            counted.value += 1  # type: ignore[attr-defined]

    sys.addaudithook(watch)
    change(root)


def killed(change: Callable[[Path], object], root: Path, copies: Path) -> Iterator[Path]:
    """Yield a copy of a zoo for each call that changes a file, after a process was killed right before that call."""
    last = 0
    while True:
        copy = copies / f"killed-at-{last}"
        shutil.copytree(root, copy)
        counted = CONTEXT.Value("i", 0)
        process = CONTEXT.Process(target=_run, args=(change, copy, last, counted))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
        if process.exitcode == 0:
            assert counted.value == last > 0
            return
        yield copy
        last += 1
