"""The decoder: convolutions as matrix products, one instance and one row of the output at a time.

Even and odd columns of a map are laid out apart, so that each tap of a kernel of stride 2 reads a matrix as it lies in
memory; padding above and below is left out. The first convolution's output is computed again in backward. Shapes: see
netspace/space/fast/__init__.py.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import fold, leaky_relu_, pad, unfold

from netspace.space._start_scale import NEGATIVE_SLOPE
from netspace.space.fast._products import ALIGNED, applies, dtype_of_products, factors, no_autocast

WIDE, MANY_COLUMNS = 2048, 1024  # sizes from which products over a row of a map keep one core busy (measured)
# By stride of a kernel, for each tap of its width: the plane that the tap reads, and by how much it is shifted.
TAPS = {1: ((0, -1), (0, 0), (0, 1)), 2: ((1, -1), (0, 0), (1, 0))}


def decodes(latent_NE: Tensor, decoder: nn.Module, width: int, columns: int) -> bool:
    """Whether `decode` pays for PReps of this width and does what the plain network would."""
    on_cpu = latent_NE.device.type == "cpu"
    return on_cpu and columns >= MANY_COLUMNS and width >= WIDE and applies(latent_NE, *decoder.parameters())


def decode(images_NCSS: Tensor, convolutions: Sequence[nn.Conv2d], height: int, width: int, columns: int) -> Tensor:
    """`[N, C, S, S]` -> the cells of PReps before scale and bias, `[N, H, W]`, by the decoder's four convolutions."""
    tensors = [tensor for convolution in convolutions for tensor in convolution.parameters()]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (images_NCSS, *tensors))
    layers = _layers(tensors, height, width, columns, dtype_of_products(images_NCSS))
    with no_autocast(images_NCSS):
        cells_NHW: Tensor = _Decode.apply(images_NCSS, *tensors, layers, keep)  # type: ignore[no-untyped-call]
    return cells_NHW


class _First:
    """The first convolution: it reads the embedding, one value or a few at a place, and puts out many."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self.weight_KO = torch.cat([weight.flatten(1).t(), bias.unsqueeze(0)]).detach()
        self.factor_OK = factors(self.weight_KO, dtype, (0, 0, 1)).t().contiguous()
        self.shape, self.dtype = weight.shape, dtype
        self.gradient_OK = torch.zeros_like(self.weight_KO.t())

    def taps(self, image_CSS: Tensor) -> Tensor:
        """The values that the kernel reads, and ones for the bias, `[9 C + 1, L]`."""
        return pad(unfold(image_CSS, 3, padding=1, stride=2), (0, 0, 0, 1), value=1.0)

    def forward(self, image_CSS: Tensor) -> Tensor:
        """Compute the output `[O, L]`, after LeakyReLU."""
        return leaky_relu_(self.factor_OK @ factors(self.taps(image_CSS), self.dtype, (0, 1, 0)), NEGATIVE_SLOPE)

    def add_gradients(self, gradient_OL: Tensor, image_CSS: Tensor) -> None:
        """Add to the gradients of weight and bias."""
        self.gradient_OK += gradient_OL @ self.taps(image_CSS).to(self.dtype).t()

    def take_gradients(self) -> tuple[Tensor, Tensor]:
        """Return the gradients of weight and bias, whose sums begin anew."""
        gradient_OK, self.gradient_OK = self.gradient_OK, torch.zeros_like(self.gradient_OK)
        return gradient_OK[:, :-1].reshape(self.shape), gradient_OK[:, -1].contiguous()

    def transposed(self, gradient_OL: Tensor, image_CSS: Tensor) -> Tensor:
        """Compute the gradient of the image."""
        gradient_KL = (self.weight_KO[:-1].to(self.dtype) @ gradient_OL).to(image_CSS.dtype)
        return fold(gradient_KL, image_CSS.shape[1:], 3, padding=1, stride=2)


class _Layer:
    """A 3 x 3 convolution with padding 1 of an image `[C, Y, X]`, as matrix products for each row of its output.

    weight: `[O, C, 3, 3]`, multiplied in `dtype`
    shape:  C, Y and X
    The image is kept as planes `[stride, Y, C, ..]`: its even and its odd columns, or one plane of all columns. A plane
    has L places in a row, with zeros on either side. Each tap of the kernel's width reads one plane (TAPS). The rows
    that an output row reads lie side by side, so that for each tap they and all channels are one factor.
    """

    def __init__(self, weight: Tensor, bias: Tensor, shape: tuple[int, int, int], stride: int, dtype: torch.dtype):
        self.shape, self.stride, self.outputs = shape, stride, len(weight)
        self.channels, self.height, width = shape
        self.rows, self.places = self.height // stride, width // stride
        self.unshifted = [tap for tap, (_, shift) in enumerate(TAPS[stride]) if not shift]
        self.shifted = [tap for tap, (_, shift) in enumerate(TAPS[stride]) if shift]
        self.dtype = weight.dtype
        self.weight_3OK = weight.detach().permute(3, 0, 2, 1).flatten(2).to(dtype)  # K = 3 C: kernel row, channel
        self.bias_O1 = bias.detach().to(dtype).unsqueeze(1)
        self.weight_3KO: Tensor | None = None
        self.gradient_3OK: Tensor | None = None
        self.gradient_O: Tensor | None = None
        self.buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, *shape: int) -> Tensor:
        """Return a tensor with any contents, the same one at every call, since fresh memory is slow."""
        if name not in self.buffers:
            self.buffers[name] = self._fresh(shape)
        return self.buffers[name]

    def planes(self, name: str | None = None) -> Tensor:
        """Return planes in which only the zeros at the sides are set: new ones, or the buffer of this name."""
        shape = (self.stride, self.height, self.channels, ALIGNED * (self.places // ALIGNED + 2))
        planes = self._fresh(shape) if name is None else self.buffer(name, *shape)
        planes[..., :ALIGNED] = 0
        planes[..., ALIGNED + self.places :] = 0
        return planes

    def _fresh(self, shape: tuple[int, ...]) -> Tensor:
        """New memory, padded with zeros: bfloat16 kernels read past odd rows, where NaN x 0 would stay NaN."""
        values = self.weight_3OK.new_empty(math.prod(shape) + ALIGNED)
        values[-ALIGNED:] = 0
        return values[:-ALIGNED].view(shape)

    def inner(self, planes: Tensor) -> Tensor:
        """Planes without the zeros at their sides, a view."""
        return planes[..., ALIGNED : ALIGNED + self.places]

    def lay_out(self, map_CYX: Tensor, planes: Tensor) -> Tensor:
        """Write an image into planes."""
        for plane, first in zip(self.inner(planes), range(self.stride), strict=True):
            plane.copy_(map_CYX[..., first :: self.stride].transpose(0, 1))
        return planes

    def collect(self, planes: Tensor) -> Tensor:
        """Copy the image out of planes; the transpose of `lay_out`."""
        map_CYX = self.buffer("map", *self.shape)
        for plane, first in zip(self.inner(planes), range(self.stride), strict=True):
            map_CYX[..., first :: self.stride].transpose(0, 1).copy_(plane)
        return map_CYX

    def forward(self, planes: Tensor) -> Iterator[Tensor]:
        """Yield the output row by row, `[O, L]`, each in the same buffer."""
        product_OL = self.buffer("product", self.outputs, self.places)
        for row in range(self.rows):
            read, part = self._reads(row)
            torch.mm(self.weight_3OK[0, :, part], self._factor(planes, 0, read), out=product_OL)
            for tap in (1, 2):
                product_OL.addmm_(self.weight_3OK[tap, :, part], self._factor(planes, tap, read))
            yield product_OL.add_(self.bias_O1)

    def add_gradients(self, gradient_OYL: Tensor, planes: Tensor) -> None:
        """Add to the gradients of weight and bias, which are summed over images in the weight's own dtype."""
        total_3OK = self.buffer("total", *self.weight_3OK.shape).zero_()
        if self.outputs < 3 * self.channels:  # products of few rows are slower, their transposes are not
            total_3OK = total_3OK.view(3, -1, self.outputs).transpose(1, 2)
        for row in range(self.rows):
            read, part = self._reads(row)
            for tap in range(3):
                total_3OK[tap, :, part].addmm_(gradient_OYL[:, row], self._factor(planes, tap, read).t())
        total_O = gradient_OYL.sum(2).to(self.dtype).sum(1)
        if self.gradient_3OK is None or self.gradient_O is None:
            self.gradient_3OK, self.gradient_O = total_3OK.to(self.dtype, copy=True), total_O
        else:
            self.gradient_3OK += total_3OK
            self.gradient_O += total_O

    def take_gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of weight and bias, shaped like these; their sums begin anew."""
        gradient_3OK, gradient_O = self.gradient_3OK, self.gradient_O
        self.gradient_3OK = self.gradient_O = None
        if gradient_3OK is None:
            return None, None
        gradient_3O3C = torch.unflatten(gradient_3OK, 2, (3, self.channels))  # columns, outputs, rows of the kernel
        return gradient_3O3C.permute(1, 3, 2, 0).contiguous(), gradient_O

    def transposed(self, gradient_OYL: Tensor) -> Tensor:
        """Compute the gradient of the image, as planes with any values at their sides."""
        if self.weight_3KO is None:
            weight_3KO = self.weight_3OK.transpose(1, 2)
            self.weight_3KO = self.buffer("transposed", *weight_3KO.shape).copy_(weight_3KO)  # a view of it is slower
        planes = self.planes("gradient")
        begun = 0  # rows of the image before this one hold a gradient already
        for row in range(self.rows):
            read, part = self._reads(row)
            again = max(begun - read.start, 0)  # number of such rows that this row of the output reads too
            for tap in self.unshifted + self.shifted:
                weight_KO, into_KL = self.weight_3KO[tap, part], self._factor(planes, tap, read)
                split = again * self.channels if tap in self.unshifted else len(into_KL)
                if split:
                    into_KL[:split].addmm_(weight_KO[:split], gradient_OYL[:, row])
                if split < len(into_KL):
                    torch.mm(weight_KO[split:], gradient_OYL[:, row], out=into_KL[split:])
            begun = read.stop
        return planes

    def _reads(self, row: int) -> tuple[slice, slice]:
        """The rows of the image that a row of the output reads, and the part of the weight that they meet."""
        first = row * self.stride - 1
        low, high = max(first, 0), min(first + 3, self.height)
        return slice(low, high), slice((low - first) * self.channels, (high - first) * self.channels)

    def _factor(self, planes: Tensor, tap: int, read: slice) -> Tensor:
        """The values that a tap reads in these rows of the image, `[rows C, L]`, a view."""
        plane, shift = TAPS[self.stride][tap]
        return planes[plane, read].flatten(0, 1)[:, ALIGNED + shift : ALIGNED + shift + self.places]


_Layers = tuple[_First, _Layer, _Layer, _Layer]


def _layers(tensors: Sequence[Tensor], height: int, width: int, columns: int, dtype: torch.dtype) -> _Layers:
    """Build the decoder's convolutions from weights and biases in turn; their sizes are those of network.py."""
    w1, b1, w2, b2, w3, b3, w4, b4 = tensors
    return (
        _First(w1, b1, dtype),
        _Layer(w2, b2, (128, height, columns), 2, dtype),
        _Layer(w3, b3, (512, height // 2, width // 4), 2, dtype),
        _Layer(w4, b4, (256, height // 4, width // 8), 1, dtype),
    )


class _Decode(torch.autograd.Function):
    """The four convolutions: `[N, C, S, S]` -> `[N, H, W]`."""

    @staticmethod
    def forward(ctx: Any, images_NCSS: Tensor, *arguments: Any) -> Tensor:
        layers, keep = arguments[-2:]
        first, second, third, fourth = layers
        cells_NOYL = images_NCSS.new_empty(len(images_NCSS), fourth.outputs, fourth.rows, fourth.places)
        kept = []
        for image_CSS, cells_OYL in zip(images_NCSS, cells_NOYL, strict=True):
            planes = second.lay_out(first.forward(image_CSS).view(second.shape), second.planes("image"))
            map_OYL = second.buffer("output", second.outputs, second.rows, second.places)
            for row, output_OL in enumerate(second.forward(planes)):
                _leaky_relu(output_OL, out=map_OYL[:, row])
            third_planes = third.lay_out(map_OYL.view(third.shape), third.planes(None if keep else "image"))
            fourth_planes = fourth.planes(None if keep else "image")
            for output_OL, plane in zip(third.forward(third_planes), fourth.inner(fourth_planes)[0], strict=True):
                _leaky_relu(output_OL, out=plane)
            for row, output_OL in enumerate(fourth.forward(fourth_planes)):
                cells_OYL[:, row] = output_OL
            kept += [third_planes, fourth_planes] if keep else []
        for layer in (second, third, fourth):
            layer.buffers.clear()  # the memory is free for others until backward
        if keep:
            ctx.save_for_backward(images_NCSS, *kept)
            ctx.layers = layers
        return cells_NOYL.view(len(images_NCSS), fourth.height * 4, fourth.places * 8)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NHW: Tensor) -> tuple[Tensor | None, ...]:
        images_NCSS, *kept = ctx.saved_tensors
        to_images, *wanted = ctx.needs_input_grad[:9]
        wants = [weight or bias for weight, bias in zip(wanted[::2], wanted[1::2], strict=True)]
        depth = 0 if to_images else wants.index(True)  # the lowest layer that gradients must reach
        g_images_NCSS = torch.zeros_like(images_NCSS)
        with no_autocast(images_NCSS):
            for number, image_CSS in enumerate(images_NCSS):
                g_image_CSS = g_images_NCSS[number] if to_images else None
                third_planes, fourth_planes = kept[2 * number : 2 * number + 2]
                g_HW = gradient_NHW[number]
                _decode_backward(ctx.layers, wants, depth, image_CSS, third_planes, fourth_planes, g_HW, g_image_CSS)
        gradients = [gradient for layer in ctx.layers for gradient in layer.take_gradients()]
        asked = [gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)]
        return g_images_NCSS if to_images else None, *asked, None, None


def _decode_backward(
    layers: _Layers,
    wants: Sequence[bool],
    depth: int,
    image_CSS: Tensor,
    third_planes: Tensor,
    fourth_planes: Tensor,
    gradient_HW: Tensor,
    g_image_CSS: Tensor | None,
) -> None:
    """Run backward for one instance: add to the gradients of the layers, down to `depth`, and to that of the image."""
    first, second, third, fourth = layers
    g_OYL = gradient_HW.reshape(fourth.outputs, fourth.rows, fourth.places).to(fourth_planes.dtype)
    if wants[3]:
        fourth.add_gradients(g_OYL, fourth_planes)
    if depth < 3:
        g_planes = _through_leaky_relu_(fourth.transposed(g_OYL), fourth_planes)
        g_OYL = fourth.inner(g_planes)[0].transpose(0, 1)
        if wants[2]:
            third.add_gradients(g_OYL, third_planes)
    if depth < 2:
        g_planes = _through_leaky_relu_(third.transposed(g_OYL), third_planes)
        g_OYL = third.collect(g_planes).view(second.outputs, second.rows, second.places)
        first_OL = first.forward(image_CSS)
        if wants[1]:
            second.add_gradients(g_OYL, second.lay_out(first_OL.view(second.shape), second.planes("image")))
    if depth < 1:
        g_OL = _through_leaky_relu_(second.collect(second.transposed(g_OYL)).view(first_OL.shape), first_OL)
        if wants[0]:
            first.add_gradients(g_OL, image_CSS)
        if g_image_CSS is not None:
            g_image_CSS.copy_(first.transposed(g_OL, image_CSS))


def _leaky_relu(values: Tensor, out: Tensor) -> None:
    torch.ops.aten.leaky_relu.out(values, NEGATIVE_SLOPE, out=out)


def _through_leaky_relu_(gradient: Tensor, output: Tensor) -> Tensor:
    """Compute the gradient before a LeakyReLU from its output, in place of the gradient after it."""
    torch.ops.aten.leaky_relu_backward.grad_input(gradient, output, NEGATIVE_SLOPE, True, grad_input=gradient)
    return gradient
