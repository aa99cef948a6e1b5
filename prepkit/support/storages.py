"""Tensors of networks and of nested values, and the storages in which they lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def storage_key(tensor: Tensor) -> int | None:
    """Return the address of a tensor's storage; None if it has none, as when it is sparse or wrapped by vmap."""
    try:
        with torch._C.DisableTorchFunction():
            return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def own_tensors(network: nn.Module) -> Iterator[Tensor]:
    """Yield every parameter and buffer of a network."""
    yield from network.parameters()
    yield from network.buffers()


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists, dicts and dataclasses, in order."""
    tensors = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            tensors += tensors_in([getattr(leaf, item.name) for item in dataclasses.fields(leaf)])
    return tensors


def leaves(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dicts, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
