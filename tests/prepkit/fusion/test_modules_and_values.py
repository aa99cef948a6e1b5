"""Subclasses of layers and BatchNorms, structured inputs and outputs, and networks with other kinds of modules."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest
import torch
from fusion_samples import BatchNormAct, assert_folds, noise, randomised
from torch import Tensor, nn

import prepkit.fusion.fold as fusion
import prepkit.fusion.step as fusion_step
from prepkit.errors import FusionError
from prepkit.fusion.fold import Folded, fold


class ScaledConv(nn.Conv2d):
    """A subclass whose forward is still linear in its weight and bias."""

    def forward(self, input):
        return 2.0 * super().forward(0.5 * input) - self.bias.reshape(1, -1, 1, 1)


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
