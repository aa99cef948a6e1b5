"""Predict how accurate networks are from weights and biases, whatever the order of their hidden units.

It prints its error on runs that it has not learned from, and that of a constant:
    python examples/digits_zoo.py digits-zoo
    python examples/learn_layers.py digits-zoo
"""

import torch
from learning import given_zoo, learn
from torch import nn

import prepkit

torch.manual_seed(0)
zoo = given_zoo(__doc__)


class Learner(nn.Module):
    """Each hidden unit, with its weights in and out and its bias, goes through one MLP; the mean of all decides."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Linear(64 + 1 + 10, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 1)

    def forward(self, layers: prepkit.views.WeightsAndBiases) -> torch.Tensor:
        """Return predictions `[N]`."""
        (first, second), (bias, _) = layers.weights, layers.biases  # [N, 16, 64], [N, 10, 16], [N, 16]
        units = torch.cat([first, bias[..., None], second.mT], 2)
        return self.head(self.unit(units).mean(1)).squeeze(1)


learn(Learner(), zoo, prepkit.views.layers(zoo), epochs=20, rate=3e-3)
