"""Copy rows of shards into one batch `[B, H * W]`: each value is copied once, and padding is written as zeros.

numpy copies here because torch.index_select splits each batch over all cores. That costs more than it gains for rows
that the memory bus limits, and it hangs in a forked worker whose parent used torch's threads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from prepkit.errors import InvalidShape, ZooError, counted
from prepkit.prep.contents import Contents
from prepkit.tensors import torch_dtype
from prepkit.zoo.read.shard_values import FileShard, Words

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from prepkit.zoo.read.store import Store


def gather(store: Store, instances: np.ndarray, out: Tensor) -> Contents:
    """Write the PReps of these instances (rows of the table) to `out` `[B, cells]`, in order.

    out: contiguous, in the zoo's dtype, on the CPU
    returns the architectures of the instances, with the shapes of their tensors
    A PRep that has more cells than `out` is cut; the caller has checked that only padding is lost.
    """
    return Gatherer(store, instances).fill(0, len(instances), words(out))


class Gatherer:
    """Gathers PReps of instances whose order is known, one batch after another, as in an epoch.

    instances: rows of the table
    populate:  whether a shard is read as a whole when it is first touched
    """

    def __init__(self, store: Store, instances: np.ndarray, *, populate: bool = False) -> None:
        self.store = store
        self.shards, self.rows = store.shard_of[instances], store.row_of[instances]
        self._populate = populate
        self._sources: dict[int, Words] = {}  # of shards on this machine
        one = len(self.shards) > 0 and bool((self.shards == self.shards[0]).all())
        self._only = {int(self.shards[0])} if one else None
        self._opened: tuple[Words, Contents] | None = None  # of the only shard, if it is on this machine

    def fill(self, first: int, last: int, target: Words) -> Contents:
        """Write the PReps of the instances number `first` to `last` to `target` `[last - first, cells]`.

        returns the architectures of the instances, with the shapes of their tensors
        """
        rows = self.rows[first:last]
        if self._opened is not None and self._opened[0].shape[1] == target.shape[1]:  # a short way for tiny PReps
            _take(self._opened[0], rows, target)
            return self._opened[1]
        store, shards = self.store, self.shards[first:last]
        numbers: set[int] = self._only or set(shards.tolist())
        store.need(numbers)
        if self._populate:
            for number in numbers:
                store.populate(number)
        if store.is_mapped:
            _copy({number: self._source(number) for number in numbers}, shards, rows, target)
        else:
            _read(store, shards, rows, target)
        contents = dict(store.contents[number] for number in numbers)
        if self._only and self._sources:
            self._opened = next(iter(self._sources.values())), contents
        return contents

    def _source(self, number: int) -> Words:
        if self.store.is_remote:  # its cache must be able to let a shard go
            return words(self.store.values(number))
        if number not in self._sources:
            self._sources[number] = words(self.store.values(number))
        return self._sources[number]


def _take(values: Words, rows: np.ndarray, target: Words) -> None:
    """Copy rows of the same length; all of them are there, and the default mode would buffer the output."""
    values.take(rows, axis=0, out=target, mode="clip")


def _copy(sources: Mapping[int, Words], shards: np.ndarray, rows: np.ndarray, target: Words) -> None:
    """Copy rows of mapped shards."""
    same_size = all(values.shape[1] == target.shape[1] for values in sources.values())
    if same_size and len(sources) == 1:
        (values,) = sources.values()
        _take(values, rows, target)
        return
    # Rows are copied in the order of the output, so that it is written in one stream.
    for position, (number, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
        if same_size:  # the frequent case: a call for each row would cost more than the copy
            target[position] = sources[number][row]
        else:
            copy_row(sources[number][row], target[position])


def batch_memory(size: tuple[int, ...], dtype: str, out: Tensor | None) -> Tensor:
    """Return memory for PReps of this size and dtype: `out`, or new memory if it is None.

    raises InvalidShape if `out` has another size or dtype, is not contiguous, or is not on the CPU,
           ZooError if there is not that much memory
    """
    if out is None:
        return new_memory(size, torch_dtype(dtype))
    fits = tuple(out.shape) == size and out.dtype == torch_dtype(dtype)
    if not fits or not out.is_contiguous() or out.device.type != "cpu":
        raise InvalidShape(
            f"out is {list(out.shape)} {out.dtype} on {out.device}; "
            f"needed is {list(size)} {dtype}, contiguous, on the CPU."
        )
    return out


def new_memory(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return new memory for PReps or masks `[B, H, W]`.

    raises ZooError if there is not that much
    """
    import torch

    try:
        return torch.empty(size, dtype=dtype)
    except (RuntimeError, MemoryError):  # numbers beyond 64 bits, too
        needed = counted(math.prod(size) * dtype.itemsize, "byte")
        raise ZooError(
            f"{size[0]:,} PReps of {size[1]} x {size[2]} take {needed}, which memory does not have; "
            "read fewer at a time, or at a smaller width and height."
        ) from None


def _read(store: Store, shards: np.ndarray, rows: np.ndarray, target: Words) -> None:
    """Read rows from the files of their shards, in the order of the files; those that stand side by side at once."""
    order = np.lexsort((rows, shards))
    apart = (np.diff(order) != 1) | (np.diff(rows[order]) != 1) | (np.diff(shards[order]) != 0)
    for run in np.split(order, np.flatnonzero(apart) + 1):
        if len(run):
            first = run[0]
            shard = store.shard(int(shards[first]))
            assert isinstance(shard, FileShard)
            shard.read(int(rows[first]), target[first : first + len(run)])


def copy_row(values: Words, target: Words) -> None:
    """Copy values, cut or padded with zeros to the target's length."""
    cells = len(target)
    if len(values) >= cells:
        target[:] = values[:cells]
    else:
        target[: len(values)] = values
        target[len(values) :] = 0


def words(tensor: Tensor) -> Words:
    """Return the same memory as a numpy array; bfloat16, which numpy lacks, as 16-bit words."""
    import torch

    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
