"""Predict how accurate networks are from all their values as one vector, with an MLP.

Hidden units may stand in any order, which this learner has to learn, so that its error is large.

It prints its error on runs that it has not learned from, and that of a constant:
    python examples/digits_zoo.py digits-zoo
    python examples/learn_flat.py digits-zoo
"""

import torch
from learning import given_zoo, learn
from torch import nn

import prepkit

torch.manual_seed(0)
zoo = given_zoo(__doc__)
view = prepkit.views.flat(zoo)
(size,) = view.shapes["values"]
learner = nn.Sequential(nn.Linear(size, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 1), nn.Flatten(0))
learn(learner, zoo, view, epochs=20, rate=1e-3)
