"""Predict how accurate networks are from what they answer on 16 images, whose labels are not told.

It prints its error on runs that it has not learned from, and that of a constant:
    python examples/digits_zoo.py digits-zoo
    python examples/learn_outputs.py digits-zoo
"""

import torch
from digits import digits
from learning import given_zoo, learn
from torch import nn

import prepkit

torch.manual_seed(0)
zoo = given_zoo(__doc__)
images = digits()[0][:16].flatten(1)
view = prepkit.views.outputs(zoo, images)  # logits [N, 16, 10]
body = nn.Sequential(nn.Softmax(2), nn.Flatten(), nn.Linear(160, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))
learn(body, zoo, view, epochs=20, rate=1e-3)
