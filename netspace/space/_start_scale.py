"""The start of the decoder's final scale and bias. Shapes: H x W the PRep."""

# ruff: noqa: N803 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import prepkit

NEGATIVE_SLOPE = 0.01  # slope of every LeakyReLU in NetSpace below 0


class InitialisationError(prepkit.PrepkitError, ValueError):
    """A start is unknown, or cannot be made from the PReps that were given."""


def _paper(scale_HW: Tensor, bias_HW: Tensor) -> None:
    nn.init.normal_(scale_HW, std=1e-3)
    nn.init.uniform_(bias_HW, 0.0, 1e-2)


def _small_zoos(scale_HW: Tensor, bias_HW: Tensor) -> None:
    nn.init.normal_(scale_HW, std=0.01)
    nn.init.normal_(bias_HW, std=0.1)


def _without_scale(scale_HW: Tensor, bias_HW: Tensor) -> None:
    nn.init.ones_(scale_HW).requires_grad_(False)
    nn.init.zeros_(bias_HW).requires_grad_(False)


# "paper": scale 1e-3 N(0, 1), bias 1e-2 U(0, 1). On small zoos that leaves a plateau of 300 to 800 steps, where
# "small_zoos" learns at once: scale 0.01 N(0, 1), bias 0.1 N(0, 1) (measured on scikit-learn's digits).
# "without_scale": 1 and 0 and never trained, as if there were no such layer; an ablation.
STARTS: dict[str, Callable[[Tensor, Tensor], None]] = {
    "paper": _paper,
    "small_zoos": _small_zoos,
    "without_scale": _without_scale,
}


@torch.no_grad()
def start_scale_and_bias(scale_HW: Tensor, bias_HW: Tensor, start: str) -> None:
    """Fill the decoder's per-element scale and bias `[H, W]` with one of STARTS, from torch's global generator.

    raises InitialisationError for an unknown start
    """
    if start not in STARTS:
        raise InitialisationError(f"unknown initialisation {start!r}; use one of {', '.join(map(repr, STARTS))}.")
    STARTS[start](scale_HW, bias_HW)
