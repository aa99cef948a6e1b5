"""Image batches for a whole stack at once: cropped, mirrored and normalised from images that are on the device.

K instances, B images a step, N images, C channels, H x W pixels, p pixels of padding on each side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prepkit.tasks.randomness import generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_NORMALISED_BYTES = 64 << 20  # Larger sets stay bytes, which take a quarter of the memory.


@dataclass(frozen=True)
class Normalisation:
    """`(pixel / levels - mean) / std` as one product and one sum; `mean` and `std` have one number per channel."""

    levels: int
    mean: Sequence[float]
    std: Sequence[float]

    def constants(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """The factors and the terms `[C, 1, 1]`, in float32 at least.

        They are made once for all batches: each time, a GPU would have to wait for the host, and the host for it.
        """
        import torch

        exact = torch.promote_types(dtype, torch.float32)
        products = [1 / (self.levels * std) for std in self.std]
        sums = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        scale, shift = (torch.tensor(each, dtype=exact, device=device).view(-1, 1, 1) for each in (products, sums))
        return scale, shift


def normalised(pixels: Tensor, constants: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """Normalise pixels `[..., C, H, W]` uint8 into a dtype; the arithmetic is in that of the constants."""
    scale, shift = constants
    return pixels.to(scale.dtype).mul_(scale).add_(shift).to(dtype)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one epoch for every instance.

    order:   `[K, N]` int64, the image at each position
    corners: `[K, N, 2]` int64 in 0 .. 2p, row and column of the crop's corner in the padded image; None without crop
    flips:   `[K, N]` bool, whether an image is mirrored; None without mirroring
    """

    order: Tensor
    corners: Tensor | None
    flips: Tensor | None


def draw(seeds: Sequence[int], epoch: int, count: int, padding: int, flip: bool) -> Draws:
    """The random numbers of an epoch, on the CPU; instance k's depend on its seed, the epoch and the set alone.

    The streams "order", "crop" and "flip" of (seed, epoch) are each drawn at once for all positions of the epoch.
    """
    import torch

    order = [torch.randperm(count, generator=generator("order", seed, epoch)) for seed in seeds]
    span = 2 * padding + 1
    corners = [torch.randint(span, (count, 2), generator=generator("crop", s, epoch)) for s in seeds if padding]
    flips = [torch.randint(2, (count,), generator=generator("flip", s, epoch)) for s in seeds if flip]
    return Draws(
        torch.stack(order), torch.stack(corners) if padding else None, torch.stack(flips).bool() if flip else None
    )


class Images:
    """The images of a split on a device, padded once, from which windows are gathered.

    images: `[N, C, H, W]` uint8
    They are kept normalised where that takes little room, else as bytes that are normalised after gathering.
    """

    def __init__(
        self, images: Tensor, normalisation: Normalisation, padding: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        import torch

        _, channels, height, width = images.shape
        self.padding = padding
        self.dtype = dtype
        self._constants = normalisation.constants(dtype, device)
        # Zeros are put around the raw image, before normalisation, as a random crop of a picture file does.
        pixels = torch.nn.functional.pad(images.to(device), [padding] * 4)
        self.kept_normalised = pixels.numel() * dtype.itemsize <= MAX_NORMALISED_BYTES
        if self.kept_normalised:
            pixels = normalised(pixels, self._constants, dtype)
        self._row = width + 2 * padding
        self._plane = self._row * (height + 2 * padding)
        self._image = self._plane * channels
        # One view that overlaps itself holds all windows of H x W; the index of a window is where it begins.
        window = (channels - 1) * self._plane + (height - 1) * self._row + width
        strides = (1, self._plane, self._row, 1)
        self._windows = pixels.contiguous().as_strided(
            (max(0, pixels.numel() - window + 1), channels, height, width), strides
        )

    def starts(self, order: Tensor, corners: Tensor | None) -> Tensor:
        """The indices at which the windows of images begin, shaped like `order`; without corners in the middle."""
        start = order * self._image
        if corners is None:
            return start + self.padding * (self._row + 1)
        return start + corners[..., 0] * self._row + corners[..., 1]

    def gather(self, starts: Tensor, flips: Tensor | None = None) -> Tensor:
        """Normalised images `[..., C, H, W]` for `starts` `[...]`, mirrored where `flips` `[...]` is true."""
        import torch

        windows = self._windows.index_select(0, starts.reshape(-1))
        if flips is not None:
            windows = torch.where(flips.reshape(-1, 1, 1, 1), windows.flip(-1), windows)
        if not self.kept_normalised:
            windows = normalised(windows, self._constants, self.dtype)
        return windows.view(*starts.shape, *windows.shape[1:])
