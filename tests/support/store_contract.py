"""What every Store promises; the tests of each store subclass it."""

import multiprocessing
import pickle

import pytest
import torch

from prepkit.errors import ZooError
from prepkit.prep.file import load_prep
from prepkit.support.files import sha256_of_file


def values_in_a_child(store, number, queue):
    queue.put(store.values(number).double().sum().item())


class StoreContract:
    """A subclass has the fixtures `store`, freshly opened, and `folder`, the same zoo whole in a folder.

    The zoo has several shards and a teacher.
    """

    def written(self, store, folder, number):
        """The values of a shard, read from its file without a store: they end the file."""
        shard = store.manifest.shards[number]
        cells = store.architecture_of_shard(number).height * store.manifest.width
        content = bytearray((folder / shard.path).read_bytes()[-shard.rows * cells * 4 :])
        return torch.frombuffer(content, dtype=torch.float32).view(shard.rows, cells)

    def all_shards(self, store):
        return range(len(store.manifest.shards))

    def test_values_are_those_that_were_written(self, store, folder):
        assert len(self.all_shards(store)) > 2
        for number in self.all_shards(store):
            assert torch.equal(store.values(number), self.written(store, folder, number))

    def test_every_row_of_the_table_is_in_its_shard(self, store):
        rows = list(zip(store.shard_of.tolist(), store.row_of.tolist(), strict=True))
        every = [(number, row) for number in self.all_shards(store) for row in range(len(store.values(number)))]
        assert sorted(rows) == every
        names = [store.architecture_of_shard(number).name for number in store.shard_of.tolist()]
        assert store.table["architecture"].to_pylist() == names

    def test_writing_into_values_stays_in_memory(self, store, folder):
        before = self.written(store, folder, 0)
        store.values(0).fill_(7)
        assert torch.equal(self.written(store, folder, 0), before)
        assert torch.equal(pickle.loads(pickle.dumps(store)).values(0), before)

    def test_values_outlive_the_store(self, store, folder):
        before = self.written(store, folder, 1)
        values = store.values(1)
        del store
        assert torch.equal(values, before)

    def test_preparing_changes_no_value(self, store, folder):
        with store.ahead(self.all_shards(store)):
            store.need(list(self.all_shards(store))[1:])
            for number in self.all_shards(store):
                store.populate(number)
                store.populate(number)
        for number in self.all_shards(store):
            assert torch.equal(store.values(number), self.written(store, folder, number))

    def test_files_that_the_manifest_names(self, store):
        file = store.file(store.manifest.teacher.path)
        assert sha256_of_file(file) == store.manifest.teacher.sha256
        assert load_prep(file).layout == store.manifest.architecture(store.manifest.teacher.architecture).layout
        with pytest.raises(ZooError, match="is refused"):
            store.file("../elsewhere")

    def test_a_pickled_store_is_the_same(self, store):
        again = pickle.loads(pickle.dumps(store))
        assert (again.manifest, again.table) == (store.manifest, store.table)
        assert all(torch.equal(again.values(n), store.values(n)) for n in self.all_shards(store))

    @pytest.mark.parametrize("how", ["before", "after"])
    def test_a_fork_reads_what_its_parent_reads(self, store, how):
        expected = None if how == "before" else store.values(2).double().sum().item()
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=values_in_a_child, args=(store, 2, queue))
        child.start()
        found = queue.get(timeout=60)
        child.join()
        assert found == (store.values(2).double().sum().item() if expected is None else expected)
