"""ResNet for small images, depth 6n + 2: a stem, three stages of n basic blocks, average pooling, one linear layer.

Source: Deep Residual Learning (He et al., 2016), section 4.2, with 1x1 convolutions as shortcuts (option B) and
LeakyReLU, as in Learning the Space of Deep Models, supplementary Fig. 3 and 4.
With `batch_norm=False` the convolutions have biases and each BatchNorm is an nn.Identity. Names, order and shapes are
then the same as after folding every BatchNorm into the convolution before it (the paper, supplementary VI).
The names differ from torchvision's, so that a checkpoint of a ReLU network is never taken for one of these.
Shapes: B images, C channels, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, leaky_relu

from prepkit.errors import RegistryError
from prepkit.families.table import LEAKY_RELU_SLOPE


class ResNet(nn.Module):
    """A CIFAR-style residual network; stages 2 and 3 halve height and width in their first block.

    depth:       6n + 2, where n is the number of blocks in a stage
    in_channels: channels of the images
    widths:      channels of the three stages
    pool:        side of the squares that are averaged, and their stride
    linear:      (flattened size, number of outputs)
    batch_norm:  whether there are BatchNorms, or biases as after folding them
    raises RegistryError for a depth that is not 6n + 2
    """

    def __init__(
        self,
        depth: int,
        in_channels: int,
        widths: Sequence[int],
        pool: int,
        linear: Sequence[int],
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise RegistryError(f"depth {depth} is not 6n + 2 for n >= 1 blocks a stage; use 8, 14, 20, ...")
        self.pool = pool
        self.conv = convolution(in_channels, widths[0], 3, 1, batch_norm)
        self.bn = normalisation(widths[0], batch_norm)
        self.stages = nn.ModuleList(
            stage(blocks, inputs, outputs, stride, batch_norm)
            for inputs, outputs, stride in zip((widths[0], *widths[:-1]), widths, (1, 2, 2), strict=True)
        )
        features, outputs = linear
        self.linear = nn.Linear(features, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, h, w]` to logits `[B, outputs]`; h and w are multiples of 4 * pool."""
        features = leaky_relu(self.bn(self.conv(images)), LEAKY_RELU_SLOPE)
        for blocks in self.stages:
            features = blocks(features)
        features = avg_pool2d(features, self.pool).flatten(1)
        logits: Tensor = self.linear(features)
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where stride or width changes; LeakyReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride, batch_norm)
        self.bn1 = normalisation(outputs, batch_norm)
        self.conv2 = convolution(outputs, outputs, 3, 1, batch_norm)
        self.bn2 = normalisation(outputs, batch_norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                convolution(inputs, outputs, 1, stride, batch_norm), normalisation(outputs, batch_norm)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[B, inputs, h, w]` to `[B, outputs, h / stride, w / stride]`."""
        residual = leaky_relu(self.bn1(self.conv1(features)), LEAKY_RELU_SLOPE)
        residual = self.bn2(self.conv2(residual))
        return leaky_relu(residual + self.shortcut(features), LEAKY_RELU_SLOPE)


def stage(blocks: int, inputs: int, outputs: int, stride: int, batch_norm: bool) -> nn.Sequential:
    """Return the blocks of one stage: the first changes stride and width, the others keep them."""
    first = BasicBlock(inputs, outputs, stride, batch_norm)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, batch_norm) for _ in range(blocks - 1)))


def convolution(inputs: int, outputs: int, kernel: int, stride: int, batch_norm: bool) -> nn.Conv2d:
    """Return a convolution that keeps height and width at stride 1; it has no bias where a BatchNorm follows."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=not batch_norm)


def normalisation(channels: int, batch_norm: bool) -> nn.Module:
    """Return a BatchNorm, or the nn.Identity that folding leaves in its place."""
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
