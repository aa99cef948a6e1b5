"""What the tests of registry share."""

from itertools import count

import pytest

from prepkit.families.registry import (
    Architecture,
    architectures,
)

NAMES = architectures()


def small(name: str, width: int = 4) -> Architecture:
    """A cheap architecture with 5 * width + 1 parameters."""
    return Architecture(
        name,
        "sine_mlp",
        (3,),
        "prepkit.families.sine_mlp:SineMLP",
        {"sizes": [3, width, 1], "omega": 30.0},
        {},
    )


def message(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


COUNTER = count()
NETS = """
import torch
from torch import nn

def plain(width=2):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 3))

def normalised():
    return nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))

def draws():
    nn.Linear(2, 2)
    torch.tensor(3.0).item()
    return plain()

def raising():
    raise ValueError("no data\\nfor you.")

def leaving():
    raise SystemExit(3)

def needs(argument):
    return plain()

def lazy():
    return nn.Sequential(nn.LazyLinear(3))

number = 5
dictionary = dict
network = plain()

class Nets:
    @staticmethod
    def inner():
        return plain()
"""
