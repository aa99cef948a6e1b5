"""Networks that are pictures: they map coordinates to pixels, and PSNR says how near they come to a picture.

C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prepkit.errors import ZooError
from prepkit.tasks._image_set import BYTE_LEVELS, decoded
from prepkit.tasks.task import DataMissing

if TYPE_CHECKING:
    from torch import Tensor

PICTURE = "picture"  # the column with a picture's path below the folder of pictures
LEAST_ERROR = 1e-12  # mean squared errors count as this at least, so that PSNR is finite: 120 dB at most


def read_picture(folder: Path | None, name: object) -> Tensor:
    """Return a picture's pixels `[H, W, C]`, float64 of 0 to 1; C is 1 for a gray picture, else 3.

    raises DataMissing if no folder is given, ZooError naming a file that is missing or is no picture
    """
    import torch

    if folder is None:
        raise DataMissing("the pictures are in a folder that only you know; name it: data=PATH")
    if not folder.is_dir():
        raise ZooError(f"'{folder}' is no folder of pictures.")
    if not isinstance(name, str):
        raise ZooError(f"the column '{PICTURE}' names no picture for it.")
    file = folder / name
    if not file.is_file():
        raise ZooError(f"'{folder}' has no picture '{name}'.")
    pixels = torch.from_numpy(decoded(f"'{file}'", file).copy()).double() / BYTE_LEVELS
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def coordinates(height: int, width: int, grid: str) -> Tensor:
    """Return the coordinates of the pixels in reading order, `[H * W, 2]` from -1 to 1.

    grid: "xy" if the column is the first coordinate, "ij" if the row is
    """
    import torch

    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    first, second = torch.meshgrid(rows, columns, indexing="ij")
    pair = (second, first) if grid == "xy" else (first, second)
    return torch.stack(pair, dim=-1).view(-1, 2)


def psnr(
    network: Callable[[Tensor], Tensor],
    picture: Tensor,
    grid: str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> float:
    """Return the peak signal-to-noise ratio, in dB, of what a network draws; its pixels are not clipped.

    network:   maps `[N, 2]` to `[N, C]`
    picture:   pixels `[H, W, C]` of 0 to 1
    mean, std: pixels are outputs * std + mean; numbers for all channels or one for each
    raises ZooError if the network has other outputs
    """
    import torch

    height, width, channels = picture.shape
    with torch.no_grad():
        outputs = network(coordinates(height, width, grid)).double()
    if outputs.shape != (height * width, channels):
        shape = "x".join(map(str, outputs.shape[1:]))
        raise ZooError(f"its network has {shape} outputs for each pixel, the picture {channels} channels.")
    pixels = outputs * torch.tensor(std or (1.0,), dtype=torch.float64)
    pixels = pixels + torch.tensor(mean or (0.0,), dtype=torch.float64)
    error = (pixels - picture.reshape(-1, channels)).square().mean().item()
    return -10 * math.log10(max(error, LEAST_ERROR))
