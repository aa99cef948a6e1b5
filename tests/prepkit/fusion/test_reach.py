"""Folds beyond the layer right before a BatchNorm: each network against the trained one, and each limit of a fold.

Statistics are random throughout: fresh ones (mean 0, variance 1) would hide every mistake.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fusion_samples import Net
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

import prepkit.fusion.step as fusion_step
from prepkit.fusion.fold import UnfoldableNetwork, fold


def randomised(network: nn.Module) -> nn.Module:
    """The network with random parameters and statistics."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                scale = 1.0 if isinstance(module, BatchNorm) or name == "bias" else 0.3
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if isinstance(module, BatchNorm):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(0.5 + 1.5 * torch.rand(module.num_features, generator=generator))
    return network


def outputs(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(network).double().eval()(x.double())


def error(network: nn.Module, folded: nn.Module, shape: tuple[int, ...]) -> float:
    """How far the folded network's outputs are from the trained network's, both in float64, on another input."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    expected, found = outputs(network, x), outputs(folded, x)
    assert expected.shape == found.shape
    return float((expected - found).abs().max() / expected.abs().max())


@dataclass
class Case:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    folded: list[tuple[str, str]]


def case(shape: tuple[int, ...], folded: str, forward: Callable[[Any, Tensor], Any], **modules: nn.Module) -> Case:
    """`folded` holds layer and BatchNorm of each fold, as in "conv<bn fc>bn2": `<` into it from behind, `>` ahead."""
    pairs = [tuple(reversed(p.split(">"))) if ">" in p else tuple(p.split("<")) for p in folded.split()]
    return Case(lambda: Net(forward, **{n: copy.deepcopy(m) for n, m in modules.items()}), shape, pairs)  # type: ignore[arg-type]


def rows(n: Any, x: Tensor) -> Tensor:
    """LeViT's order: Linear over tokens, and a BatchNorm over all of them at once."""
    x = n.fc(x)
    return n.bn(x.flatten(0, 1)).reshape_as(x)


def levels(n: Any, x: Tensor) -> Tensor:
    """A head on each level of a pyramid: all convolutions first, and then all BatchNorms."""
    maps = [n.conv(x), n.conv(x[:, :, ::2]), n.conv(2 * x)]
    return torch.cat([n.bn(level).flatten(1) for level in maps], 1)


def attention(n: Any, x: Tensor) -> Tensor:
    x = n.bn(x.transpose(1, 2)).transpose(1, 2)
    return torch.softmax(n.q(x) @ n.k(x).mT, -1) @ n.v(x)


CONV, CONV2, PADDED = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 5, 3, bias=False), nn.Conv2d(4, 6, 3, padding=1)
IMAGES, TOKENS = (2, 4, 6, 6), (3, 7, 4)
FOLDS: dict[str, Case] = {
    # a pair that is shared
    "pair twice": case(
        IMAGES, "conv<bn", lambda n, x: n.bn(n.conv(n.bn(n.conv(x)))), conv=nn.Conv2d(4, 4, 3), bn=nn.BatchNorm2d(4)
    ),
    "pair on levels": case(IMAGES, "conv<bn", levels, conv=CONV, bn=nn.BatchNorm2d(6)),
    "siamese": case(
        IMAGES, "body.0<body.1", lambda n, x: n.body(x) - n.body(x * x), body=nn.Sequential(CONV, nn.BatchNorm2d(6))
    ),
    # values that are moved between layer and BatchNorm
    "tokens as rows": case(TOKENS, "fc<bn", rows, fc=nn.Linear(4, 6), bn=nn.BatchNorm1d(6)),
    "tokens transposed": case(
        TOKENS, "fc<bn", lambda n, x: n.bn(n.fc(x).transpose(1, 2)).mT, fc=nn.Linear(4, 6, False), bn=nn.BatchNorm1d(6)
    ),
    "tokens copied": case(
        TOKENS, "fc<bn", lambda n, x: n.bn(n.fc(x).mT.contiguous()), fc=nn.Linear(4, 6), bn=nn.BatchNorm1d(6)
    ),
    "flat images": case(IMAGES, "conv<bn", lambda n, x: n.bn(n.conv(x).flatten(2)), conv=CONV, bn=nn.BatchNorm1d(6)),
    "one pixel": case(
        (2, 4, 3, 3), "conv<bn", lambda n, x: n.bn(n.conv(x).flatten(1)), conv=CONV, bn=nn.BatchNorm1d(6)
    ),
    "crop": case(IMAGES, "conv<bn", lambda n, x: n.bn(n.conv(x)[:, :, ::2]), conv=CONV, bn=nn.BatchNorm2d(6)),
    "crop of features": case(IMAGES, "conv<bn", lambda n, x: n.bn(n.conv(x)[:, 1:4]), conv=CONV, bn=nn.BatchNorm2d(3)),
    "average pooling": case(
        IMAGES,
        "conv<bn",
        lambda n, x: n.bn(F.avg_pool2d(n.conv(x), 3, 1, 1, count_include_pad=False)),
        conv=CONV,
        bn=nn.BatchNorm2d(6),
    ),
    "global pooling": case(
        IMAGES, "conv<bn", lambda n, x: n.bn(n.conv(x).mean((2, 3))), conv=CONV, bn=nn.BatchNorm1d(6)
    ),
    "upsampling": case(
        IMAGES,
        "conv<bn",
        lambda n, x: n.bn(F.interpolate(n.conv(x), scale_factor=2, mode="bilinear")),
        conv=CONV,
        bn=nn.BatchNorm2d(6),
    ),
    "transposed in groups": case(
        IMAGES,
        "conv<bn",
        lambda n, x: n.bn(n.conv(x).flatten(2)),
        conv=nn.ConvTranspose2d(4, 6, 3, groups=2),
        bn=nn.BatchNorm1d(6),
    ),
    "row with a view": case(
        IMAGES,
        "conv<bn conv<bn2",
        lambda n, x: n.bn2(n.bn(n.conv(x)).flatten(2)),
        conv=CONV,
        bn=nn.BatchNorm2d(6),
        bn2=nn.BatchNorm1d(6),
    ),
    # several layers
    "concatenation": case(
        IMAGES,
        "conv<bn conv2<bn",
        lambda n, x: n.bn(torch.cat([n.conv(x), n.conv2(x)], 1)),
        conv=CONV,
        conv2=CONV2,
        bn=nn.BatchNorm2d(11),
    ),
    "shuffled concatenation": case(
        IMAGES,
        "conv<bn conv2<bn",
        lambda n, x: n.bn(torch.cat([n.conv(x), n.conv2(x)], 1).reshape(2, 2, 5, 4, 4).transpose(1, 2).flatten(1, 2)),
        conv=nn.Conv2d(4, 4, 3),
        conv2=nn.Conv2d(4, 6, 3),
        bn=nn.BatchNorm2d(10),
    ),
    # ahead
    "ahead into a convolution": case(IMAGES, "bn>conv", lambda n, x: n.conv(n.bn(x)), bn=nn.BatchNorm2d(4), conv=CONV),
    "ahead into a convolution without bias": case(
        IMAGES, "bn>conv", lambda n, x: n.conv(n.bn(x.relu())), bn=nn.BatchNorm2d(4, affine=False), conv=CONV2
    ),
    "ahead into groups": case(
        IMAGES, "bn>conv", lambda n, x: n.conv(n.bn(x)), bn=nn.BatchNorm2d(4), conv=nn.Conv2d(4, 6, 2, groups=2)
    ),
    "ahead into reflection": case(
        IMAGES,
        "bn>conv",
        lambda n, x: n.conv(n.bn(x)),
        bn=nn.BatchNorm2d(4),
        conv=nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    ),
    "ahead into a Linear layer": case(
        (5, 4), "bn>fc", lambda n, x: n.fc(n.bn(x.tanh())), bn=nn.BatchNorm1d(4), fc=nn.Linear(4, 3)
    ),
    "ahead into several": case(
        TOKENS,
        "bn>q bn>k bn>v",
        attention,
        bn=nn.BatchNorm1d(4),
        q=nn.Linear(4, 5),
        k=nn.Linear(4, 5, bias=False),
        v=nn.Linear(4, 6),
    ),
    "ahead over flatten": case(
        IMAGES, "bn>fc", lambda n, x: n.fc(n.bn(x).flatten(1)), bn=nn.BatchNorm2d(4), fc=nn.Linear(144, 3)
    ),
    "ahead over pooling": case(
        IMAGES,
        "bn>fc",
        lambda n, x: n.fc(F.adaptive_avg_pool2d(n.bn(x), 1).flatten(1)),
        bn=nn.BatchNorm2d(4),
        fc=nn.Linear(4, 3),
    ),
    "ahead beside others": case(
        (5, 4),
        "bn>fc",
        lambda n, x: n.fc(torch.cat([x.relu(), n.bn(x), x[:, :2]], 1)),
        bn=nn.BatchNorm1d(4),
        fc=nn.Linear(10, 3),
    ),
    "row ahead": case(
        (5, 4),
        "bn2>fc bn>fc",
        lambda n, x: n.fc(n.bn2(n.bn(x))),
        bn=nn.BatchNorm1d(4),
        bn2=nn.BatchNorm1d(4),
        fc=nn.Linear(4, 3),
    ),
    "from both sides": case(
        (5, 4),
        "fc<bn2 bn>fc",
        lambda n, x: n.bn2(n.fc(n.bn(x))),
        bn=nn.BatchNorm1d(4),
        fc=nn.Linear(4, 3),
        bn2=nn.BatchNorm1d(3),
    ),
}


@pytest.mark.parametrize("name", FOLDS)
def test_folded_network_is_the_trained_one(name):
    network = randomised(FOLDS[name].build())
    x = torch.randn(FOLDS[name].shape, generator=torch.Generator().manual_seed(1))
    result = fold(network, x)
    assert [(pair.layer, pair.batch_norm) for pair in result.folded] == FOLDS[name].folded
    assert not any("running" in key for key in result.network.state_dict())
    assert result.affine == result.kept == ()
    assert error(network, result.network, FOLDS[name].shape) < 1e-6


STAYS: dict[str, Case] = {
    "padded": case(IMAGES, "", lambda n, x: n.conv(n.bn(x)), bn=nn.BatchNorm2d(4), conv=PADDED),
    "padded by hand": case(
        IMAGES, "", lambda n, x: n.conv(F.pad(n.bn(x), (1, 1, 1, 1))), bn=nn.BatchNorm2d(4), conv=CONV
    ),
    "zeros counted": case(
        IMAGES,
        "",
        lambda n, x: n.fc(F.avg_pool2d(n.bn(x), 3, 1, 1).mean((2, 3))),
        bn=nn.BatchNorm2d(4),
        fc=nn.Linear(4, 3),
    ),
    "ahead into a transposed convolution": case(
        IMAGES, "", lambda n, x: n.conv(n.bn(x)), bn=nn.BatchNorm2d(4), conv=nn.ConvTranspose2d(4, 3, 3)
    ),
    "ahead past an activation": case(IMAGES, "", lambda n, x: n.conv(n.bn(x).relu()), bn=nn.BatchNorm2d(4), conv=CONV),
    "ahead and added": case((5, 4), "", lambda n, x: n.fc(y := n.bn(x)) + y, bn=nn.BatchNorm1d(4), fc=nn.Linear(4, 4)),
    "ahead and returned": case(
        (5, 4), "", lambda n, x: torch.cat([n.fc(y := n.bn(x)), y], 1), bn=nn.BatchNorm1d(4), fc=nn.Linear(4, 4)
    ),
    "ahead into a layer that ran twice": case(
        (5, 4), "", lambda n, x: n.fc(n.bn(x)) + n.fc(x), bn=nn.BatchNorm1d(4), fc=nn.Linear(4, 4)
    ),
    "ahead into a weight that is read": case(
        (5, 4), "", lambda n, x: n.fc(n.bn(x)) + n.fc.weight.sum(), bn=nn.BatchNorm1d(4), fc=nn.Linear(4, 4)
    ),
    "channels mixed before the layer": case(
        (5, 4), "", lambda n, x: n.fc(n.bn(x).mean(1, keepdim=True)), bn=nn.BatchNorm1d(4), fc=nn.Linear(1, 4)
    ),
    "one feature in two channels": case(
        IMAGES, "", lambda n, x: n.bn(n.conv(x).flatten(1)), conv=CONV, bn=nn.BatchNorm1d(96)
    ),
    "repeated features": case(
        IMAGES, "", lambda n, x: n.bn(n.conv(x).repeat(1, 2, 1, 1)), conv=CONV, bn=nn.BatchNorm2d(12)
    ),
    "other values in the concatenation": case(
        IMAGES, "", lambda n, x: n.bn(torch.cat([n.conv(x), x], 1)), conv=PADDED, bn=nn.BatchNorm2d(10)
    ),
    "a part is read elsewhere": case(
        IMAGES, "", lambda n, x: n.bn((y := n.conv(x))[:, 1:4]) + y[:, :3].relu(), conv=CONV, bn=nn.BatchNorm2d(3)
    ),
    "a copy is read elsewhere": case(
        IMAGES, "", lambda n, x: n.bn((y := n.conv(x))[:, 1:4]) + y.clone()[:, :3], conv=CONV, bn=nn.BatchNorm2d(3)
    ),
    "concatenated twice": case(
        IMAGES,
        "",
        lambda n, x: torch.cat([n.bn(torch.cat([y := n.conv(x), y], 1)), y], 1),
        conv=CONV,
        bn=nn.BatchNorm2d(12),
    ),
    "greatest in a window": case(
        IMAGES, "", lambda n, x: n.bn(F.max_pool2d(n.conv(x), 2)), conv=CONV, bn=nn.BatchNorm2d(6)
    ),
    "written over": case(
        IMAGES,
        "",
        lambda n, x: n.bn(torch.cat([n.conv(x), x], 1, out=torch.empty(2, 10, 6, 6, dtype=x.dtype))),
        conv=PADDED,
        bn=nn.BatchNorm2d(10),
    ),
    "pair that is not always one": case(
        IMAGES, "", lambda n, x: n.bn(y := n.conv(x)) + n.bn(2 * n.conv(x) + y), conv=CONV, bn=nn.BatchNorm2d(6)
    ),
    "one output twice": case(
        IMAGES,
        "",
        lambda n, x: n.bn(y := n.conv(x)) + n.bn(y) + n.conv(2 * x).relu(),
        conv=CONV,
        bn=nn.BatchNorm2d(6),
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_would_change_the_network_stays(name):
    network = randomised(STAYS[name].build())
    x = torch.randn(STAYS[name].shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(UnfoldableNetwork) as caught:
        fold(network, x)
    assert [refusal.batch_norm for refusal in caught.value.refusals] == ["bn"]
    result = fold(network, x, keep_unfoldable="affine")
    assert (result.folded, len(result.affine)) == ((), 1)
    assert error(network, result.network, STAYS[name].shape) < 1e-6


# The checks bite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokens as rows", "concatenation", "ahead into several", "ahead over flatten"])
def test_a_wrong_formula_is_found_in_its_place(name, monkeypatch):
    real = fusion_step._picked

    def wrong(norm: nn.Module, channels: Tensor | None) -> tuple[Tensor, Tensor]:
        scale, shift = real(norm, channels)
        return scale * (1 + 1e-7), shift

    monkeypatch.setattr(fusion_step, "_picked", wrong)
    network = randomised(FOLDS[name].build())
    with pytest.raises(UnfoldableNetwork, match="folded, give something else in place") as caught:
        fold(network, torch.randn(FOLDS[name].shape, generator=torch.Generator().manual_seed(1)))
    assert [refusal.batch_norm for refusal in caught.value.refusals] == ["bn"]


class Typed(nn.Linear):
    """timm's: a Linear layer with a forward of its own, which computes the same."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)


class Positive(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.abs(), self.bias)


def test_layers_with_a_forward_of_their_own_are_compared_with_torchs():
    network = randomised(Net(lambda n, x: n.fc(n.bn(x)), bn=nn.BatchNorm1d(4), fc=Typed(4, 3)))
    result = fold(network, torch.randn(5, 4))
    assert [pair.batch_norm for pair in result.folded] == ["bn"]
    assert error(network, result.network, (5, 4)) < 1e-6
    network = randomised(Net(lambda n, x: n.fc(n.bn(x)), bn=nn.BatchNorm1d(4), fc=Positive(4, 3)))
    with pytest.raises(
        UnfoldableNetwork, match=r"'fc' computes something else than torch's Linear .* Positive is more"
    ):
        fold(network, torch.zeros(5, 4))


class Doubled(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_batch_norm_that_does_more_is_found_on_an_example_of_zeros():
    network = randomised(Net(lambda n, x: n.fc(n.bn(x)), bn=Doubled(4), fc=nn.Linear(4, 3)))
    network.bn.running_mean.zero_()
    network.bn.bias.data.zero_()
    with pytest.raises(UnfoldableNetwork, match=r"not the affine map .* Doubled does something else"):
        fold(network, torch.zeros(5, 4))
