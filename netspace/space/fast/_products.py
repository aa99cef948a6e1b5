"""Common parts of encoder and decoder: the switch, when they apply, dtypes of products. K factors, X any."""

# ruff: noqa: N803 - names of tensors end in their axes

from __future__ import annotations

import torch
from torch import Tensor

ALIGNED = 32  # rows of images, and the padding after them, begin at multiples of so many values
enabled = True  # the one switch: False makes encoder and decoder run the plain network


def applies(*tensors: Tensor) -> bool:
    """Whether the fast functions are switched on and can take these tensors: on one device, all float32 or float64."""
    dtype, device = tensors[0].dtype, tensors[0].device.type
    if not enabled or dtype not in (torch.float32, torch.float64) or not len(tensors[0]):
        return False
    if device not in ("cpu", "cuda"):
        return False
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != torch.bfloat16:
        return False
    return all(tensor.device.type == device and tensor.dtype == dtype for tensor in tensors)


def dtype_of_products(tensor: Tensor) -> torch.dtype:
    """The dtype that a tensor is multiplied in: bfloat16 for float32 under autocast, else its own."""
    autocast = torch.is_autocast_enabled(tensor.device.type) and tensor.dtype == torch.float32
    return torch.bfloat16 if autocast else tensor.dtype


def no_autocast(tensor: Tensor) -> torch.autocast:
    """Switch autocast off on a tensor's device: in here every tensor has the dtype that it is multiplied in."""
    return torch.autocast(tensor.device.type, enabled=False)


def factors(values_KX: Tensor, dtype: torch.dtype, parts: tuple[int, ...]) -> Tensor:
    """A factor of a product over few K; bfloat16 ones are split into high (0) and low (1) parts, `[.., 3 K, X]`."""
    if dtype == values_KX.dtype:
        return values_KX
    high = values_KX.to(dtype)
    pair = (high, (values_KX - high).to(dtype))
    return torch.cat([pair[part] for part in parts], dim=-2)
