"""A pull that is interrupted or killed goes on, and two pulls into one folder do not mix."""

import contextlib
import json
import os
import shutil
import signal
import time

import pytest
from pull_samples import files_of
from waiting import wait_for

from prepkit.api import verify
from prepkit.errors import ZooError, ZooLocked
from prepkit.hub import _partial as partial
from prepkit.hub import _target as target
from prepkit.hub._target import WORK
from prepkit.hub.pull import pull
from prepkit.zoo.format.manifest import MANIFEST, read_manifest

pytestmark = pytest.mark.usefixtures("one_thread")


def test_two_at_once(filled, source, tmp_path, forked_python):
    path = read_manifest(source).shards[0].path
    filled.fault("hold", path)
    process = started(forked_python, filled, tmp_path, "me/zoo", tmp_path / "here")
    try:
        wait_for(lambda: (tmp_path / "here" / WORK / "request.json").exists())
        with pytest.raises(ZooLocked, match="is being written by"):
            pull("me/zoo", tmp_path / "here")
        filled.released.set()
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
    assert files_of(tmp_path / "here") == files_of(source)


def started(forked_python, hub, tmp_path, *arguments):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    return forked_python.start("-m", "prepkit", "pull", *arguments, env=environment)


@pytest.mark.xdist_group("time and memory")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("asked", [[], ["--where", "id != 'm0'"]], ids=["whole", "part"])
def test_interrupted_it_goes_on(filled, source, tmp_path, how, asked, forked_python):
    root = tmp_path / "here"
    shards = [shard.path for shard in read_manifest(source).shards]
    filled.fault("hold", shards[0], times=99)
    done = root / "shards"
    notes = root / WORK / partial.NOTES

    def all_but_one():
        finished = len(list(notes.glob("*.json"))) if asked else len(shards) - 1
        return done.is_dir() and len(list(done.iterdir())) == finished == len(shards) - 1

    process = started(forked_python, filled, tmp_path, "me/zoo", root, *asked)
    with contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        wait_for(all_but_one)
        begun = time.monotonic()
        process.send_signal(how)
        output, errors = process.communicate(timeout=30)
    assert time.monotonic() - begun < 5
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert errors == "interrupted; what came is kept. The same command goes on.\n"
        assert output == ""
    assert not (root / MANIFEST).exists()
    with pytest.raises(ZooError, match="unfinished"):
        read_manifest(root)
    filled.fault("hold", shards[0], times=0)
    filled.released.set()
    filled.forget()
    process = started(forked_python, filled, tmp_path, "me/zoo", root, *asked, "--json")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads(output)["instances"] == (5 if asked else 6)
    assert [path for path, _ in filled.bodies if path.startswith("shards/")] == [shards[0]]
    assert verify(root).ok
    assert verify(root).notes == ()
    if not asked:
        assert files_of(root) == files_of(source)


@pytest.mark.parametrize("step", ["record", "manifest", "cleaned"])
@pytest.mark.parametrize("asked", [{}, {"split": "train"}], ids=["whole", "part"])
def test_killed_at_the_end_it_is_finished(filled, source, tmp_path, monkeypatch, step, asked):
    """The last steps: the record is kept, zoo.json gets its place, what was before is removed."""

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        if step == "record":
            real = target.write_record
            patch.setattr(target, "write_record", lambda new, file: kill() if new.manifest else real(new, file))
        elif step == "manifest":
            real = os.replace
            patch.setattr(os, "replace", lambda a, b: kill() if b == tmp_path / "here" / MANIFEST else real(a, b))
        else:
            real = shutil.rmtree
            patch.setattr(shutil, "rmtree", lambda a, **k: kill() if str(a).endswith(WORK) else real(a, **k))
        with pytest.raises(Killed):
            pull("me/zoo", tmp_path / "here", **asked)
    filled.forget()
    pull("me/zoo", tmp_path / "here", **asked)
    assert not any(path.startswith("shards/") for path in filled.served())
    assert verify(tmp_path / "here").ok
    assert len(read_manifest(tmp_path / "here").splits) == (1 if asked else 2)
