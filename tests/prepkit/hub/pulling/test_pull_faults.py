"""Whatever goes wrong on the way or on the disk, a pull recovers or says what to do, and never leaves a wrong zoo."""

import shutil

import pytest
import torch
from huggingface_hub import constants
from pull_samples import files_of
from pushed_zoos import write_zoo

from prepkit.api import open_zoo, verify
from prepkit.errors import HubError, OutputError, ZooError
from prepkit.hub import _fetch as fetch
from prepkit.hub._target import WORK
from prepkit.hub.pull import pull
from prepkit.zoo.card.card import write_card
from prepkit.zoo.format.manifest import MANIFEST, read_manifest

pytestmark = pytest.mark.usefixtures("one_thread")


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
