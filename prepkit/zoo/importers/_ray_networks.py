"""The networks of ray-tune trees, rebuilt from names and shapes of tensors; of the settings only the activation counts.

Known are the chains `module_list.{i}` of ModelZooDataset and WeightCLIP (their CNN, CNN2 and CNN3), the three
convolutions and `dense` of the Small CNN Zoo in PyTorch, and ResNets of basic blocks with a 3 x 3 stem. The numbers
between layers of a `module_list` are those of activations, poolings and dropouts, so they tell what stands there.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

from prepkit.families.architecture import Architecture
from prepkit.families.table import LAYER_CHAIN, TORCHVISION_RESNET
from prepkit.prep.slot import natural_key

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS_UNDER = ("model::nlin", "config.activation", "activation", "nlin")  # settings that may name it
ACTIVATIONS = {
    name: name for name in ("relu", "leaky_relu", "tanh", "sigmoid", "silu", "gelu", "elu", "selu", "celu")
} | {"leakyrelu": "leaky_relu"}
KIND, OUTPUTS, INPUTS, BIASES = "model::type", "model::o_dim", "model::channels_in", "model::use_bias"
CHAIN = re.compile(r"module_list\.([0-9]+)")
STRIDED = re.compile(r"conv[0-9]+|dense")
SIZES = (28, 32)  # height and width of the pictures for which these networks were made
SIZE_OF = {"tiny_imagenet": 64, "stl10": 96}  # for networks that take images of any size
SMOOTH = ("gelu", "silu")  # not monotone, so the maximum before the activation is not the one after it
POOLING = "maximum of 2 x 2 squares"
LONGEST = 100  # characters of an architecture's name


@dataclass(frozen=True)
class Layer:
    """A layer by its tensors.

    kernel: height and width of a convolution's kernel; None for a linear layer
    """

    name: str
    inputs: int
    outputs: int
    kernel: tuple[int, int] | None
    has_bias: bool


class Rebuilt(ABC):
    """A network that prepkit can run.

    activation: key of the steps of LayerChain
    """

    activation: str

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of its images."""

    @property
    def only_size(self) -> int | None:
        """Height and width of the only images that it takes; None if it takes any."""
        return None

    @property
    def order_matters(self) -> bool:
        """Whether it makes a difference that pooling stands before the activation."""
        return False

    @abstractmethod
    def architecture(self, data: str, pool_first: bool = True) -> Architecture:
        """Return what builds it.

        data: name of the data set that it was trained on, for the architecture's name
        """

    @abstractmethod
    def how(self, pool_first: bool) -> dict[str, str]:
        """Return how it is run, with some keys of HowToRun."""


@dataclass(frozen=True)
class ChainNetwork(Rebuilt):
    """Convolutions without padding, some with pooling, then linear layers, with activations between.

    pools:       whether there is pooling after each convolution
    size:        height and width of its images
    has_dropout: whether numbers of its layers leave room for dropout
    stride:      that of the convolutions
    has_mean:    whether the first linear layer takes the mean of each channel, or all values
    """

    convs: tuple[Layer, ...]
    linears: tuple[Layer, ...]
    pools: tuple[bool, ...]
    activation: str
    size: int
    has_dropout: bool = False
    stride: int = 1
    has_mean: bool = False

    @property
    def channels(self) -> int:
        """Channels of its images."""
        return self.convs[0].inputs

    @property
    def only_size(self) -> int | None:
        """Height and width of the only images that it takes; None if it takes any."""
        return None if self.has_mean else self.size

    @property
    def order_matters(self) -> bool:
        """Whether it makes a difference that pooling stands before the activation."""
        return self.activation in SMOOTH and any(self.pools)

    def architecture(self, data: str, pool_first: bool = True) -> Architecture:
        """Return what builds it. Its name has channels, kernels and widths, p for pooling, and linear layers' sizes."""
        is_after = self.order_matters and not pool_first
        layers: list[Any] = []
        for conv, pools in zip(self.convs, self.pools, strict=True):
            sizes = {"in_channels": conv.inputs, "out_channels": conv.outputs, "kernel_size": list(conv.kernel or ())}
            layers.append(["conv", conv.name, {**sizes, "stride": self.stride, "bias": conv.has_bias}])
            steps = ["max_pool", self.activation] if pools else [self.activation]
            layers += reversed(steps) if is_after else steps
        layers.append("mean" if self.has_mean else "flatten")
        for place, linear in enumerate(self.linears):
            sizes = {"in_features": linear.inputs, "out_features": linear.outputs}
            layers += [self.activation] * (place > 0)
            layers.append(["linear", linear.name, {**sizes, "bias": linear.has_bias}])
        name = f"{self._text()}_{self.activation}{'_pool_after' * is_after}@{data}"
        shape = self.channels, self.size, self.size
        return Architecture(_short(name), "cnn", shape, LAYER_CHAIN, {"layers": layers})

    def how(self, pool_first: bool) -> dict[str, str]:
        """Return how it is run."""
        if self.has_mean:
            order = "convolution, activation; the mean over height and width; a linear layer"
        else:
            parts = (POOLING, "activation") if pool_first else ("activation", POOLING)
            order = f"convolution, {', '.join(parts)}; all values; linear layers with activations between them"
        stride = f"{self.stride}; 2 for pooling" if any(self.pools) else f"{self.stride}"
        return {"order": order, "stride": stride, "padding": "none"}

    def _text(self) -> str:
        parts = [str(self.channels)]
        for conv, pools in zip(self.convs, self.pools, strict=True):
            height, width = conv.kernel or (1, 1)
            kernel = f"{height}" if height == width else f"{height}x{width}"
            parts.append(f"{kernel}x{conv.outputs}{'p' * pools}")
        parts += [str(linear.outputs) for linear in self.linears]
        biases = "".join(str(int(layer.has_bias)) for layer in (*self.convs, *self.linears))
        return f"cnn_{'-'.join(parts)}{'_dropout' * self.has_dropout}{f'_bias{biases}' * ('0' in biases)}"


@dataclass(frozen=True)
class ResNetNetwork(Rebuilt):
    """A ResNet of basic blocks under torchvision's names: the arguments of TorchvisionResNet."""

    in_channels: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    outputs: int
    shortcut: str
    activation: str

    @property
    def channels(self) -> int:
        """Channels of its images."""
        return self.in_channels

    def architecture(self, data: str, pool_first: bool = True) -> Architecture:
        """Return what builds it."""
        arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        widths = "-".join(map(str, (self.in_channels, *self.widths, self.outputs)))
        kind = f"resnet{2 + 2 * sum(self.blocks)}{'s' * (self.shortcut == 'shortcut')}"
        size = SIZE_OF.get(data, 32)
        name = _short(f"{kind}_{widths}_{self.activation}@{data}")
        return Architecture(name, "torchvision_resnet", (self.in_channels, size, size), TORCHVISION_RESNET, arguments)

    def how(self, pool_first: bool) -> dict[str, str]:
        """Return how it is run."""
        return {
            "order": "convolution, BatchNorm, activation; blocks; the mean over height and width; a linear layer",
            "stride": "1; 2 in the first block of each stage but the first",
            "padding": "1 for kernels of 3 x 3",
            "residual": "the input of a block, or its projection, is added before the last activation",
        }


def named_activation(settings: Mapping[str, Any]) -> str | None:
    """Return the activation that the settings of a run name; None if they name none that is known."""
    named = next((settings[name] for name in ACTIVATIONS_UNDER if isinstance(settings.get(name), str)), "")
    return ACTIVATIONS.get(named.lower())


def only_size(networks: Sequence[Rebuilt]) -> int | None:
    """Return the size of the only images that networks take; None if they take any, or different ones."""
    sizes = {network.only_size for network in networks}
    return sizes.pop() if len(sizes) == 1 else None


def how_to_run(networks: Sequence[Rebuilt], activation: str | None, pool_first: bool) -> dict[str, Any]:
    """Return the record with the keys of HowToRun for networks of a zoo, without normalisation.

    activation: the setting that names it, which is a column; None if there is none
    """
    texts: dict[str, dict[str, None]] = {}
    for network in networks:
        for name, text in network.how(pool_first).items():
            texts.setdefault(name, {})[text] = None
    record = {name: "; or ".join(said) for name, said in texts.items()}
    return {"measure": "accuracy", "activation": activation or networks[0].activation, **record}


def rebuilt(tensors: Mapping[str, Tensor], activation: str | None) -> Rebuilt | None:
    """Return the network whose tensors these are; None if it is none that is known."""
    if "bn1.running_mean" in tensors:
        return _resnet(tensors, activation)
    layers = layers_of(tensors)
    if activation is None or not layers:
        return None
    convs = tuple(layer for layer in layers if layer.kernel)
    linears = tuple(layer for layer in layers if not layer.kernel)
    if not convs or not linears or layers != [*convs, *linears]:
        return None
    if not all(first.outputs == second.inputs for first, second in (*pairwise(convs), *pairwise(linears))):
        return None
    if all(STRIDED.fullmatch(layer.name) for layer in layers):
        if len(linears) > 1 or convs[-1].outputs != linears[0].inputs:
            return None
        size = 28 if convs[0].inputs == 1 else 32
        return ChainNetwork(convs, linears, (False,) * len(convs), activation, size, stride=2, has_mean=True)
    numbers = [int(match[1]) for match in (CHAIN.fullmatch(layer.name) for layer in layers) if match]
    if len(numbers) < len(layers):
        return None
    gaps = [second - first - 1 for first, second in pairwise(numbers)]
    has_dropout = any(gap == 2 for gap in gaps[len(convs) :])
    fitting = _pools(convs, linears, gaps, has_dropout)
    if len(fitting) != 1:
        return None
    size, pools = fitting[0]
    return ChainNetwork(convs, linears, pools, activation, size, has_dropout)


def layers_of(tensors: Mapping[str, Tensor]) -> list[Layer] | None:
    """Return the layers in natural order; None if there is a tensor that is of no convolution or linear layer."""
    names = sorted({name.rpartition(".")[0] for name in tensors}, key=natural_key)
    layers = []
    for name in names:
        weight = tensors.get(f"{name}.weight")
        if weight is None or weight.ndim not in (2, 4):
            return None
        shape = tuple(weight.shape)
        kernel = (shape[2], shape[3]) if weight.ndim == 4 else None
        layers.append(Layer(name, shape[1], shape[0], kernel, f"{name}.bias" in tensors))
    is_all = sum(1 + layer.has_bias for layer in layers) == len(tensors)
    biases_fit = all(tensors[f"{each.name}.bias"].shape == (each.outputs,) for each in layers if each.has_bias)
    return layers if is_all and biases_fit else None


def corrected(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings on the shape of a network that its tensors belie, with what the tensors say."""
    layers = [name for name in tensors if name.endswith("weight") and tensors[name].ndim in (2, 4)]
    layers.sort(key=natural_key)
    convs = [tensors[name] for name in layers if tensors[name].ndim == 4]
    linears = [tensors[name] for name in layers if tensors[name].ndim == 2]
    biases = {f"{name.removesuffix('weight')}bias" in tensors for name in layers}
    true: dict[str, Any] = {}
    if linears:
        true[OUTPUTS] = linears[-1].shape[0]
    if convs:
        true[INPUTS] = convs[0].shape[1]
    if len(biases) == 1:  # in a ResNet only the last layer has one
        true[BIASES] = biases.pop()
    return {name: value for name, value in true.items() if name in settings and settings[name] != value}


def _pools(
    convs: Sequence[Layer], linears: Sequence[Layer], gaps: Sequence[int], has_dropout: bool
) -> list[tuple[int, tuple[bool, ...]]]:
    """Return sizes of images, and whether there is pooling after each convolution, that fit numbers and shapes.

    gaps: how many numbers lie between each layer and the next one
    """
    if any(gap not in (1, 2) for gap in gaps[len(convs) :]):
        return []
    choices = []
    for place in range(len(convs)):
        modules = gaps[place] - (place == len(convs) - 1)  # nn.Flatten stands before the first linear layer
        possible = [(pool, drop) for pool in (False, True) for drop in (False, True) if has_dropout or not drop]
        choices.append([pool for pool, drop in possible if 1 + pool + drop == modules])
    fitting = []
    for size, pools in product(SIZES, product(*choices)):
        height = width = size
        for conv, pool in zip(convs, pools, strict=True):
            kernel = conv.kernel or (1, 1)
            height, width = (side // (2 if pool else 1) for side in (height - kernel[0] + 1, width - kernel[1] + 1))
        if min(height, width) > 0 and height * width * convs[-1].outputs == linears[0].inputs:
            fitting.append((size, pools))
    return fitting


def _resnet(tensors: Mapping[str, Tensor], activation: str | None) -> Rebuilt | None:
    """Return the ResNet whose tensors these are; None for one of other blocks or with another stem."""
    blocks: dict[int, set[int]] = {}
    for name in tensors:
        if match := re.match(r"layer([0-9]+)\.([0-9]+)\.", name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    stages = sorted(blocks)
    needed = ["conv1.weight", "fc.weight", *(f"layer{stage}.0.conv1.weight" for stage in stages)]
    if not stages or any(name not in tensors for name in needed):
        return None
    stem, last, *firsts = (tuple(tensors[name].shape) for name in needed)
    if len(stem) != 4 or stem[2:] != (3, 3):
        return None
    shortcut = "shortcut" if any(".shortcut." in name for name in tensors) else "downsample"
    # torchvision's ResNets have ReLU whatever the settings say; those with other names of shortcuts obey them.
    activation = "relu" if shortcut == "downsample" else activation or "relu"
    counts = tuple(len(blocks[stage]) for stage in stages)
    found = ResNetNetwork(stem[1], tuple(first[0] for first in firsts), counts, last[0], shortcut, activation)
    return found if _shapes(found) == {name: tuple(tensor.shape) for name, tensor in tensors.items()} else None


def _shapes(network: Rebuilt) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a network, which is built without memory for values."""
    import torch

    with torch.device("meta"):
        built = network.architecture("any").build()
    return {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}


def _short(name: str) -> str:
    """Return a name that an architecture may have."""
    if len(name) <= LONGEST:
        return name
    start, _, data = name.rpartition("@")
    return f"{start.partition('_')[0]}_{hashlib.sha256(start.encode()).hexdigest()[:12]}@{data}"
