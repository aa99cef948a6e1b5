"""A fold that is wrong by a little is found by each of the checks, one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fusion_samples import Block, huge_in_half, net, never_returns, noise, plain, randomised
from torch import Tensor, nn

import prepkit.fusion._plan as fusion_plan
import prepkit.fusion._proof as fusion_proof
import prepkit.fusion.example as fusion_example
import prepkit.fusion.fold as fusion
import prepkit.fusion.step as fusion_step
from prepkit.errors import FusionError
from prepkit.fusion.fold import UnfoldableNetwork, fuse_batch_norm


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
