"""A network that magnifies what rounding does to its values."""

import torch
from torch import nn

WIDTH = 32


def deep(depth=80, seed=0):
    """A network `[B, 32]` -> `[B, 32]` in which each block more than doubles the smallest difference.

    seed: None goes on in the random numbers that were begun
    """
    if seed is not None:
        torch.manual_seed(seed)
    blocks = [m for _ in range(depth) for m in (nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh())]
    network = nn.Sequential(*blocks)
    for module in network:
        if isinstance(module, nn.BatchNorm1d):
            nn.init.constant_(module.weight, 2)
            module.momentum = 1.0
    network(torch.randn(64, WIDTH))  # gives it statistics
    return network.eval()
