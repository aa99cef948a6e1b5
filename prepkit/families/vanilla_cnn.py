"""VanillaCNN: 3x3 convolutions, then one fully connected layer.

Source: Learning the Space of Deep Models, supplementary Fig. 3.
Shapes: B images, C channels, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from prepkit.families.table import LEAKY_RELU_SLOPE


class VanillaCNN(nn.Module):
    """Convolutions 3x3 with padding 1, bias and LeakyReLU, flattened, one fully connected layer; no BatchNorm.

    channels: channels of the image, then of each convolution's output
    strides:  stride of each convolution
    linear:   (flattened size, number of outputs)
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], linear: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1)
            for (inputs, outputs), stride in zip(pairwise(channels), strides, strict=True)
        )
        inputs, outputs = linear
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, h, w]` to logits `[B, outputs]`."""
        features = images
        for conv in self.convs:
            features = leaky_relu(conv(features), LEAKY_RELU_SLOPE)
        logits: Tensor = self.linear(features.flatten(1))
        return logits
