"""LayerChain: layers one after the other, whose tensors have the names that files of others give them.

Shapes: B inputs; C channels, h x w pixels of images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS: dict[str, Callable[..., nn.Module]] = {"conv": nn.Conv2d, "linear": nn.Linear}
STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": functional.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "elu": functional.elu,
    "selu": torch.selu,
    "celu": torch.celu,
    "max_pool": lambda features: functional.max_pool2d(features, 2),
    "flatten": lambda features: features.flatten(1),
    "mean": lambda features: features.mean((2, 3)),  # over height and width
}


class LayerChain(nn.Module):
    """Layers with names of their own, and steps without parameters between them.

    layers: a key of STEPS, or a key of LAYERS, the layer's dotted name and its arguments: ["conv", "fc.0", {...}]
    unused: shapes of parameters that stand in the file but not in the function, such as the noise of a policy
    """

    def __init__(
        self,
        layers: Sequence[str | tuple[str, str, Mapping[str, Any]]],
        unused: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        for name, shape in (unused or {}).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(*shape)))
        self.steps: list[tuple[str, str]] = []  # a key of STEPS, or "" and the layer's name
        for layer in layers:
            if isinstance(layer, str):
                self.steps.append((layer, ""))
                continue
            kind, name, arguments = layer
            add_module_at(self, name, LAYERS[kind](**arguments))
            self.steps.append(("", name))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs `[B, ...]` to outputs `[B, outputs]`."""
        features = inputs
        for step, name in self.steps:
            features = STEPS[step](features) if step else self.get_submodule(name)(features)
        return features


def add_module_at(parent: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module under a dotted name, and the empty modules that lead to it."""
    *path, last = name.split(".")
    for part in path:
        if part not in dict(parent.named_children()):
            parent.add_module(part, nn.Module())
        parent = parent.get_submodule(part)
    parent.add_module(last, module)
