"""A small PRep of everything that a PRep may hold, and all that a PRep is."""

from typing import Any

import torch
from torch import Tensor

from prepkit.prep.file import (
    Origin,
    PRep,
)
from prepkit.prep.layout import Layout

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

ORIGIN = Origin("resnet8@digits", 2, "ab" * 32, ("conv", "stages.0.0.conv1"))


def bits(tensor: Tensor) -> list[int]:
    """Every value as the whole number with the same bits: NaN has some too, and -0 is not 0."""
    return tensor.detach().reshape(-1).contiguous().view(WORDS[tensor.element_size()]).tolist()


def contents(prep: PRep) -> tuple[Any, ...]:
    """All that a PRep is, comparable with ==."""
    tensors = {"": prep.values, **prep.buffers}
    return (
        {name: (tensor.dtype, tuple(tensor.shape), bits(tensor)) for name, tensor in tensors.items()},
        prep.layout,
        prep.origin,
    )


def small_prep(dtype: torch.dtype = torch.float32) -> PRep:
    """Tied tensors, a running statistic, integer buffers, odd values, one row of padding and more."""
    shared = torch.tensor([[1.5, -0.0, float("inf")], [float("nan"), -2.0, 1e-7]]).to(dtype)
    tensors = {
        "a.weight": shared,
        "b.weight": shared,
        "bn.running_var": torch.tensor([0.25, 4.0]).to(dtype),
        "scale": torch.tensor(3.0).to(dtype),
        "bn.num_batches_tracked": torch.tensor(2**40 + 1),
        "mask": torch.tensor([True, False, True]),
    }
    layout = Layout.of_tensors(tensors)
    buffers = {name: tensors[name] for name in ("bn.num_batches_tracked", "mask")}
    return PRep(layout.pack(tensors, layout.shape(8)), layout, ORIGIN, buffers)
