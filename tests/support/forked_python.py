"""Programs in Python that start at once: a process that has imported torch, and nothing of ours, forks one for each.

Importing torch takes more than a second, which is most of the time of a small program. A forked program has arguments,
an environment, a folder, streams and an end of its own, as one that `python` starts, and is killed like it. A test of
the start itself, such as of an option of `python`, takes `subprocess`.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import IO, Any

LONGEST = 1 << 20  # bytes of an order


class Program:
    """A program that was started. It is used as a `subprocess.Popen` is whose streams are pipes."""

    def __init__(self, parent: ForkedPython, pid: int, outputs: list[IO[bytes]]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._parent, self._outputs, self._texts = parent, outputs, ["", ""]

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._parent.ask({"wait": self.pid})
            if self.returncode is not None:
                self._texts = [text_of(output) for output in self._outputs]
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.002)
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Wait for the end; return what was written to the standard output and the standard error."""
        self.wait(timeout)
        return self._texts[0], self._texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def text_of(output: IO[bytes]) -> str:
    """Read a file of this module from its beginning, and close it; what a test opened for writing has no text."""
    if not output.readable():
        return ""
    with output:
        output.seek(0)
        return output.read().decode()


class ForkedPython:
    """Starts programs. It is made once for all tests of a worker, and closed at their end."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [sys.executable, __file__, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=settings
            )
        assert json.loads(self._ours.recv(LONGEST)) == "ready"

    def ask(self, order: dict[str, Any], descriptors: tuple[int, ...] = ()) -> Any:
        """Send an order and return the answer to it."""
        socket.send_fds(self._ours, [json.dumps(order).encode() + b"\n"], descriptors)
        return json.loads(self._ours.recv(LONGEST))

    def start(
        self,
        *arguments: object,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        stdout: IO[Any] | None = None,
    ) -> Program:
        """Start `python ARGUMENTS`; what it writes is kept, or goes to the file `stdout`."""
        order = {
            "arguments": [str(argument) for argument in arguments],
            "environment": dict(os.environ if env is None else env),
            "folder": str(cwd or Path.cwd()),
        }
        outputs = [stdout or tempfile.TemporaryFile(), tempfile.TemporaryFile()]  # noqa: SIM115 - a Program closes them
        pid = self.ask(order, tuple(output.fileno() for output in outputs))
        return Program(self, pid, outputs)

    def run(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Start a program as `start` does, and wait for its end."""
        program = self.start(*arguments, **options)
        stdout, stderr = program.communicate()
        return subprocess.CompletedProcess(arguments, program.returncode, stdout, stderr)

    def close(self) -> None:
        self._ours.close()
        self._process.wait()


def next_program(orders: socket.socket) -> dict[str, Any] | None:
    """Answer orders until their sender is gone, which is None; return the order of a program in the child for it."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(orders, LONGEST, 2)
        while message and not message.endswith(b"\n"):
            message += orders.recv(LONGEST)
        if not message:
            return None
        order = json.loads(message)
        if "wait" in order:
            pid, status = os.waitpid(order["wait"], os.WNOHANG)
            orders.sendall(json.dumps(os.waitstatus_to_exitcode(status) if pid else None).encode())
            continue
        pid = os.fork()
        if pid == 0:
            for number, descriptor in enumerate(descriptors, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            orders.close()
            return order
        for descriptor in descriptors:
            os.close(descriptor)
        orders.sendall(json.dumps(pid).encode())


def become(order: dict[str, Any]) -> None:
    """Run the program of an order in this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    what, *arguments = order["arguments"]
    path = os.environ.get("PYTHONPATH", "")
    first = {"-c": "", "-m": order["folder"]}.get(what, str(Path(what).parent))
    sys.path[:0] = [first, *filter(None, path.split(os.pathsep))]
    sys.argv = [what, *arguments[what in ("-c", "-m") :]]
    if what == "-m":
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.modules["__main__"] = ModuleType("__main__")
        exec(arguments[0], vars(sys.modules["__main__"]))
    else:
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    import torch  # noqa: F401
    import unflushed  # noqa: F401

    sys.path.pop(0)  # the folder of this file
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.sendall(b'"ready"')
    gc.freeze()  # an end would look at every object, and so copy the memory that a program shares with this process
    if found := next_program(connection):
        become(found)
