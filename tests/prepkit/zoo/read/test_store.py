"""Tests of stores in a folder, and of shards that are verified at their first touch."""

import pickle
import shutil

import numpy as np
import pytest
from store_contract import StoreContract
from writer_samples import tensors_of

from prepkit.api import open_zoo
from prepkit.errors import ZooError
from prepkit.zoo.format.manifest import read_manifest
from prepkit.zoo.read.store import LocalStore
from prepkit.zoo.write.writer import ZooWriter


class TestLocalStore(StoreContract):
    @pytest.fixture
    def folder(self, tmp_path):
        with ZooWriter(tmp_path / "zoo", width=8, shard_bytes=300) as writer:
            writer.set_teacher(tensors_of(9))
            for seed in range(7):
                writer.add(tensors_of(seed, (3, 4 + seed % 2, 2)))
        return tmp_path / "zoo"

    @pytest.fixture
    def store(self, folder):
        return LocalStore(folder)

    def test_another_zoo_in_its_place_is_refused_in_another_process(self, store, folder):
        pickled = pickle.dumps(store)
        shutil.rmtree(folder)
        with ZooWriter(folder, width=8) as writer:
            writer.add(tensors_of(1))
        with pytest.raises(ZooError, match="was replaced"):
            pickle.loads(pickled)


class TestStoreWithoutMapping(TestLocalStore):
    @pytest.fixture
    def store(self, folder):
        return LocalStore(folder, mmap=False)


class TestVerifying:
    @pytest.fixture
    def root(self, tmp_path):
        """A zoo with a flipped bit in the values of its second shard."""
        with ZooWriter(tmp_path / "zoo", width=8, shard_bytes=300) as writer:
            for seed in range(5):
                writer.add(tensors_of(seed))
        shard = tmp_path / "zoo" / read_manifest(tmp_path / "zoo").shards[1].path
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        return tmp_path / "zoo"

    def test_a_damaged_shard_is_refused_at_its_first_touch(self, root):
        open_zoo(root).preps()
        zoo = open_zoo(root, verify=True)
        damaged = zoo.shard_numbers == 1
        assert len(zoo.select(np.flatnonzero(~damaged)).preps()) == int((~damaged).sum())
        shard = zoo.manifest.shards[1]
        with pytest.raises(ZooError, match=rf"{shard.path}: damaged, its sha256 .*{shard.sha256[:12]}.*fetch it again"):
            zoo.preps()
        with pytest.raises(ZooError, match="damaged"):
            pickle.loads(pickle.dumps(zoo)).preps()

    @pytest.mark.parametrize("said", ["0", "1", ""])
    def test_the_environment_says_whether(self, root, monkeypatch, said):
        monkeypatch.setenv("PREPKIT_VERIFY", said)
        if said == "1":
            with pytest.raises(ZooError, match="damaged"):
                open_zoo(root).preps()
            open_zoo(root, verify=False).preps()
        else:
            open_zoo(root).preps()

    def test_another_word_is_refused(self, root, monkeypatch):
        monkeypatch.setenv("PREPKIT_VERIFY", "yes")
        with pytest.raises(ZooError, match=r"PREPKIT_VERIFY is 'yes'; set it to 1 .* or to 0"):
            open_zoo(root)
