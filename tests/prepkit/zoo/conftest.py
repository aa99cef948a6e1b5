"""The process that all tests of kills share, since it takes seconds to start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import killed_writer
import pytest


class Killer:
    """Runs killed_writer.py."""

    def __init__(self, folder: Path) -> None:
        script = Path(killed_writer.__file__)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, **order: object) -> dict:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="session")
def killer(tmp_path_factory):
    killer = Killer(tmp_path_factory.mktemp("warm"))
    yield killer
    killer.stop()
