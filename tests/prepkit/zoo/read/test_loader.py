"""Tests of Loader, ResidentZoo and ZooDataset: they give the same batches, in an order that seed and epoch decide."""

import gc
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from writer_samples import tensors_of

from prepkit.api import open_zoo
from prepkit.errors import ZooError
from prepkit.zoo.read._order import Order, Position
from prepkit.zoo.read._resident import ResidentZoo
from prepkit.zoo.read.gather import Gatherer
from prepkit.zoo.read.memory import process_rank
from prepkit.zoo.read.store import Store
from prepkit.zoo.write.writer import ZooWriter

NUM_INSTANCES = 37


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A zoo of 37 instances of three layouts in several shards; the biases of each hold its index."""
    root = tmp_path_factory.mktemp("loader") / "zoo"
    with ZooWriter(root, width=8, shard_bytes=1000) as writer:
        for index in range(NUM_INSTANCES):
            writer.add(tensors_of(index, (3, 5 + index % 3, 2)), split="train" if index % 5 else "test")
    return open_zoo(root)


def told_index(prep: torch.Tensor) -> int:
    """Return the index in a PRep of this zoo: its first values are the first layer's biases."""
    return int(prep.reshape(-1)[0])


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prepkit-loader"]


orders = {
    "num_instances": st.integers(0, 60),
    "batch_size": st.integers(1, 20),
    "shuffle": st.booleans(),
    "seed": st.integers(0, 2**64 - 1),
    "drop_last": st.booleans(),
    "world_size": st.integers(1, 7),
    "epoch": st.integers(0, 1000),
}


@given(**orders)
def test_ranks_together_cover_every_instance(epoch, world_size, num_instances, drop_last, **rest):
    def batches(rank):
        order = Order(num_instances, rank=rank, world_size=world_size, drop_last=drop_last, **rest)
        found = order.batches(epoch)
        assert len(found) == len(order)
        return found

    ranks = [batches(rank) for rank in range(world_size)]
    assert len({len(own) for own in ranks}) == 1
    assert len({tuple(map(len, own)) for own in ranks}) == 1  # batches of equal size at every step
    visited = [int(index) for own in ranks for batch in own for index in batch]
    counts = np.bincount(visited, minlength=num_instances) if visited else np.zeros(num_instances)
    if drop_last:
        assert counts.max(initial=0) <= 1
        assert num_instances - len(visited) < world_size * rest["batch_size"] + world_size
        assert all(len(batch) == rest["batch_size"] for own in ranks for batch in own)
    else:
        assert counts.min(initial=1) >= 1
        assert len(visited) - num_instances < world_size


@given(**orders)
def test_order_does_not_depend_on_the_batch_size_or_what_was_read_before(epoch, batch_size, **rest):
    order = Order(batch_size=batch_size, rank=0, **rest)
    assert order.instances(epoch).tolist() == Order(batch_size=batch_size + 1, rank=0, **rest).instances(epoch).tolist()
    np.random.seed(0)
    torch.manual_seed(0)
    assert order.instances(epoch).tolist() == order.instances(epoch).tolist()


def test_order_is_pinned():
    """A checkpoint of training that one version wrote can be resumed with another."""
    order = Order(10, 3, True, 7, False, 0, 1)
    generator = np.random.Generator(np.random.Philox(key=[7, 2]))
    assert order.instances(2).tolist() == generator.permutation(10).tolist()
    assert order.instances(0).tolist() == [6, 3, 9, 1, 2, 0, 5, 7, 8, 4]
    assert order.instances(0).tolist() != order.instances(1).tolist()
    assert Order(10, 3, True, 8, False, 0, 1).instances(0).tolist() != order.instances(0).tolist()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 37, 50])
def test_batches_are_those_of_preps(zoo, batch_size, drop_last):
    loader = zoo.loader(batch_size, seed=3, drop_last=drop_last)
    seen = []
    for preps, class_ids, indices in loader:
        assert torch.equal(preps, zoo.preps(indices))
        assert [told_index(prep) for prep in preps] == indices.tolist()
        assert torch.equal(class_ids, zoo.class_ids(indices))
        seen += indices.tolist()
    assert len(loader) == (NUM_INSTANCES // batch_size if drop_last else -(-NUM_INSTANCES // batch_size))
    assert len(set(seen)) == len(seen) == (len(loader) * batch_size if drop_last else NUM_INSTANCES)
    assert seen != sorted(seen) or not seen


def test_views_and_plain_order(zoo):
    train = zoo.split("train")
    seen = [index for _, _, indices in train.loader(4, shuffle=False) for index in indices.tolist()]
    assert seen == list(range(len(train)))
    for preps, _, indices in train.loader(4, seed=1):
        assert torch.equal(preps, train.preps(indices))
    assert list(zoo.select([]).loader(4)) == []


def test_each_iter_is_the_next_epoch(zoo):
    loader = zoo.loader(5, seed=1)
    epochs = [[i for _, _, indices in loader for i in indices.tolist()] for _ in range(3)]
    for epoch, seen in enumerate(epochs):
        assert seen == loader.order.instances(epoch).tolist()


@settings(deadline=None, max_examples=30)
@given(k=st.integers(0, 8), epochs=st.integers(0, 2), resident=st.booleans())
def test_resume_gives_the_suffix(zoo, k, epochs, resident):
    source = zoo.to("cpu") if resident else zoo

    def make():
        return source.loader(5, seed=9)

    loader = make()
    for _ in range(epochs):
        for _ in loader:
            pass
    iterator = iter(loader)
    for _ in range(k):
        next(iterator)
    state = loader.state_dict()
    rest = [(preps.clone(), indices.tolist()) for preps, _, indices in iterator]
    following = [indices.tolist() for _, _, indices in loader]
    other = make()
    other.load_state_dict(state)
    assert other.state_dict() == state
    resumed = [(preps.clone(), indices.tolist()) for preps, _, indices in other]
    if k == len(loader):  # the epoch was over: the state is the beginning of the next
        assert [indices for _, indices in resumed] == following
        return
    assert [indices for _, indices in resumed] == [indices for _, indices in rest]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(resumed, rest, strict=True))
    assert [indices.tolist() for _, _, indices in other] == following


def test_states_of_other_loaders_are_refused(zoo):
    state = zoo.loader(5, seed=1).state_dict()
    for other in (zoo.loader(5, seed=2), zoo.loader(4, seed=1), zoo.split("train").loader(5, seed=1)):
        with pytest.raises(ZooError, match="make the loader with the same settings"):
            other.load_state_dict(state)
    with pytest.raises(ZooError, match="not the state of a loader"):
        zoo.loader(5).load_state_dict({"epoch": 1})


def test_an_iterator_that_another_followed_counts_no_more(zoo):
    loader = zoo.loader(5)
    old = iter(loader)
    next(old)
    new = iter(loader)
    next(new)
    next(old)
    assert loader.state_dict()["epoch"] == 1
    assert loader.state_dict()["batch"] == 1
    old.close()
    new.close()


def test_wrong_settings(zoo):
    for wrong in ({"batch_size": 0}, {"batch_size": 2, "seed": -1}, {"batch_size": 2, "rank": 2, "world_size": 2}):
        with pytest.raises(ZooError):
            zoo.loader(**wrong)
    with pytest.raises(ZooError, match="both rank and world_size"):
        zoo.loader(2, rank=0)
    assert process_rank(None, None) == (0, 1)


def test_rank_of_torch_distributed(zoo, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        assert process_rank(None, None) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()


# The thread -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def little_memory(monkeypatch):
    """A machine whose memory does not hold the zoo's files, so that a thread reads them ahead."""
    monkeypatch.setattr("prepkit.zoo.read._loader.available_bytes", lambda: 1000)


@pytest.fixture(params=["here", "by a thread"])
def either_way(request):
    """Batches are gathered in the caller's thread, and by one of their own."""
    if request.param == "by a thread":
        request.getfixturevalue("little_memory")


def test_files_in_memory_are_read_without_a_thread(zoo):
    iterator = iter(zoo.loader(2))
    next(iterator)
    assert not threads()


@pytest.mark.usefixtures("little_memory")
def test_stays_ahead_and_no_further(zoo, monkeypatch):
    gathered = []
    fill = Gatherer.fill
    monkeypatch.setattr(Gatherer, "fill", lambda self, *which: gathered.append(1) or fill(self, *which))
    iterator = iter(zoo.loader(2))
    next(iterator)
    deadline = time.monotonic() + 5
    while len(gathered) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(gathered) == 3  # the batch in use and two ahead
    iterator.close()


@pytest.mark.usefixtures("either_way")
def test_a_batch_is_valid_until_the_next_is_asked_for(zoo):
    for preps, _, indices in zoo.loader(3):
        time.sleep(0.002)  # time for the thread to spoil it
        assert [told_index(prep) for prep in preps] == indices.tolist()


@pytest.mark.usefixtures("either_way")
def test_what_somebody_keeps_of_a_batch_stays_as_it_is(zoo):
    """Whole batches, a view of one PRep alone, and numpy arrays of the same memory; in one epoch and the next."""
    loader = zoo.loader(3, seed=4)
    batches = list(loader)
    rows = [(preps[1], int(indices[1])) for preps, _, indices in loader if len(indices) > 1]
    arrays = [(preps.numpy(), indices.tolist()) for preps, _, indices in loader]
    for _ in loader:
        pass
    for preps, class_ids, indices in batches:
        assert torch.equal(preps, zoo.preps(indices))
        assert torch.equal(class_ids, zoo.class_ids(indices))
    assert [told_index(prep) for prep, _ in rows] == [index for _, index in rows]
    assert all([told_index(prep) for prep in preps] == indices for preps, indices in arrays)


def test_memory_is_used_again(zoo):
    assert len({preps.data_ptr() for preps, _, _ in zoo.loader(3)}) <= 3


@pytest.mark.usefixtures("little_memory")
def test_a_thread_uses_memory_again(zoo):
    assert len({preps.data_ptr() for preps, _, _ in zoo.loader(1)}) <= 6  # of 37 batches


@pytest.mark.xdist_group("time and memory")
@pytest.mark.usefixtures("little_memory")
def test_threads_do_not_leak(zoo):
    for how in ("finished", "dropped", "closed", "never begun"):
        iterator = iter(zoo.loader(2))
        if how == "finished":
            assert sum(1 for _ in iterator) == 19
        elif how != "never begun":
            next(iterator)
            assert threads()
        if how == "closed":
            iterator.close()
        del iterator
        gc.collect()
        assert not threads(), how


@pytest.mark.usefixtures("either_way")
def test_errors_of_reading_reach_the_caller(zoo, monkeypatch):
    fill, calls = Gatherer.fill, []

    def failing(self, *which):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the disk is on fire")
        return fill(self, *which)

    monkeypatch.setattr(Gatherer, "fill", failing)
    seen = []
    with pytest.raises(RuntimeError, match="on fire"):
        seen.extend(indices for _, _, indices in zoo.loader(2))
    assert len(seen) == 2  # what was whole came first
    assert not threads()


@pytest.mark.parametrize(("available", "populated"), [(1 << 40, True), (1000, False)])
def test_populates_what_fits(zoo, monkeypatch, available, populated):
    calls = set()
    monkeypatch.setattr("prepkit.zoo.read._loader.available_bytes", lambda: available)
    monkeypatch.setattr(Store, "populate", lambda self, number: calls.add(number))
    assert len(list(zoo.loader(4))) == 10
    assert calls == (set(zoo.shard_numbers.tolist()) if populated else set())


# Resident -------------------------------------------------------------------------------------------------------------


def test_resident_equals_the_zoo(zoo, monkeypatch):
    monkeypatch.setattr("prepkit.zoo.read._resident.CHUNK_BYTES", 2000)
    for source in (zoo, zoo.split("train"), zoo.select([])):
        resident = source.to("cpu")
        assert isinstance(resident, ResidentZoo)
        assert len(resident) == len(source)
        assert torch.equal(resident.preps(), source.preps())
        assert torch.equal(resident.class_ids(), source.class_ids())
        for mine, theirs in zip(resident.loader(4, seed=5), source.loader(4, seed=5), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    resident = zoo.to("cpu")
    for indices in ([3, 1, -1], np.array([2]), slice(3, 9), torch.tensor([5, 4])):
        assert torch.equal(resident.preps(indices), zoo.preps(indices))
        assert torch.equal(resident.class_ids(indices), zoo.class_ids(indices))


def test_resident_that_does_not_fit_says_sizes(zoo, monkeypatch):
    needed = len(zoo) * zoo.shape.cells * 4
    monkeypatch.setattr("prepkit.zoo.read._resident.free_bytes", lambda device: needed - 1)
    with pytest.raises(ZooError, match=rf"needs {needed:,} bytes on cpu, where {needed - 1:,} are free; use a subset"):
        zoo.to("cpu")


# torch's DataLoader ---------------------------------------------------------------------------------------------------


def test_dataset(zoo):
    dataset = zoo.split("train").dataset()
    assert len(dataset) == len(zoo.split("train"))
    prep, class_id, index = dataset[3]
    assert torch.equal(prep, zoo.split("train").preps(3)[0])
    assert (class_id, index) == (int(zoo.split("train").class_ids(3)), 3)
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    with pytest.raises(IndexError):
        dataset.__getitems__([0, len(dataset)])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])  # a spawned one imports torch anew
def test_dataset_in_workers(zoo, method, workers):
    zoo.preps()  # files are mapped already when the workers start
    loader = DataLoader(zoo.dataset(), batch_size=4, shuffle=True, num_workers=workers, multiprocessing_context=method)
    seen = []
    for preps, class_ids, indices in loader:
        assert [told_index(prep) for prep in preps] == indices.tolist()
        assert torch.equal(preps, zoo.preps(indices))
        assert torch.equal(class_ids, zoo.class_ids(indices))
        seen += indices.tolist()
    assert sorted(seen) == list(range(NUM_INSTANCES))


def test_position_of_an_empty_order():
    position = Position(Order(0, 4, True, 0, False, 0, 1))
    position.begin()
    assert position.state_dict()["epoch"] == 1
