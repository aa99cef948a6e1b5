"""Whatever goes wrong on the way, a pull recovers or says what to do, and never leaves a wrong zoo."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from huggingface_hub import constants
from pushed_zoos import write_zoo

from prepkit.api import open_zoo, verify
from prepkit.errors import HubError, OutputError, ZooError, ZooLocked
from prepkit.hub import _failures as failures
from prepkit.hub import _fetch as fetch
from prepkit.hub import _partial as partial
from prepkit.hub import _target as target
from prepkit.hub._target import WORK
from prepkit.hub.pull import pull, pull_zoo
from prepkit.hub.selection import RECORD
from prepkit.zoo.card.card import write_card
from prepkit.zoo.format.manifest import MANIFEST, manifest_bytes, read_manifest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = write_zoo(tmp_path_factory.mktemp("source") / "zoo", teacher=True)
    write_card(root)
    return root


@pytest.fixture
def filled(hub, source, monkeypatch):
    """The server with the zoo as me/zoo; nobody waits long between attempts."""
    monkeypatch.setattr(failures, "FIRST_PAUSE_SECONDS", 0.01)
    hub.add("me/zoo", files_of(source))
    return hub


def files_of(root):
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {path: file.read_bytes() for path, file in files.items() if path != RECORD.as_posix()}


def one_of_each(source):
    manifest = read_manifest(source)
    return [MANIFEST, manifest.table.path, manifest.shards[2].path, manifest.teacher.path]


KINDS = ["manifest", "table", "shard", "teacher"]


@pytest.fixture
def path(request, source):
    return dict(zip(KINDS, one_of_each(source), strict=True))[request.param]


# On the way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["flip", "truncate", "busy", "busy body"])
@pytest.mark.parametrize("path", KINDS[1:], indirect=True)
def test_once_is_no_harm(filled, source, tmp_path, path, fault):
    filled.fault(fault, path)
    assert files_of(pull("me/zoo", tmp_path / "here")) == files_of(source)


@pytest.mark.parametrize("fault", ["flip", "truncate", "busy body"])
def test_bytes_that_come_twice_are_counted_once(filled, source, tmp_path, fault, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    manifest, states = read_manifest(source), []
    for shard in manifest.shards:
        filled.fault(fault, shard.path)
    pull("me/zoo", tmp_path / "here", progress=states.append)
    counts = [state.bytes for state in states]
    assert counts == sorted(counts)
    assert counts[-1] == states[0].total_bytes == manifest.table.bytes + sum(shard.bytes for shard in manifest.shards)


def test_a_dropped_connection_is_no_harm(filled, source, tmp_path):
    filled.fault("drop", read_manifest(source).shards[0].path)
    assert files_of(pull("me/zoo", tmp_path / "here")) == files_of(source)


@pytest.mark.parametrize("path", KINDS, indirect=True)
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("flip", "damaged"),
        ("truncate", "another size than announced"),
        ("hide", "does not have that file|is no zoo: the repository has no zoo.json"),
    ],
)
def test_always_is_told_and_leaves_no_zoo(filled, source, tmp_path, path, fault, told):
    filled.fault(fault, path, times=99)
    with pytest.raises((HubError, ZooError), match=told) as caught:
        pull("me/zoo", tmp_path / "here")
    assert caught.type in (HubError, ZooError)  # the command line prints the name of the type
    assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "here" / MANIFEST).exists()
    with pytest.raises(ZooError):
        read_manifest(tmp_path / "here")
    filled.fault(fault, path, times=0)
    assert files_of(pull("me/zoo", tmp_path / "here")) == files_of(source)


def test_always_busy(filled, source, tmp_path, monkeypatch):
    """The client itself repeats requests for metadata; when a body is answered with 503, prepkit has to."""
    path = read_manifest(source).shards[0].path
    filled.fault("busy body", path, times=99)
    with pytest.raises(HubError, match="busy or broken just now") as caught:
        pull("me/zoo", tmp_path / "here")
    assert (caught.value.repo, caught.value.status) == ("me/zoo", 503)
    assert not (tmp_path / "here" / MANIFEST).exists()


def test_a_failure_keeps_what_came(filled, source, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_THREADS", 1)  # one file after another
    path = read_manifest(source).shards[-1].path
    filled.fault("flip", path, times=99)
    with pytest.raises(HubError, match=f"hf://me/zoo@{filled.head('me/zoo')}/{path} came damaged 4 times"):
        pull("me/zoo", tmp_path / "here")
    kept = {file for file in files_of(tmp_path / "here") if not file.startswith(WORK)}
    assert kept >= {shard.path for shard in read_manifest(source).shards[:-1]}
    assert path not in kept
    assert not (tmp_path / "here" / WORK / path).exists()
    filled.fault("flip", path, times=0)
    filled.forget()
    pull("me/zoo", tmp_path / "here")
    assert not {served for served, _ in filled.bodies} & kept
    assert files_of(tmp_path / "here") == files_of(source)


def test_a_newer_version_comes_while_an_older_one_is_half_here(filled, source, tmp_path):
    newer = write_zoo(tmp_path / "newer", count=4, seed=50)
    path = read_manifest(source).shards[-1].path
    filled.fault("flip", path, times=99)
    with pytest.raises(HubError):
        pull("me/zoo", tmp_path / "here")
    files = files_of(newer)
    filled.add("me/zoo", files)
    pull("me/zoo", tmp_path / "here")
    write_card(newer)
    beside = {"README.md": (newer / "README.md").read_bytes(), "card.png": files_of(source)["card.png"]}
    assert files_of(tmp_path / "here") == {**files, **beside}


def test_an_unfinished_pull_of_something_else_is_not_mixed_up(filled, source, tmp_path):
    filled.fault("flip", read_manifest(source).shards[-1].path, times=99)
    with pytest.raises(HubError):
        pull("me/zoo", tmp_path / "here")
    with pytest.raises(OutputError, match=r"unfinished pull of something else \(me/zoo, the whole zoo\)"):
        pull("me/zoo", tmp_path / "here", split="train")
    assert len(read_manifest(pull("me/zoo", tmp_path / "here", split="train", force=True)).splits) == 1
    assert verify(tmp_path / "here").notes == ()


def test_parts_are_not_mixed_up(filled, source, tmp_path, monkeypatch):
    """Each of two selections takes one row of the first shard, but another one."""
    monkeypatch.setattr(fetch, "MAX_THREADS", 1)
    root, shards = tmp_path / "here", read_manifest(source).shards
    filled.fault("flip", shards[-1].path, times=99)
    with pytest.raises(HubError):
        pull("me/zoo", root, where="id != 'm0'")
    assert list((root / WORK / "whole").iterdir()) == []
    filled.fault("flip", shards[-1].path, times=0)
    pull("me/zoo", root, where="id != 'm2'", force=True)
    part, meant = open_zoo(root), open_zoo(source).where("id != 'm2'")
    assert part.table["id"].to_pylist() == meant.table["id"].to_pylist()
    assert torch.equal(part.preps(), meant.preps())


# What a repository may hold -----------------------------------------------------------------------------------


def test_a_repository_that_is_no_zoo(hub, tmp_path):
    hub.add("me/data", {"train.csv": b"a,b"})
    with pytest.raises(ZooError, match=r"hf://me/data@\w{40} is no zoo: the repository has no zoo.json"):
        pull("me/data", tmp_path / "here")
    hub.add("me/data", {"zoo.json": b'{"animals": ["lion"]}'})
    with pytest.raises(ZooError, match=r"hf://me/data@\w{40}/zoo.json: not a prepkit zoo, its format is None"):
        pull("me/data", tmp_path / "here")
    hub.add("me/data", {"zoo.json": b'{"format": "prepkit-zoo/9"}'})
    with pytest.raises(ZooError, match="upgrade prepkit"):
        pull("me/data", tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_malicious_path_in_the_tree_is_never_asked_for(filled, source, tmp_path):
    filled.extra = ["../../evil.txt", "shards/../../evil.txt", "/etc/evil"]
    before = set(tmp_path.iterdir())
    root = pull("me/zoo", tmp_path / "a" / "b" / "here")
    assert files_of(root) == files_of(source)
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"a", "hf_home"}
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("path", ["../evil.safetensors", "/tmp/evil.safetensors", "shards/../../evil", "zoo.json/x/.."])
@pytest.mark.parametrize("kind", ["shards", "table", "teacher"])
def test_a_malicious_path_in_the_manifest_is_refused(hub, source, tmp_path, path, kind):
    data = read_manifest(source)
    if kind == "shards":
        data = replace(data, shards=(replace(data.shards[0], path=path), *data.shards[1:]))
    else:
        data = replace(data, **{kind: replace(getattr(data, kind), path=path)})
    hub.add("me/zoo", {**files_of(source), MANIFEST: manifest_bytes(data)})
    with pytest.raises(ZooError, match="is refused; a zoo names files inside itself"):
        pull("me/zoo", tmp_path / "here")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("path", [MANIFEST, "README.md", ".cache/prepkit/pulled.json", ".pulling/lock"])
def test_a_manifest_that_names_a_file_of_ours(hub, source, tmp_path, path):
    """A manifest may name zoo.json as a shard: its sum is another one, or the path is refused."""
    data = read_manifest(source)
    data = replace(data, shards=(replace(data.shards[0], path=path), *data.shards[1:]))
    hub.add("me/zoo", {**files_of(source), MANIFEST: manifest_bytes(data)})
    with pytest.raises((ZooError, HubError)):
        pull("me/zoo", tmp_path / "here")
    assert not (tmp_path / "here" / MANIFEST).exists()


def test_a_link_in_the_folder_is_not_written_through(filled, source, tmp_path):
    root = pull("me/zoo", tmp_path / "here")
    shutil.rmtree(root / "shards")
    (tmp_path / "outside").mkdir()
    (root / "shards").symlink_to(tmp_path / "outside")
    with pytest.raises(ZooError, match="links are refused"):
        pull("me/zoo", root)
    assert not list((tmp_path / "outside").iterdir())


# Who may, and where -------------------------------------------------------------------------------------------


def test_names_that_are_not_there(filled, tmp_path):
    with pytest.raises(HubError, match="no dataset repository 'me/none' that you may see; check the name"):
        pull("me/none", tmp_path / "here")
    with pytest.raises(HubError, match="has no revision 'v9'"):
        pull("me/zoo", tmp_path / "here", revision="v9")
    with pytest.raises(HubError, match=r"has no revision '0{40}'"):
        pull("me/zoo", tmp_path / "here", revision="0" * 40)
    with pytest.raises(HubError, match="names a file"):
        pull("hf://me/zoo/zoo.json", tmp_path / "here")
    with pytest.raises(HubError, match="two versions"):
        pull("hf://me/zoo@a", tmp_path / "here", revision="b")
    assert not (tmp_path / "here").exists()


def test_a_private_zoo_needs_the_right_token(hub, source, tmp_path, monkeypatch):
    hub.token = "hf_right"
    hub.add("me/secret", files_of(source), private=True)
    for token in (None, "hf_wrong"):
        with pytest.raises(HubError, match="hf auth login"):
            pull("me/secret", tmp_path / "here", token=token)
    assert not (tmp_path / "here").exists()
    assert files_of(pull("me/secret", tmp_path / "here", token="hf_right")) == files_of(source)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert files_of(pull("me/secret", tmp_path / "there")) == files_of(source)


def test_offline(filled, source, tmp_path, monkeypatch):
    commit = filled.head("me/zoo")
    root = pull("me/zoo", tmp_path / "here")
    filled.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull_zoo("me/zoo", root).was_there  # the client remembers which version was the newest
    assert pull_zoo("me/zoo", root, revision=commit).was_there
    (root / read_manifest(root).shards[0].path).unlink()
    for revision in (None, commit):
        with pytest.raises(
            HubError, match=r"the Hub cannot be reached, and the .* is not fully cached; unset HF_HUB_OFFLINE"
        ):
            pull("me/zoo", root, revision=revision)
        with pytest.raises(
            HubError, match=r"the Hub cannot be reached, and the .* is not fully cached; unset HF_HUB_OFFLINE"
        ):
            pull("me/zoo", tmp_path / "other", revision=revision)
    assert not (tmp_path / "other").exists()
    assert filled.requests == []


def test_offline_from_the_cache_of_the_hub(filled, source, tmp_path, monkeypatch):
    from prepkit.hub.client import api, hub_cache_folder

    manifest = read_manifest(source)
    everything = {"repo_type": "dataset", "cache_dir": hub_cache_folder()}
    api().snapshot_download("me/zoo", **everything, ignore_patterns=[manifest.shards[0].path])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError):
        pull("me/zoo", tmp_path / "here")
    assert not (tmp_path / "here" / MANIFEST).exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    api().snapshot_download("me/zoo", **everything)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    filled.forget()
    assert files_of(pull("me/zoo", tmp_path / "here")) == files_of(source)
    assert filled.requests == []


def test_a_damaged_file_in_the_cache_of_the_hub_is_fetched_anew(filled, source, tmp_path):
    from prepkit.hub.client import api, hub_cache_folder

    path = read_manifest(source).shards[0].path
    folder = api().snapshot_download("me/zoo", repo_type="dataset", cache_dir=hub_cache_folder())
    with open(f"{folder}/{path}", "r+b") as file:
        file.seek(5000)
        file.write(b"\xff\xfe")
    filled.forget()
    assert files_of(pull("me/zoo", tmp_path / "here")) == files_of(source)
    assert [served for served, _ in filled.bodies] == [path]


# The disk -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Not enough free disk space")  # the client warns of it too
def test_too_little_room_is_told_before_anything_comes(filled, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(HubError, match=r"are to be fetched, and '.*' has 1000 bytes free; make room"):
        pull("me/zoo", tmp_path / "here")
    assert not (tmp_path / "here").exists()
    assert not any(path.startswith("shards") for path in filled.served())


def test_a_full_disk_is_told(filled, source, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download._chmod_and_move", full)
        with pytest.raises(HubError, match="the disk is full"):
            pull("me/zoo", tmp_path / "here")
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "flush", full)
        with pytest.raises(OutputError, match="the disk is full"):
            pull("me/zoo", tmp_path / "here")
    assert not (tmp_path / "here" / MANIFEST).exists()
    assert files_of(pull("me/zoo", tmp_path / "here")) == files_of(source)


def test_a_folder_that_cannot_be_made(filled, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        pull("me/zoo", tmp_path / "file" / "here")


def test_two_at_once(filled, source, tmp_path):
    path = read_manifest(source).shards[0].path
    filled.fault("hold", path)
    process = started(filled, tmp_path, "me/zoo", tmp_path / "here")
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


# Interruptions ------------------------------------------------------------------------------------------------


def started(hub, tmp_path, *arguments):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", "from prepkit.cli import main; main()", "pull", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.xdist_group("time and memory")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("asked", [[], ["--where", "id != 'm0'"]], ids=["whole", "part"])
def test_interrupted_it_goes_on(filled, source, tmp_path, how, asked):
    root = tmp_path / "here"
    shards = [shard.path for shard in read_manifest(source).shards]
    filled.fault("hold", shards[0], times=99)
    done = root / "shards"
    notes = root / WORK / partial.NOTES

    def all_but_one():
        finished = len(list(notes.glob("*.json"))) if asked else len(shards) - 1
        return done.is_dir() and len(list(done.iterdir())) == finished == len(shards) - 1

    process = started(filled, tmp_path, "me/zoo", root, *asked)
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
    process = started(filled, tmp_path, "me/zoo", root, *asked, "--json")
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
