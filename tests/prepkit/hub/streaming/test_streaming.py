"""open_zoo("hf://...") fetches manifest and table at once, and shards when they are used."""

import multiprocessing
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from folder_contents import files_of
from pushed_zoos import path_of, shards_of, write_zoo
from store_contract import StoreContract
from streaming_samples import in_cache
from torch.utils.data import DataLoader

from prepkit.api import open_zoo
from prepkit.hub import store
from prepkit.support.cache import cache_folder
from prepkit.zoo.format.manifest import MANIFEST

pytestmark = pytest.mark.usefixtures("one_thread")


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
    filled.add("me/zoo", files_of(newer))
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


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])  # a spawned one imports torch anew
def test_workers_of_a_data_loader(filled, local, context, workers):
    zoo = open_zoo("hf://me/zoo")
    zoo.preps([0])
    loader = DataLoader(zoo.dataset(), batch_size=3, num_workers=workers, multiprocessing_context=context)
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
