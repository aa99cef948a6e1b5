"""Convolutions and Linear layers that are called as functions on a parameter, such as F.conv2d(x, self.weight)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_NAMES: dict[Any, tuple[str, ...]] = {
    F.linear: _CONVOLUTION[:3],
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _CONVOLUTION),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _TRANSPOSED),
}


@dataclass(frozen=True)
class Function:
    """A function that computes what a layer does, on parameters of the network.

    weight:     full name of its weight, by which the layer goes
    bias:       full name of its bias; None if it adds none
    transposed: number of groups of a transposed convolution; None for any other function
    """

    weight: str
    bias: str | None
    transposed: int | None

    @property
    def parameters(self) -> tuple[str, ...]:
        """The full names of its parameters."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def num_features(self, weight: Tensor) -> int:
        """Return the number of features of its output."""
        return int(weight.shape[0] if self.transposed is None else weight.shape[1] * self.transposed)


def function_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], names: Mapping[int, str]) -> Function | None:
    """Return what a call of a function is as a layer; None if it is none, or not on parameters.

    names: the full names of the network's parameters, by id
    """
    if func not in _NAMES:
        return None
    given = dict(zip(_NAMES[func], args, strict=False)) | dict(kwargs)
    weight, bias = (names.get(id(given.get(kind))) for kind in ("weight", "bias"))
    if weight is None or (bias is None and given.get("bias") is not None) or given["weight"].dim() < 2:
        return None
    transposed = _NAMES[func] is _TRANSPOSED
    return Function(weight, bias, given.get("groups", 1) if transposed else None)


def names_of_parameters(network: nn.Module) -> dict[int, str]:
    """Return the full names of the parameters that have only one, by id."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {key: own[0] for key, own in names.items() if len(own) == 1}
