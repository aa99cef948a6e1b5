"""Siren: a network with sine activations whose layers have any names, as files of others call them.

Shapes: N coordinates, D numbers each, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn, sin

from prepkit.families.layer_chain import add_module_at
from prepkit.families.sine_mlp import uniform_linear


class Siren(nn.Module):
    """Fully connected layers with sin(omega x) between them; a constant is added to the output.

    sizes:  sizes of the input, of each hidden layer and of the output
    names:  dotted name of each layer, such as `seq.0`
    omega:  scale of every activation's argument
    offset: what is added to each output
    """

    def __init__(self, sizes: Sequence[int], names: Sequence[str], omega: float = 30.0, offset: float = 0.0) -> None:
        super().__init__()
        self.names, self.omega, self.offset = tuple(names), omega, offset
        for index, (name, (inputs, outputs)) in enumerate(zip(names, pairwise(sizes), strict=True)):
            bound = math.sqrt(6 / inputs) / omega if index else 1 / inputs
            add_module_at(self, name, uniform_linear(inputs, outputs, bound))

    def forward(self, coordinates: Tensor) -> Tensor:
        """Map coordinates `[N, D]` to outputs `[N, C]`."""
        *hidden, last = map(self.get_submodule, self.names)
        features = coordinates
        for layer in hidden:
            features = sin(self.omega * layer(features))
        outputs: Tensor = last(features)
        return outputs + self.offset
