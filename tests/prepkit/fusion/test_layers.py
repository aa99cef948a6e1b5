"""Each kind of layer with its BatchNorm against numpy, and what becomes of names, dtypes, ties and strides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from fusion_samples import Block, assert_folds, noise, numpy_fold, randomised
from torch import nn

from prepkit.fusion.fold import Folded, fold, fuse_batch_norm


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
