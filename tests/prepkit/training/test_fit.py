"""Networks that do not fit the task of a spec are found before anything is trained."""

import pytest
import torch
from spec_samples import spec
from torch import nn

import prepkit
from prepkit.errors import ZooError
from prepkit.families.registry import architecture_from_callable
from prepkit.tasks import load_task
from prepkit.training import _fit


class BatchNorm1d(nn.Module):
    def __init__(self, outputs=10):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, outputs)

    def forward(self, inputs):
        return self.last(self.norm(self.first(inputs.flatten(1))))


class TwoInTraining(BatchNorm1d):
    def forward(self, inputs):
        outputs = super().forward(inputs)
        return (outputs, outputs) if self.training else outputs


class OtherInTraining(BatchNorm1d):
    def forward(self, inputs):
        outputs = super().forward(inputs)
        return outputs[:, :5] if self.training else outputs


class Fails(BatchNorm1d):
    def forward(self, inputs):
        raise KeyError("depth")


class GivesNone(BatchNorm1d):
    def forward(self, inputs):
        return None


LEFT_OVER = r"in training on a batch of one \(1,257 images in batches of 157 leave one over\), fails: ValueError: "


def check(monkeypatch, network, batch_size):
    """Check digits, which have 1,257 images to train with, for this network in place of those of the spec."""
    known = architecture_from_callable(f"{__name__}:{network.__name__}", (1, 8, 8), "mine")
    monkeypatch.setattr(_fit, "architecture", lambda name: known)
    asked = spec(("batch_size = 64", f"batch_size = {batch_size}"))
    _fit.check_fit(asked, load_task(asked.task))


@pytest.mark.parametrize(
    ("network", "batch_size", "message"),
    [
        (BatchNorm1d, 157, LEFT_OVER + r"Expected more than 1 value per channel .*\. Choose another batch_size\."),
        (BatchNorm1d, 1, r"in training on a batch of one, fails: .*\. Choose a larger batch_size\."),
        (TwoInTraining, 64, "in training on a batch of two, returns a tuple, not a tensor"),
        (OtherInTraining, 64, r"in training on a batch of two, gives outputs \[2, 5\], in evaluation on one \[1, 10\]"),
        (Fails, 64, "run on one input, fails: KeyError: 'depth'"),
        (GivesNone, 64, "run on one input, returns a NoneType, not a tensor"),
    ],
)
def test_a_network_that_cannot_be_trained_is_named(monkeypatch, network, batch_size, message):
    with pytest.raises(ZooError, match=f"^small, architectures: lenet_like@digits, {message}"):
        check(monkeypatch, network, batch_size)


@pytest.mark.parametrize("batch_size", [64, 3, 1257, 627])
def test_other_batches_are_fine(monkeypatch, batch_size):
    state = torch.get_rng_state()
    check(monkeypatch, BatchNorm1d, batch_size)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_start_for_convolutions_is_refused_where_there_is_none(monkeypatch):
    known = architecture_from_callable(f"{__name__}:BatchNorm1d", (1, 8, 8), "mine")
    monkeypatch.setattr(_fit, "architecture", lambda name: known)
    asked = spec(("batch_size = 64", 'batch_size = 64\ninitialisation = "kaiming_fan_out"'))
    with pytest.raises(
        ZooError, match=r"^small, architectures: lenet_like@digits: initialisation 'kaiming_fan_out' is"
    ):
        _fit.check_fit(asked, load_task(asked.task))


def test_a_batch_of_one_is_fine_for_convolutions(monkeypatch):
    monkeypatch.setattr(_fit, "architecture", lambda name: prepkit.architecture("resnet8@digits"))
    asked = spec(("batch_size = 64", "batch_size = 157"))
    _fit.check_fit(asked, load_task(asked.task))
