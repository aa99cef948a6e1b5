"""Predict how accurate networks are from seven statistics of each tensor, by least squares.

It prints its error on runs that it has not learned from, and that of a constant:
    python examples/digits_zoo.py digits-zoo
    python examples/learn_statistics.py digits-zoo
"""

import torch
from learning import given_zoo, report

import prepkit

zoo = given_zoo(__doc__)
view = prepkit.views.statistics(zoo, spread="deviation")
train, test = (view(zoo.split(name).preps()).flatten(1) for name in ("train", "test"))  # [N, tensors * 7]
mean, deviation = train.mean(0), train.std(0)


def features(values: torch.Tensor) -> torch.Tensor:
    """Statistics with the mean 0 and deviation 1 in `train`, and a column of ones."""
    return torch.cat([(values - mean) / deviation, torch.ones(len(values), 1)], 1)


inputs, targets = features(train), torch.tensor(zoo.split("train").table["accuracy"].to_pylist())
ridge = torch.eye(inputs.shape[1])
weights = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets)
report("statistics", features(test) @ weights, zoo)
