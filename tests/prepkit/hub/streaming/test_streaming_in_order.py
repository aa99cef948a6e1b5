"""A loader fetches the shards that it will use, in its own order and not too far ahead."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pushed_zoos import path_of, shards_of
from streaming_samples import in_cache, nobody_fetches, num_bytes
from waiting import wait_for

from prepkit.api import open_zoo
from prepkit.errors import HubError, ZooError
from prepkit.hub import store
from prepkit.zoo.read._order import Order, grouped

pytestmark = pytest.mark.usefixtures("one_thread")


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
