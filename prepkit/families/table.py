"""All built-in architectures on one screen, as plain data that `prepkit arch list` reads without importing torch.

The counts are compared with the networks by tests/prepkit/families/test_architectures.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEAKY_RELU_SLOPE = 0.01  # every family but the sine MLP has this activation


@dataclass(frozen=True)
class Family:
    """A builder `module:callable`, and the arguments to add for the network without BatchNorm."""

    builder: str
    folded: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One architecture.

    name:           `network@dataset`
    family:         key of FAMILIES
    class_id:       ClassId in the registry of its dataset; None for the teacher
    num_parameters: number of packed parameters, with BatchNorm folded
    num_trainable:  number of parameters in the network that is trained, with BatchNorm
    arguments:      arguments of the family's builder
    """

    name: str
    family: str
    class_id: int | None
    num_parameters: int
    num_trainable: int
    arguments: Mapping[str, Any]

    @property
    def dataset(self) -> str:
        """Key of DATASETS."""
        return self.name.partition("@")[2]


FAMILIES = {
    "lenet_like": Family("prepkit.families.lenet_like:LeNetLike", {}),
    "vanilla_cnn": Family("prepkit.families.vanilla_cnn:VanillaCNN", {}),
    "resnet": Family("prepkit.families.resnet:ResNet", {"batch_norm": False}),
    "sine_mlp": Family("prepkit.families.sine_mlp:SineMLP", {}),
}

# Builders of networks that others trained, which `prepkit zoo import` rebuilds.
SIREN = "prepkit.families.siren:Siren"
LAYER_CHAIN = "prepkit.families.layer_chain:LayerChain"
WILD_CNN = "prepkit.families.wild_cnn:WildCNN"
SMALL_TRANSFORMER = "prepkit.families.small_transformer:SmallTransformer"
TORCHVISION_RESNET = "prepkit.families.torchvision_resnet:TorchvisionResNet"
OF_IMPORTED_ZOOS = (
    "prepkit.families.small_cnn:SmallCNN",
    SIREN,
    LAYER_CHAIN,
    WILD_CNN,
    SMALL_TRANSFORMER,
    TORCHVISION_RESNET,
)

# Each dataset has the shape of one input and the number of outputs.
DATASETS: dict[str, tuple[tuple[int, ...], int]] = {
    "cifar10": ((3, 32, 32), 10),
    "tiny_imagenet": ((3, 64, 64), 200),
    "digits": ((1, 8, 8), 10),
    "sdf": ((3,), 1),
    "sdf_small": ((3,), 1),
}

# fmt: off
TABLE = (
    # The columns are name, family, ClassId, packed parameters, trained parameters, and arguments of the builder.
    Row("lenet_like@cifar10", "lenet_like", 0, 62_006, 62_006,
        {"convs": [[3, 6, 5, 2, 0], [6, 16, 5, 2, 0]], "linears": [400, 120, 84, 10]}),
    Row("vanilla_cnn@cifar10", "vanilla_cnn", 1, 68_818, 68_818,
        {"channels": [3, 8, 8, 32, 64, 64], "strides": [2, 1, 2, 1, 2], "linear": [1024, 10]}),
    Row("resnet8@cifar10", "resnet", 2, 77_706, 78_042,
        {"depth": 8, "in_channels": 3, "widths": [16, 32, 64], "pool": 8, "linear": [64, 10]}),
    Row("resnet32@cifar10", "resnet", 3, 465_674, 466_906,
        {"depth": 32, "in_channels": 3, "widths": [16, 32, 64], "pool": 8, "linear": [64, 10]}),
    Row("resnet56@cifar10", "resnet", None, 853_642, 855_770,
        {"depth": 56, "in_channels": 3, "widths": [16, 32, 64], "pool": 8, "linear": [64, 10]}),

    Row("lenet_like@tiny_imagenet", "lenet_like", 0, 79_612, 79_612,
        {"convs": [[3, 4, 5, 2, 2], [4, 8, 5, 2, 0], [8, 16, 5, 2, 0]], "linears": [400, 120, 84, 200]}),
    Row("vanilla_cnn@tiny_imagenet", "vanilla_cnn", 1, 112_856, 112_856,
        {"channels": [3, 8, 16, 32, 64, 64], "strides": [2, 2, 2, 2, 2], "linear": [256, 200]}),
    Row("resnet8@tiny_imagenet", "resnet", 2, 128_456, 128_792,
        {"depth": 8, "in_channels": 3, "widths": [16, 32, 64], "pool": 8, "linear": [256, 200]}),
    Row("resnet32@tiny_imagenet", "resnet", 3, 516_424, 517_656,
        {"depth": 32, "in_channels": 3, "widths": [16, 32, 64], "pool": 8, "linear": [256, 200]}),
    Row("resnet56@tiny_imagenet", "resnet", None, 904_392, 906_520,
        {"depth": 56, "in_channels": 3, "widths": [16, 32, 64], "pool": 8, "linear": [256, 200]}),

    Row("lenet_like@digits", "lenet_like", 0, 2_302, 2_302,
        {"convs": [[1, 4, 3, 1, 1], [4, 8, 3, 2, 0]], "linears": [72, 20, 16, 10]}),
    Row("vanilla_cnn@digits", "vanilla_cnn", 1, 4_422, 4_422,
        {"channels": [1, 6, 12, 12, 16], "strides": [1, 2, 1, 2], "linear": [64, 10]}),
    Row("resnet8@digits", "resnet", 2, 5_058, 5_142,
        {"depth": 8, "in_channels": 1, "widths": [4, 8, 16], "pool": 2, "linear": [16, 10]}),
    Row("resnet14@digits", "resnet", 3, 11_162, 11_302,
        {"depth": 14, "in_channels": 1, "widths": [4, 8, 16], "pool": 2, "linear": [16, 10]}),
    Row("resnet20@digits", "resnet", None, 68_250, 68_642,
        {"depth": 20, "in_channels": 1, "widths": [8, 16, 32], "pool": 2, "linear": [32, 10]}),

    Row("sine_mlp@sdf", "sine_mlp", 0, 67_073, 67_073, {"sizes": [3, 256, 256, 1], "omega": 30.0}),
    Row("sine_mlp@sdf_small", "sine_mlp", 0, 4_481, 4_481, {"sizes": [3, 64, 64, 1], "omega": 30.0}),
)
# fmt: on
