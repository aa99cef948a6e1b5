"""NetSpace's encoder and decoder on a CPU: what network.py defines, in less time and memory.

    encoder     Of the second convolution's [E/16, H, W/4] only the maximum over the width is read. Rows go through in
                blocks that stay in the cache; the maxima and where they stood are all that is kept. Backward looks at
                the 7 PRep values behind each maximum and convolves those again.
    decoder     Convolutions as matrix products, a row of their output at a time. Columns are laid out once for each
                row of the input and tap of the kernel, [rows, 3, channels, places]: the 3 kernel rows of an output row
                then lie side by side, rows are shared by neighbours, and padding above and below is left out. Small
                PReps go through several at once. What the first convolution puts out is made again in backward.

Under bfloat16 autocast, large matrix products are taken in bfloat16; what goes in and comes out, parameters' gradients
and sums over instances stay in float32, and so do the maxima: bfloat16 only finds their places.
Shapes: N instances, H x W the PRep, E embedding values, K columns; R rows, G instances at once, L places, C channels.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import fold, leaky_relu, leaky_relu_, linear, pad, unfold

from netspace.initialisation import NEGATIVE_SLOPE

BLOCK_VALUES = 2**20  # of an intermediate tensor of the encoder: a few MiB, which stay in the cache
PLACES_AT_ONCE = 1024  # columns of a matrix product of the decoder, below which several instances share it
GROUP_VALUES = 2**23  # of the decoder's largest tensor, for these several
FEW_PLACES = 64  # a maximum over no more is found directly


def applies(*tensors: Tensor) -> bool:
    """Whether the functions here do what the plain network would: on a CPU, in one dtype, float32 or float64."""
    dtype = tensors[0].dtype
    if dtype not in (torch.float32, torch.float64) or not all(tensors[0].shape):
        return False
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    return all(tensor.device.type == "cpu" and tensor.dtype == dtype for tensor in tensors)


def _dtype_of_products(tensor: Tensor) -> torch.dtype:
    half = torch.is_autocast_enabled("cpu") and tensor.dtype == torch.float32
    return torch.bfloat16 if half else tensor.dtype


def _as_given() -> torch.autocast:
    """Here each tensor has the dtype that it shall be multiplied in."""
    return torch.autocast("cpu", enabled=False)


# Encoder ----------------------------------------------------------------------------------------------------------


def encode(preps_NHW: Tensor, convolutions: Sequence[nn.Conv2d]) -> Tensor:
    """`[N, H, W]` -> embeddings `[N, E]`, by the encoder's four convolutions."""
    first, second, third, fourth = convolutions
    dtype = _dtype_of_products(preps_NHW)
    with _as_given():
        rows_NHC: Tensor = _RowMaxima.apply(preps_NHW, first.weight, first.bias, second.weight, second.bias, dtype)
        features_NHC = leaky_relu(_along_height(rows_NHC, third), NEGATIVE_SLOPE)
        latent_NE: Tensor = _along_height(features_NHC, fourth).max(dim=1).values
        return leaky_relu(latent_NE, NEGATIVE_SLOPE)  # rises everywhere: it may follow the maximum


def _along_height(rows_NHC: Tensor, convolution: nn.Conv2d) -> Tensor:
    """A (3, 1) convolution with padding 1 as a linear layer over three taps."""
    padded = pad(rows_NHC, (0, 0, 1, 1))
    height = rows_NHC.shape[1]
    taps_NHC3 = torch.stack([padded[:, tap : tap + height] for tap in range(3)], dim=-1)
    return linear(taps_NHC3.flatten(2), convolution.weight.flatten(1), convolution.bias)


@dataclass(frozen=True)
class _Widths:
    """Places along a row: of the input, and after the first and the second convolution (each of stride 2).

    A row of what the first puts out has `padded` places: place j stands at j + 1 and outside are zeros, so that output
    p of the second reads the places 2 p, 2 p + 1, 2 p + 2, and one output more than there are is computed.
    """

    given: int

    @property
    def first(self) -> int:
        return (self.given + 1) // 2

    @property
    def second(self) -> int:
        return (self.first + 1) // 2

    @property
    def padded(self) -> int:
        return 2 * self.second + 2

    def pad_rows(self, rows_RW: Tensor) -> Tensor:
        """Zeros around, so that padded place q of the first convolution reads the inputs 2 q, 2 q + 1, 2 q + 2."""
        return pad(rows_RW, (3, 2 * self.padded - self.given - 3))

    def are_places(self, q: Tensor) -> Tensor:
        """Which padded places are places."""
        return (q > 0) & (q <= self.first)


class _RowMaxima(torch.autograd.Function):
    """The first two convolutions and the maximum over the width: `[N, H, W]` -> `[N, H, E / 16]`."""

    @staticmethod
    def forward(
        ctx: Any, preps_NHW: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, dtype: torch.dtype
    ) -> Tensor:
        height, width = preps_NHW.shape[1:]
        widths = _Widths(width)
        padded_RW = widths.pad_rows(preps_NHW.reshape(-1, width))
        taps_ToC = w2[:, :, 0].permute(2, 1, 0)  # [3, E / 32, E / 16]
        pair, third = taps_ToC[:2].flatten(0, 1).to(dtype), taps_ToC[2].to(dtype).contiguous()
        shift = b2.to(dtype)
        w1_4C = _with_bias(w1, b1)
        tall_4C = w1_4C if dtype == w1.dtype else torch.cat(_high_low_high(w1_4C)[::2] + _high_low_high(w1_4C)[:1])
        del tall_4C
        channels = len(b1)
        places_RC = preps_NHW.new_empty(len(padded_RW), len(b2), dtype=torch.int64)
        values_RC = preps_NHW.new_empty(len(padded_RW), len(b2))
        step = max(1, BLOCK_VALUES // (widths.padded * channels))
        valid_L1 = widths.are_places(torch.arange(widths.padded)).to(w1.dtype).unsqueeze(1)
        for start in range(0, len(padded_RW), step):
            block_RW = padded_RW[start : start + step]
            rows, outputs = len(block_RW), widths.second + 1
            taps_RL3 = pad(block_RW, (0, 2)).unfold(1, 3, 2)[:, : widths.padded]
            taps_RL4 = torch.cat([taps_RL3 * valid_L1, valid_L1.expand(rows, -1, -1)], dim=2)
            features = block_RW.new_empty(rows * widths.padded + 1, channels, dtype=dtype)
            features[-1] = 0
            _product_4(taps_RL4.flatten(0, 1), w1_4C, features[:-1])
            leaky_relu_(features, NEGATIVE_SLOPE)
            sums = torch.addmm(shift, features[:-1].view(rows * outputs, 2 * channels), pair)
            sums.addmm_(features[2:].as_strided((rows * outputs, channels), (2 * channels, 1)), third)
            sums_RLC = sums.view(rows, outputs, -1)[:, : widths.second]
            found = slice(start, start + rows)
            values, places_RC[found] = _first_maxima(sums_RLC)
            if dtype == values_RC.dtype:
                values_RC[found] = values
        if dtype != values_RC.dtype:
            for found in _blocks(len(padded_RW), 3 * channels * len(b2)):
                _, _, features_CRT = _behind(padded_RW[found], places_RC[found], widths, w1_4C)
                values = torch.bmm(features_CRT.flatten(2), w2[:, :, 0].transpose(1, 2).reshape(len(b2), -1, 1))
                values_RC[found] = values.squeeze(2).t() + b2
        rows_RC = leaky_relu_(values_RC, NEGATIVE_SLOPE)
        ctx.save_for_backward(preps_NHW, w1, b1, w2, places_RC, rows_RC)
        return rows_RC.view(-1, height, len(b2))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient_NHC: Tensor) -> tuple[Tensor | None, ...]:
        preps_NHW, w1, b1, w2, places_RC, rows_RC = ctx.saved_tensors
        widths = _Widths(preps_NHW.shape[2])
        with _as_given():
            gradient_RC = _through_leaky_relu(gradient_NHC.reshape(rows_RC.shape), rows_RC)
            padded_RW = widths.pad_rows(preps_NHW.reshape(-1, preps_NHW.shape[2]))
            w1_4C = _with_bias(w1, b1)
            w2_CTo = w2[:, :, 0].transpose(1, 2).contiguous()  # [E / 16, 3, E / 32]
            g1_4C, g2_CTo = torch.zeros_like(w1_4C), torch.zeros_like(w2_CTo)
            g_RW = torch.zeros_like(padded_RW) if ctx.needs_input_grad[0] else None
            for block in _blocks(len(padded_RW), w2_CTo.numel()):
                indices, taps_CRT4, features_CRTo = _behind(padded_RW[block], places_RC[block], widths, w1_4C)
                g_CR = gradient_RC[block].t()
                if ctx.needs_input_grad[3]:
                    g2_CTo += torch.bmm(g_CR.unsqueeze(1), features_CRTo.flatten(2)).view(w2_CTo.shape)
                g_CRTo = g_CR[:, :, None, None] * w2_CTo.unsqueeze(1)
                g_sum = _through_leaky_relu(g_CRTo, features_CRTo).flatten(0, 2)
                if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                    g1_4C += taps_CRT4.flatten(0, 2).t() @ g_sum
                if g_RW is not None:
                    g_taps = (g_sum @ w1_4C[:3].t()).view(*taps_CRT4.shape[:3], 3) * taps_CRT4[..., 3:]
                    where = indices.unfold(2, 3, 2).transpose(0, 1).flatten(1)
                    g_RW[block].scatter_add_(1, where, g_taps.transpose(0, 1).flatten(1))
        g_preps = None if g_RW is None else g_RW[:, 3 : 3 + widths.given].reshape(preps_NHW.shape)
        g_w1, g_b1 = g1_4C[:3].t().reshape(w1.shape), g1_4C[3]
        return g_preps, g_w1, g_b1, g2_CTo.transpose(1, 2).unsqueeze(2), gradient_RC.sum(0), None


def _with_bias(w1: Tensor, b1: Tensor) -> Tensor:
    """The first convolution's three taps and its bias, `[4, E / 32]`."""
    return torch.cat([w1.flatten(1).t(), b1.unsqueeze(0)])


def _high_low_high(values: Tensor) -> list[Tensor]:
    high = values.bfloat16()
    return [high, (values - high).bfloat16(), high]
