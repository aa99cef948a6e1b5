"""Statistics of tensors, one reading of the values each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from prepkit.inspecting._pieces import pieces
from prepkit.tensors import dtype_name


@dataclass(frozen=True)
class TensorStatistics:
    """What the values of one tensor are like.

    shape, dtype:         of the tensor
    size:                 number of values
    mean, deviation:      of the finite values; the deviation is sqrt(mean((x - mean)^2)), without Bessel's correction
    minimum, maximum:     of the finite values
    norm:                 sqrt(sum(x^2)) of the finite values
    zeros, nan, infinite: numbers of values that are 0, NaN, and plus or minus infinity
    Measures are None where there is no finite value, and where values are complex, sparse or quantised.
    """

    shape: tuple[int, ...]
    dtype: str
    size: int
    mean: float | None = None
    deviation: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    norm: float | None = None
    zeros: int | None = None
    nan: int | None = None
    infinite: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for a JSON document."""
        return {**asdict(self), "shape": list(self.shape)}


def statistics(tensors: Mapping[str, Tensor]) -> dict[str, TensorStatistics]:
    """Return the statistics of each tensor by its name, in float64.

    >>> statistics({"weight": torch.tensor([1.0, 3.0])})["weight"].deviation
    1.0
    """
    return {name: _of_tensor(tensor) for name, tensor in tensors.items()}


def _of_tensor(tensor: Tensor) -> TensorStatistics:
    kind = tuple(tensor.shape), dtype_name(tensor.dtype), tensor.numel()
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
        return TensorStatistics(*kind)
    count, mean, squares = 0, 0.0, 0.0  # of the finite values so far; `squares` is the sum of (x - mean)^2
    minimum, maximum, zeros, nan, infinite = math.inf, -math.inf, 0, 0, 0
    for (piece,) in pieces(tensor):
        values = piece.to(torch.float64)
        finite, total = values, values.sum()
        if not total.isfinite():  # then some value is not, or the sum of huge ones is too large
            finite = values[values.isfinite()]
            nan += int(values.isnan().sum())
            infinite += int(values.isinf().sum())
            if not finite.numel():
                continue
        number, mean_of_piece = finite.numel(), float(finite.mean())
        lowest, highest = torch.aminmax(finite)
        minimum, maximum = min(minimum, float(lowest)), max(maximum, float(highest))
        zeros += number - int(finite.count_nonzero())
        # Chan, Golub and LeVeque 1979, equation 2.1: the squares of two samples about their common mean.
        step = mean_of_piece - mean
        squares += float((finite - mean_of_piece).square().sum()) + step * step * count * number / (count + number)
        mean += step * number / (count + number)
        count += number
    if not count:
        return TensorStatistics(*kind, zeros=0, nan=nan, infinite=infinite)
    return TensorStatistics(
        *kind,
        mean=mean,
        deviation=math.sqrt(squares / count),
        minimum=minimum,
        maximum=maximum,
        norm=math.sqrt(squares + count * mean * mean),
        zeros=zeros,
        nan=nan,
        infinite=infinite,
    )
