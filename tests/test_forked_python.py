"""A program that ForkedPython starts is told and tells the same as one that `python` starts."""

import os
import signal
import subprocess
import sys

import pytest

TOLD = """
import atexit, os, sys
print(__name__, sys.argv, sys.path[0], os.getcwd(), os.environ["COLOUR"], "prepkit" in sys.modules, sys.stdin.read())
atexit.register(print, "bye")
sys.exit(3)
"""


@pytest.mark.parametrize("how", ["-c", "-m", "file"])
def test_what_it_is_told(forked_python, tmp_path, how):
    (tmp_path / "told.py").write_text(TOLD)
    what = {"-c": ["-c", TOLD], "-m": ["-m", "told"], "file": [tmp_path / "told.py"]}[how]
    where = {"cwd": tmp_path, "env": {**os.environ, "COLOUR": "red"}}
    expected = subprocess.run(
        [sys.executable, *what, "a b"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **where
    )
    found = forked_python.run(*what, "a b", **where)
    assert (found.returncode, found.stdout, found.stderr) == (3, expected.stdout, "")
    assert "red False" in found.stdout
    assert found.stdout.endswith("\nbye\n")
    assert expected.returncode == 3


def test_how_it_ends(forked_python, tmp_path):
    done = forked_python.run("-c", "1 / 0")
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
    for number in (signal.SIGINT, signal.SIGKILL):
        begin = f"import os, time; os.mkdir({str(tmp_path / 'begun')!r})"  # to close a file would hide an interruption
        program = forked_python.start("-c", f"{begin}; time.sleep(60)")
        while not (tmp_path / "begun").exists():
            assert program.poll() is None
        program.send_signal(number)
        assert program.wait() == -number
        (tmp_path / "begun").rmdir()
    program = forked_python.start("-c", "import time; time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(timeout=0.01)
    program.kill()
    assert program.communicate() == ("", "")
