"""Tensors in pieces that stay in the processor's cache, so that files larger than memory can be measured."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PIECE = 1 << 17  # values, which take 1 MiB as float64


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor of real numbers, one after another: a complex one has its two parts in a last axis."""
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same piece of each tensor, `[n]` with n of at most PIECE; all have the same shape."""
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), PIECE):
        yield tuple(values[start : start + PIECE] for values in flat)
