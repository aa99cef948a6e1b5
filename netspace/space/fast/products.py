"""What encoder and decoder share: when they apply, and the dtypes of their products. K factors, X anything."""

# ruff: noqa: N803 - names of tensors end in their axes

from __future__ import annotations

import torch
from torch import Tensor

ALIGNED = 32  # values: rows of images, and room to read on, begin at multiples of it


def applies(*tensors: Tensor) -> bool:
    """On a CPU, in one dtype, float32 or float64."""
    dtype = tensors[0].dtype
    if dtype not in (torch.float32, torch.float64) or not len(tensors[0]):
        return False
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    return all(tensor.device.type == "cpu" and tensor.dtype == dtype for tensor in tensors)


def dtype_of_products(tensor: Tensor) -> torch.dtype:
    """The dtype in which a tensor is multiplied here: bfloat16 for float32 under autocast, else its own."""
    half = torch.is_autocast_enabled("cpu") and tensor.dtype == torch.float32
    return torch.bfloat16 if half else tensor.dtype


def no_autocast() -> torch.autocast:
    """Switch autocast off: in here every tensor already has the dtype that it is multiplied in."""
    return torch.autocast("cpu", enabled=False)


def factors(values_KX: Tensor, dtype: torch.dtype, parts: tuple[int, ...]) -> Tensor:
    """A factor of a product over few K; in bfloat16 as `[.., 3 K, X]` of its high (0) and low (1) part, for 16 bits."""
    if dtype == values_KX.dtype:
        return values_KX
    high = values_KX.to(dtype)
    pair = (high, (values_KX - high).to(dtype))
    return torch.cat([pair[part] for part in parts], dim=-2)
