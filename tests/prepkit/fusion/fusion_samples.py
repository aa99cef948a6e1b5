"""Networks and comparisons that tests of folding share.

Statistics are random throughout: fresh ones (mean 0, variance 1) would hide every mistake.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from prepkit.fusion.fold import Fusion, fold


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with random parameters and statistics, in training mode as it comes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, scale: float = 1.0) -> None:
        tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))

    with torch.no_grad():
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                normal(parameter, 1.0 if isinstance(module, BatchNorm) or name == "bias" else 0.3)
            if isinstance(module, BatchNorm) and module.running_mean is not None:
                normal(module.running_mean)
                module.running_var.copy_(0.5 + 1.5 * torch.rand(module.num_features, generator=generator))
    return network


def with_random_values(network: nn.Module) -> nn.Module:
    """Every floating-point tensor drawn at random, variances at least 0.5."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if "running_var" in name:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return network


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype)


def in_float64(network: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a network computes in evaluation, with its parameters' values, in float64."""
    with torch.no_grad():
        copied = copy.deepcopy(network).double()
        copied.eval()
        return copied(*args, **kwargs)


def batch_norms(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, BatchNorm)]


def snapshot(network: nn.Module) -> list[tuple[str, Any]]:
    state = [(name, tensor.dtype, tensor.clone()) for name, tensor in network.state_dict().items()]
    return [*state, *((name, type(module), module.training) for name, module in network.named_modules())]


def assert_unchanged(network: nn.Module, before: list[Any]) -> None:
    for was, now in zip(before, snapshot(network), strict=True):
        assert was[:2] == now[:2]
        assert torch.equal(was[2], now[2]) if isinstance(was[2], Tensor) else was[2] == now[2]


def assert_folds(network: nn.Module, *args: Tensor) -> Fusion:
    """Folds everything, exactly in float64, and does not touch the network."""
    network = randomised(network)
    before = snapshot(network)
    result = fold(network, args)
    assert_unchanged(network, before)
    assert result.kept == ()
    assert batch_norms(result.network) == []
    assert [pair.batch_norm for pair in result.folded] == batch_norms(network)
    assert not any(module.training for module in result.network.modules())
    assert result.error_before_cast <= 1e-9
    wide = [a.double() for a in args]
    expected, found = in_float64(network, *wide), in_float64(result.network, *wide)
    assert float((expected - found).abs().max() / expected.abs().max()) == pytest.approx(
        result.error_after_cast, rel=1e-6, abs=1e-15
    )
    assert result.error_after_cast < 1e-5
    return result


def numpy_fold(layer: Any, norm: Any, weight: Any = None, bias: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Supplementary VI, one value after the other, for one layer and one BatchNorm."""
    weight = layer.weight.detach().double().numpy() if weight is None else weight
    features = norm.num_features
    if bias is None:
        bias = np.zeros(features) if layer.bias is None else layer.bias.detach().double().numpy()
    mean, var = norm.running_mean.double().numpy(), norm.running_var.double().numpy()
    gamma = np.ones(features) if norm.weight is None else norm.weight.detach().double().numpy()
    beta = np.zeros(features) if norm.bias is None else norm.bias.detach().double().numpy()
    folded = np.array(weight)
    for feature in range(features):
        factor = gamma[feature] / math.sqrt(var[feature] + norm.eps)
        if "Transpose" in type(layer).__name__:
            per_group, inputs = features // layer.groups, weight.shape[0] // layer.groups
            group, column = divmod(feature, per_group)
            folded[group * inputs : (group + 1) * inputs, column] *= factor
        else:
            folded[feature] *= factor
    return folded, np.array(
        [(bias[f] - mean[f]) * gamma[f] / math.sqrt(var[f] + norm.eps) + beta[f] for f in range(features)]
    )


class Block(nn.Module):
    """A ResNet block with a projection, pre-relu addition and modules that only pass tensors on."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.Identity(), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.conv1(x)
        assert y.shape[0] == x.size(0)
        assert y.dim() == 4
        assert y.dtype == x.dtype
        assert len(y) == len(x)
        y = self.relu(self.bn1(y))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class BatchNormAct(nn.BatchNorm2d):
    """timm's: normalises, then applies its children."""

    def __init__(self, features: int, act: nn.Module) -> None:
        super().__init__(features)
        self.drop, self.act = nn.Identity(), act

    def forward(self, input):
        normalised = F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0, self.eps
        )
        return self.act(self.drop(normalised))


class Net(nn.Module):
    """A network of named modules and parameters, and its forward as a function of it."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **members: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = forward
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, x):
        return self.run(self, x)


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def norm(**options: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4, **options)


KINDS = {"conv": conv, "conv2": conv, "bn": norm, "bn2": norm, "act": nn.ReLU}


def net(forward: Callable[[Any, Tensor], Any], names: str = "conv bn", **modules: nn.Module) -> Net:
    return Net(forward, **{name: KINDS[name]() for name in names.split()}, **modules)


def plain(**changes: nn.Module) -> Net:
    network = net(lambda n, x: n.bn(n.conv(x)))
    for name, module in changes.items():
        setattr(network, name, module)
    return network


def never_returns(n: Any, x: Tensor) -> Tensor:
    y = n.conv(x)
    try:
        return n.bn(y)
    except ValueError:
        return x


class Relu(nn.BatchNorm2d):
    def forward(self, input):
        return F.relu(super().forward(input))


class Standardised(nn.Conv2d):
    """Weight standardisation: not linear in its weight."""

    def forward(self, input):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


def a_hook(*_: Any) -> None:
    pass


def huge_in_half() -> Net:
    network = plain().half()
    network.bn.weight.data.fill_(6e4)
    network.conv.weight.data.fill_(6e4)
    return network
