"""Facts about tensors that torch does not give in one call: which ones a PRep can hold, and which are one memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prepkit.errors import LayoutMismatch, listed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BITS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}  # dtypes that a PRep can have


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    """torch.float32 for `float32`."""
    import torch

    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise LayoutMismatch(f"'{name}' is not a dtype; use one of {listed(BITS)}.")
    return dtype


def flat_view(prep: Tensor) -> Tensor:
    """`[*batch, H, W]` seen as `[*batch, H * W]`, never a copy."""
    if prep.dim() < 2:
        raise LayoutMismatch(f"a PRep has shape [*batch, H, W], not {list(prep.shape)}.")
    try:
        return prep.view(*prep.shape[:-2], prep.shape[-2] * prep.shape[-1])
    except RuntimeError:
        raise LayoutMismatch(
            f"the PRep of shape {list(prep.shape)} and strides {list(prep.stride())} is not row-major in memory; "
            "call .contiguous() on it."
        ) from None


def stands_beside(name: str, tensor: object, kind: str) -> bool:
    """True for an integer buffer, which is stored beside a PRep; an error for what cannot be packed at all."""
    import torch
    from torch.nn.parameter import is_lazy

    if not isinstance(tensor, torch.Tensor):
        raise LayoutMismatch(f"'{name}' is a {type(tensor).__name__}, not a tensor; leave it out.")
    if is_lazy(tensor):
        raise LayoutMismatch(f"'{name}' is not initialised yet; run the network once on an input.")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        what = "quantised" if tensor.is_quantized else "complex" if tensor.is_complex() else "sparse"
        raise LayoutMismatch(f"'{name}' is {what} ({dtype_name(tensor.dtype)}); a PRep holds dense {listed(BITS)}.")
    if tensor.is_floating_point():
        return False
    if kind == "parameter" and not looks_like_buffer(name, tensor):
        raise LayoutMismatch(
            f"'{name}' is an integer parameter ({dtype_name(tensor.dtype)}); a PRep holds {listed(BITS)}. "
            "Cast it or leave it out."
        )
    return True


def looks_like_buffer(name: str, tensor: Tensor) -> bool:
    """True for counters, masks and index tables, which networks keep as buffers; a state dict hides the kind."""
    import torch

    known = ("num_batches_tracked", "position_ids", "relative_position_index")
    return tensor.dtype == torch.bool or tensor.dim() == 0 or name.rpartition(".")[2] in known


def storage_identity(tensor: Tensor) -> object:
    """Equal for tensors that are one and the same memory, so tied; unique where there is no memory to compare."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return id(tensor)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def same_values(a: Tensor, b: Tensor) -> bool:
    """True if two tensors are one memory or agree in every bit."""
    return storage_identity(a) == storage_identity(b) or same_bits(a, b)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """True if two tensors agree in dtype, shape and every bit, so that NaN equals itself and -0 differs from 0."""
    import torch

    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(words), b.contiguous().view(words))
