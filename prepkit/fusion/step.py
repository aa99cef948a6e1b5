"""What is done with a BatchNorm: it goes into layers before or behind it, or becomes an affine map of its own.

A step names modules and channels only, so that it can be done again on another network of the same architecture;
`new_values` computes the parameters that it gives to a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd as TransposedConvolution

from prepkit.fusion._watch import quoted
from prepkit.fusion.norm import affine, own_tensor, removed, replaced, scale_and_shift, scale_of

Kind = Literal["into", "ahead", "affine"]
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """A layer that takes in channels of a BatchNorm.

    channels: for each feature of the layer's output, or channel of its input, the BatchNorm's channel, -1 for none;
              None if they are the same
    """

    layer: str
    channels: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """What is done with one BatchNorm.

    kind:   "into" the layers whose outputs it reads, "ahead" into the layers that read its output, or "affine"
    parts:  the layers; none for an affine map
    values: float64 parameters by name after this step, of the layers or of the affine map
    reason: why it becomes an affine map
    """

    batch_norm: str
    kind: Kind
    parts: tuple[Part, ...]
    values: Mapping[str, Tensor]
    reason: str = ""

    @property
    def layer(self) -> str:
        """Name of the first layer."""
        return self.parts[0].layer

    @property
    def is_direct(self) -> bool:
        """Whether the BatchNorm reads one layer's output as it is."""
        return self.kind == "into" and self.parts[0].channels is None


def tensor_name(module: str, kind: str) -> str:
    """Return the name of a module's weight or bias in the state dict."""
    return f"{module}.{kind}" if module else kind


def new_values(step: Step, network: nn.Module, values: Mapping[str, Tensor]) -> Values:
    """Return the parameters that a step gives to a network, in float64.

    values: what earlier steps gave it
    """
    norm = network.get_submodule(step.batch_norm)
    if step.kind == "affine":
        scale, shift = scale_and_shift(norm)
        return {tensor_name(step.batch_norm, "weight"): scale, tensor_name(step.batch_norm, "bias"): shift}
    new: Values = {}
    for part in step.parts:
        layer: Any = network.get_submodule(part.layer)
        weight_name, bias_name = tensor_name(part.layer, "weight"), tensor_name(part.layer, "bias")
        weight = values.get(weight_name, layer.weight).double()
        bias = values.get(bias_name, layer.bias)
        bias = None if bias is None else bias.double()
        if step.kind == "ahead":
            new[weight_name], new[bias_name] = _taken_in(layer, weight, bias, *_picked(norm, part.channels))
        elif part.channels is None:
            new[weight_name], new[bias_name] = folded_parameters(layer, weight, bias, norm)
        else:
            scale, shift = _picked(norm, part.channels)
            new[weight_name] = _scaled(layer, weight, scale)
            new[bias_name] = shift if bias is None else bias * scale + shift
    return new


def folded_parameters(layer: Any, weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Return the layer's weight and bias `[features]` with the BatchNorm folded into them (Supplementary VI)."""
    scale, mean, beta = scale_of(norm), norm.running_mean.double(), own_tensor(norm, "bias")
    centred = -mean if bias is None else bias - mean
    return _scaled(layer, weight, scale), centred * scale + (0.0 if beta is None else beta.double())


def _picked(norm: nn.Module, channels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return scale and shift of these channels of a BatchNorm; 1 and 0 where the channel is -1."""
    scale, shift = scale_and_shift(norm)
    if channels is None:
        return scale, shift
    channels = channels.to(scale.device)
    absent = channels < 0
    return scale[channels].masked_fill(absent, 1.0), shift[channels].masked_fill(absent, 0.0)


def _scaled(layer: Any, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply `weight` by `scale` `[features]` along its output axis."""
    space = [1] * (weight.dim() - 2)
    if not isinstance(layer, TransposedConvolution):
        return weight * scale.reshape(-1, 1, *space)
    # A transposed weight is [inputs, features / groups, ...], and group g of the inputs makes group g of the features.
    grouped = weight.reshape(layer.groups, -1, *weight.shape[1:]) * scale.reshape(layer.groups, 1, -1, *space)
    return grouped.reshape(weight.shape)


def _taken_in(layer: Any, weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a layer whose input was scaled and shifted, `[inputs]` each, before it."""
    groups, space = getattr(layer, "groups", 1), [1] * (weight.dim() - 2)

    def along(values: Tensor) -> Tensor:  # [inputs] to [features, inputs / groups, 1, ...]
        rows = values.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
        return rows.reshape(weight.shape[0], -1, *space)

    added = (weight * along(shift)).flatten(1).sum(1)
    return weight * along(scale), added if bias is None else bias + added


def overflow(step: Step, network: nn.Module) -> str | None:
    """Return why the network's own dtypes cannot hold what the step gives it; None if they can."""
    for name, values in step.values.items():
        module_name, _, kind = name.rpartition(".")
        module = network.get_submodule(module_name)
        own = own_tensor(module, kind)
        if own is None:
            own = own_tensor(module, "weight" if own_tensor(module, "weight") is not None else "running_var")
        dtype = torch.float64 if own is None else own.dtype
        if values.to(dtype).isfinite().all():
            continue
        what = f"folding it into {quoted(module_name)}" if step.parts else "making it an affine map"
        if not values.isfinite().all():
            return f"{what} gives values that are not finite"
        return f"{what} gives {values.abs().max():.3g}, beyond {str(dtype)[6:]}"
    return None


def applied(steps: Sequence[Step], network: nn.Module) -> nn.Module:
    """Do steps in a network, and return it; only a network that is a BatchNorm itself becomes another module."""
    for step in steps:
        for part in step.parts:
            weight, bias = (step.values[tensor_name(part.layer, kind)] for kind in ("weight", "bias"))
            set_parameters(network.get_submodule(part.layer), weight, bias)
        norm = network.get_submodule(step.batch_norm)
        network = replaced(network, norm, replacement(step, norm))
    return network


def replacement(step: Step, norm: nn.Module) -> nn.Module:
    """Return what stands in place of the step's BatchNorm."""
    if step.kind != "affine":
        return removed(norm)
    return affine(norm, *(step.values[tensor_name(step.batch_norm, kind)] for kind in ("weight", "bias")))


def set_parameters(layer: Any, weight: Tensor, bias: Tensor) -> None:
    """Give a layer new parameters with the same dtype, device and strides; layers tied to the old ones keep them."""
    old, old_bias = layer.weight, layer.bias
    template = old.new_empty(bias.shape) if old_bias is None else torch.empty_like(old_bias)
    bias_learns = old.requires_grad if old_bias is None else old_bias.requires_grad
    weight_values = torch.empty_like(old).copy_(weight.to(old.dtype))  # mps has no float64
    layer.weight = nn.Parameter(weight_values, requires_grad=old.requires_grad)
    layer.bias = nn.Parameter(template.copy_(bias.to(template.dtype)), requires_grad=bias_learns)
