"""Casting tensors to another dtype, with an account of what changes, and finding values that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prepkit.errors import CheckpointError, counted
from prepkit.tensors import storage_identity, torch_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIECE = 1 << 20  # values that are compared at once, so that a large tensor needs little memory beside itself


@dataclass(frozen=True)
class Rounding:
    """What a cast changed.

    num_values:  number of floating-point values, tied ones once
    num_changed: number of those that differ after the cast
    largest:     the largest change of a value that stays finite, relative to the value
    num_zeroed:  number of values that became zero
    """

    num_values: int
    num_changed: int
    largest: float
    num_zeroed: int


def cast(
    tensors: Mapping[str, Tensor], dtype: str, place: str, allow_nonfinite: bool, allow_underflow: bool
) -> tuple[dict[str, Tensor], Rounding]:
    """Return the tensors in another dtype, and what that changed; tied ones stay tied, and integers as they are.

    raises CheckpointError for a value that is too large or too small for the dtype, unless it is allowed
    """
    target = torch_dtype(dtype)
    result: dict[str, Tensor] = {}
    cast_by_memory: dict[object, Tensor] = {}
    parts: list[Rounding] = []
    for name, tensor in tensors.items():
        memory = storage_identity(tensor)
        if memory not in cast_by_memory:
            cast_by_memory[memory] = tensor.to(target) if tensor.is_floating_point() else tensor
            if tensor.is_floating_point():
                parts.append(_rounding(tensor, target, f"{place}: '{name}'", allow_underflow))
        result[name] = cast_by_memory[memory]
    if not allow_nonfinite:
        check_finite(result, place, after=f" after the cast to {dtype}")
    return result, Rounding(
        sum(part.num_values for part in parts),
        sum(part.num_changed for part in parts),
        max((part.largest for part in parts), default=0.0),
        sum(part.num_zeroed for part in parts),
    )


def _rounding(tensor: Tensor, dtype: torch.dtype, place: str, allow_underflow: bool) -> Rounding:
    """Return what casting one tensor changes; raises CheckpointError for values that become zero unless allowed."""
    import torch

    if torch.promote_types(tensor.dtype, dtype) == dtype:
        return Rounding(tensor.numel(), 0, 0.0, 0)
    num_changed, num_zeroed, largest, smallest = 0, 0, 0.0, math.inf
    for before, after in _pieces(tensor, dtype):
        changed = (before != after) & before.isfinite()  # infinity and NaN stay what they are in every dtype
        if not bool(changed.any()):
            continue
        before, after = before[changed].double(), after[changed].double()
        num_changed += len(before)
        zeroed = before[after == 0].abs()
        if len(zeroed):
            num_zeroed += len(zeroed)
            smallest = min(smallest, float(zeroed.min()))
        change = ((after - before) / before).abs()
        change[change.isinf()] = 0  # an overflow is counted, but its change has no size
        largest = max(largest, float(change.max()))
    if num_zeroed and not allow_underflow:
        raise CheckpointError(
            f"{place} holds {num_zeroed:,} of {counted(tensor.numel(), 'value')}, such as {smallest:.1e}, that the "
            f"cast to {str(dtype).removeprefix('torch.')} turns into 0; use a dtype with a wider range, or pass "
            "allow_underflow=True if zeros will do."
        )
    return Rounding(tensor.numel(), num_changed, largest, num_zeroed)


def _pieces(tensor: Tensor, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield parts of a tensor and the same parts as they are after a cast, both in the tensor's own dtype."""
    import torch

    for piece in torch.split(tensor.reshape(-1), PIECE):
        yield piece, piece.to(dtype).to(piece.dtype)


def check_finite(
    tensors: Mapping[str, Tensor],
    place: str,
    after: str = "",
    remedy: str = "pass allow_nonfinite=True if they are meant",
) -> None:
    """Raise CheckpointError for the first tensor that holds NaN or infinity, with their numbers."""
    import torch

    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        least, greatest = torch.aminmax(tensor)  # both are NaN if any value is; a mask would be as large as the tensor
        if bool(torch.isfinite(least)) and bool(torch.isfinite(greatest)):
            continue
        num_nan, num_infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        raise CheckpointError(
            f"{place}: '{name}' holds {num_nan:,} NaN and {num_infinite:,} infinite of "
            f"{counted(tensor.numel(), 'value')}"
            f"{after}; {remedy}."
        )
