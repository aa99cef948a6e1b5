"""The values of one tensor of each instance, such as a layer's weights, of which only its own bytes are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prepkit.errors import ZooError, counted, listed, nearest
from prepkit.tensors import torch_dtype
from prepkit.zoo.read.gather import new_memory, words
from prepkit.zoo.read.shard_values import FileShard

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.prep.layout import Slot
    from prepkit.zoo.format.manifest import StoredArchitecture
    from prepkit.zoo.read.store import Store


def tensors_named(store: Store, instances: np.ndarray, name: str) -> Tensor:
    """Return one tensor `[N, *shape]` of these instances (rows of the table), in order.

    It is in the dtype that the networks have, or in the zoo's if they have several.
    raises ZooError if an instance has no such tensor, or the tensors have several shapes
    """
    shards, rows = store.shard_of[instances], store.row_of[instances]
    slots = _slots(store, shards, name)
    sizes = {slot.shape for slot in slots.values()}
    if len(sizes) > 1:
        found = [f"{list(slot.shape)} in {architecture}" for architecture, slot in slots.items()]
        raise ZooError(
            f"'{store.manifest.name}': '{name}' has shape {listed(found)}; read one architecture at a time: "
            f"{_condition([next(iter(slots))])}."
        )
    (shape,) = sizes
    size = next(iter(slots.values())).size
    values = new_memory((len(instances), size), torch_dtype(store.manifest.dtype))
    target = words(values)
    store.need(set(shards.tolist()))
    for number in np.unique(shards).tolist():
        slot = slots[store.architecture_of_shard(number).name]
        places = np.flatnonzero(shards == number)
        places = places[np.argsort(rows[places], kind="stable")]
        shard = store.shard(number)
        if isinstance(shard, FileShard):
            for place, row in zip(places.tolist(), rows[places].tolist(), strict=True):
                shard.read_part(row, slot.start, target[place])
        else:
            target[places] = words(shard.values)[rows[places], slot.start : slot.stop]
    dtypes = {slot.dtype for slot in slots.values()}
    values = values.view(len(instances), *shape)
    return values.to(torch_dtype(dtypes.pop())) if len(dtypes) == 1 else values


def _slots(store: Store, shards: np.ndarray, name: str) -> dict[str, Slot]:
    """Return the slot of a tensor's name in each architecture of these shards; of an empty view, in those of the zoo.

    raises ZooError if an architecture has none
    """
    stored = {each.name: each for each in map(store.architecture_of_shard, np.unique(shards).tolist())}
    is_empty = not stored
    if is_empty:
        stored = {each.name: each for each in store.manifest.architectures}
    found = {each.name: slot for each in stored.values() if (slot := _slot(each, name)) is not None}
    zoo = store.manifest.name
    if not found:
        names = list(dict.fromkeys(known for each in stored.values() for known in sorted(each.layout.names)))
        raise ZooError(
            f"'{zoo}': no instance has a tensor '{name}'; there are {listed(names, 20)}.{nearest(name, names)}"
        )
    if lacking := [each for each in stored if each not in found and not is_empty]:
        counts = np.isin(shards, [n for n in np.unique(shards) if store.architecture_of_shard(n).name in lacking]).sum()
        raise ZooError(
            f"'{zoo}': {counted(int(counts), 'instance')} of {len(shards):,} have no tensor '{name}' (those of "
            f"{listed(lacking)}); choose those that have it: {_condition(list(found))}."
        )
    return found


def _slot(stored: StoredArchitecture, name: str) -> Slot | None:
    own = dict(stored.layout.ties).get(name, name)
    return next((slot for slot in stored.layout.slots if slot.name == own), None)


def _condition(names: list[str]) -> str:
    quoted = ", ".join(f"'{name}'" for name in names)
    return f'zoo.where("architecture in ({quoted})")' if len(names) > 1 else f'zoo.where("architecture == {quoted}")'
