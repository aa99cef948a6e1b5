"""The networks of G.pt's checkpoints, which are known by the sizes of their tensors, and how they are run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prepkit.families.architecture import Architecture
from prepkit.families.table import LAYER_CHAIN
from prepkit.zoo.importers._image_tasks import image_task
from prepkit.zoo.importers._tensor_shapes import TensorShapes

TOLERANCE = 0.001  # the accuracies were measured on a GPU, whose arithmetic moves a few of 10,000 images


@dataclass(frozen=True)
class Network:
    """What a checkpoint's numbers are.

    published: number of runs that were published; None where that is not known
    test_runs: number of runs, the last ones, that the paper tests on
    """

    tensors: TensorShapes
    architecture: Architecture | None = None
    how_to_run: Mapping[str, Any] | None = None
    published: int | None = None
    test_runs: int = 500

    @property
    def task(self) -> dict[str, Any] | None:
        """Record of the task of networks that classify images, which the architecture's name tells; None for others."""
        if self.architecture is None or self.how_to_run is None or "mean" not in self.how_to_run:
            return None
        dataset = self.architecture.name.partition("@")[2]
        return image_task(dataset, self.how_to_run["mean"], self.how_to_run["std"])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each tensor."""
        return tuple(map(math.prod, self.tensors.shapes.values()))


def _linear(name: str, inputs: int, outputs: int) -> list[Any]:
    return ["linear", name, {"in_features": inputs, "out_features": outputs}]


def _conv(name: str, inputs: int, outputs: int, stride: int) -> list[Any]:
    sizes = {"in_channels": inputs, "out_channels": outputs, "kernel_size": 3, "stride": stride, "padding": 1}
    return ["conv", name, {**sizes, "bias": False}]


MNIST = Network(
    TensorShapes({"fc1.weight": (10, 784), "fc1.bias": (10,), "fc2.weight": (10, 10), "fc2.bias": (10,)}),
    Architecture(
        "gpt_mlp_10@mnist",
        "layer_chain",
        (1, 28, 28),
        LAYER_CHAIN,
        {"layers": ["flatten", _linear("fc1", 784, 10), "relu", _linear("fc2", 10, 10)]},
        {},
    ),
    {
        "measure": "accuracy",
        "tolerance": TOLERANCE,
        "activation": "relu",
        "order": "the pixels row by row; a linear layer, activation, a linear layer",
        "mean": [0.1307],
        "std": [0.3081],
    },
    10_728,
)
CIFAR = Network(
    TensorShapes(
        {"conv1.weight": (16, 3, 3, 3), "conv2.weight": (32, 16, 3, 3), "fc.weight": (10, 32), "fc.bias": (10,)}
    ),
    Architecture(
        "gpt_cnn_16-32@cifar10",
        "layer_chain",
        (3, 32, 32),
        LAYER_CHAIN,
        {
            "layers": [
                *(_conv("conv1", 3, 16, 2), "relu", _conv("conv2", 16, 32, 1), "relu"),
                *("mean", _linear("fc", 32, 10)),
            ]
        },
        {},
    ),
    {
        "measure": "accuracy",
        "tolerance": TOLERANCE,
        "activation": "relu",
        "order": "convolution without bias and activation, twice; the mean over height and width; a linear layer",
        "stride": "2, 1",
        "padding": "1, 1",
        "mean": [125.3 / 255, 123.0 / 255, 113.9 / 255],
        "std": [63.0 / 255, 62.1 / 255, 66.7 / 255],
    },
    56_840,
    2_050,
)
CARTPOLE = Network(
    TensorShapes(
        {
            "log_std": (1,),
            "actor.0.weight": (32, 4),
            "actor.0.bias": (32,),
            "actor.2.weight": (32, 32),
            "actor.2.bias": (32,),
            "actor.4.weight": (1, 32),
            "actor.4.bias": (1,),
        }
    ),
    Architecture(
        "gpt_policy_32-32@cartpole",
        "layer_chain",
        (4,),
        LAYER_CHAIN,
        {
            "layers": [
                *(_linear("actor.0", 4, 32), "selu", _linear("actor.2", 32, 32), "selu"),
                _linear("actor.4", 32, 1),
            ],
            "unused": {"log_std": [1]},
        },
        {},
    ),
    {
        "activation": "selu",
        "order": "three linear layers with the activation between them; the output is the mean of an action, and "
        "log_std the logarithm of the standard deviation of its noise",
    },
    50_026,
    2_050,
)
NETWORKS = (MNIST, CIFAR, CARTPOLE)
