"""The cache stays within its bound, and few of its files are open at once."""

import gc
import multiprocessing
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from folder_contents import files_of
from pushed_zoos import path_of, shards_of
from streaming_samples import in_cache, nobody_fetches, num_bytes
from waiting import wait_for

from prepkit.api import open_zoo
from prepkit.errors import ZooError
from prepkit.hub import store
from prepkit.support.cache import cache_folder
from prepkit.zoo.read import store as zoo_store

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("workers", [1, store.PREFETCH_THREADS])
def test_the_cache_stays_within_its_bound(filled, local, monkeypatch, workers):
    monkeypatch.setattr(store, "PREFETCH_THREADS", workers)
    largest = max(shard.bytes for shard in local.manifest.shards)
    bound = 4 * largest
    assert bound < 0.6 * sum(shard.bytes for shard in local.manifest.shards)
    zoo = open_zoo("hf://me/zoo", cache_bytes=bound)
    loader = zoo.loader(1, seed=1)
    for _ in range(3):
        for preps, _, indices in loader:
            assert torch.equal(preps, local.preps(indices))
        wait_for(nobody_fetches)
        assert num_bytes() <= bound
    assert len(shards_of(filled)) > len(local.manifest.shards)


def test_shards_that_come_together_count_together(filled, local):
    size = max(shard.bytes for shard in local.manifest.shards)
    for index in (1, 3):
        open_zoo("hf://me/zoo", cache_bytes=2 * size).preps([index])
        gc.collect()
    paths = [path_of(local, index) for index in (5, 7)]
    for path in paths:
        filled.fault("hold", path)
    zoo = open_zoo("hf://me/zoo", cache_bytes=2 * size)
    filled.forget()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(zoo.preps, [index]) for index in (5, 7)]
        wait_for(lambda: {path.partition("shards/")[2] for _, path in filled.requests} >= {p[7:] for p in paths})
        filled.released.set()
        assert all(torch.equal(future.result(), local.preps([i])) for future, i in zip(futures, (5, 7), strict=True))
    assert num_bytes() <= 2 * size


def test_the_least_recently_used_goes(filled, local):
    sizes = {shard.path: shard.bytes for shard in local.manifest.shards}
    zoo = open_zoo("hf://me/zoo", cache_bytes=sum(sizes.values()) - 1)
    order = [0, 4, 8, 1, 3, 5, 7, 9, 11]  # one instance of each shard
    paths = [path_of(local, index) for index in order]
    for index in [*order[:-1], order[0]]:
        zoo.preps([index])
        time.sleep(0.002)
    zoo.preps([order[-1]])
    gone = {path.rpartition("/")[2] for path in paths} - in_cache().keys()
    assert len({*paths}) == len(local.manifest.shards)
    assert gone == {paths[1].rpartition("/")[2]}
    filled.forget()
    assert torch.equal(zoo.preps([order[1]]), local.preps([order[1]]))
    assert shards_of(filled) == [paths[1]]


def test_a_shard_in_use_is_not_removed(filled, local):
    zoo = open_zoo("hf://me/zoo", cache_bytes=0)
    values = zoo._store.values(0)
    name = path_of(local, 0).rpartition("/")[2]
    assert torch.equal(zoo.preps([1, 3]), local.preps([1, 3]))
    assert name in in_cache()
    assert torch.equal(values[0], local[0][0].values.reshape(-1))
    del values
    gc.collect()
    zoo.preps([5])
    assert name not in in_cache()


def hold_a_shard(connection, commit):
    values = open_zoo(f"hf://me/zoo@{commit}")._store.values(0)
    connection.send(values.double().sum().item())
    connection.recv()
    connection.send(values.double().sum().item())


def test_a_shard_in_use_by_another_process_is_not_removed(filled, local):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold_a_shard, args=(theirs, filled.head("me/zoo")))
    process.start()
    try:
        total = ours.recv()
        zoo = open_zoo("hf://me/zoo", cache_bytes=0)
        zoo.preps([1])
        zoo.preps([3])
        assert path_of(local, 0).rpartition("/")[2] in in_cache()
        assert len(in_cache()) == 2
        ours.send("done")
        assert ours.recv() == total
    finally:
        process.join(20)
        process.kill()  # it waits for ever where an assertion failed, and would keep the test run from ending
    zoo.preps([5])
    assert path_of(local, 0).rpartition("/")[2] not in in_cache()


def test_other_zoos_share_the_bound(filled, local):
    root = local._store.root
    filled.add("me/other", files_of(root))
    size = max(shard.bytes for shard in local.manifest.shards)
    for repo in ("me/zoo", "me/other"):
        for index in (0, 1, 3):
            open_zoo(f"hf://{repo}", cache_bytes=2 * size).preps([index])
            gc.collect()
            assert num_bytes() <= 2 * size
    assert {file.parent.parent.parent.name for file in in_cache().values()} == {"me--other"}


@pytest.mark.parametrize("text", ["lots", "-1", "1.5"])
def test_a_bound_that_is_none(filled, monkeypatch, text):
    monkeypatch.setenv("PREPKIT_CACHE_BYTES", text)
    with pytest.raises(ZooError, match="give a number of bytes"):
        open_zoo("hf://me/zoo")


def test_the_bound_of_the_environment(filled, monkeypatch):
    monkeypatch.setenv("PREPKIT_CACHE_BYTES", "12345")
    assert open_zoo("hf://me/zoo")._store.cache_bytes == 12345
    assert open_zoo("hf://me/zoo", cache_bytes=5)._store.cache_bytes == 5


@pytest.fixture
def two_open_files(monkeypatch):
    monkeypatch.setattr(store, "MAX_OPEN", 2)
    monkeypatch.setattr(zoo_store, "MAX_OPEN", 2)


def open_shards():
    """How many shards in the cache this process has open."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"{cache_folder()}/")
        except OSError:  # the one that lists them
            continue
    return found


def zoo_files(repo):
    return {file.name for file in cache_folder().glob(f"{repo}/*/shards/*")}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("mmap", [True, False])
def test_few_shards_are_open_at_once(filled, local, two_open_files, mmap):
    zoo = open_zoo("hf://me/zoo", mmap=mmap)
    for _ in range(2):
        assert torch.equal(zoo.preps(), local.preps())
        for preps, _, indices in zoo.loader(3, seed=1):
            assert torch.equal(preps, local.preps(indices))
    assert open_shards() == 2


@pytest.mark.parametrize("mmap", [True, False])
def test_a_shard_that_is_open_no_more_may_go_and_come_again(filled, local, two_open_files, mmap):
    zoo = open_zoo("hf://me/zoo", mmap=mmap)
    assert torch.equal(zoo.preps(), local.preps())
    root = local._store.root
    filled.add("me/other", files_of(root))
    open_zoo("hf://me/other", cache_bytes=0).preps([5])  # makes room
    gone = [
        index for index in range(len(local)) if path_of(local, index).rpartition("/")[2] not in zoo_files("me--zoo")
    ]
    assert len({path_of(local, index) for index in gone}) == len(local.manifest.shards) - 2
    filled.forget()
    assert torch.equal(zoo.preps(gone[:1]), local.preps(gone[:1]))
    assert shards_of(filled) == ([] if mmap else [path_of(local, gone[0])])  # the system keeps what is mapped
