"""WildCNN: the networks of the CNN Wild Park, which differ in depth, width, kernels, activations and residual sums.

Shapes: B images, C channels, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": functional.leaky_relu,
    "none": lambda features: features,
}


class WildCNN(nn.Module):
    """Convolutions with an activation each and sums of earlier outputs, the mean over the picture, a linear layer.

    channels:   channels of the image, then of each convolution's output
    kernels, strides, paddings: a number for each convolution, the same for height and width
    sources:    number of the earlier layer whose output is added to a convolution's, negative for none
    activations: key of ACTIVATIONS for each convolution
    outputs:    number of outputs
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        paddings: Sequence[int],
        sources: Sequence[int],
        activations: Sequence[str],
        outputs: int,
    ) -> None:
        super().__init__()
        shapes = zip(pairwise(channels), kernels, strides, paddings, strict=True)
        self.layers = nn.ModuleList(
            nn.Conv2d(inputs, width, kernel, stride=stride, padding=padding)
            for (inputs, width), kernel, stride, padding in shapes
        )
        self.fc = nn.Linear(channels[-1], outputs)
        self.sources, self.activations = tuple(sources), tuple(activations)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, h, w]` to logits `[B, outputs]`."""
        features = images
        earlier: list[Tensor] = []  # the output of each layer, after its activation
        for layer, source, activation in zip(self.layers, self.sources, self.activations, strict=True):
            features = layer(features)
            if source >= 0:
                features = add_shared_channels(features, earlier[source])
            features = ACTIVATIONS[activation](features)
            earlier.append(features)
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def add_shared_channels(features: Tensor, earlier: Tensor) -> Tensor:
    """Add the first channels of an earlier output, as many as both have, to `[B, C, h, w]`; the others stay."""
    shared = min(features.shape[1], earlier.shape[1])
    return torch.cat((features[:, :shared] + earlier[:, :shared], features[:, shared:]), 1)
