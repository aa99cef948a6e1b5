"""Folds into parts of a layer's output, and into layers that are called as functions on parameters.

What each network computes is written out by hand in numpy, one formula after the other, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fusion_samples import Net, with_random_values
from numpy.typing import NDArray
from torch import Tensor, nn

import prepkit
from prepkit.families.architecture import Architecture
from prepkit.families.registry import architecture_from_callable
from prepkit.fusion.fold import Fusion, UnfoldableNetwork, fold

Array = NDArray[np.float64]
INPUTS = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(3))


def randomised(network: nn.Module) -> nn.Module:
    return with_random_values(network).eval()


def double(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def normalised(values: Array, norm: Any) -> Array:
    """The formula of a BatchNorm: `values` are [N, C, ...]."""
    shape = [-1] + [1] * (values.ndim - 2)
    mean, var, gamma, beta = (
        double(tensor).reshape(shape) for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (values - mean) / np.sqrt(var + norm.eps) * gamma + beta


def convolved(x: Array, weight: Tensor, bias: Tensor | None = None) -> Array:
    """A 3 x 3 convolution without padding, as a sum over the nine taps."""
    height, width = x.shape[2] - 2, x.shape[3] - 2
    taps = [(i, j) for i in range(3) for j in range(3)]
    sums = sum(
        np.einsum("oc,nchw->nohw", double(weight)[:, :, i, j], x[:, :, i : i + height, j : j + width]) for i, j in taps
    )
    return np.asarray(sums if bias is None else sums + double(bias)[:, None, None])


def assert_equal(result: Fusion, expected: Array, inputs: Tensor = INPUTS) -> None:
    with torch.no_grad():
        found = double(result.network.double()(inputs.double()))
    assert found.shape == expected.shape
    assert float(np.abs(found - expected).max() / np.abs(expected).max()) < 1e-6


def pairs(result: Fusion) -> list[tuple[str, str]]:
    return [(pair.layer, pair.batch_norm) for pair in result.folded]


# One layer, several BatchNorms --------------------------------------------------------------------------------


def conv(bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(4, 6, 3, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("how", ["chunk", "split", "indices", "copies"])
def test_each_batch_norm_takes_its_part_of_a_layer(how, bias):
    def forward(n: Any, x: Tensor) -> Tensor:
        y = n.conv(x)
        if how == "chunk":
            a, b, c = y.chunk(3, 1)
        elif how == "split":
            a, b, c = torch.split(y, [2, 2, 2], 1)
        else:
            a, b, c = y[:, :2], y[:, 2:4], y[:, 4:]
        if how == "copies":
            a, b = a.clone(), torch.cat([b, b[:, :, :1]], 2)[:, :, :4]
        return torch.cat([n.bn(a).relu() * n.bn2(b), n.bn3(c)], 1)

    norms = {name: nn.BatchNorm2d(2) for name in ("bn", "bn2", "bn3")}
    network: Any = randomised(Net(forward, conv=conv(bias), **norms))
    result = fold(network, INPUTS)
    assert pairs(result) == [("conv", "bn"), ("conv", "bn2"), ("conv", "bn3")]
    assert list(result.network.state_dict()) == ["conv.weight", "conv.bias"]
    y = convolved(double(INPUTS), network.conv.weight, network.conv.bias)
    product = np.maximum(normalised(y[:, :2], network.bn), 0) * normalised(y[:, 2:4], network.bn2)
    assert_equal(result, np.concatenate([product, normalised(y[:, 4:], network.bn3)], 1))


def test_a_part_beside_another_that_nothing_normalises():
    def forward(n: Any, x: Tensor) -> Tensor:
        a, b = n.conv(x).chunk(2, 1)
        return n.bn(a) * b.sigmoid() + b.clone().tanh()

    network: Any = randomised(Net(forward, conv=conv(), bn=nn.BatchNorm2d(3)))
    y = convolved(double(INPUTS), network.conv.weight, network.conv.bias)
    gate = 1 / (1 + np.exp(-y[:, 3:]))
    assert_equal(fold(network, INPUTS), normalised(y[:, :3], network.bn) * gate + np.tanh(y[:, 3:]))


def test_a_row_of_two_batch_norms_behind_a_flatten():
    def forward(n: Any, x: Tensor) -> Tensor:
        return n.bn2(n.bn(n.conv(x).flatten(2))[:, :, ::2])

    network: Any = randomised(Net(forward, conv=conv(), bn=nn.BatchNorm1d(6), bn2=nn.BatchNorm1d(6)))
    result = fold(network, INPUTS)
    assert pairs(result) == [("conv", "bn"), ("conv", "bn2")]
    y = convolved(double(INPUTS), network.conv.weight, network.conv.bias).reshape(3, 6, -1)
    assert_equal(result, normalised(normalised(y, network.bn)[:, :, ::2], network.bn2))


STAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "overlap": lambda n, x: n.bn((y := n.conv(x))[:, :3]).relu() + n.bn2(y[:, 2:5]),
    "all read beside": lambda n, x: n.bn((y := n.conv(x))[:, :3]) + n.bn2(y[:, 3:]) + y.sum(),
    "mean over all": lambda n, x: n.bn((y := n.conv(x))[:, :3]) + n.bn2(y[:, 3:]) + y.mean(1, keepdim=True).relu(),
    "written in place": lambda n, x: n.bn((y := n.conv(x))[:, :3]) + n.bn2(y[:, 3:].sigmoid_()),
    "address": lambda n, x: n.bn((y := n.conv(x))[:, :3]) + n.bn2(z := y[:, 3:]) + 0 * z.data_ptr(),
    "strided anew": lambda n, x: (
        n.bn((y := n.conv(x))[:, :3]) + n.bn2(z := y[:, 3:]) + z.as_strided(z.shape, z.stride(), 0)
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_a_part_that_something_else_may_read_stays(name):
    network = randomised(Net(STAYS[name], conv=conv(), bn=nn.BatchNorm2d(3), bn2=nn.BatchNorm2d(3)))
    with pytest.raises(UnfoldableNetwork) as caught:
        fold(network, INPUTS)
    assert [refusal.batch_norm for refusal in caught.value.refusals] == ["bn", "bn2"]


# Layers that are called as functions --------------------------------------------------------------------------


class Scaled(nn.Module):
    """A convolution of one's own, as many repositories have it."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        # Memory that nobody filled, as torch.empty gives it, may hold any value; these are the worst.
        self.weight = nn.Parameter(torch.full((6, 4, 3, 3), math.nan))
        self.bias = nn.Parameter(torch.full((6,), 1e38)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_that_is_called_as_a_function(bias):
    network: Any = randomised(nn.Sequential(Scaled(bias), nn.BatchNorm2d(6), nn.ReLU()))
    result = fold(network, INPUTS)
    assert pairs(result) == [("0.weight", "1")]
    # Where the function adds no bias, the shift stays where the BatchNorm was: as many values as a bias has.
    assert list(result.network.state_dict()) == ["0.weight", "0.bias" if bias else "1.bias"]
    expected = normalised(convolved(double(INPUTS), network[0].weight, network[0].bias), network[1])
    assert_equal(result, np.maximum(expected, 0))


def test_parameters_of_the_network_itself_and_of_a_layer_that_is_not_called():
    """Also one BatchNorm over a module's and a function's output, and one that follows another."""

    def forward(n: Any, x: Tensor) -> Tensor:
        y = n.bn2(n.bn(F.conv2d(input=x, weight=n.layer.weight, bias=n.layer.bias)))
        z = n.bn3(torch.cat([F.linear(y.mean((2, 3)), n.matrix), n.fc(y.amax((2, 3)))], 1))
        return z.tanh()

    norms = {"bn": nn.BatchNorm2d(6), "bn2": nn.BatchNorm2d(6), "bn3": nn.BatchNorm1d(5)}
    members = {"layer": conv(), "fc": nn.Linear(6, 2), "matrix": nn.Parameter(torch.empty(3, 6))}
    network: Any = randomised(Net(forward, **members, **norms))
    result = fold(network, INPUTS)
    assert sorted(pairs(result)) == [
        ("fc", "bn3"),
        ("layer.weight", "bn"),
        ("layer.weight", "bn2"),
        ("matrix", "bn3"),
    ]
    names = ["matrix", "layer.weight", "layer.bias", "fc.weight", "fc.bias", "bn3.bias"]
    assert list(result.network.state_dict()) == names
    y = normalised(convolved(double(INPUTS), network.layer.weight, network.layer.bias), network.bn)
    y = normalised(y, network.bn2)
    first = y.mean((2, 3)) @ double(network.matrix).T
    second = y.max((2, 3)) @ double(network.fc.weight).T + double(network.fc.bias)
    assert_equal(result, np.tanh(normalised(np.concatenate([first, second], 1), network.bn3)))


def test_a_transposed_convolution_that_is_called_as_a_function():
    network: Any = randomised(
        Net(
            lambda n, x: n.bn(F.conv_transpose2d(x, n.w, n.b, groups=2)),
            w=nn.Parameter(torch.empty(4, 3, 1, 1)),
            b=nn.Parameter(torch.empty(6)),
            bn=nn.BatchNorm2d(6),
        )
    )
    result = fold(network, INPUTS)
    assert pairs(result) == [("w", "bn")]
    x, w = double(INPUTS), double(network.w)[:, :, 0, 0]
    halves = [np.einsum("io,nihw->nohw", w[at : at + 2], x[:, at : at + 2]) for at in (0, 2)]
    assert_equal(result, normalised(np.concatenate(halves, 1) + double(network.b)[:, None, None], network.bn))


WEIGHT, BIAS = (6, 4, 3, 3), (6,)
FUNCTIONS_THAT_STAY: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "weight computed": lambda n, x: n.bn(F.conv2d(x, n.w * 2)),
    "weight read": lambda n, x: n.bn(F.conv2d(x, n.w)) + n.w.norm(),
    "weight of two calls": lambda n, x: n.bn(F.conv2d(x, n.w)) + F.conv2d(x.relu(), n.w),
    "bias read": lambda n, x: n.bn(F.conv2d(x, n.w, n.b)) + n.b.sum(),
    "bias computed": lambda n, x: n.bn(F.conv2d(x, n.w, n.b.exp())),
    "output read": lambda n, x: n.bn(y := F.conv2d(x, n.w, n.b)) + y,
    "activation between": lambda n, x: n.bn(F.conv2d(x, n.w, n.b).relu()),
}


@pytest.mark.parametrize("name", FUNCTIONS_THAT_STAY)
def test_a_function_whose_parameters_are_not_its_own_stays(name):
    parameters = {"w": nn.Parameter(torch.empty(WEIGHT)), "b": nn.Parameter(torch.empty(BIAS))}
    network = randomised(Net(FUNCTIONS_THAT_STAY[name], **parameters, bn=nn.BatchNorm2d(6)))
    with pytest.raises(UnfoldableNetwork, match="keep_unfoldable="):
        fold(network, INPUTS)
    result = fold(network, INPUTS, keep_unfoldable="affine")
    assert [item.batch_norm for item in result.affine] == ["bn"]


def test_a_parameter_of_two_names_stays():
    weight = nn.Parameter(torch.empty(WEIGHT))
    network = randomised(Net(lambda n, x: n.bn(F.conv2d(x, n.w)), w=weight, other=weight, bn=nn.BatchNorm2d(6)))
    with pytest.raises(UnfoldableNetwork, match="its input comes from conv2d in the network itself"):
        fold(network, INPUTS)


class OfFunctions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = Scaled(bias=False), nn.BatchNorm2d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_a_zoo_holds_and_rebuilds_a_shift(tmp_path):
    architecture = architecture_from_callable(f"{__name__}:OfFunctions", (4, 6, 6))
    names = ["conv.weight", "norm.bias", "last.weight", "last.bias"]
    assert list(architecture.folded_shapes) == names
    network: Any = randomised(architecture.build())
    with prepkit.ZooWriter(tmp_path / "zoo", width=16) as writer:
        writer.add(network.state_dict(), architecture=architecture)
    stored = Architecture.from_dict(architecture.to_dict(), trust_code=True)
    assert list(stored.build_folded().state_dict()) == names
    rebuilt = prepkit.open_zoo(tmp_path / "zoo", trust_code=True).network(0)
    y = normalised(convolved(double(INPUTS), network.conv.weight), network.norm)
    expected = np.maximum(y, 0).mean((2, 3)) @ double(network.last.weight).T + double(network.last.bias)
    with torch.no_grad():
        found = double(rebuilt.double()(INPUTS.double()))
    assert float(np.abs(found - expected).max() / np.abs(expected).max()) < 1e-6
