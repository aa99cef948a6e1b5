"""Copy rows of shards into one batch `[B, H * W]`: each value is copied once, and padding is written as zeros.

numpy copies here because torch.index_select splits each batch over all cores. That costs more than it gains for rows
that the memory bus limits, and it hangs in a forked worker whose parent used torch's threads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from prepkit.errors import InvalidShape, ZooError, counted
from prepkit.tensors import torch_dtype
from prepkit.zoo.read.shard_values import FileShard, Words

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from prepkit.zoo.read.store import Store


def gather(store: Store, instances: np.ndarray, out: Tensor) -> set[int]:
    """Write the PReps of these instances (rows of the table) to `out` `[B, cells]`, in order.

    out: contiguous, in the zoo's dtype, on the CPU
    returns the numbers of the shards that hold them
    A PRep that has more cells than `out` is cut; the caller has checked that only padding is lost.
    """
    target = words(out)
    shards, rows = store.shard_of[instances], store.row_of[instances]
    numbers: set[int] = set(shards.tolist())
    store.need(numbers)
    if not store.is_mapped:
        _read(store, shards, rows, target)
        return numbers
    sources = {number: words(store.values(number)) for number in numbers}
    same_size = all(values.shape[1] == target.shape[1] for values in sources.values())
    if same_size and len(sources) == 1:
        (values,) = sources.values()
        np.take(values, rows, axis=0, out=target, mode="clip")  # the default mode would buffer the output
        return numbers
    # Rows are copied in the order of the output, so that it is written in one stream.
    for position, (number, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
        if same_size:  # the frequent case: a call for each row would cost more than the copy
            target[position] = sources[number][row]
        else:
            copy_row(sources[number][row], target[position])
    return numbers


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
