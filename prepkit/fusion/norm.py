"""Modules that normalise each channel by statistics of their own, and the affine map that they are in evaluation.

They are known by what they hold, not by their class: torch's BatchNorm, SyncBatchNorm and InstanceNorm with running
statistics, and frozen BatchNorms such as torchvision's, whose weight, bias, mean and variance are all buffers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

BatchNorm, Convolution = _BatchNorm, _ConvNd

DEFAULT_EPS = 1e-5  # for a module that does not say what it adds to the variance; the proof tells if it is another


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a BatchNorm, or holds a running mean and variance of its own as one does."""
    if isinstance(module, BatchNorm):
        return True
    if isinstance(module, torch.jit.ScriptModule):
        return False  # it has no hooks, so that nothing could be compared in its place
    mean, variance = own_tensor(module, "running_mean"), own_tensor(module, "running_var")
    return mean is not None and variance is not None and mean.dim() == 1 and mean.shape == variance.shape


def own_tensor(module: nn.Module, name: str) -> Tensor | None:
    """Return a parameter or buffer of the module itself; None if it has none of this name."""
    parameter = module._parameters.get(name)
    return module._buffers.get(name) if parameter is None else parameter


def num_channels(norm: Any) -> int:
    """Return the number of channels that a module with statistics normalises."""
    variance = own_tensor(norm, "running_var")
    return int(norm.num_features) if variance is None else variance.numel()


def scale_of(norm: Any) -> Tensor:
    """Return the factor `[channels]` of the affine map, in float64."""
    weight = own_tensor(norm, "weight")
    deviation = torch.sqrt(norm.running_var.double() + getattr(norm, "eps", DEFAULT_EPS))
    return (1.0 if weight is None else weight.double()) / deviation


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Return the affine map `scale * x + shift` of each channel, `[channels]` each, in float64."""
    scale, bias = scale_of(norm), own_tensor(norm, "bias")
    return scale, (0.0 if bias is None else bias.double()) - norm.running_mean.double() * scale


class ChannelAffine(nn.Module):
    """A frozen BatchNorm: `weight * x + bias` for each channel, which is axis 1; modules after it run as they did.

    weight: None if a layer has taken it in, so that only the bias is left
    """

    def __init__(self, weight: Tensor | None, bias: Tensor, after: dict[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = nn.Parameter(bias)
        for name, module in (after or {}).items():
            self.add_module(name, module)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the map of `[N, channels, ...]`, followed by the modules that the BatchNorm applied after it."""
        shape = [-1] + [1] * (inputs.dim() - 2)
        outputs = inputs if self.weight is None else inputs * self.weight.reshape(shape)
        outputs = outputs + self.bias.reshape(shape)
        for module in self.children():
            outputs = module(outputs)
        return outputs


def removed(norm: nn.Module) -> nn.Module:
    """Return what stands in place of a folded BatchNorm: the modules that it applies after normalising, or none."""
    children = dict(norm.named_children())
    return (nn.Sequential(OrderedDict(children)) if children else nn.Identity()).eval()


def affine(norm: nn.Module, weight: Tensor | None, bias: Tensor) -> nn.Module:
    """Return the affine map that stands in place of a BatchNorm, in its dtype and on its device.

    weight, bias: values `[channels]`; without weight, it is a shift
    """
    like: Any = own_tensor(norm, "running_var")
    own = own_tensor(norm, "weight")
    scale = None if weight is None else torch.empty_like(like).copy_(weight)
    made = ChannelAffine(scale, torch.empty_like(like).copy_(bias), dict(norm.named_children()))
    learns = isinstance(own, nn.Parameter) and own.requires_grad
    for parameter in (made.weight, made.bias):
        if parameter is not None:
            parameter.requires_grad_(learns)
    return made.eval()


def replaced(network: nn.Module, norm: nn.Module, replacement: nn.Module) -> nn.Module:
    """Put a module in place of another under all of its names, and return the network."""
    for parent in list(network.modules()):
        for name in [name for name, child in parent._modules.items() if child is norm]:
            parent._modules[name] = replacement
    return replacement if network is norm else network


def without_batch_norm(network: nn.Module, names: Collection[str]) -> nn.Module:
    """Change a network to the one whose tensors have these names, as `prepkit.fusion.fold` once did.

    A BatchNorm with weight and bias but no statistics among the names becomes an affine map, one with a bias alone a
    shift, one with none of them is removed, and layers get the biases that they lack. No values are computed: they are
    to be loaded.
    """
    modules = list(network.named_modules())
    for name, module in modules:
        prefix = f"{name}." if name else ""
        if isinstance(module, Convolution | nn.Linear):
            if module.bias is None and f"{prefix}bias" in names:
                module.bias = nn.Parameter(module.weight.new_zeros(num_features(module)))
        elif is_norm(module) and f"{prefix}running_var" not in names:
            like: Any = own_tensor(module, "running_var")
            ones = torch.ones_like(like) if f"{prefix}weight" in names else None
            stays = affine(module, ones, torch.zeros_like(like)) if f"{prefix}bias" in names else removed(module)
            network = replaced(network, module, stays)
    return network


def num_features(layer: Any) -> int:
    """Return the number of features of a Linear layer's or convolution's output."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
