"""Networks that make much of rounding, casts that cost much, and networks that run in float32 only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fusion_samples import randomised
from torch import Tensor, nn

import prepkit.fusion.step as fusion_step
from prepkit.fusion.fold import UnfoldableNetwork, fold

IMAGES = (2, 4, 6, 6)


def deep(depth: int = 80, width: int = 32) -> nn.Module:
    """A network that makes much of the smallest difference: each block more than doubles it."""
    blocks = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.BatchNorm1d(width), nn.Tanh())]
    network = randomised(nn.Sequential(*blocks))
    for module in network:
        if isinstance(module, nn.BatchNorm1d):
            module.weight.data.fill_(2)
            module.bias.data.zero_()
            module.momentum = 1.0
    network(torch.randn(64, width, generator=torch.Generator().manual_seed(1)))  # gives it statistics
    return network.eval()


def test_a_network_that_reacts_strongly_is_judged_by_its_reaction():
    network = deep()
    result = fold(network, torch.randn(4, 32, generator=torch.Generator().manual_seed(2)))
    assert len(result.folded) == 80
    assert 1e-9 < result.error_before_cast < 1e-5


def test_a_wrong_fold_is_found_in_a_network_that_reacts_strongly(monkeypatch):
    real = fusion_step.folded_parameters

    def wrong(layer: Any, weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
        weight, bias = real(layer, weight, bias, norm)
        return weight * (1 + 1e-7), bias

    monkeypatch.setattr(fusion_step, "folded_parameters", wrong)
    with pytest.raises(UnfoldableNetwork, match="something else in its place"):
        fold(deep(), torch.randn(4, 32, generator=torch.Generator().manual_seed(2)))


def test_a_cast_that_costs_much_is_noted():
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    (note,) = fold(deep(), x).notes
    assert note.startswith("rounding the folded values to float32 changes the outputs by ")
    assert fold(deep(3), x).notes == ()


class OnlyFloat32(nn.Module):
    """A network that makes a tensor of its own in float32, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((6, 6), 0.5, dtype=torch.float32)
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)).matmul(mask))


def test_a_network_that_runs_in_float32_only():
    network = randomised(OnlyFloat32()).eval()
    x = torch.randn(IMAGES, generator=torch.Generator().manual_seed(1))
    result = fold(network, x)
    assert result.precision == "float32"
    assert [pair.batch_norm for pair in result.folded] == ["bn"]
    torch.testing.assert_close(result.network(x), network(x), rtol=1e-4, atol=1e-5)
    assert result.network.conv.weight.dtype == torch.float32


def test_a_wrong_fold_is_found_in_float32_too(monkeypatch):
    real = fusion_step.folded_parameters
    monkeypatch.setattr(fusion_step, "folded_parameters", lambda *a: (real(*a)[0] * 1.01, real(*a)[1]))
    with pytest.raises(UnfoldableNetwork, match="something else in its place"):
        fold(randomised(OnlyFloat32()), torch.randn(IMAGES))
