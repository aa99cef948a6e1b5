"""`prepkit arch symmetries` as a table and as JSON."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import prepkit
from prepkit.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


class Still(nn.Module):
    """A network of which one group stays, and one unit is picked."""

    def __init__(self, width=4):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, width), nn.Linear(width, 5), nn.Linear(5, 1)

    def forward(self, x):
        y = torch.sin(3 * self.second(torch.relu(self.first(x)).cumsum(-1)))
        return self.last(y) + y[:, :1]


def run(*arguments):
    return CliRunner().invoke(main, ["arch", "symmetries", *arguments])


def test_a_table():
    shown = run("lenet_like@digits")
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[0] == "lenet_like@digits: 4 groups of hidden units may change places."
    assert lines[1].startswith("Under random changes, the outputs differ by ")
    rows = [line.split() for line in lines]
    assert ["P_1", "8", "-"] in rows
    assert "hidden.0.weight  20x72    P_2, P_1 x 9" in lines
    assert "scale  P_3    hidden.1.weight[0] * s, hidden.1.bias[0] * s, linear.weight[1] / s" in lines


def test_what_stays_is_named_with_its_reason():
    shown = run("test_arch_symmetries:Still", "--input", "2", "--arch-arg", "width=3")
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert "second.weight  5x3    1 + P_0, -" in lines
    assert "phase  P_0    second.bias + 1.047 k, last.weight[1] * (-1)^k" in lines
    assert "first.weight[0]       3  `cumsum` reads it, and it depends on the order of its units" in lines
    assert "second.weight[0]      1  it is taken by itself, apart from the units beside it" in lines


def test_as_json():
    shown = run("resnet8@digits", "--keep-bn", "--json")
    assert shown.exit_code == 0, shown.output
    document = json.loads(shown.output)
    assert document["name"] == "resnet8@digits"
    assert document["axes"]["bn.running_var"] == ["P_0"]
    found = prepkit.symmetries("resnet8@digits", keep_batch_norm=True)
    assert document == {"name": "resnet8@digits", **json.loads(json.dumps(found.to_dict()))}


def test_a_network_without_hidden_units():
    shown = run("torch.nn:Linear", "--input", "3", "--arch-arg", "in_features=3", "--arch-arg", "out_features=2")
    assert shown.output.splitlines()[0] == "torch.nn.Linear: no group of hidden units may change places."
