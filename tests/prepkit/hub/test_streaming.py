"""open_zoo("hf://...") fetches manifest and table at once, and shards when they are used or a loader will use them."""

import gc
import multiprocessing
import os
import pickle
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from huggingface_hub import constants
from pushed_zoos import write_zoo
from store_contract import StoreContract
from torch.utils.data import DataLoader

from prepkit.api import open_zoo
from prepkit.errors import HubError, OutputError, ZooError
from prepkit.hub import _failures as failures
from prepkit.hub import _shard_cache as shard_cache
from prepkit.hub import store
from prepkit.support.cache import cache_folder
from prepkit.zoo.format.manifest import MANIFEST, read_manifest
from prepkit.zoo.read import store as zoo_store
from prepkit.zoo.read._order import Order, grouped

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Twelve instances in nine shards, opened from the disk."""
    return open_zoo(write_zoo(tmp_path_factory.mktemp("source") / "zoo", count=12, teacher=True))


@pytest.fixture
def filled(hub, local, monkeypatch):
    monkeypatch.setattr(failures, "FIRST_PAUSE_SECONDS", 0.01)
    root = local._store.root
    hub.add("me/zoo", {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.*")})
    return hub


def shards_of(hub):
    """Paths of the shards whose bodies the server sent, in that order."""
    return [path for path, _ in hub.bodies if path.startswith("shards/")]


def path_of(zoo, index):
    return zoo.manifest.shards[zoo.metadata(index)["shard"]].path


def in_cache():
    return {file.name: file for file in cache_folder().glob(shard_cache.SHARDS)}


def nobody_fetches():
    return not any(thread.name.startswith("prepkit-") for thread in threading.enumerate())


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class TestHubStore(StoreContract):
    @pytest.fixture
    def folder(self, local):
        return local._store.root

    @pytest.fixture
    def store(self, filled):
        return store.open_store("hf://me/zoo")


class TestHubStoreWithoutMapping(TestHubStore):
    @pytest.fixture
    def store(self, filled):
        return store.open_store("hf://me/zoo", mmap=False)


# What comes when ----------------------------------------------------------------------------------------------


def test_opening_fetches_manifest_and_table_only(filled, local):
    zoo = open_zoo("hf://me/zoo")
    table = local.manifest.table.path
    assert filled.served() == {
        MANIFEST: (local._store.root / MANIFEST).stat().st_size,
        table: local.manifest.table.bytes,
    }
    assert zoo.table.equals(local.table)
    assert zoo.manifest == local.manifest
    assert (len(zoo.split("train")), len(zoo.where("accuracy > 0.85"))) == (6, 3)
    assert zoo.class_ids().tolist() == local.class_ids().tolist()
    assert zoo.masks().shape == local.masks().shape
    assert shards_of(filled) == []


def test_a_shard_comes_when_it_is_touched_once(filled, local):
    zoo = open_zoo("hf://me/zoo")
    assert torch.equal(zoo[5][0].values, local[5][0].values)
    assert shards_of(filled) == [path_of(local, 5)]
    assert torch.equal(zoo["m5"][0].values, local["m5"][0].values)
    assert shards_of(filled) == [path_of(local, 5)]
    assert torch.equal(zoo.preps([5, 0, 5]), local.preps([5, 0, 5]))
    assert shards_of(filled) == [path_of(local, 5), path_of(local, 0)]
    assert torch.equal(zoo.preps(), local.preps())
    assert sorted(shards_of(filled)) == sorted(shard.path for shard in local.manifest.shards)


def test_the_teacher_comes_when_it_is_asked_for(filled, local):
    zoo = open_zoo("hf://me/zoo")
    inputs = torch.randn(2, *local.manifest.architecture("resnet8@digits").input_shape)
    assert torch.equal(zoo.teacher(inputs), local.teacher(inputs))
    assert filled.served()[local.manifest.teacher.path] > 0
    assert shards_of(filled) == []


def test_a_network_runs(filled, local):
    inputs = torch.randn(2, *local.manifest.architectures[0].input_shape)
    assert torch.equal(open_zoo("hf://me/zoo").network("m3")(inputs), local.network("m3")(inputs))


def test_the_next_process_finds_it_there(filled, local):
    commit = filled.head("me/zoo")
    open_zoo("hf://me/zoo").preps([0, 1])
    filled.stop()
    filled.forget()
    zoo = open_zoo(f"hf://me/zoo@{commit}")
    assert torch.equal(zoo.preps([0, 1]), local.preps([0, 1]))
    assert filled.requests == []


def test_a_version_stays_what_it_was(filled, local, tmp_path):
    commit = filled.head("me/zoo")
    zoo = open_zoo("hf://me/zoo")
    newer = write_zoo(tmp_path / "newer", count=3, seed=70)
    filled.add("me/zoo", {path.relative_to(newer).as_posix(): path.read_bytes() for path in newer.rglob("*.*")})
    assert torch.equal(zoo.preps(), local.preps())  # it was opened before
    assert len(open_zoo("hf://me/zoo")) == 3
    assert len(open_zoo(f"hf://me/zoo@{commit}")) == 12


def test_another_shape_and_views(filled, local):
    zoo = open_zoo("hf://me/zoo", width=256).where("class_id == 1").split("test")
    other = open_zoo(local._store.root, width=256).where("class_id == 1").split("test")
    assert torch.equal(zoo.preps(), other.preps())
    assert torch.equal(zoo.to("cpu").preps(), other.preps())
    assert set(shards_of(filled)) == {path_of(other, index) for index in range(len(other))}


def test_it_lies_where_the_environment_says(filled, monkeypatch, tmp_path):
    monkeypatch.setenv("PREPKIT_CACHE", str(tmp_path / "mine"))
    open_zoo("hf://me/zoo").preps([0])
    assert [file.parent.parent.parent.name for file in in_cache().values()] == ["me--zoo"]
    assert in_cache().popitem()[1].is_relative_to(tmp_path / "mine")
    monkeypatch.delenv("PREPKIT_CACHE")
    assert cache_folder() == tmp_path / "hf_home" / "prepkit"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "prepkit"


# In the loader's order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True, "shards"])
def test_a_loader_gives_what_a_local_one_gives(filled, local, shuffle):
    streamed, here = (zoo.loader(2, shuffle=shuffle, seed=3) for zoo in (open_zoo("hf://me/zoo"), local))
    for _ in range(2):
        for (preps, class_ids, indices), expected in zip(streamed, here, strict=True):
            assert torch.equal(preps, expected[0])
            assert class_ids.tolist() == expected[1].tolist()
            assert indices.tolist() == expected[2].tolist()
    assert sorted(shards_of(filled)) == sorted(shard.path for shard in local.manifest.shards)


@pytest.mark.parametrize("shuffle", [False, "shards"])
def test_the_first_batch_comes_with_the_first_shard(filled, local, shuffle):
    """A shard is given out while the server holds all others back."""
    order = Order(12, 1, shuffle, 5, False, 0, 1, local.shard_numbers).instances(0)
    first = path_of(local, int(order[0]))
    for shard in local.manifest.shards:
        if shard.path != first:
            filled.fault("hold", shard.path)
    loader = open_zoo("hf://me/zoo").loader(1, shuffle=shuffle, seed=5)
    batches = iter(loader)
    preps, _, indices = next(batches)
    assert indices.tolist() == order[:1].tolist()
    assert torch.equal(preps, local.preps(order[:1]))
    assert shards_of(filled) == [first]
    filled.released.set()
    assert len(list(batches)) == 11


def test_shards_come_before_they_are_touched(filled, local):
    """While the first batch is in use, the next shards arrive in the order in which they will be used."""
    loader = open_zoo("hf://me/zoo").loader(1, seed=2)
    batches = iter(loader)
    next(batches)
    wait_for(lambda: len(in_cache()) == len(local.manifest.shards))
    order = list(dict.fromkeys(path_of(local, int(index)) for index in loader.order.instances(0)))
    places = [order.index(path) for path in shards_of(filled)]
    assert all(abs(place - index) <= store.PREFETCH_THREADS for index, place in enumerate(places))
    batches.close()


def test_nobody_goes_further_ahead_than_half_of_the_cache(filled, local):
    size = max(shard.bytes for shard in local.manifest.shards)
    batches = iter(open_zoo("hf://me/zoo", cache_bytes=6 * size).loader(1, shuffle=False))
    next(batches)
    touched = 3  # shards at most, by the batch that was given out and the two after it
    wait_for(lambda: len(in_cache()) >= touched + 2)
    time.sleep(0.3)
    assert len(in_cache()) <= touched + 3
    assert len([*batches]) == 11
    assert num_bytes() <= 6 * size


def test_shards_of_a_batch_come_side_by_side(filled, local):
    """The server holds two shards back until both were asked for."""
    paths = [path_of(local, index) for index in (0, 1)]
    for path in paths:
        filled.fault("hold", path)
    zoo = open_zoo("hf://me/zoo")
    filled.forget()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(zoo.preps, [0, 1])
        asked = {path.removeprefix("shards/") for path in paths}
        try:
            wait_for(lambda: {path.partition("shards/")[2] for _, path in filled.requests} >= asked, seconds=5)
        finally:
            filled.released.set()
        assert torch.equal(future.result(), local.preps([0, 1]))


def test_a_loader_that_is_left_stops_fetching(filled, local):
    order = Order(12, 1, False, 0, False, 0, 1).instances(0)
    paths = list(dict.fromkeys(path_of(local, int(index)) for index in order))
    for path in paths[1:]:
        filled.fault("hold", path)
    batches = iter(open_zoo("hf://me/zoo").loader(1, shuffle=False))
    next(batches)
    batches.close()  # does not wait for what is on its way
    filled.released.set()
    wait_for(nobody_fetches)
    assert len(in_cache()) < len(paths) - store.PREFETCH_THREADS


def test_a_shard_that_does_not_come_stops_the_loader_where_it_is_needed(filled, local):
    order = Order(12, 1, False, 0, False, 0, 1).instances(0)
    bad = local.manifest.shards[-1].path
    filled.fault("flip", bad, times=999)
    batches = iter(open_zoo("hf://me/zoo").loader(1, shuffle=False))
    needed = next(place for place, index in enumerate(order) if path_of(local, int(index)) == bad)
    assert [next(batches)[2].item() for _ in range(needed)] == order[:needed].tolist()
    with pytest.raises(HubError, match=f"{bad} came damaged"):
        next(batches)
    assert bad.rpartition("/")[2] not in in_cache()


def test_groups_of_shards():
    import numpy as np

    order = np.random.default_rng(0).permutation(20)
    group = grouped(order)
    assert [group[number] for number in order] == [0, 1, 1, 2, 2, 2, 2, *[3] * 8, *[4] * 5]


def test_shuffling_by_shards_visits_all_in_another_order_each_epoch(local):
    shards = local.shard_numbers
    orders = [Order(12, 2, "shards", seed, False, 0, 1, shards).instances(epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order.tolist()) == list(range(12)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    halves = [Order(12, 2, "shards", 0, False, rank, 2, shards).instances(0).tolist() for rank in (0, 1)]
    assert [index for pair in zip(*halves, strict=True) for index in pair] == orders[0].tolist()
    for order in orders:
        first = shards[order][0]
        assert set(shards[order[: (shards == first).sum()]]) == {first}


def test_shuffling_by_shards_is_resumed(local):
    loader = local.loader(2, shuffle="shards", seed=4)
    batches = iter(loader)
    next(batches)
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    rest = [indices.tolist() for _, _, indices in batches]
    again = local.loader(2, shuffle="shards", seed=4)
    again.load_state_dict(state)
    assert [indices.tolist() for _, _, indices in again] == rest
    with pytest.raises(ZooError, match="shuffle"):
        local.loader(2, shuffle=True, seed=4).load_state_dict(state)
    with pytest.raises(ZooError, match="use True, False or 'shards'"):
        local.loader(2, shuffle="shard")
    with pytest.raises(ZooError, match="for a zoo in files"):
        local.to("cpu").loader(2, shuffle="shards")


# Processes and threads ----------------------------------------------------------------------------------------


def test_a_pickled_zoo_goes_on_elsewhere(filled, local):
    zoo = open_zoo("hf://me/zoo", cache_bytes=10**6).split("train")
    zoo.preps([0])
    copy = pickle.loads(pickle.dumps(zoo))
    filled.forget()
    assert torch.equal(copy.preps([0]), local.split("train").preps([0]))
    assert filled.requests == []
    assert torch.equal(copy.preps(), local.split("train").preps())
    assert copy._store.cache_bytes == 10**6


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_data_loader(filled, local, context):
    zoo = open_zoo("hf://me/zoo")
    zoo.preps([0])
    loader = DataLoader(zoo.dataset(), batch_size=3, num_workers=2, multiprocessing_context=context)
    for preps, class_ids, indices in loader:
        assert torch.equal(preps, local.preps(indices))
        assert torch.equal(class_ids, local.class_ids(indices))
    assert sorted(shards_of(filled)) == sorted(shard.path for shard in local.manifest.shards)  # each once


def touch_all(commit):
    zoo = open_zoo(f"hf://me/zoo@{commit}")
    return zoo.preps().double().sum().item()


def test_processes_share_what_comes(filled, local):
    commit = filled.head("me/zoo")
    with multiprocessing.get_context("fork").Pool(3) as pool:
        sums = pool.map(touch_all, [commit] * 3)
    assert sums == [local.preps().double().sum().item()] * 3
    counts = filled.served()
    assert all(counts[shard.path] == shard.bytes for shard in local.manifest.shards)
    assert counts[MANIFEST] == (local._store.root / MANIFEST).stat().st_size


def test_threads_share_what_comes(filled, local):
    zoo = open_zoo("hf://me/zoo")
    with ThreadPoolExecutor(6) as pool:
        for preps in pool.map(lambda _: zoo.preps(), range(12)):
            assert torch.equal(preps, local.preps())
    assert sorted(shards_of(filled)) == sorted(shard.path for shard in local.manifest.shards)


def test_a_fork_while_others_fetch(filled, local):
    """A child must not wait for a lock that a thread of its parent held."""
    zoo = open_zoo("hf://me/zoo")
    with zoo._store._own.lock, zoo._store._own.budget._changed:
        child = os.fork()
        if not child:
            zoo._store._own.budget.reserve(0, 1)
            os._exit(0 if torch.equal(zoo.preps([1, 2]), local.preps([1, 2])) else 1)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done
    assert os.waitstatus_to_exitcode(status) == 0


# Within bounds ------------------------------------------------------------------------------------------------


def num_bytes():
    return sum(file.stat().st_size for file in in_cache().values())


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
    zoo.preps([5])
    assert path_of(local, 0).rpartition("/")[2] not in in_cache()


def test_other_zoos_share_the_bound(filled, local):
    root = local._store.root
    filled.add("me/other", {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.*")})
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


# What goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["flip", "truncate", "busy body", "drop"])
def test_once_is_no_harm(filled, local, fault):
    zoo = open_zoo("hf://me/zoo")
    filled.fault(fault, path_of(local, 0))
    assert torch.equal(zoo.preps([0]), local.preps([0]))


@pytest.mark.parametrize(("fault", "told"), [("flip", "damaged"), ("hide", "does not have that file")])
def test_what_stays_wrong_is_told_and_not_kept(filled, local, fault, told):
    zoo = open_zoo("hf://me/zoo")
    filled.fault(fault, path_of(local, 0), times=99)
    for _ in range(2):
        with pytest.raises(HubError, match=told):
            zoo.preps([0])
    assert in_cache() == {}
    assert torch.equal(zoo.preps([1]), local.preps([1]))
    filled.fault(fault, path_of(local, 0), times=0)
    assert torch.equal(zoo.preps([0]), local.preps([0]))


@pytest.mark.parametrize("name", [MANIFEST, "models"])
def test_a_damaged_manifest_or_table(filled, local, name):
    path = MANIFEST if name == MANIFEST else local.manifest.table.path
    filled.fault("flip", path, times=99)
    with pytest.raises((HubError, ZooError), match="damaged"):
        open_zoo("hf://me/zoo")
    filled.fault("flip", path, times=0)
    assert torch.equal(open_zoo("hf://me/zoo").preps([0]), local.preps([0]))


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped header", "folder gone", "manifest", "table"])
def test_a_cache_that_lost_something_is_mended(filled, local, damage):
    commit = filled.head("me/zoo")
    open_zoo(f"hf://me/zoo@{commit}").preps()
    file = in_cache()[path_of(local, 0).rpartition("/")[2]]
    root = file.parent.parent
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "flipped header":
        content = bytearray(file.read_bytes())
        content[10] ^= 1
        file.write_bytes(content)
    elif damage == "folder gone":
        shutil.rmtree(root)
    else:
        (root / (MANIFEST if damage == "manifest" else local.manifest.table.path)).write_bytes(b"{}")
    filled.forget()
    zoo = open_zoo(f"hf://me/zoo@{commit}")
    assert torch.equal(zoo.preps(), local.preps())
    assert (len(filled.bodies) == 1) == (damage != "folder gone")


def flip(file, position=-1):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_in_the_cache_is_found_by_the_next_process(filled, local, monkeypatch):
    address = f"hf://me/zoo@{filled.head('me/zoo')}"
    open_zoo(address).preps()
    flip(in_cache()[path_of(local, 5).rpartition("/")[2]])
    filled.forget()
    monkeypatch.setenv("PREPKIT_VERIFY", "0")
    assert not torch.equal(open_zoo(address).preps(), local.preps())
    assert not torch.equal(open_zoo(address, verify=False).preps(), local.preps())
    monkeypatch.delenv("PREPKIT_VERIFY")
    assert torch.equal(open_zoo(address)[5][0].values, local[5][0].values)
    assert shards_of(filled) == [path_of(local, 5)]
    assert torch.equal(open_zoo(address).preps(), local.preps())
    assert shards_of(filled) == [path_of(local, 5)]


def test_a_shard_in_the_cache_is_hashed_once_in_a_process(filled, local, monkeypatch):
    address = f"hf://me/zoo@{filled.head('me/zoo')}"
    open_zoo(address).preps()
    hashed = []
    monkeypatch.setattr(store, "is_sound", lambda file, *rest: hashed.append(file.name) or True)
    zoo = open_zoo(address)
    hashed.clear()  # the table's
    for _ in range(2):
        assert torch.equal(zoo.preps(), local.preps())
        for _ in zoo.loader(3, shuffle="shards"):
            pass
    assert sorted(hashed) == sorted(file.name for file in in_cache().values())


def test_the_cache_is_cleared_under_an_open_zoo(filled, local):
    zoo = open_zoo("hf://me/zoo")
    zoo.preps([0])
    shutil.rmtree(cache_folder())
    assert torch.equal(zoo.preps(), local.preps())


def test_offline(filled, local, monkeypatch):
    commit = filled.head("me/zoo")
    open_zoo("hf://me/zoo").preps([0])
    filled.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for address in ("hf://me/zoo", f"hf://me/zoo@{commit}"):
        zoo = open_zoo(address)
        assert torch.equal(zoo.preps([0]), local.preps([0]))
        with pytest.raises(
            HubError, match=r"the Hub cannot be reached, and the .* is not fully cached; unset HF_HUB_OFFLINE"
        ):
            zoo.preps([1])
    with pytest.raises(
        HubError, match=r"the Hub cannot be reached, and the .* is not fully cached; unset HF_HUB_OFFLINE"
    ):
        open_zoo("hf://me/unseen")
    assert filled.requests == []


def test_names_and_tokens(filled, local, hub):
    with pytest.raises(HubError, match="no dataset repository 'me/none'"):
        open_zoo("hf://me/none")
    with pytest.raises(HubError, match="is no address"):
        open_zoo("hf://zoo")
    with pytest.raises(HubError, match="names a file"):
        open_zoo("hf://me/zoo/zoo.json")
    hub.add("me/data", {"a.csv": b"1"})
    with pytest.raises(ZooError, match="is no zoo"):
        open_zoo("hf://me/data")
    hub.token = "hf_right"
    hub.add("me/secret", hub.files("me/zoo"), private=True)
    with pytest.raises(HubError, match="hf auth login"):
        open_zoo("hf://me/secret", token="hf_wrong")
    zoo = pickle.loads(pickle.dumps(open_zoo("hf://me/secret", token="hf_right")))
    assert torch.equal(zoo.preps(), local.preps())


def test_a_cache_that_cannot_be_written(filled, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PREPKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cannot write '.*file"):
        open_zoo("hf://me/zoo")


def test_what_is_in_the_cache_is_the_zoo(filled, local):
    """A streamed zoo whose shards have all come is an ordinary zoo in its folder."""
    zoo = open_zoo("hf://me/zoo")
    zoo.preps()
    _ = zoo.teacher
    root = zoo._store.root
    assert read_manifest(root) == local.manifest
    assert torch.equal(open_zoo(root).preps(), local.preps())


# Few open files -----------------------------------------------------------------------------------------------


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
    filled.add("me/other", {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.*")})
    open_zoo("hf://me/other", cache_bytes=0).preps([5])  # makes room
    gone = [
        index for index in range(len(local)) if path_of(local, index).rpartition("/")[2] not in zoo_files("me--zoo")
    ]
    assert len({path_of(local, index) for index in gone}) == len(local.manifest.shards) - 2
    filled.forget()
    assert torch.equal(zoo.preps(gone[:1]), local.preps(gone[:1]))
    assert shards_of(filled) == ([] if mmap else [path_of(local, gone[0])])  # the system keeps what is mapped
