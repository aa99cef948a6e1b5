"""SineMLP: a signed distance function as a network with sine activations.

Source: Implicit Neural Representations with Periodic Activation Functions (SIREN, Sitzmann et al., 2020), section 3.2;
sizes of Learning the Space of Deep Models, supplementary III.
Shapes: B points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn, sin


class SineMLP(nn.Module):
    """Fully connected layers with sin(omega x) between them; no activation on the output.

    sizes: sizes of the input, of each hidden layer and of the output
    omega: scale of every activation's argument
    """

    def __init__(self, sizes: Sequence[int], omega: float = 30.0) -> None:
        super().__init__()
        self.omega = omega
        # SIREN's bounds keep the distribution of activations the same from layer to layer.
        layers = [
            uniform_linear(inputs, outputs, math.sqrt(6 / inputs) / omega if index else 1 / inputs)
            for index, (inputs, outputs) in enumerate(pairwise(sizes))
        ]
        self.hidden = nn.ModuleList(layers[:-1])
        self.linear = layers[-1]

    def forward(self, points: Tensor) -> Tensor:
        """Map points `[B, 3]` to signed distances `[B, 1]`."""
        features = points
        for linear in self.hidden:
            features = sin(self.omega * linear(features))
        distances: Tensor = self.linear(features)
        return distances


def uniform_linear(inputs: int, outputs: int, bound: float) -> nn.Linear:
    """Return a fully connected layer with weights U(-bound, bound) and nn.Linear's own biases."""
    layer = nn.Linear(inputs, outputs)
    nn.init.uniform_(layer.weight, -bound, bound)
    return layer
