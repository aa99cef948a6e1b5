"""From rows of mapped shards to one batch `[B, H * W]`, each value copied once, padding written as zeros.

numpy copies, not torch: torch.index_select splits each batch over all cores, which costs more than it gains for rows
that the memory bus limits, and hangs in a forked worker whose parent used torch's threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.zoo.read.store import Store

Words = np.ndarray[Any, np.dtype[Any]]


def gather(store: Store, instances: np.ndarray, out: Tensor) -> None:
    """Write the PReps of these instances (rows of the table) to `out` `[B, cells]`, in order.

    out: contiguous, in the zoo's dtype, on the CPU
    A PRep that has more cells than `out` is cut: the caller has seen to it that only padding is lost.
    """
    target = words(out)
    shards, rows = store.shard_of[instances], store.row_of[instances]
    numbers = set(shards.tolist())
    store.need(numbers)
    sources = {number: words(store.values(number)) for number in numbers}
    same_size = all(values.shape[1] == target.shape[1] for values in sources.values())
    if same_size and len(sources) == 1:
        (values,) = sources.values()
        np.take(values, rows, axis=0, out=target, mode="clip")  # the default mode would buffer the output
        return
    # In the order of the output, which is then written in one stream.
    for position, (number, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
        if same_size:  # the hot path: no call
            target[position] = sources[number][row]
        else:
            copy_row(sources[number][row], target[position])


def copy_row(values: Words, target: Words) -> None:
    """Values cut or padded with zeros to the target's length."""
    cells = len(target)
    if len(values) >= cells:
        target[:] = values[:cells]
    else:
        target[: len(values)] = values
        target[len(values) :] = 0


def words(tensor: Tensor) -> Words:
    """The same memory as a numpy array; bfloat16, which numpy lacks, as 16-bit words."""
    import torch

    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
