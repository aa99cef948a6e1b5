"""What goes wrong with a store that fsspec reads is mended or told, and nothing wrong is kept."""

import asyncio
import multiprocessing
import os
import re
import shutil
import signal
import threading

import fsspec
import pytest
import torch
from pushed_zoos import path_of
from store_samples import coming, in_cache, parts
from waiting import wait_for

import prepkit
from prepkit.api import open_zoo
from prepkit.errors import HubError, ZooError
from prepkit.hub import _sizes as sizes
from prepkit.hub._fetch import Fetcher
from prepkit.hub._source import RemoteFile, Stopped
from prepkit.hub.store import open_store
from prepkit.support.cache import cache_folder
from prepkit.zoo.format.manifest import MANIFEST

pytest.importorskip("aiohttp")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("fault", ["flip", "truncate", "busy body", "drop", "limit"])
def test_once_is_no_harm(web, source, fault, monkeypatch):
    zoo = open_zoo(web.address)
    monkeypatch.setattr(Fetcher, "_pause", lambda self, seconds: None)  # the server asks for a second
    web.fault(fault, path_of(zoo, 0))
    assert torch.equal(zoo.preps([0]), open_zoo(source).preps([0]))
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
def test_what_stays_wrong_is_told_and_not_kept(web, source, fault, told):
    zoo = open_zoo(web.address)
    web.fault(fault, path_of(zoo, 0), times=99)
    with pytest.raises(HubError, match=told) as caught:
        zoo.preps([0])
    assert f"{web.address}/{path_of(zoo, 0)}" in str(caught.value)
    assert (in_cache(), parts()) == ([], [])
    web.fault(fault, path_of(zoo, 0), times=0)
    assert torch.equal(zoo.preps([0]), open_zoo(source).preps([0]))


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


def test_rows_are_bounded_by_shards(memory, web, source, monkeypatch):
    monkeypatch.setattr(sizes, "FEW_ROWS", 1)
    shard = path_of(open_zoo(source), 0)
    for address in (memory, web.address):
        assert len(open_zoo(address)) == 6
    shutil.rmtree(cache_folder())
    fsspec.filesystem("memory").pipe_file(f"/some/zoo/{shard}", b"short")
    web.add("me/zoo", {shard: b"short"})
    for address in (memory, web.address):
        with pytest.raises(ZooError, match=r"but of .* the store has 5 bytes"):
            open_zoo(address)


@pytest.mark.parametrize("kind", ["memory", "web"])
def test_verifying_fetches_all(kind, memory, web, source):
    address = memory if kind == "memory" else web.address
    open_zoo(address).preps([0])
    counts = []
    found = prepkit.verify(address, progress=counts.append)
    assert (found.ok, found.instances) == (True, 6)
    assert found.notes == ("1 shard of 5 hashed in the cache; all 5 shards were fetched and compared.",)
    assert sum(counts) >= sum(shard.bytes for shard in open_zoo(source).manifest.shards)
    shard = path_of(open_zoo(source), 3)
    content = (source / shard).read_bytes()
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


def test_a_fetch_that_was_killed_is_tidied_up(web, source):
    """Half of a shard has come; the next process removes it, and fetches the whole."""
    web.fault("hold", path_of(open_zoo(source), 0))
    process = multiprocessing.get_context("fork").Process(target=lambda: open_zoo(web.address).preps([0]))
    process.start()
    wait_for(coming)
    process.kill()
    process.join()
    web.released.set()
    assert (len(parts()), in_cache()) == (1, [])
    assert torch.equal(open_zoo(web.address).preps([0]), open_zoo(source).preps([0]))
    assert parts() == []


def test_an_interrupt_in_this_process_stops_what_comes(web):
    """fsspec downloads in a thread of its own, which nobody interrupts."""
    zoo = open_zoo(web.address)
    web.fault("hold", path_of(zoo, 0))
    timer = threading.Thread(target=lambda: (wait_for(coming), os.kill(os.getpid(), signal.SIGINT)))
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


def test_who_is_told_to_stop_does_not_wait_for_the_server(web, source):
    shard = path_of(open_zoo(source), 0)
    web.fault("hold", shard)
    fetcher, ended = Fetcher(open_store(web.address).source, cache_folder() / "work"), []

    def fetch():
        with pytest.raises(Stopped):
            fetcher.fetch(RemoteFile(shard), cache_folder() / "target")
        ended.append(True)

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    wait_for(coming)
    fetcher.stop()
    thread.join(10)
    assert (ended, parts()) == ([True], [])
