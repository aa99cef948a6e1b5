"""SmallCNN: the networks of the Small CNN Zoo (Unterthiner et al., Predicting Neural Network Accuracy from Weights).

Shapes: B images, C channels, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}
STRIDE = 2


class SmallCNN(nn.Module):
    """Convolutions with stride 2 and no padding, an activation after each, the mean over the picture, a linear layer.

    channels:   channels of the image, then of each convolution's output
    kernels:    height and width of each kernel
    outputs:    number of outputs
    activation: key of ACTIVATIONS
    """

    def __init__(
        self, channels: Sequence[int], kernels: Sequence[Sequence[int]], outputs: int, activation: str
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, width, (kernel[0], kernel[1]), stride=STRIDE)
            for (inputs, width), kernel in zip(pairwise(channels), kernels, strict=True)
        )
        self.linear = nn.Linear(channels[-1], outputs)
        self.activation = ACTIVATIONS[activation]

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, h, w]` to logits `[B, outputs]`."""
        features = images
        for conv in self.convs:
            features = self.activation(conv(features))
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits
