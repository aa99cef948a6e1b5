"""A file system that has no locks at all: a file stands for the lock, and whoever a kill leaves out is told what to do.

Only `fcntl` says so here, in this process and in those that it starts.
"""

import fcntl
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from prepkit.api import open_zoo
from prepkit.errors import ZooError, ZooLocked
from prepkit.hub._shard_cache import alone
from prepkit.support.lock import changing, holder_of, take_lock
from prepkit.zoo.write.building import building
from prepkit.zoo.write.writer import ZooWriter

HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
import without_locks
from pathlib import Path
from prepkit.support.lock import take_lock
lock = take_lock(Path(sys.argv[2]), Path("zoo"))
print("held", flush=True)
time.sleep(60)
"""
WRITE = """
import sys, os, signal
sys.path.insert(0, sys.argv[1])
import without_locks
import torch
from prepkit.zoo.write.writer import ZooWriter
writer = ZooWriter(sys.argv[2])
writer.add({"w": torch.ones(2, 2)}, id="a")
os.kill(os.getpid(), signal.SIGKILL)
"""
HERE = str(Path(__file__).parent)
ELSEWHERE = "123\nanother-node\n"


@pytest.fixture(autouse=True)
def _without_locks(monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fcntl.flock)  # it comes back at the end
    monkeypatch.syspath_prepend(HERE)
    sys.modules.pop("without_locks", None)
    import without_locks  # noqa: F401

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # filelock would warn of a change of kind
        yield


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    file = tmp_path / "lock"
    arguments = [sys.executable, "-c", HOLD, HERE, str(file)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):
            with pytest.raises(
                ZooLocked,
                match=rf"^'zoo' is being written by process {holder.pid} on .*; wait for it, or stop it\. If that "
                rf"process runs no more, delete '{file}': this file system frees no locks\.$",
            ):
                take_lock(file, "zoo")
        assert holder_of(file).startswith(f"process {holder.pid} on ")
        holder.kill()
    assert holder_of(file) is None
    lock = take_lock(file, "zoo")
    with pytest.raises(
        ZooLocked, match=rf"process {os.getpid()} on .*, which is this one; close its writer, or `del` it\.$"
    ):
        take_lock(file, "zoo")
    lock.release()
    take_lock(file, "zoo").release()
    assert not file.exists()


def test_what_a_process_of_another_machine_left_is_named(tmp_path):
    file = tmp_path / "lock"
    file.write_text(ELSEWHERE)
    with pytest.raises(ZooLocked, match=rf"by process 123 on another-node; wait .* no more, delete '{file}': "):
        take_lock(file, "zoo")
    assert file.read_text() == ELSEWHERE
    file.unlink()
    take_lock(file, "zoo").release()


def test_a_zoo_whose_writer_was_killed_is_finished(tmp_path, forked_python):
    root = tmp_path / "zoo"
    assert forked_python.run("-c", WRITE, HERE, root).returncode == -9
    with pytest.raises(ZooError, match="interrupted"):
        open_zoo(root)
    with ZooWriter(root, resume=True) as writer:
        writer.add({"w": torch.zeros(2, 2)}, id="b")
        with pytest.raises(ZooError, match=rf"process {os.getpid()} on .* is writing it"):
            open_zoo(root)
    assert open_zoo(root).table["id"].to_pylist() == ["a", "b"]
    assert not (root / ".writing").exists()


def test_changes_and_buildings_leave_no_file_behind(tmp_path):
    with changing(tmp_path):
        assert [file.name for file in tmp_path.iterdir()] == [".prepkit.lock"]
    with building(tmp_path / "built") as folder:
        (folder / "x").write_text("x")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["built"]


def test_nobody_waits_for_a_fetcher_that_was_killed_elsewhere(tmp_path):
    (tmp_path / ".shard.lock").write_text(ELSEWHERE)
    with alone(tmp_path / "shards" / "shard"):
        pass
