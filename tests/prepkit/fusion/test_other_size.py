"""Networks that take another path on inputs of another size than the one on which their folds are proved.

What a network computes is written out by hand here, in float64: convolution, formula of the BatchNorm, branch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prepkit.fusion.fold import Fusion, UnfoldableNetwork, fold


class Net(nn.Module):
    """Two convolutions, each with a BatchNorm, and a forward that is a function of the network."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = forward
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def randomised(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return network


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))


def by_hand(network: Any, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
    """The network's outputs: `branch` is what it does between its first convolution and its first BatchNorm."""

    def normalised(values: Tensor, norm: Any) -> Tensor:
        mean, var, gamma, beta = (
            tensor.double()[:, None, None] for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return (values - mean) / (var + norm.eps).sqrt() * gamma + beta

    y = F.conv2d(x.double(), network.conv.weight.double(), network.conv.bias.double(), padding=1)
    y = normalised(branch(y), network.bn).relu()
    return normalised(F.conv2d(y, network.conv2.weight.double(), padding=1), network.bn2)


def assert_equals_by_hand(result: Fusion, network: Any, branch: Callable[[Tensor], Tensor]) -> None:
    """Compare at the size of the example and at twice this size, where alone the branch is taken."""
    for size, between in ((8, lambda y: y), (16, branch)):
        with torch.no_grad():
            expected = by_hand(network, images(size), between)
            found = result.network.double()(images(size).double())
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6


def rectified_if_large(n: Any, x: Tensor) -> Tensor:
    y = n.conv(x)
    if x.shape[-1] > 8:
        y = y.relu()
    return n.bn2(n.conv2(n.bn(y).relu()))


def added_if_large(n: Any, x: Tensor) -> Tensor:
    y = n.conv(x)
    z = n.bn(y + y.square() if x.shape[-1] > 8 else y)
    return n.bn2(n.conv2(z.relu()))


BRANCHES = {
    "rectified": (rectified_if_large, torch.relu),
    "read elsewhere": (added_if_large, lambda y: y + y.square()),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_on_the_size_is_refused_or_becomes_a_map(name):
    forward, branch = BRANCHES[name]
    network = randomised(Net(forward)).eval()
    with pytest.raises(UnfoldableNetwork) as caught:
        fold(network, images(8))
    (refusal,) = caught.value.refusals
    assert refusal.batch_norm == "bn"
    assert refusal.reason.startswith("on an input of another size, 2x3x16x16, the network takes another path: 'conv'")
    result = fold(network, images(8), keep_unfoldable="affine")
    assert [pair.batch_norm for pair in result.folded] == ["bn2"]
    assert [item.batch_norm for item in result.affine] == ["bn"]
    assert_equals_by_hand(result, network, branch)


def test_a_batch_norm_that_is_left_out_at_another_size_stays():
    """Its place is never reached there, so that only the outputs tell."""

    def forward(n: Any, x: Tensor) -> Tensor:
        y = n.conv(x)
        return n.bn2(n.conv2((y if x.shape[-1] > 8 else n.bn(y)).relu()))

    network = randomised(Net(forward)).eval()
    with pytest.raises(UnfoldableNetwork, match="takes another path: the network runs other modules there") as caught:
        fold(network, images(8))
    assert [refusal.batch_norm for refusal in caught.value.refusals] == ["bn"]
    result = fold(network, images(8), keep_unfoldable=True)
    with torch.no_grad():
        for size in (8, 16):
            torch.testing.assert_close(result.network(images(size)), network(images(size)), rtol=1e-4, atol=1e-5)


def test_a_large_input_is_compared_with_a_smaller_one():
    def forward(n: Any, x: Tensor) -> Tensor:
        y = n.conv(x)
        return n.bn2(n.conv2(n.bn(y.relu() if x.shape[-1] < 32 else y)))

    with pytest.raises(UnfoldableNetwork, match="another size, 2x3x24x24, the network takes another path"):
        fold(randomised(Net(forward)), images(48))


def test_a_network_of_one_size_folds():
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5), nn.BatchNorm1d(5))
    assert len(fold(randomised(nn.Sequential(*layers)), images(8)).folded) == 2


def test_what_cannot_be_compared_at_another_size_is_no_fault():
    """Random numbers or infinite outputs there say nothing about a fold."""

    def drawn(n: Any, x: Tensor) -> Tensor:
        y = n.bn2(n.conv2(n.bn(n.conv(x))))
        return F.dropout(y) if x.shape[-1] > 8 else y

    def infinite(n: Any, x: Tensor) -> Tensor:
        return n.bn2(n.conv2(n.bn(n.conv(x)))) / float(x.shape[-1] == 8)

    for forward in (drawn, lambda n, x: infinite(n, x) if x.shape[-1] == 8 else n.conv(x) * torch.inf):
        assert len(fold(randomised(Net(forward)), images(8)).folded) == 2


class Words(nn.Module):
    """Token ids; longer texts take another path."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv, self.bn = nn.Embedding(5, 4), nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)

    def forward(self, ids: Tensor) -> Tensor:
        y = self.conv(self.embed(ids).mT)
        return self.bn(y.tanh() if ids.shape[1] > 6 else y)


def test_token_ids_of_another_length_are_ids_of_the_example():
    ids = torch.tensor([[0, 1, 2, 3, 4, 0], [4, 4, 1, 0, 2, 3]])
    with pytest.raises(UnfoldableNetwork, match="2x12, the network takes another path"):
        fold(randomised(Words()), ids)
