"""The encoder: convolutions along a row and the maximum over the width as one function.

Only the maximum over the width is read of the second convolution's [E/16, H, W/4]. Rows are computed in blocks that
stay in the cache, and only the maxima and their places are kept. Backward looks at the 7 PRep values behind each
maximum and convolves those again. Shapes: see netspace/space/fast/__init__.py.
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
from torch.nn.functional import leaky_relu, leaky_relu_, linear, pad

from netspace.space._start_scale import NEGATIVE_SLOPE
from netspace.space.fast._products import ALIGNED, applies, dtype_of_products, factors, no_autocast

WIDE = 256  # width below which the plain network is as fast or faster (measured on one core)
BLOCK_VALUES = {"cpu": 2**20, "cuda": 2**28}  # values of an intermediate tensor; on a CPU they stay in the cache
FEW_PLACES = 64  # a maximum over up to so many places is found directly


def encodes(preps_NHW: Tensor, encoder: nn.Module) -> bool:
    """Whether `encode` pays for these PReps and does what the plain network would."""
    return preps_NHW.shape[2] >= WIDE and applies(preps_NHW, *encoder.parameters())


def encode(preps_NHW: Tensor, convolutions: Sequence[nn.Conv2d]) -> Tensor:
    """`[N, H, W]` -> embeddings `[N, E]`, by the encoder's four convolutions."""
    first, second, third, fourth = convolutions
    dtype = dtype_of_products(preps_NHW)
    with no_autocast(preps_NHW):
        rows_NHC: Tensor = _RowMaxima.apply(  # type: ignore[no-untyped-call]
            preps_NHW, first.weight, first.bias, second.weight, second.bias, dtype
        )
        features_NHC = leaky_relu(_along_height(rows_NHC, third), NEGATIVE_SLOPE)
        latent_NE: Tensor = _along_height(features_NHC, fourth).max(dim=1).values
        return leaky_relu(latent_NE, NEGATIVE_SLOPE)  # LeakyReLU rises everywhere, so it may follow the maximum


def _along_height(rows_NHC: Tensor, convolution: nn.Conv2d) -> Tensor:
    """A (3, 1) convolution with padding 1 as a linear layer over three taps."""
    padded = pad(rows_NHC, (0, 0, 1, 1))
    height = rows_NHC.shape[1]
    taps_NHC3 = torch.stack([padded[:, tap : tap + height] for tap in range(3)], dim=-1)
    return linear(taps_NHC3.flatten(2), convolution.weight.flatten(1), convolution.bias)


@dataclass(frozen=True)
class _Widths:
    """Number of places along a row: of the input, and after the first and the second convolution (each of stride 2).

    A row of the first convolution's output has `padded` places: place j stands at j + 1, with zeros around. Output p of
    the second convolution then reads the places 2 p, 2 p + 1 and 2 p + 2; one output too many is computed.
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
        """Add zeros, so that padded place q of the first convolution reads the inputs 2 q, 2 q + 1, 2 q + 2."""
        return pad(rows_RW, (3, 2 * self.padded - self.given - 3))

    def are_places(self, q: Tensor) -> Tensor:
        """Whether padded places q are places of the row and not padding."""
        return (q > 0) & (q <= self.first)


class _RowMaxima(torch.autograd.Function):
    """The first two convolutions and the maximum over the width: `[N, H, W]` -> `[N, H, E / 16]`."""

    @staticmethod
    def forward(
        ctx: Any, preps_NHW: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, dtype: torch.dtype
    ) -> Tensor:
        widths = _Widths(preps_NHW.shape[2])
        padded_RW = widths.pad_rows(preps_NHW.reshape(-1, widths.given))
        w1_4O, w2_C3O = _with_bias(w1, b1), w2[:, :, 0].transpose(1, 2).contiguous()
        values_RC, places_RC = _find_maxima(padded_RW, widths, w1_4O, w2_C3O, b2, dtype)
        if dtype != w1.dtype:  # these values were rounded, so they are computed again at the same places
            for block in _blocks(padded_RW, w2_C3O.numel()):
                _, _, features_CR3O = _behind(padded_RW[block], places_RC[block], widths, w1_4O)
                values_CR1 = torch.bmm(features_CR3O.flatten(2), w2_C3O.view(len(b2), -1, 1))
                torch.add(values_CR1.squeeze(2).t(), b2, out=values_RC[block])
        rows_RC = leaky_relu_(values_RC, NEGATIVE_SLOPE)
        ctx.save_for_backward(preps_NHW, w1, b1, w2, places_RC, rows_RC)
        return rows_RC.view(*preps_NHW.shape[:2], len(b2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NHC: Tensor) -> tuple[Tensor | None, ...]:
        preps_NHW, w1, b1, w2, places_RC, rows_RC = ctx.saved_tensors
        widths = _Widths(preps_NHW.shape[2])
        to_preps, to_w1, to_b1, to_w2 = ctx.needs_input_grad[:4]
        with no_autocast(preps_NHW):
            gradient_RC = _through_leaky_relu(gradient_NHC.reshape(rows_RC.shape), rows_RC)
            padded_RW = widths.pad_rows(preps_NHW.reshape(-1, widths.given))
            w1_4O, w2_C3O = _with_bias(w1, b1), w2[:, :, 0].transpose(1, 2).contiguous()
            g1_4O, g2_C3O = torch.zeros_like(w1_4O), torch.zeros_like(w2_C3O)
            g_RW = torch.zeros_like(padded_RW) if to_preps else None
            for block in _blocks(padded_RW, w2_C3O.numel()):
                indices_CR7, taps_CR34, features_CR3O = _behind(padded_RW[block], places_RC[block], widths, w1_4O)
                g_CR = gradient_RC[block].t().contiguous()
                if to_w2:
                    g2_C3O += torch.bmm(g_CR.unsqueeze(1), features_CR3O.flatten(2)).view(g2_C3O.shape)
                if not (to_preps or to_w1 or to_b1):
                    continue
                g_CR3O = _through_leaky_relu(g_CR[:, :, None, None] * w2_C3O.unsqueeze(1), features_CR3O)
                if to_w1 or to_b1:
                    g1_4O.addmm_(taps_CR34.flatten(0, 2).t(), g_CR3O.flatten(0, 2))
                if g_RW is not None:
                    g_CR33 = (g_CR3O @ w1_4O[:3].t()) * taps_CR34[..., 3:]
                    where_CR33 = indices_CR7.unfold(2, 3, 2)
                    g_RW[block].scatter_add_(
                        1, where_CR33.transpose(0, 1).flatten(1), g_CR33.transpose(0, 1).flatten(1)
                    )
        g_preps = None if g_RW is None else g_RW[:, 3 : 3 + widths.given].reshape(preps_NHW.shape)
        g_w1, g_w2 = g1_4O[:3].t().reshape(w1.shape), g2_C3O.transpose(1, 2).unsqueeze(2)
        return g_preps, g_w1, g1_4O[3], g_w2, gradient_RC.sum(0), None


def _find_maxima(
    padded_RW: Tensor, widths: _Widths, w1_4O: Tensor, w2_C3O: Tensor, b2: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The maxima over the width before LeakyReLU, and their first places, `[R, E / 16]`; computed in `dtype`."""
    channels, outputs = w1_4O.shape[1], widths.second + 1
    w1_KO, w2_3OC = factors(w1_4O, dtype, (0, 0, 1)), w2_C3O.permute(1, 2, 0).to(dtype)
    pair, third = w2_3OC[:2].flatten(0, 1), w2_3OC[2].contiguous()
    inside_L1 = widths.are_places(torch.arange(widths.padded, device=padded_RW.device)).to(padded_RW.dtype).unsqueeze(1)
    values_RC = padded_RW.new_empty(len(padded_RW), len(b2))
    places_RC = torch.empty_like(values_RC, dtype=torch.int64)
    blocks = list(_blocks(padded_RW, widths.padded * channels))
    most = len(padded_RW[blocks[0]])
    # Products read past the last row, times 0, so what stands there must be finite.
    all_features = padded_RW.new_zeros(most * widths.padded + ALIGNED, channels, dtype=dtype)
    all_sums = all_features.new_empty(most * outputs, len(b2))
    for block in blocks:
        rows = len(padded_RW[block])
        features, sums = all_features[: rows * widths.padded], all_sums[: rows * outputs]
        taps_RL3 = pad(padded_RW[block], (0, 1)).unfold(1, 3, 2)
        taps_RL4 = torch.cat([taps_RL3 * inside_L1, inside_L1.expand(rows, -1, -1)], dim=2)
        torch.mm(factors(taps_RL4.flatten(0, 1).t(), dtype, (0, 1, 0)).t(), w1_KO, out=features)
        leaky_relu_(features, NEGATIVE_SLOPE)
        # The three taps of an output lie side by side, but outputs overlap; two products avoid a copy of the values.
        torch.mm(features.view(rows * outputs, 2 * channels), pair, out=sums)
        sums.addmm_(all_features[2:].as_strided((rows * outputs, channels), (2 * channels, 1)), third)
        sums_RLC = sums.view(rows, outputs, -1)[:, : widths.second]
        values_RC[block], places_RC[block] = _first_maxima(sums_RLC)
    return values_RC.add_(b2), places_RC


def _with_bias(w1: Tensor, b1: Tensor) -> Tensor:
    """The first convolution's three taps and its bias, `[4, E / 32]`."""
    return torch.cat([w1.flatten(1).t(), b1.unsqueeze(0)])


def _first_maxima(sums_RLC: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima over L and their first places, `[R, C]`.

    Reductions that also find places are slow, so they are used on the maxima of pieces and then on one piece.
    """
    length = sums_RLC.shape[1]
    if length <= FEW_PLACES:
        maxima = sums_RLC.max(dim=1)
        return maxima.values, maxima.indices
    size = math.isqrt(length)
    whole = length // size * size
    pieces = [torch.unflatten(sums_RLC[:, :whole], 1, (-1, size)).amax(2)]
    if whole < length:
        pieces.append(sums_RLC[:, whole:].amax(1, keepdim=True))
    values_RC, piece_RC = torch.cat(pieces, dim=1).max(dim=1)
    inside_RLC = piece_RC.unsqueeze(1) * size + torch.arange(size, device=sums_RLC.device).unsqueeze(1)
    first_RC = sums_RLC.gather(1, inside_RLC.clamp_(max=length - 1)).max(dim=1).indices
    return values_RC, piece_RC * size + first_RC


def _behind(padded_RW: Tensor, places_RC: Tensor, widths: _Widths, w1_4O: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gather what the outputs of the second convolution at these places depend on.

    returns indices `[C, R, 7]` into the padded rows; the three taps of the first convolution at each of three places,
            and whether that is a place, `[C, R, 3, 4]`; and the first convolution's output there, `[C, R, 3, E / 32]`,
            zeros where there is no place
    """
    places_CR1 = places_RC.t().unsqueeze(2)
    steps_7 = torch.arange(7, device=places_RC.device)
    indices_CR7 = 4 * places_CR1 + steps_7
    values_CR7 = padded_RW.gather(1, indices_CR7.transpose(0, 1).flatten(1)).view(len(padded_RW), -1, 7)
    inside_CR31 = widths.are_places(2 * places_CR1 + steps_7[:3]).to(padded_RW.dtype).unsqueeze(3)
    taps_CR33 = values_CR7.transpose(0, 1).unfold(2, 3, 2)
    taps_CR34 = torch.cat([taps_CR33 * inside_CR31, inside_CR31], dim=3)
    return indices_CR7, taps_CR34, leaky_relu_(taps_CR34 @ w1_4O, NEGATIVE_SLOPE)


def _blocks(rows_RW: Tensor, values_a_row: int) -> Iterator[slice]:
    """Yield blocks of rows that hold about BLOCK_VALUES values each."""
    step = max(1, BLOCK_VALUES[rows_RW.device.type] // values_a_row)
    return (slice(start, start + step) for start in range(0, len(rows_RW), step))


def _through_leaky_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """Compute the gradient before a LeakyReLU from its output, which has the sign of its input."""
    before: Tensor = torch.ops.aten.leaky_relu_backward(gradient, output, NEGATIVE_SLOPE, True)
    return before
