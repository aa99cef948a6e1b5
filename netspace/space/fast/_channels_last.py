"""The decoder on a GPU: its first two convolutions as matrix products, so that no map changes its order in memory.

Tensor cores want the channels of a place side by side, while the decoder's reshapes want the places of a channel side
by side; turning the maps took longer than the convolutions themselves. The first convolution reads so few values that
it is a product that writes its output as the first reshape wants it. The second reads channels side by side and writes
places side by side, which is what a matrix product does. Shapes: see netspace/space/fast/__init__.py.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, leaky_relu_, pad, unfold

from netspace.space._start_scale import NEGATIVE_SLOPE
from netspace.space.fast._products import applies, dtype_of_products, no_autocast

EVEN = 8  # Tensor cores read so many values of a factor at a time.
FIRST = 128  # channels after the first reshape


def decodes_channels_last(latent_NE: Tensor, decoder: nn.Module, outputs: int) -> bool:
    """Whether `decode_channels_last` does what the plain network would; `outputs` are the first convolution's."""
    on_gpu = latent_NE.device.type == "cuda"
    return on_gpu and outputs % FIRST == 0 and applies(latent_NE, *decoder.parameters())


def decode_channels_last(
    images_NCSS: Tensor, convolutions: Sequence[nn.Conv2d], height: int, width: int, columns: int
) -> Tensor:
    """`[N, C, S, S]` -> the cells of PReps before scale and bias, `[N, H, W]`, by the decoder's four convolutions."""
    first, second, third, fourth = convolutions
    count, dtype = len(images_NCSS), dtype_of_products(images_NCSS)
    with no_autocast(images_NCSS):
        map_NRLC = leaky_relu_(_first(images_NCSS.to(dtype), first, dtype), NEGATIVE_SLOPE)
        weight_OK = _with_bias(second.weight.permute(0, 2, 3, 1), second, dtype)
        map_NOL: Tensor = _Second.apply(map_NRLC.view(count, height, columns, FIRST), weight_OK)  # type: ignore[no-untyped-call]
        map_NCHW = leaky_relu_(map_NOL, NEGATIVE_SLOPE).view(count, 512, height // 2, width // 4)
        map_NCHW = leaky_relu_(_convolve(map_NCHW, third, 2), NEGATIVE_SLOPE)
        return _convolve(map_NCHW, fourth, 1).reshape(count, height, width).to(images_NCSS.dtype)


def _with_bias(weight: Tensor, convolution: nn.Conv2d, dtype: torch.dtype) -> Tensor:
    """Weights and bias as a factor `[O, K]`: the bias comes after the weights, then zeros up to an even number."""
    weight_OK = torch.cat([weight.flatten(1), _bias(convolution).unsqueeze(1)], dim=1)
    return pad(weight_OK, (0, -weight_OK.shape[1] % EVEN)).to(dtype)


def _first(images_NCSS: Tensor, convolution: nn.Conv2d, dtype: torch.dtype) -> Tensor:
    """The first convolution: `[N, R, L, 128]`, where the place R L + l of the reshaped map has channels 0 to 127."""
    weight_OK = _with_bias(convolution.weight, convolution, dtype)
    taps_NKL = pad(unfold(images_NCSS, 3, padding=1, stride=2), (0, 0, 0, 1), value=1.0)  # ones for the bias
    taps_NLK = pad(taps_NKL.transpose(1, 2), (0, weight_OK.shape[1] - taps_NKL.shape[1]))
    map_NRLC: Tensor = taps_NLK.unsqueeze(1) @ torch.unflatten(weight_OK, 0, (FIRST, -1)).permute(1, 2, 0)
    return map_NRLC


class _Second(torch.autograd.Function):
    """A 3 x 3 convolution of stride 2 with padding 1: a map `[N, Y, X, C]` and a factor `[O, K]` -> `[N, O, L]`."""

    @staticmethod
    def forward(ctx: Any, map_NYXC: Tensor, weight_OK: Tensor) -> Tensor:
        taps_NLK = _taps(map_NYXC, weight_OK.shape[1])
        ctx.save_for_backward(taps_NLK, weight_OK)
        ctx.shape = map_NYXC.shape
        return weight_OK.expand(len(map_NYXC), -1, -1) @ taps_NLK.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NOL: Tensor) -> tuple[Tensor | None, Tensor | None]:
        taps_NLK, weight_OK = ctx.saved_tensors
        g_map, g_weight = None, None
        if ctx.needs_input_grad[1]:
            wide = torch.promote_types(weight_OK.dtype, torch.float32)
            g_weight = (gradient_NOL @ taps_NLK).sum(0, dtype=wide).to(weight_OK.dtype)
        if ctx.needs_input_grad[0]:
            g_map = _from_taps(gradient_NOL.transpose(1, 2) @ weight_OK.expand(len(gradient_NOL), -1, -1), ctx.shape)
        return g_map, g_weight


def _taps(map_NYXC: Tensor, width: int) -> Tensor:
    """The values that the kernel reads at each place of its output, `[N, L, K]`: rows, columns, channels; 1; zeros."""
    count, height, columns, channels = map_NYXC.shape
    padded = pad(map_NYXC, (0, 0, 1, 1, 1, 1))
    of_map, of_row, of_place, _ = padded.stride()
    shape, strides = (count, height // 2, columns // 2, 3, 3 * channels), (of_map, 2 * of_row, 2 * of_place, of_row, 1)
    taps = padded.new_empty(*shape[:3], width)
    torch.unflatten(taps[..., : 9 * channels], 3, (3, -1)).copy_(padded.as_strided(shape, strides))
    taps[..., 9 * channels] = 1.0
    taps[..., 9 * channels + 1 :] = 0.0
    return taps.flatten(1, 2)


def _from_taps(taps_NLK: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The transpose of `_taps`: each place of the map `[N, Y, X, C]` gets the sum of the taps that read it."""
    count, height, columns, channels = shape
    taps = taps_NLK[..., : 9 * channels].view(count, height // 2, columns // 2, 3, 3, channels)
    padded = taps.new_zeros(count, height + 2, columns + 2, channels)
    for row in range(3):
        for column in range(3):
            places = padded[:, row : row + height : 2, column : column + columns : 2]
            if row < 2 and column < 2:  # the first four taps read places apart
                places.copy_(taps[:, :, :, row, column])
            else:
                places.add_(taps[:, :, :, row, column])
    return padded[:, 1:-1, 1:-1].contiguous()


def _convolve(map_NCHW: Tensor, convolution: nn.Conv2d, stride: int) -> Tensor:
    weight, bias = convolution.weight.to(map_NCHW.dtype), _bias(convolution).to(map_NCHW.dtype)
    return conv2d(map_NCHW, weight, bias, stride, padding=1)


def _bias(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None
    return convolution.bias
