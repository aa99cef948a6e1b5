"""Zoos in stores that fsspec reads, by the same store as zoos on the Hub: in memory, and on a server with Range.

The server of `hub` also gives the files of a branch by plain HTTP, under an address that has nothing of the Hub's.
"""

import asyncio
import gc
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace

import fsspec
import pytest
import torch
from click.testing import CliRunner
from pushed_zoos import write_zoo
from store_contract import StoreContract
from torch.utils.data import DataLoader

import prepkit
from prepkit.address import HubAddress, UrlAddress, parse_remote
from prepkit.api import open_zoo
from prepkit.cli import main
from prepkit.errors import HubError, ZooError
from prepkit.hub import _failures as failures
from prepkit.hub import _shard_cache as shard_cache
from prepkit.hub import _sizes as sizes
from prepkit.hub._fetch import Fetcher
from prepkit.hub._source import RemoteFile, Stopped
from prepkit.hub.store import open_store
from prepkit.inspecting.places import tensors_at
from prepkit.support.cache import cache_folder
from prepkit.support.files import sha256_of_file
from prepkit.zoo.format.manifest import MANIFEST, write_manifest

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six instances in five shards, in a folder."""
    return write_zoo(tmp_path_factory.mktemp("source") / "zoo", count=6, teacher=True)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PREPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(failures, "FIRST_PAUSE_SECONDS", 0.01)


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.*")}


@pytest.fixture
def memory(root):
    """The address of a copy in fsspec's memory."""
    files = fsspec.filesystem("memory")
    for path, content in contents(root).items():
        files.pipe_file(f"/some/zoo/{path}", content)
    yield "memory://some/zoo"
    files.rm("/some", recursive=True)


@pytest.fixture
def web(hub, root):
    """A server that has the zoo at `web.address`."""
    hub.add("me/zoo", contents(root))
    hub.address = f"{hub.url}/datasets/me/zoo/resolve/main"
    return hub


class TestMemory(StoreContract):
    @pytest.fixture
    def folder(self, root):
        return root

    @pytest.fixture
    def store(self, memory):
        return open_store(memory)


class TestWeb(TestMemory):
    @pytest.fixture
    def store(self, web):
        return open_store(web.address)


def shards_of(web):
    return [path for path, _ in web.bodies if path.startswith("shards/")]


def path_of(zoo, index):
    return zoo.manifest.shards[zoo.metadata(index)["shard"]].path


def in_cache():
    return sorted(path.relative_to(cache_folder()).as_posix() for path in cache_folder().glob(shard_cache.SHARDS))


def parts():
    return list(cache_folder().rglob("*.part"))


# What comes when ----------------------------------------------------------------------------------------------


def test_a_shard_comes_when_it_is_touched_once(web, root):
    local, zoo = open_zoo(root), open_zoo(web.address)
    assert sorted(web.served()) == sorted([MANIFEST, local.manifest.table.path])
    assert torch.equal(zoo.preps([3, 0, 3]), local.preps([3, 0, 3]))
    assert sorted(shards_of(web)) == sorted([path_of(local, 3), path_of(local, 0)])
    web.forget()
    again = open_zoo(web.address)
    assert torch.equal(again.preps([3]), local.preps([3]))
    assert list(web.served()) == [MANIFEST]  # it is fetched each time, since only it tells which zoo is there now
    name = re.sub(r"[^\w.]+", "--", web.address)
    assert {path.partition("/shards/")[0] for path in in_cache()} == {f"{name}/{sha256_of_file(root / MANIFEST)}"}
    assert parts() == []


def test_a_loader_and_workers(web, root):
    local, zoo = open_zoo(root), open_zoo(web.address)
    for (preps, _, indices), expected in zip(zoo.loader(2, seed=3), local.loader(2, seed=3), strict=True):
        assert torch.equal(preps, expected[0])
        assert torch.equal(indices, expected[2])
    assert sorted(shards_of(web)) == sorted(shard.path for shard in local.manifest.shards)
    shutil.rmtree(cache_folder())
    for preps, _, indices in DataLoader(zoo.dataset(), 3, num_workers=2, multiprocessing_context="fork"):
        assert torch.equal(preps, local.preps(indices))


def test_commands(web, memory, root, tmp_path):
    def run(*command, status=0):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == status, done.output
        return done.output

    assert "6 instances" in run("zoo", "info", web.address)
    assert list(web.served()) == [MANIFEST]
    run("zoo", "export", web.address, "m3", "-o", str(tmp_path / "m3.safetensors"))
    local = open_zoo(root)["m3"][0].tensors()
    for place in (f"{web.address}#m3", f"{memory}#m3"):
        with tensors_at(place) as tensors:
            assert all(torch.equal(tensors[name], local[name]) for name in local)
    with pytest.raises(ZooError, match="name one by its id"), tensors_at(memory):
        pass
    assert "fsspec knows no store 's4'" in run("zoo", "verify", "s4://bucket/zoo", status=1)
    assert "fsspec's configuration" in run("zoo", "info", "https://u:secret@host/zoo", status=2)


# A zoo that changes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["replaced", "removed", "shard gone"])
def test_a_zoo_that_was_changed_meanwhile(memory, root, tmp_path, change):
    files, zoo = fsspec.filesystem("memory"), open_zoo(memory)
    first = zoo.preps([0])
    copy = pickle.dumps(zoo)
    shard = path_of(zoo, 3)
    if change == "replaced":
        newer = write_zoo(tmp_path / "newer", count=4, seed=70)
        for path, content in contents(newer).items():
            files.pipe_file(f"/some/zoo/{path}", content)
        files.pipe_file(f"/some/zoo/{shard}", b"other")
    else:
        files.rm(f"/some/zoo/{shard}")
        if change == "removed":
            files.rm(f"/some/zoo/{MANIFEST}")
    told = {"replaced": "was changed after it was opened.*Open it again", "removed": "was removed after it was opened"}
    with pytest.raises(HubError, match=told.get(change, f"{re.escape(shard)} is not there")):
        zoo.preps([3])
    assert torch.equal(zoo.preps([0]), first)
    if change == "replaced":
        assert torch.equal(open_zoo(memory).preps(), open_zoo(newer).preps())
        assert torch.equal(pickle.loads(copy).preps([0]), first)  # from the cache
        shutil.rmtree(cache_folder())
        with pytest.raises(HubError, match="was changed after it was opened"):
            pickle.loads(copy)


def test_an_annotated_zoo_keeps_its_shards(web, root, tmp_path):
    """Its zoo.json is another one, but shards have their sum in their names, and none of them comes again."""
    zoo = open_zoo(web.address)
    before = zoo.preps()
    write_manifest(replace(zoo.manifest, name="annotated"), tmp_path, overwrite=True)
    web.add("me/zoo", {MANIFEST: (tmp_path / MANIFEST).read_bytes()})
    web.forget()
    again = open_zoo(web.address)
    assert (zoo.name, again.name) == ("zoo", "annotated")
    assert torch.equal(again.preps(), before)
    assert shards_of(web) == []
    assert torch.equal(zoo.preps(), before)
    assert len(in_cache()) == 10
    num_bytes = sum(shard.bytes for shard in again.manifest.shards)
    del zoo, again
    gc.collect()
    used = dict.fromkeys(cache_folder().glob(shard_cache.SHARDS), 0.0)
    shard_cache.make_room(cache_folder(), num_bytes, lambda path: used[path], lambda path: None)
    assert len(in_cache()) == 10  # the two names of a file count once
    shard_cache.make_room(cache_folder(), num_bytes - 1, lambda path: used[path], lambda path: None)
    assert len(in_cache()) == 8


# What goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["flip", "truncate", "busy body", "drop", "limit"])
def test_once_is_no_harm(web, root, fault, monkeypatch):
    zoo = open_zoo(web.address)
    monkeypatch.setattr(Fetcher, "_pause", lambda self, seconds: None)  # the server asks for a second
    web.fault(fault, path_of(zoo, 0))
    assert torch.equal(zoo.preps([0]), open_zoo(root).preps([0]))
    assert web.served()[path_of(zoo, 0)] > 0


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("flip", "came damaged 4 times: its sha256 is"),
        ("truncate", "came damaged 4 times: it has"),
        ("drop", "the store is busy or cannot be reached"),
        ("busy body", "the store is busy or cannot be reached"),
        ("hide", "is not there. Check the address"),
    ],
)
def test_what_stays_wrong_is_told_and_not_kept(web, root, fault, told):
    zoo = open_zoo(web.address)
    web.fault(fault, path_of(zoo, 0), times=99)
    with pytest.raises(HubError, match=told) as caught:
        zoo.preps([0])
    assert f"{web.address}/{path_of(zoo, 0)}" in str(caught.value)
    assert (in_cache(), parts()) == ([], [])
    web.fault(fault, path_of(zoo, 0), times=0)
    assert torch.equal(zoo.preps([0]), open_zoo(root).preps([0]))


def test_pages_and_refusals(web, hub):
    shard = path_of(open_zoo(web.address), 0)
    hub.add("me/zoo", {shard: b"\n<!DOCTYPE html><html><title>Log in</title></html>"})
    with pytest.raises(HubError, match=f"{re.escape(shard)}: an HTML page came in place of the file"):
        open_zoo(web.address).preps([0])
    hub.add("me/zoo", {MANIFEST: b"<html>hello</html>"})
    with pytest.raises(HubError, match=r"zoo.json: an HTML page came.*whether the server asks to log in"):
        open_zoo(web.address)
    with pytest.raises(ZooError, match=r"is no zoo: there is no http://.*/none/zoo.json. Check the address"):
        open_zoo(f"{hub.url}/none")
    hub.hidden = 403
    with pytest.raises(HubError, match=r"the store refuses it.*403.*fsspec's configuration") as caught:
        open_zoo(f"{hub.url}/datasets/me/secret/resolve/main")
    assert caught.value.status == 403
    assert in_cache() == []


def test_a_manifest_that_leads_elsewhere(memory):
    files = fsspec.filesystem("memory")
    text = files.cat_file(f"/some/zoo/{MANIFEST}").decode()
    files.pipe_file(f"/some/zoo/{MANIFEST}", text.replace("shards/", "../elsewhere/").encode())
    with pytest.raises(ZooError, match=re.escape(f"{memory}/{MANIFEST}")):
        open_zoo(memory)


def test_rows_are_bounded_by_shards(memory, web, root, monkeypatch):
    monkeypatch.setattr(sizes, "FEW_ROWS", 1)
    shard = path_of(open_zoo(root), 0)
    for address in (memory, web.address):
        assert len(open_zoo(address)) == 6
    shutil.rmtree(cache_folder())
    fsspec.filesystem("memory").pipe_file(f"/some/zoo/{shard}", b"short")
    web.add("me/zoo", {shard: b"short"})
    for address in (memory, web.address):
        with pytest.raises(ZooError, match=r"but of .* the store has 5 bytes"):
            open_zoo(address)


@pytest.mark.parametrize("kind", ["memory", "web"])
def test_verifying_fetches_all(kind, memory, web, root):
    address = memory if kind == "memory" else web.address
    open_zoo(address).preps([0])
    counts = []
    found = prepkit.verify(address, progress=counts.append)
    assert (found.ok, found.instances) == (True, 6)
    assert found.notes == ("1 shard of 5 hashed in the cache; all 5 shards were fetched and compared.",)
    assert sum(counts) >= sum(shard.bytes for shard in open_zoo(root).manifest.shards)
    shard = path_of(open_zoo(root), 3)
    content = (root / shard).read_bytes()
    for damage in (content[:-1] + b"?", None):
        if kind == "memory":
            files, place = fsspec.filesystem("memory"), f"/some/zoo/{shard}"
            files.pipe_file(place, damage) if damage else files.rm(place)
        elif damage:
            web.add("me/zoo", {shard: damage})
        else:
            web.fault("hide", shard, times=9)
        (fault,) = prepkit.verify(address).faults
        assert fault.file == shard
        assert ("sha256 is" if damage else "does not have it") in fault.problem
    assert len(in_cache()) == 1
    assert parts() == []


def test_a_fetch_that_was_killed_is_tidied_up(web, root):
    """Half of a shard has come; the next process removes it, and fetches the whole."""
    web.fault("hold", path_of(open_zoo(root), 0))
    process = multiprocessing.get_context("fork").Process(target=lambda: open_zoo(web.address).preps([0]))
    process.start()
    wait_for_parts()
    process.kill()
    process.join()
    web.released.set()
    assert (len(parts()), in_cache()) == (1, [])
    assert torch.equal(open_zoo(web.address).preps([0]), open_zoo(root).preps([0]))
    assert parts() == []


def test_an_interrupt_in_this_process_stops_what_comes(web):
    """fsspec downloads in a thread of its own, which nobody interrupts."""
    zoo = open_zoo(web.address)
    web.fault("hold", path_of(zoo, 0))
    timer = threading.Thread(target=lambda: (wait_for_parts(), os.kill(os.getpid(), signal.SIGINT)))
    alarm = threading.Timer(20, web.released.set)
    alarm.start()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        zoo.preps([0])
    timer.join()
    assert parts() == []
    while any("_get_file" in repr(task.get_coro()) for task in asyncio.all_tasks(fsspec.asyn.get_loop())):
        assert not web.released.wait(0.01)  # its task ends, although the server keeps it waiting
    alarm.cancel()
    web.released.set()
    assert len(zoo.preps([0])) == 1


def test_who_is_told_to_stop_does_not_wait_for_the_server(web, root):
    shard = path_of(open_zoo(root), 0)
    web.fault("hold", shard)
    fetcher, ended = Fetcher(open_store(web.address).source, cache_folder() / "work"), []

    def fetch():
        with pytest.raises(Stopped):
            fetcher.fetch(RemoteFile(shard), cache_folder() / "target")
        ended.append(True)

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    wait_for_parts()
    fetcher.stop()
    thread.join(10)
    assert (ended, parts()) == ([True], [])


def wait_for_parts():
    deadline = time.monotonic() + 20
    while not any(part.stat().st_size for part in parts()) and time.monotonic() < deadline:
        time.sleep(0.01)


# Addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("s3://bucket/zoo?versionId=7", "without '[?]' and '#'"),
        ("https://host/zoo?sig=secret", "'https://host/zoo[?]...' is no address"),
        ("https://me:secret@host/zoo", "'https://...@host/zoo' holds a password"),
        ("https://secret@host/zoo", "holds a password or a token"),
        ("sftp://me:secret@host/zoo", "holds a password or a token"),
        ("file:///data/zoo", "is on this machine; give the path"),
        ("s3:/bucket/zoo", "write it as s3://bucket/zoo"),
        ("s3://", "write it as s3://bucket/zoo"),
        ("s3://bucket/../zoo", "write it as s3://bucket/zoo"),
        ("simplecache::s3://bucket/zoo", "write it as s3://bucket/zoo"),
        ("memory://a b", "write it as s3://bucket/zoo"),
    ],
)
def test_what_is_no_address(text, told):
    with pytest.raises(HubError, match=told) as caught:
        open_zoo(text)
    assert "secret" not in str(caught.value)


def test_addresses():
    assert parse_remote("S3://bucket/a/zoo/") == UrlAddress("s3", "bucket/a/zoo")
    assert str(parse_remote("sftp://me@host/zoo")) == "sftp://me@host/zoo"
    assert parse_remote("hf://me/zoo@v1") == HubAddress("me/zoo", "v1")


def test_a_package_that_is_missing(monkeypatch):
    def missing(protocol):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(HubError, match=r"'gs://b/zoo' needs a package that is not installed: Please install gcsfs"):
        open_zoo("gs://b/zoo")
    with suppress(ImportError):
        fsspec.get_filesystem_class("gs")
