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

from prepkit.fusion._functional import Function
from prepkit.fusion._watch import quoted
from prepkit.fusion.norm import affine, own_tensor, removed, replaced, scale_and_shift, scale_of

Kind = Literal["into", "ahead", "affine"]
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """A layer that takes in channels of a BatchNorm.

    layer:    name of its module; of its weight if it is called as a function
    channels: for each feature of the layer's output, or channel of its input, the BatchNorm's channel, -1 for none;
              None if they are the same
    function: what the layer is if it is called as a function
    """

    layer: str
    channels: Tensor | None = None
    function: Function | None = None

    def tensor_name(self, kind: str) -> str | None:
        """Return the full name of the layer's weight or bias; None for the bias of a function that adds none."""
        if self.function is None:
            return tensor_name(self.layer, kind)
        return self.function.weight if kind == "weight" else self.function.bias


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
    def leaves_shift(self) -> bool:
        """Whether the shift stays in the BatchNorm's place, since a function that takes the scale adds no bias."""
        return any(part.tensor_name("bias") is None for part in self.parts)

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
        weight, bias = (_double(_tensor(network, part, kind, values)) for kind in ("weight", "bias"))
        assert weight is not None
        if step.kind == "ahead":
            layer = network.get_submodule(part.layer)
            weight, bias = _taken_in(layer, weight, bias, *_picked(norm, part.channels))
        elif part.channels is None:
            weight, bias = folded_parameters(network.get_submodule(part.layer), weight, bias, norm)
        else:
            scale, shift = _picked(norm, part.channels)
            groups = _transposed_groups(network, part)
            weight = _scaled(weight, scale, groups)
            bias = None if bias is None else bias * scale
            if not step.leaves_shift:
                bias = shift if bias is None else bias + shift
        for kind, value in (("weight", weight), ("bias", bias)):
            if value is not None and (name := part.tensor_name(kind)) is not None:
                new[name] = value
    if step.leaves_shift:
        new[tensor_name(step.batch_norm, "bias")] = scale_and_shift(norm)[1]
    return new


def _tensor(network: nn.Module, part: Part, kind: str, values: Mapping[str, Tensor]) -> Tensor | None:
    """Return weight or bias of a layer, as earlier steps left it; None if it has none."""
    name = part.tensor_name(kind)
    if name is None or name in values:
        return values.get(name or "")
    module, _, own = name.rpartition(".")
    tensor: Tensor | None = getattr(network.get_submodule(module), own)
    return tensor


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def _transposed_groups(network: nn.Module, part: Part) -> int | None:
    """Return the number of groups of a transposed convolution; None for any other layer."""
    if part.function is not None:
        return part.function.transposed
    layer: Any = network.get_submodule(part.layer)
    return layer.groups if isinstance(layer, TransposedConvolution) else None


def folded_parameters(layer: Any, weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Return the layer's weight and bias `[features]` with the BatchNorm folded into them (Supplementary VI)."""
    scale, mean, beta = scale_of(norm), norm.running_mean.double(), own_tensor(norm, "bias")
    centred = -mean if bias is None else bias - mean
    groups = layer.groups if isinstance(layer, TransposedConvolution) else None
    return _scaled(weight, scale, groups), centred * scale + (0.0 if beta is None else beta.double())


def _picked(norm: nn.Module, channels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return scale and shift of these channels of a BatchNorm; 1 and 0 where the channel is -1."""
    scale, shift = scale_and_shift(norm)
    if channels is None:
        return scale, shift
    channels = channels.to(scale.device)
    absent = channels < 0
    return scale[channels].masked_fill(absent, 1.0), shift[channels].masked_fill(absent, 0.0)


def _scaled(weight: Tensor, scale: Tensor, groups: int | None) -> Tensor:
    """Multiply `weight` by `scale` `[features]` along its output axis.

    groups: number of groups of a transposed convolution; None for any other layer
    """
    space = [1] * (weight.dim() - 2)
    if groups is None:
        return weight * scale.reshape(-1, 1, *space)
    # A transposed weight is [inputs, features / groups, ...], and group g of the inputs makes group g of the features.
    grouped = weight.reshape(groups, -1, *weight.shape[1:]) * scale.reshape(groups, 1, -1, *space)
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
            weight, bias = (step.values.get(part.tensor_name(kind) or "") for kind in ("weight", "bias"))
            assert weight is not None
            if part.function is None:
                set_parameters(network.get_submodule(part.layer), weight, bias)
            else:
                _set_of_function(network, part.function, weight, bias)
        norm = network.get_submodule(step.batch_norm)
        network = replaced(network, norm, replacement(step, norm))
    return network


def replacement(step: Step, norm: nn.Module) -> nn.Module:
    """Return what stands in place of the step's BatchNorm."""
    if step.kind != "affine" and not step.leaves_shift:
        return removed(norm)
    weight = step.values.get(tensor_name(step.batch_norm, "weight"))
    return affine(norm, weight, step.values[tensor_name(step.batch_norm, "bias")])


def set_parameters(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer new parameters with the same dtype, device and strides; layers tied to the old ones keep them."""
    old, old_bias = layer.weight, layer.bias
    layer.weight = _parameter_like(old, weight)
    if bias is not None:
        layer.bias = _parameter_like(old.new_empty(bias.shape) if old_bias is None else old_bias, bias)
        layer.bias.requires_grad_((old if old_bias is None else old_bias).requires_grad)


def _set_of_function(network: nn.Module, function: Function, weight: Tensor, bias: Tensor | None) -> None:
    for name, values in ((function.weight, weight), (function.bias, bias)):
        if name is not None and values is not None:
            module, _, own = name.rpartition(".")
            setattr(network.get_submodule(module), own, _parameter_like(network.get_parameter(name), values))


def _parameter_like(old: Tensor, values: Tensor) -> nn.Parameter:
    """Return values as a parameter with the dtype, device and strides of another tensor; mps has no float64."""
    return nn.Parameter(torch.empty_like(old).copy_(values.to(old.dtype)), requires_grad=old.requires_grad)
