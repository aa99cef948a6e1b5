"""BatchNorm folding: every supported form against numpy and float64, every refusal by place and reason.

Statistics are random throughout: fresh ones (mean 0, variance 1) would hide every mistake.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils import _pytree as pytree

import prepkit.fusion._plan as fusion_plan
import prepkit.fusion._proof as fusion_proof
import prepkit.fusion.example as fusion_example
import prepkit.fusion.fold as fusion
import prepkit.fusion.step as fusion_step
from prepkit.errors import FusionError
from prepkit.fusion.fold import Folded, Fusion, UnfoldableNetwork, fold, fuse_batch_norm


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


# ------------------------------------------------------------------------------------------------ supported forms


def layer_then_norm(layer: nn.Module, norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(layer, norm)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: layer_then_norm(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 9)),
    "conv2d": (lambda: layer_then_norm(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)), (2, 3, 6, 5)),
    "conv3d": (lambda: layer_then_norm(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)), (2, 2, 4, 4, 4)),
    "no bias": (lambda: layer_then_norm(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), (2, 3, 6, 6)),
    "groups": (lambda: layer_then_norm(nn.Conv2d(6, 4, 3, groups=2), nn.BatchNorm2d(4)), (2, 6, 6, 6)),
    "depthwise": (lambda: layer_then_norm(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)), (2, 4, 6, 6)),
    "dilation": (lambda: layer_then_norm(nn.Conv2d(3, 4, 3, dilation=2, stride=2), nn.BatchNorm2d(4)), (2, 3, 9, 9)),
    "reflect": (
        lambda: layer_then_norm(nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), nn.BatchNorm2d(4)),
        (2, 3, 6, 6),
    ),
    "transposed 1d": (lambda: layer_then_norm(nn.ConvTranspose1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 6)),
    "transposed 2d, in == out": (lambda: layer_then_norm(nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4)), (2, 4, 5, 5)),
    "transposed 2d, groups": (
        lambda: layer_then_norm(nn.ConvTranspose2d(6, 4, 3, groups=2, stride=2, output_padding=1), nn.BatchNorm2d(4)),
        (2, 6, 4, 4),
    ),
    "transposed 2d, groups, in == out": (
        lambda: layer_then_norm(nn.ConvTranspose2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)),
        (2, 4, 4, 4),
    ),
    "transposed 2d, depthwise": (
        lambda: layer_then_norm(nn.ConvTranspose2d(4, 4, 2, groups=4), nn.BatchNorm2d(4)),
        (2, 4, 4, 4),
    ),
    "transposed 3d": (
        lambda: layer_then_norm(nn.ConvTranspose3d(2, 4, 2, groups=2), nn.BatchNorm3d(4)),
        (2, 2, 3, 3, 3),
    ),
    "linear": (lambda: layer_then_norm(nn.Linear(5, 4), nn.BatchNorm1d(4)), (3, 5)),
    "linear without bias": (lambda: layer_then_norm(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4)), (3, 5)),
    "sync": (lambda: layer_then_norm(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)), (2, 3, 6, 6)),
    "not affine": (lambda: layer_then_norm(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), (2, 3, 6, 6)),
    "odd eps": (lambda: layer_then_norm(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.37)), (2, 3, 6, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_folded_layer_is_the_formula(name):
    build, shape = LAYERS[name]
    network = build()
    result = assert_folds(network, noise(*shape))
    weight, bias = numpy_fold(*network)
    layer = result.network[0]
    np.testing.assert_allclose(layer.weight.detach().numpy(), weight, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(layer.bias.detach().numpy(), bias, rtol=1e-6, atol=1e-7)
    assert isinstance(result.network[1], nn.Identity)
    assert list(result.network.state_dict()) == ["0.weight", "0.bias"]
    assert result.folded == (Folded("0", "1"),)


def test_row_of_batch_norms_goes_into_one_layer():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4, eps=0.1), nn.BatchNorm2d(4, affine=False)
    )
    result = assert_folds(network, noise(2, 3, 6, 6))
    assert result.folded == (Folded("0", "1"), Folded("0", "2"), Folded("0", "3"))
    weight, bias = numpy_fold(network[0], network[1])
    for norm in (network[2], network[3]):
        weight, bias = numpy_fold(network[0], norm, weight, bias)
    np.testing.assert_allclose(result.network[0].weight.detach().numpy(), weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.network[0].bias.detach().numpy(), bias, rtol=1e-5, atol=1e-6)


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


def test_residual_and_nested_modules():
    stage = nn.Sequential(Block(3, 4), nn.ModuleDict({"deep": nn.Sequential(Block(4, 8))})["deep"])
    network = nn.Sequential(
        stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)
    )
    result = assert_folds(network, noise(2, 3, 6, 6))
    assert Folded("0.1.0.shortcut.0", "0.1.0.shortcut.2") in result.folded
    assert len(result.folded) == 7
    kept_order = [name for name in dict(network.named_parameters()) if "bn" not in name and name.endswith("weight")]
    assert [n for n in dict(result.network.named_parameters()) if n.endswith("weight")] == [
        name for name in kept_order if name not in {"4.weight", "0.0.shortcut.2.weight", "0.1.0.shortcut.2.weight"}
    ]


def test_names_and_order_of_parameters_hold_when_a_bias_is_added():
    result = assert_folds(Block(3, 4), noise(2, 3, 6, 6))
    names = [f"{layer}.{kind}" for layer in ("conv1", "conv2", "shortcut.0") for kind in ("weight", "bias")]
    assert list(result.network.state_dict()) == names


def test_no_operation_between_layer_and_batch_norm_that_does_nothing_matters():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop, self.bn = nn.Conv2d(3, 4, 3), nn.Dropout2d(0.5), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.bn(self.drop(self.conv(x)).contiguous())

    assert_folds(Network(), noise(2, 3, 6, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_input_overwritten_after_the_layer_ran(dtype):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return x.mul_(0.1) + self.bn(y)

    x = noise(2, 3, 6, 6, dtype=dtype)
    kept = x.clone()
    network = randomised(Network()).to(dtype)
    assert fold(network, x).error_before_cast <= 1e-9
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    network = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).to(dtype)
    result = fold(network, noise(2, 3, 6, 6, dtype=dtype))
    assert {parameter.dtype for parameter in result.network.parameters()} == {dtype}
    weight, bias = numpy_fold(network[0], network[1])
    # Folded in float64 and rounded once: within half a unit in the last place of the exact value.
    unit = torch.finfo(dtype).eps / 2
    np.testing.assert_allclose(result.network[0].weight.detach().double().numpy(), weight, rtol=1.01 * unit)
    np.testing.assert_allclose(result.network[0].bias.detach().double().numpy(), bias, rtol=1.01 * unit, atol=1e-15)
    assert result.error_before_cast <= 1e-9
    assert result.error_after_cast < {torch.float16: 5e-3, torch.bfloat16: 3e-2, torch.float64: 1e-12}[dtype]


def test_mixed_dtypes_requires_grad_and_strides_stay():
    network = randomised(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    )
    network[0].half().requires_grad_(False)
    network[2].to(memory_format=torch.channels_last)
    network[2].bias = nn.Parameter(network[2].bias.detach().bfloat16(), requires_grad=False)
    folded = fuse_batch_norm(network, noise(1, 3, 8, 8))
    assert [(p.dtype, p.requires_grad) for p in folded.parameters()] == [
        (torch.float16, False),
        (torch.float16, False),
        (torch.float32, True),
        (torch.bfloat16, False),
    ]
    assert folded[2].weight.is_contiguous(memory_format=torch.channels_last)


def test_tied_weights_of_two_layers_become_two_parameters():
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    network[2].weight = network[0].weight
    result = assert_folds(network, noise(2, 4, 8, 8))
    assert result.network[0].weight is not result.network[2].weight
    assert torch.equal(result.network[2].weight, network[2].weight)


def test_batch_norm_registered_under_two_names():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.alias = self.bn

        def forward(self, x):
            return self.alias(self.conv(x))

    result = assert_folds(Network(), noise(2, 3, 6, 6))
    assert result.network.alias is result.network.bn


class ScaledConv(nn.Conv2d):
    """A subclass whose forward is still linear in its weight and bias."""

    def forward(self, input):
        return 2.0 * super().forward(0.5 * input) - self.bias.reshape(1, -1, 1, 1)


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


@pytest.mark.parametrize("inplace", [False, True])
def test_subclasses_that_the_check_can_prove(inplace):
    network = nn.Sequential(ScaledConv(3, 4, 3), BatchNormAct(4, nn.ReLU(inplace)), nn.Conv2d(4, 2, 1))
    result = assert_folds(network, noise(2, 3, 6, 6))
    assert [name for name, _ in result.network[1].named_children()] == ["drop", "act"]
    assert isinstance(result.network[1], nn.Sequential)


def test_children_of_a_batch_norm_keep_their_parameters():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct(4, nn.PReLU(4)))
    result = assert_folds(network, noise(2, 3, 6, 6))
    assert list(result.network.state_dict()) == ["0.weight", "0.bias", "1.act.weight"]


class Point(NamedTuple):
    x: Tensor
    y: Tensor


@dataclasses.dataclass
class Answer:
    logits: Tensor
    name: str
    parts: list[Tensor]


class Structured(nn.Module):
    """Arguments and results of many kinds; `what` chooses the result."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.conv, self.bn, self.embed = what, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Embedding(5, 4)

    def forward(self, image, index, scale=1.0):
        a, b = self.bn(self.conv(image)) * scale, self.embed(index)
        return {
            "tuple": (a, [b, "words"], None),
            "dict": {"a": a, "index": a.argmax(1), "mask": a > 0},
            "named": Point(a, b),
            "dataclass": [Answer(a, "x", [b])],
        }[self.what]


@pytest.mark.parametrize("what", ["tuple", "dict", "named", "dataclass"])
def test_structured_inputs_and_outputs(what):
    network = randomised(Structured(what))
    image, index = noise(2, 3, 6, 6), torch.tensor([1, 4])
    for example in ((image, index), {"image": image, "index": index, "scale": torch.tensor(2.0)}):
        result = fold(network, example)
        assert result.folded == (Folded("conv", "bn"),)
        assert 0 < result.error_after_cast < 1e-5


@pytest.mark.parametrize("what", ["tuple", "dict", "named", "dataclass"])
def test_every_tensor_of_an_output_is_compared(what, monkeypatch):
    network = randomised(Structured(what))
    monkeypatch.setattr(fusion, "faults_of", lambda *_: {})
    monkeypatch.setattr(fusion_step, "folded_parameters", lambda layer, weight, bias, norm: (weight * 0.9, bias))
    with pytest.raises(FusionError, match="not the same function"):
        fold(network, (noise(2, 3, 6, 6), torch.tensor([1, 4])))


def test_network_without_batch_norm_is_a_verified_copy():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.ReLU())
    result = assert_folds(network, noise(2, 3, 6, 6))
    assert (result.folded, result.error_before_cast, result.error_after_cast) == ((), 0.0, 0.0)
    assert result.network is not network
    assert result.network[0].weight is not network[0].weight


def test_network_without_parameters():
    assert fold(nn.ReLU(), noise(2, 3)).folded == ()


def test_attention_and_recurrence_beside_a_fold():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.gru = nn.GRU(8, 4, batch_first=True)

        def forward(self, x):
            return self.gru(self.encoder(self.bn(self.conv(x)).mT))

    assert fold(randomised(Network()), noise(2, 3, 5)).folded == (Folded("conv", "bn"),)


def test_train_method_that_returns_nothing():
    class Network(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)

    assert_folds(Network(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), noise(2, 3, 6, 6))


# ------------------------------------------------------------------------------------------------ refusals


class Net(nn.Module):
    """A network of named modules, and its forward as a function of it."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            setattr(self, name, module)

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


def a_hook(*_: Any) -> None:
    pass


def hooked(module: str, kind: str) -> Net:
    network = plain()
    getattr(network.get_submodule(module), f"register_{kind}_hook")(a_hook)
    return network


def parametrised(module: str) -> Net:
    network = plain()
    nn.utils.parametrize.register_parametrization(network.get_submodule(module), "weight", nn.Tanh())
    return network


def own_forward() -> Net:
    network = plain()
    network.bn.forward = MethodType(lambda self, x: F.relu(nn.BatchNorm2d.forward(self, x)), network.bn)
    return network


def huge_in_half() -> Net:
    network = plain().half()
    network.bn.weight.data.fill_(6e4)
    network.conv.weight.data.fill_(6e4)
    return network


def read_in_numpy(n: Any, x: Tensor) -> Tensor:
    y = n.conv(x)
    return n.bn(y) + float(y.numpy().sum())


def read_from_a_list(n: Any, x: Tensor) -> Tensor:
    maps = [n.conv(x)]
    return torch.cat([n.bn(maps[-1]), *maps])


def kept_in_an_attribute(n: Any, x: Tensor) -> Tensor:
    n.last = {"maps": n.conv(x)}
    return n.bn(n.last["maps"])


def in_place(n: Any, x: Tensor) -> Tensor:
    y = n.conv(x)
    y += 1
    return n.bn(y)


def caught(n: Any, x: Tensor) -> Tensor:
    """A BatchNorm that fails must not go on to count as the reader of what follows."""
    y = n.conv(x)
    try:
        return n.bn(x.flatten())
    except ValueError:
        return n.bn2(y) + y


def never_returns(n: Any, x: Tensor) -> Tensor:
    y = n.conv(x)
    try:
        return n.bn(y)
    except ValueError:
        return x


class Doubler(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Silu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class Relu(nn.BatchNorm2d):
    def forward(self, input):
        return F.relu(super().forward(input))


class TwoInputs(nn.BatchNorm2d):
    def forward(self, input, skip):
        return super().forward(input) + skip


class TupleNorm(nn.BatchNorm2d):
    def forward(self, input):
        return (super().forward(input),)


class Standardised(nn.Conv2d):
    """Weight standardisation: not linear in its weight."""

    def forward(self, input):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Repeated(nn.Conv2d):
    """Gives more channels than it says."""

    def forward(self, input):
        return super().forward(input).repeat(1, 2, 1, 1)


class OddBias(nn.Conv2d):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.bias = nn.Parameter(torch.zeros(1, self.out_channels, 1, 1))

    def forward(self, input):
        return self._conv_forward(input, self.weight, None) + self.bias


@dataclasses.dataclass
class Case:
    build: Callable[[], nn.Module]
    reasons: dict[str, str]
    shape: tuple[int, ...]


def case(build: Callable[[], nn.Module], shape: tuple[int, ...] = (2, 4, 5, 5), **reasons: str) -> Case:
    """Reasons by name; `{}` stands for the place of the network, `functional` for a batch_norm without module."""
    names = {"functional": "F.batch_norm in 'inner'"}
    return Case(build, {names.get(name, f"inner.{name}"): text for name, text in reasons.items()}, shape)


ACTIVATION_NORM = nn.Sequential(conv(), BatchNormAct(4, Silu()))
OUTSIDE = "has tensors that are also read outside its calls, by"
REFUSALS: dict[str, Case] = {
    "activation between": case(
        lambda: net(lambda n, x: n.bn(n.act(n.conv(x))), "conv act bn"),
        bn="its input comes from relu in 'inner.act', not straight from a convolution or Linear layer$",
    ),
    "in-place activation between": case(
        lambda: net(lambda n, x: n.bn(n.act(n.conv(x))), act=nn.ReLU(inplace=True)),
        bn="^the output of 'inner.conv' is also read by relu_ in 'inner.act'$",
    ),
    "in-place arithmetic between": case(
        lambda: net(in_place), bn="output of 'inner.conv' is also read by add_ in 'inner'"
    ),
    "output used twice": case(
        lambda: net(lambda n, x: n.bn(y := n.conv(x)) + n.act(y), "conv act bn"),
        bn="^the output of 'inner.conv' is also read by relu in 'inner.act'$",
    ),
    "output used three times": case(
        lambda: net(lambda n, x: n.bn(y := n.conv(x)) + n.act(y) + y.sum(), "conv act bn"),
        bn="^the output of 'inner.conv' is also read by relu in 'inner.act' and sum in 'inner'$",
    ),
    "output into two BatchNorms": case(
        lambda: net(lambda n, x: n.bn(y := n.conv(x)) + n.bn2(y), "conv bn bn2"),
        bn="also read by batch_norm in 'inner.bn2'",
        bn2="also read by batch_norm in 'inner.bn'",
    ),
    "output returned": case(
        lambda: net(lambda n, x: {"y": [y := n.conv(x)], "z": n.bn(y)}),
        bn="the output of 'inner.conv' is also read by the network's return",
    ),
    "view of the output returned": case(
        lambda: net(lambda n, x: (n.conv(x), n.bn(y := n.conv2(x)), y.mT), "conv conv2 bn"),
        bn="the output of 'inner.conv2' is also read by mT in 'inner'",
    ),
    "output in a list": case(
        lambda: net(read_from_a_list), bn="the output of 'inner.conv' is also read by cat in 'inner'"
    ),
    "output kept": case(
        lambda: net(kept_in_an_attribute),
        bn=r"the output of 'inner.conv' is still held after the run \(an attribute, a list or a hook\)",
    ),
    "output into numpy": case(lambda: net(read_in_numpy), bn="'inner.conv' is also read by numpy in 'inner'"),
    "output's address": case(
        lambda: net(lambda n, x: n.bn(y := n.conv(x)) + 0 * y.data_ptr()), bn="also read by data_ptr in 'inner'"
    ),
    "output into TorchScript": case(
        lambda: net(lambda n, x: n.script(y := n.conv(x)) + n.bn(y), script=torch.jit.script(Doubler())),
        bn="the output of 'inner.conv' is also read by mul in 'inner'",
    ),
    "shared convolution": case(
        lambda: net(lambda n, x: n.bn(n.conv(x)) + n.bn2(n.conv(2 * x)), "conv bn bn2"),
        bn="its layer 'inner.conv' is shared: it ran 2 times in one run",
        bn2="its layer 'inner.conv' is shared",
    ),
    "shared BatchNorm": case(
        lambda: net(lambda n, x: n.bn(n.conv(x)) + n.bn(n.conv2(x)), "conv conv2 bn"), bn="it is shared: it ran 2 times"
    ),
    "no statistics": case(
        lambda: plain(bn=norm(track_running_stats=False)), bn=r"no running statistics \(track_running_stats=False\)"
    ),
    "at the input, before padding": case(
        lambda: net(lambda n, x: n.conv(n.bn(x))),
        bn=r"the network's input: .*before 'inner.conv', whose padding adds zeros after .*\(pre-activation\)",
    ),
    "row of BatchNorms without a layer": case(
        lambda: net(lambda n, x: n.bn2(n.bn(x)), "bn bn2"),
        bn="its input is the network's input",
        bn2="it follows BatchNorm 'inner.bn', which cannot be folded",
    ),
    "after a BatchNorm with an activation": case(
        lambda: net(lambda n, x: n.bn(n.pair(x)), "bn", pair=copy.deepcopy(ACTIVATION_NORM)),
        bn="it follows 'inner.pair.1', which applies modules of its own after normalising",
    ),
    "Linear over tokens": case(
        lambda: plain(conv=nn.Linear(7, 4), bn=nn.BatchNorm1d(4)),
        (2, 4, 7),
        bn=r"'inner.conv' gives 3 axes \(Linear over tokens\): axis 1, which it normalises, is not the features",
    ),
    "convolution without batch axis": case(
        lambda: plain(bn=nn.BatchNorm1d(4)), (4, 4, 4), bn=r"'inner.conv' gives 3 axes \(an input without batch axis\)"
    ),
    "hook on the layer": case(lambda: hooked("conv", "forward"), bn=r"its layer 'inner.conv' carries hooks \(a_hook\)"),
    "pre-hook on the layer": case(lambda: hooked("conv", "forward_pre"), bn="its layer 'inner.conv' carries hooks"),
    "hook on the BatchNorm": case(
        lambda: hooked("bn", "forward"), bn=r"it carries hooks \(a_hook\).*remove them first"
    ),
    "pre-hook on the BatchNorm": case(lambda: hooked("bn", "forward_pre"), bn="it carries hooks"),
    "backward hook": case(lambda: hooked("bn", "full_backward"), bn="it carries hooks"),
    "backward pre-hook": case(lambda: hooked("conv", "full_backward_pre"), bn="its layer 'inner.conv' carries hooks"),
    "parametrised layer": case(
        lambda: parametrised("conv"), bn="its layer 'inner.conv' is parametrised; first use .*remove_parametrizations"
    ),
    "parametrised BatchNorm": case(lambda: parametrised("bn"), bn="it is parametrised"),
    "weight_norm of old": case(
        lambda: plain(conv=nn.utils.weight_norm(conv())), bn=r"its layer 'inner.conv' carries hooks \(WeightNorm\)"
    ),
    "spectral_norm of old": case(
        lambda: plain(conv=nn.utils.spectral_norm(conv())), bn=r"its layer 'inner.conv' carries hooks \(SpectralNorm\)"
    ),
    "forward set on the instance": case(own_forward, bn="it has a forward of its own, set on the instance"),
    "functional": case(
        lambda: net(lambda n, x: F.batch_norm(n.conv(x), n.g.weight, n.g.bias.exp()), "conv", g=nn.GroupNorm(2, 4)),
        functional="batch_norm is called as a function; use a BatchNorm module",
    ),
    "functional in TorchScript": case(
        lambda: net(lambda n, x: n.script(n.conv(x)), "conv", script=torch.jit.script(randomised(norm()).eval())),
        functional="batch_norm is called as a function",
    ),
    "functional with a module's statistics": case(
        lambda: net(lambda n, x: F.batch_norm(n.conv(x), n.bn.running_mean, n.bn.running_var)),
        functional="batch_norm is called as a function",
        bn=f"it {OUTSIDE} batch_norm in 'inner'",
    ),
    "forward called past the module": case(
        lambda: net(lambda n, x: n.bn.forward(n.conv(x))),
        functional="batch_norm is called as a function",
        bn=f"it {OUTSIDE} batch_norm in 'inner'",
    ),
    "never reached": case(lambda: net(lambda n, x: n.conv(x)), bn="the run on the example input never called it"),
    "weight read elsewhere": case(
        lambda: net(lambda n, x: n.bn(n.conv(x)) * n.conv.weight.norm()), bn=f"'inner.conv' {OUTSIDE} norm in 'inner'"
    ),
    "weight returned": case(
        lambda: net(lambda n, x: (n.bn(n.conv(x)), n.conv.weight)), bn=f"'inner.conv' {OUTSIDE} the network's return"
    ),
    "subclass that does more": case(
        lambda: plain(bn=Relu(4)),
        bn=r"'inner.conv', folded, gives something else in its place \(relative error .*Relu\) is more than its class",
    ),
    "subclass with two inputs": case(
        lambda: net(lambda n, x: n.bn(n.conv(x), x), "conv", bn=TwoInputs(4)),
        bn="it is called with more than one tensor",
    ),
    "subclass that returns a tuple": case(
        lambda: net(lambda n, x: n.bn(n.conv(x))[0], "conv", bn=TupleNorm(4)), bn="gives something else in its place"
    ),
    "convolution subclass that does more": case(
        lambda: plain(conv=Standardised(4, 4, 3)), bn=r"'inner.conv', folded, gives .* \(Standardised, BatchNorm2d\)"
    ),
    "convolution subclass with other channels": case(
        lambda: plain(conv=Repeated(4, 2, 3)), bn="it normalises 4 features, 'inner.conv' has 2"
    ),
    "convolution subclass with a bias of its own": case(
        lambda: plain(conv=OddBias(4, 4, 3)),
        bn=r"the bias of 'inner.conv' has shape \[1, 4, 1, 1\], not one value a feature",
    ),
    "exception in the BatchNorm": case(
        lambda: net(never_returns, "conv", bn=nn.BatchNorm1d(4)),
        bn="'inner.conv' and it do not run on random input: ValueError",
    ),
    "exception on the way": case(
        lambda: net(caught, "conv bn bn2"),
        bn="its input comes from flatten in 'inner'",
        bn2="the output of 'inner.conv' is also read by add in 'inner'",
    ),
    "too large for half": case(huge_in_half, bn="folding it into 'inner.conv' gives .*beyond float16"),
}


class Beside(nn.Module):
    """A network, and a pair beside it which folds whatever the network does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.layer, self.norm = inner, nn.Linear(16, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.inner(x), self.norm(self.layer(x.flatten(1)[:, :16]))


def outputs(network: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(network.eval()(x))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@pytest.mark.filterwarnings("ignore")  # the old weight_norm and TorchScript are deprecated, and still met
@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_names_place_and_reason(name):
    build, reasons, shape = REFUSALS[name].build, REFUSALS[name].reasons, REFUSALS[name].shape
    network = build()
    network = Beside(network if "half" in name else randomised(network))
    randomised(network.layer), randomised(network.norm)
    network.to(next(network.inner.parameters()).dtype)
    x = noise(*shape, dtype=network.layer.weight.dtype)
    before = snapshot(network)
    with pytest.raises(UnfoldableNetwork) as caught_error:
        fold(network, x)
    assert_unchanged(network, before)
    refusals, message = caught_error.value.refusals, str(caught_error.value)
    assert {refusal.batch_norm for refusal in refusals} == set(reasons)
    for refusal in refusals:
        assert re.search(reasons[refusal.batch_norm], refusal.reason)
        assert refusal.batch_norm in message
    assert f": {refusals[0].reason}" in message
    assert message.startswith(f"{len(reasons)} of ")
    assert "keep_unfoldable=True keeps these and folds the rest" in message.splitlines()[-1]
    assert "pack_checkpoint(keep_batch_norm=True)" in message.splitlines()[-1]

    result = fold(network, x, keep_unfoldable=True)
    assert_unchanged(network, before)
    assert result.kept == refusals
    assert result.folded[-1] == Folded("layer", "norm")
    assert set(batch_norms(result.network)) == {place for place in reasons if "F.batch_norm" not in place}
    assert result.error_before_cast <= 1e-9
    tolerance = 1e-2 if "half" in name else 1e-4
    for expected, found in zip(outputs(network, x), outputs(result.network, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_all_refusals_stand_in_one_error():
    network = randomised(nn.Sequential(norm(), conv(), nn.ReLU(), norm(), conv(), norm(track_running_stats=False)))
    with pytest.raises(FusionError) as caught_error:
        fuse_batch_norm(network, noise(2, 4, 5, 5))
    assert [refusal.batch_norm for refusal in caught_error.value.refusals] == ["0", "3", "5"]
    assert str(caught_error.value).startswith("3 of 3 BatchNorms cannot be folded without changing the network:\n  0: ")
    assert pickle.loads(pickle.dumps(caught_error.value)).refusals == caught_error.value.refusals


def test_the_network_itself_is_a_batch_norm():
    with pytest.raises(FusionError, match="\n  the network itself: its input is the network's input"):
        fuse_batch_norm(randomised(norm()), noise(2, 4, 5, 5))


def test_row_of_batch_norms_of_which_a_later_one_stays():
    network = randomised(nn.Sequential(conv(), norm(), Relu(4), norm()))
    result = fold(network, noise(2, 4, 5, 5), keep_unfoldable=True)
    assert result.folded == (Folded("0", "1"),)
    assert [refusal.batch_norm for refusal in result.kept] == ["2", "3"]
    assert result.kept[1].reason == "it follows BatchNorm '2', which cannot be folded"


def test_layer_output_is_not_mistaken_for_a_later_tensor_at_its_address():
    def forward(n, x):
        for _ in range(20):
            n.conv(x)  # freed at once: its address is free for the next tensor
            x = x.relu()
        return n.bn(x)

    network = randomised(net(forward))
    with pytest.raises(FusionError, match="bn: its input comes from relu in the network itself"):
        fold(network, noise(2, 4, 5, 5))


def test_reference_cycle_is_no_holder_of_an_output():
    def forward(n, x):
        box = [n.conv(x)]
        box.append(box)
        return n.bn(box[0])

    assert fold(randomised(net(forward)), noise(2, 4, 5, 5)).folded == (Folded("conv", "bn"),)


def test_prehook_that_raises_is_no_reader():
    def forward(n, x):
        try:
            n.act(x)
        except ValueError:
            return n.bn(n.conv(x))

    def refuse(*_: Any) -> None:
        raise ValueError

    network = randomised(net(forward, "conv bn act"))
    network.act.register_forward_pre_hook(refuse)
    assert fold(network, noise(2, 4, 5, 5)).folded == (Folded("conv", "bn"),)


def test_activations_are_not_kept_during_the_run():
    alive: list[Any] = []
    most = 0

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal most
        most = max(most, sum(not reference.expired() for reference in alive))
        with torch._C.DisableTorchFunction():
            alive.append(StorageWeakRef(output.untyped_storage()))

    layers = [module for _ in range(8) for module in (conv(), nn.Identity(), norm(), nn.ReLU(), nn.Identity())]
    network = randomised(nn.Sequential(*layers))
    for layer in layers:
        if isinstance(layer, nn.Identity):
            layer.register_forward_hook(count)
    assert len(fold(network, noise(2, 4, 5, 5)).folded) == 8
    # Two runs of the original and two of the folded network, and one of each on an input of another size.
    assert len(alive) == 6 * 16
    assert most <= 2


# ------------------------------------------------------------------------------------- networks refused as a whole


class Uncopyable(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.lock = inner, threading.Lock()

    def forward(self, x):
        return self.inner(x)


class Unshared(nn.Module):
    """Says that it can be copied, and hands out itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(), norm()

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        return self.bn(self.conv(x))


def closure(swallow: bool) -> nn.Module:
    """A lambda keeps the original network, whose BatchNorm in training mode would change with each run of a copy."""
    network = plain().double()

    def forward(n: Any, x: Tensor) -> Tensor:
        try:
            return network.bn(n.conv(x))
        except FusionError:
            if not swallow:
                raise
            return n.bn(n.conv(x))

    network.run = forward
    return network


def counting(n: Any, x: Tensor) -> Tensor:
    n.count = getattr(n, "count", 0) + 1
    return n.bn(n.conv(x)) * n.count


def infinite() -> Net:
    network = plain()
    network.bn.weight.data[0] = math.inf
    return network


WHOLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lazy": (
        lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()),
        r"0: LazyConv2d is not initialised; run",
    ),
    "meta": (lambda: plain().to("meta"), r"conv: Conv2d is on the meta device"),
    "cannot be copied": (lambda: Uncopyable(plain()), r"cannot be deep-copied: TypeError: cannot pickle"),
    "copy that shares": (lambda: nn.Sequential(Unshared()), r"cannot be deep-copied: its copy shares modules"),
    "closure": (lambda: closure(False), r"cannot be deep-copied: .*original, by add_ in the network itself"),
    "closure, swallowed": (lambda: closure(True), r"cannot be deep-copied: its copy runs on tensors of the original"),
    "fails": (
        lambda: nn.Sequential(conv(), norm(), nn.Linear(9, 2)),
        r"^A float64 copy of the network fails on the example input \[2, 4, 5, 5\] float32: RuntimeError: mat1 [^\n]*$",
    ),
    "no tensors": (lambda: net(lambda n, x: "words"), r"output holds no tensor"),
    "random": (
        lambda: net(lambda n, x: F.dropout(n.bn(n.conv(x)), training=True)),
        r"Two runs of the network on the same input differ by .*random numbers or keeps state",
    ),
    "state": (lambda: net(counting), r"Two runs .* differ"),
    "not finite": (infinite, r"output on the example input is not finite"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", WHOLE)
def test_network_refused_as_a_whole(name):
    build, reason = WHOLE[name]
    network = build()
    before = snapshot(network) if name not in ("lazy", "meta") else []
    for keep in (False, True):
        with pytest.raises(UnfoldableNetwork, match=reason):
            fold(network, noise(2, 4, 5, 5), keep_unfoldable=keep)
    if before:
        assert_unchanged(network, before)


def test_empty_input_proves_nothing():
    with pytest.raises(FusionError, match="on an input that is not empty"):
        fold(randomised(plain()), noise(0, 4, 5, 5))


def test_example_of_zeros_does_not_hide_a_subclass_that_does_more():
    """On zeros a standardised weight gives the bias, as a plain one does: noise at the place tells them apart."""
    network = randomised(plain(conv=Standardised(4, 4, 3)))
    with pytest.raises(FusionError, match="gives something else in its place"):
        fold(network, torch.zeros(2, 4, 5, 5))
    assert fold(randomised(plain()), torch.zeros(2, 4, 5, 5)).folded == (Folded("conv", "bn"),)


def test_batch_norm_out_of_the_reach_of_replacement():
    """A list holds the BatchNorm too: the replaced module is not the one that runs; only the final comparison sees."""
    network = plain()
    network.norms = [network.bn]
    network.run = lambda n, x: n.norms[0](n.conv(x))
    with pytest.raises(FusionError, match=r"not the same function: relative error .* in float64\. It is not returned"):
        fold(randomised(network), noise(2, 4, 5, 5), keep_unfoldable=True)


def test_hooks_on_all_modules_are_refused():
    handle = nn.modules.module.register_module_forward_hook(a_hook)
    try:
        with pytest.raises(FusionError, match="hooks on all modules are set"):
            fold(randomised(plain()), noise(2, 4, 5, 5))
    finally:
        handle.remove()


# ------------------------------------------------------------------------------------- the checks bite


def slightly_wrong(layer: Any, weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    weight, bias = FORMULA(layer, weight, bias, norm)
    return weight * (1 + 1e-7), bias


FORMULA = fusion_step.folded_parameters


def test_local_check_names_the_place_of_a_wrong_fold(monkeypatch):
    monkeypatch.setattr(fusion_step, "folded_parameters", slightly_wrong)
    with pytest.raises(
        UnfoldableNetwork, match=r"\n  6 BatchNorms \(0.bn1, .* and 3 more\), as for 0.bn1: '0.conv1', fo"
    ) as e:
        fuse_batch_norm(randomised(nn.Sequential(Block(3, 4), Block(4, 4))), noise(2, 3, 6, 6))
    reasons = {refusal.batch_norm: refusal.reason for refusal in e.value.refusals}
    assert reasons["1.bn2"].startswith("'1.conv2', folded, gives something else in its place")


def test_local_check_bites_in_the_run_too(monkeypatch):
    monkeypatch.setattr(fusion_step, "folded_parameters", slightly_wrong)
    monkeypatch.setattr(fusion_proof, "_faults_on_noise", lambda *_: {})
    with pytest.raises(FusionError, match=r"\n  bn: 'conv', folded, gives something else in its place"):
        fuse_batch_norm(randomised(plain()), noise(2, 4, 5, 5))


def test_what_was_not_compared_in_the_run_is_refused(monkeypatch):
    monkeypatch.setattr(fusion_proof, "_faults_on_noise", lambda *_: {})
    with pytest.raises(FusionError, match="\n  bn: it did not return from a second run"):
        fuse_batch_norm(randomised(net(never_returns, "conv", bn=nn.BatchNorm1d(4))), noise(2, 4, 5, 5))


def test_comparison_of_the_whole_network_bites(monkeypatch):
    monkeypatch.setattr(fusion_step, "folded_parameters", slightly_wrong)
    monkeypatch.setattr(fusion, "faults_of", lambda *_: {})
    with pytest.raises(FusionError, match=r"not the same function: relative error \d\.\de-0[78] in float64"):
        fuse_batch_norm(randomised(plain()), noise(2, 4, 5, 5), keep_unfoldable=True)


def test_comparison_after_the_cast_bites(monkeypatch):
    monkeypatch.setattr(fusion_plan, "overflow", lambda *_: None)
    network = huge_in_half()
    with pytest.raises(FusionError, match="not the same function: relative error inf after the cast"):
        fuse_batch_norm(network, noise(2, 4, 5, 5, dtype=torch.float16))


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([0.0, 0.0], [0.0, 0.5], 0.5),
        ([1.0], [math.nan], math.inf),
        ([1.0, 2.0], [1.0], math.inf),
        ([3, 0], [3, 1], 1 / 3),
        ([True], [False], 1.0),
        ([1j], [2j], 1.0),
        ([], [], 0.0),
    ],
)
def test_relative_error(a, b, error):
    assert fusion_example.relative_error([torch.tensor(a)], [torch.tensor(b)]) == error
    assert fusion_example.relative_error([torch.ones(1), torch.tensor(a)], [torch.ones(1), torch.tensor(b)]) == error
    assert fusion_example.relative_error([torch.tensor(a)], []) == math.inf


# ------------------------------------------------------------------------------------- side effects


def test_random_state_is_untouched():
    network = randomised(net(lambda n, x: n.bn(n.conv(x)) + 0 * torch.rand(1)))
    before = torch.random.get_rng_state()
    fold(network, noise(2, 4, 5, 5))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_device():
    network = randomised(net(lambda n, x: n.bn(n.conv(x)) + 0 * torch.rand(1, device=x.device))).cuda().half()
    before = torch.cuda.get_rng_state()
    result = fold(network, noise(2, 4, 5, 5))  # the input is brought to the network
    assert torch.equal(before, torch.cuda.get_rng_state())
    assert {(p.device.type, p.dtype) for p in result.network.parameters()} == {("cuda", torch.float16)}
    assert result.error_before_cast <= 1e-9
    with pytest.raises(FusionError, match=r"the output of 'inner\.conv' is also read by relu in"):
        fold(Beside(REFUSALS["output used twice"].build()).cuda(), noise(2, 4, 5, 5))


def test_default_device_does_not_matter():
    network = randomised(plain())
    with torch.device("meta"):
        assert fold(network, noise(2, 4, 5, 5)).folded == (Folded("conv", "bn"),)


def test_result_can_be_trained():
    folded = fuse_batch_norm(randomised(plain()), noise(2, 4, 5, 5)).train()
    folded(noise(2, 4, 5, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in folded.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in folded.modules())


def test_import_is_light():
    """Only our own modules come on top of torch; not even a run loads the compiler."""
    code = """
import sys, torch
before = set(sys.modules)
from prepkit.fusion.fold import fuse_batch_norm
print(sorted(name for name in set(sys.modules) - before if not name.startswith("prepkit")))
fuse_batch_norm(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)), torch.ones(1, 2))
print("torch._dynamo" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.split("\n")[:2] == ["[]", "False"]


# ------------------------------------------------------------------------------------- any network

PASSES = {"identity": nn.Identity, "dropout": nn.Dropout}
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    **PASSES,
    "conv": conv,
    "depthwise": lambda: nn.Conv2d(4, 8, 1, groups=4, bias=False),
    "halve": lambda: nn.Conv2d(8, 4, 1, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2),
    "norm": norm,
    "plain norm": lambda: norm(affine=False, eps=0.1),
    "no statistics": lambda: norm(track_running_stats=False),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "residual": lambda: net(lambda n, x: x + n.bn(n.conv(x))),
    "reads twice": lambda: net(lambda n, x: n.bn(y := n.conv(x)) + y),
    "linear": lambda: net(lambda n, x: n.bn(n.fc(x.mean((2, 3))))[:, :, None, None] + x, "", **linear_pair()),
}


def linear_pair() -> dict[str, nn.Module]:
    return {"fc": nn.Linear(4, 4), "bn": nn.BatchNorm1d(4)}


def expected_folds(names: list[str]) -> list[str]:
    """Which BatchNorms of a sequence fold, by a rule that looks at nothing but the names."""
    folds, layer_before = [], False
    for index, name in enumerate(names):
        is_norm = name in ("norm", "plain norm")
        following = next((other for other in names[index:] if other not in (*PASSES, "norm", "plain norm")), None)
        if is_norm and (layer_before or following in ("depthwise", "halve")):
            folds.append(str(index))
        elif name in ("residual", "linear"):
            folds.append(f"{index}.bn")
        if name not in PASSES:
            layer_before = name in ("conv", "transposed", "halve") or (is_norm and layer_before)
    return folds


@st.composite
def sequences(draw: st.DrawFn) -> list[str]:
    names: list[str] = []
    for name in draw(st.lists(st.sampled_from([*BLOCKS, "norm", "conv", "norm"]), min_size=1, max_size=7)):
        names += {"depthwise": ["depthwise", "halve"], "halve": []}.get(name, [name])
    return names


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(names=sequences(), seed=st.integers(0, 2**16), training=st.booleans())
def test_any_sequence_folds_exactly_or_says_why_not(names, seed, training):
    network = randomised(nn.Sequential(*(BLOCKS[name]() for name in names)), seed).train(training)
    before = snapshot(network)
    x = noise(2, 4, 5, 5)
    result = fold(network, x, keep_unfoldable=True)
    assert_unchanged(network, before)
    assert {pair.batch_norm for pair in result.folded} == set(expected_folds(names))
    assert sorted(refusal.batch_norm for refusal in result.kept) == sorted(batch_norms(result.network))
    assert len(result.kept) + len(result.folded) == len(batch_norms(network))
    expected, found = in_float64(network, x.double()), in_float64(result.network, x.double())
    assert float((expected - found).abs().max() / max(expected.abs().max(), 1e-9)) < 1e-4
    if result.kept:
        with pytest.raises(UnfoldableNetwork) as caught_error:
            fold(network, x)
        assert caught_error.value.refusals == result.kept
        assert_unchanged(network, before)
    if "no statistics" not in names:
        affine = fold(network, x, keep_unfoldable="affine")
        assert {refusal.batch_norm for refusal in affine.affine} == {refusal.batch_norm for refusal in result.kept}
        assert not any("running" in name for name in affine.network.state_dict())
        found = in_float64(affine.network, x.double())
        assert float((expected - found).abs().max() / max(expected.abs().max(), 1e-9)) < 1e-4
