"""The lock on a folder, between processes."""

import os
import subprocess
import sys

import pytest

from prepkit.errors import ZooLocked
from prepkit.support.lock import take_lock

HOLD = """
import sys, time
from pathlib import Path
from prepkit.support.lock import take_lock
lock = take_lock(Path(sys.argv[1]), Path("zoo"))
print("held", flush=True)
time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    file = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):  # whoever asks must not blot out who holds it
            with pytest.raises(ZooLocked, match=rf"^'zoo' is being written by process {holder.pid} on .*; wait for it"):
                take_lock(file, "zoo")
        holder.kill()
    take_lock(file, "zoo").release()


def test_a_lock_is_given_back(tmp_path):
    file = tmp_path / "lock"
    file.write_text('{"pid": 1, "host": "elsewhere"}')  # left by a process that died
    lock = take_lock(file, "zoo")
    with pytest.raises(ZooLocked, match=f"by process {os.getpid()} on "):
        take_lock(file, "zoo")
    lock.release()
    lock.release()
    take_lock(file, "zoo").release()


@pytest.mark.parametrize(("text", "holder"), [("", "another process"), ("somebody", "somebody"), ("[]", r"\[\]")])
def test_a_holder_that_is_not_known(tmp_path, text, holder):
    file = tmp_path / "lock"
    lock = take_lock(file, "zoo")
    file.write_text(text)
    with pytest.raises(ZooLocked, match=f"being written by {holder}; "):
        take_lock(file, "zoo")
    lock.release()
