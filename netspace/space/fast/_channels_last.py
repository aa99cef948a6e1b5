"""The decoder on a GPU: convolutions as matrix products, so that no map changes its order in memory.

Tensor cores want the channels of a place side by side, while the decoder's reshapes want the places of a channel side
by side; turning the maps took longer than the convolutions themselves. The first convolution reads so few values that
it is a product that writes its output as the first reshape wants it. The second reads channels side by side and writes
places side by side, which is what a matrix product does. The third reads places side by side: as a product it wants the
even and the odd columns of its map apart, so the second one computes its places in that order. Whether that is faster
than the library's convolution is a GPU's, so a training tries it (netspace.space.gpu_functions).
Shapes: see netspace/space/fast/__init__.py; P parities of columns: 2 where even and odd ones are apart, else 1.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    images_NCSS: Tensor,
    convolutions: Sequence[nn.Conv2d],
    height: int,
    width: int,
    columns: int,
    third_as_product: bool = False,
) -> Tensor:
    """`[N, C, S, S]` -> the cells of PReps before scale and bias, `[N, H, W]`, by the decoder's four convolutions.

    third_as_product: whether the third one is a matrix product too; columns must be a multiple of 4 then
    """
    first, second, third, fourth = convolutions
    count, dtype = len(images_NCSS), dtype_of_products(images_NCSS)
    parities = 2 if third_as_product else 1
    with no_autocast(images_NCSS):
        map_NRLC = leaky_relu_(_first(images_NCSS.to(dtype), first, dtype), NEGATIVE_SLOPE)
        map_NYXC = map_NRLC.view(count, height, columns, FIRST)
        map_NOL = _multiply(second, _ChannelsBeside(tuple(map_NYXC.shape), parities), map_NYXC, dtype)
        rows, places = height // 4, width // 8
        if third_as_product:
            planes_N2CYX = leaky_relu_(map_NOL, NEGATIVE_SLOPE).view(count, 2, 512, height // 2, places)
            map_NOL = _multiply(third, _PlacesBeside(tuple(planes_N2CYX.shape)), planes_N2CYX, dtype)
            map_NOL = leaky_relu_(map_NOL, NEGATIVE_SLOPE)[..., : rows * places]
            map_NCHW = map_NOL.view(count, third.out_channels, rows, places)
        else:
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


class _ChannelsBeside:
    """What a 3 x 3 convolution of stride 2 with padding 1 reads of a map `[N, Y, X, C]`.

    parities: 2 to compute the output's even columns before its odd ones; X is a multiple of 4 then
    """

    def __init__(self, shape: tuple[int, ...], parities: int) -> None:
        self.shape, self.parities = shape, parities

    def taps(self, map_NYXC: Tensor, factors: int) -> Tensor:
        """The values that the kernel reads at each place, `[N P, K, L / P]`: its rows, columns, channels; 1; zeros."""
        count, height, columns, channels = self.shape
        padded = pad(map_NYXC, (0, 0, 1, 1, 1, 1))
        of_map, of_row, of_place, _ = padded.stride()
        shape = (count, self.parities, height // 2, columns // 2 // self.parities, 3, 3 * channels)
        strides = (of_map, 2 * of_place, 2 * of_row, 2 * self.parities * of_place, of_row, 1)
        taps = padded.new_empty(*shape[:4], factors)
        torch.unflatten(taps[..., : 9 * channels], 4, (3, -1)).copy_(padded.as_strided(shape, strides))
        taps[..., 9 * channels] = 1.0
        taps[..., 9 * channels + 1 :] = 0.0
        return taps.flatten(2, 3).flatten(0, 1).transpose(1, 2)

    def gradient(self, gradient_NOL: Tensor, weight_OK: Tensor) -> Tensor:
        """The gradient of the map, from that of the output: each place gets the sum of the taps that read it."""
        count, height, columns, channels = self.shape
        found = gradient_NOL.transpose(1, 2) @ weight_OK.expand(len(gradient_NOL), -1, -1)
        taps = found[..., : 9 * channels].view(count, self.parities, height // 2, -1, 3, 3, channels)
        padded = taps.new_zeros(count, height + 2, columns + 2, channels)
        for row in range(3):
            for column in range(3):
                places = padded[:, row : row + height : 2, column : column + columns : 2]
                places = torch.unflatten(places, 2, (-1, self.parities))
                own = taps[:, :, :, :, row, column].permute(0, 2, 3, 1, 4)
                if row < 2 and column < 2:  # the first four taps read places apart
                    places.copy_(own)
                else:
                    places.add_(own)
        return padded[:, 1:-1, 1:-1].contiguous()


class _PlacesBeside:
    """What such a convolution reads of a map whose even and odd columns are apart, `[N, 2, C, Y, X / 2]`.

    Rows of matrices begin at multiples of EVEN values, so zeros follow the L places of the output.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def taps(self, planes_N2CYX: Tensor, factors: int) -> Tensor:
        """The values that the kernel reads at each place, `[N, K, L]`: its rows, columns, channels; 1; zeros."""
        count, _, channels, height, places = self.shape
        length = height // 2 * places
        taps = planes_N2CYX.new_empty(count, factors, length + -length % EVEN)
        by_tap = self._by_tap(taps)
        for own, read, _ in self._meetings(by_tap, planes_N2CYX):
            own.copy_(read)
        by_tap[:, 0, :, :, 0] = 0.0  # the padding above and at the left
        by_tap[:, :, 0, :, :, 0] = 0.0
        taps[..., length:] = 0.0
        taps[:, 9 * channels] = 1.0
        taps[:, 9 * channels + 1 :] = 0.0
        return taps

    def gradient(self, gradient_NOL: Tensor, weight_OK: Tensor) -> Tensor:
        """The gradient of the map, from that of the output: each place gets the sum of the taps that read it."""
        found = weight_OK.t().expand(len(gradient_NOL), -1, -1) @ gradient_NOL
        planes = found.new_empty(self.shape)
        for own, read, is_first in self._meetings(self._by_tap(found), planes):
            if is_first:
                read.copy_(own)
            else:
                read.add_(own)
        return planes

    def _by_tap(self, taps_NKL: Tensor) -> Tensor:
        """A view `[N, 3, 3, C, Y / 2, X / 2]`: kernel's row and column, channel, place of the output."""
        _, _, channels, height, places = self.shape
        taps = torch.unflatten(taps_NKL[:, : 9 * channels, : height // 2 * places], 1, (3, 3, channels))
        return torch.unflatten(taps, 4, (height // 2, places))

    def _meetings(self, by_tap: Tensor, planes: Tensor) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Yield views of the taps and of the places that they read, and whether no tap before has read these."""
        for row in (1, 2, 0):
            for column in (1, 2, 0):
                # The kernel's first row and column read what the middle of the place before has after it.
                down, right = int(row == 0), int(column == 0)
                own = by_tap[:, row, column, :, down:, right:]
                read = planes[:, int(column != 1), :, int(row != 1) :: 2]
                yield own, read[:, :, : own.shape[2], : own.shape[3]], not (down or right)


_Reads = _ChannelsBeside | _PlacesBeside


def _multiply(convolution: nn.Conv2d, reads: _Reads, given: Tensor, dtype: torch.dtype) -> Tensor:
    """A convolution as a matrix product of its kernel and bias with what it reads: `[N P, O, L / P]`."""
    weight_OK = _with_bias(convolution.weight.permute(0, 2, 3, 1), convolution, dtype)
    product: Tensor = _Product.apply(given, weight_OK, reads)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    """A factor `[O, K]` times the taps of a map: `[N P, O, L / P]`."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight_OK: Tensor, reads: _Reads) -> Tensor:
        taps_NKL = reads.taps(given, weight_OK.shape[1])
        ctx.save_for_backward(taps_NKL, weight_OK)
        ctx.reads = reads
        return weight_OK.expand(len(taps_NKL), -1, -1) @ taps_NKL

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NOL: Tensor) -> tuple[Tensor | None, ...]:
        taps_NKL, weight_OK = ctx.saved_tensors
        g_given, g_weight = None, None
        if ctx.needs_input_grad[1]:
            wide = torch.promote_types(weight_OK.dtype, torch.float32)
            g_weight = (gradient_NOL @ taps_NKL.transpose(1, 2)).sum(0, dtype=wide).to(weight_OK.dtype)
        if ctx.needs_input_grad[0]:
            g_given = ctx.reads.gradient(gradient_NOL, weight_OK)
        return g_given, g_weight, None


def _convolve(map_NCHW: Tensor, convolution: nn.Conv2d, stride: int) -> Tensor:
    weight, bias = convolution.weight.to(map_NCHW.dtype), _bias(convolution).to(map_NCHW.dtype)
    return conv2d(map_NCHW, weight, bias, stride, padding=1)


def _bias(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None
    return convolution.bias
