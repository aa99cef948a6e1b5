"""LeNetLike: strided convolutions, then three fully connected layers.

Source: Learning the Space of Deep Models, supplementary Fig. 3 (a slightly modified LeNet-5: strides, no pooling).
Shapes: B images, C channels, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from prepkit.families.table import LEAKY_RELU_SLOPE


class LeNetLike(nn.Module):
    """Convolutions with bias and LeakyReLU, flattened, then fully connected layers; no BatchNorm.

    convs:   (inputs, outputs, kernel, stride, padding) for each convolution
    linears: widths of the fully connected part, from the flattened size to the number of outputs
    """

    def __init__(self, convs: Sequence[Sequence[int]], linears: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel, stride, padding) for inputs, outputs, kernel, stride, padding in convs
        )
        self.hidden = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(linears[:-1]))
        self.linear = nn.Linear(linears[-2], linears[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, h, w]` to logits `[B, outputs]`."""
        features = images
        for conv in self.convs:
            features = leaky_relu(conv(features), LEAKY_RELU_SLOPE)
        features = features.flatten(1)
        for linear in self.hidden:
            features = leaky_relu(linear(features), LEAKY_RELU_SLOPE)
        logits: Tensor = self.linear(features)
        return logits
