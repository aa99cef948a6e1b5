"""Seven statistics of each tensor of many instances: mean, spread and five quantiles.

Source: Predicting Neural Network Accuracy from Weights (Unterthiner et al., 2020), arXiv 2002.11448, which takes mean,
variance and the quantiles at 0, 25, 50, 75 and 100 % of the weights and of the biases of each layer.
Shapes: N instances, T tensors, n values of one tensor.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prepkit.prep.layout import Layout

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
NUM_STATISTICS = 2 + len(QUANTILES)
Spread = Literal["variance", "deviation"]


def slot_statistics(flat: Tensor, layout: Layout, spread: Spread = "variance") -> Tensor:
    """Return the statistics `[N, T, 7]` of flat PReps `[N, H * W]`, in float64 wherever the device has it."""
    on_host = flat.device.type == "cpu"
    of_values = _on_host if on_host else _on_device
    slots = [slot for slot in layout if slot.size]
    return torch.stack([of_values(flat[:, slot.start : slot.stop], spread) for slot in slots], dim=1)


def _on_host(values: Tensor, spread: Spread) -> Tensor:
    """Return the seven statistics `[N, 7]` of values `[N, n]`; numpy sorts ten times as fast as torch."""
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    ordered = np.sort(values.numpy(), axis=1)  # NaN comes last
    with np.errstate(invalid="ignore", over="ignore"):
        mean = torch.from_numpy(ordered.mean(axis=1, dtype=np.float64))
        variance = torch.from_numpy(ordered.var(axis=1, dtype=np.float64))
    return _columns(mean, variance, torch.from_numpy(ordered), spread)


def _on_device(values: Tensor, spread: Spread) -> Tensor:
    wide = values.float() if values.device.type == "mps" else values.double()
    variance, mean = torch.var_mean(wide, dim=1, correction=0)
    return _columns(mean, variance, wide.sort(dim=1).values, spread)


def _columns(mean: Tensor, variance: Tensor, ordered: Tensor, spread: Spread) -> Tensor:
    """Return the seven statistics `[N, 7]` from two of them and the values in order `[N, n]`."""
    second = variance.sqrt() if spread == "deviation" else variance
    found = torch.cat([mean[:, None], second[:, None], _quantiles(ordered, mean.dtype)], dim=1)
    return found.masked_fill(ordered[:, -1:].isnan(), math.nan)


def _quantiles(ordered: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the quantiles `[N, 5]` of rows in order, linear between two neighbours."""
    last = ordered.shape[1] - 1
    below = [int(quantile * last) for quantile in QUANTILES]
    neighbours = ordered[:, [*below, *(min(place + 1, last) for place in below)]].to(dtype)
    low, high = neighbours.chunk(2, dim=1)
    parts = [quantile * last - place for quantile, place in zip(QUANTILES, below, strict=True)]
    part = torch.tensor(parts, dtype=dtype, device=ordered.device)
    # Between equal neighbours, and at a neighbour, infinity must not become NaN.
    return torch.where((low == high) | (part == 0), low, low + (high - low) * part)
