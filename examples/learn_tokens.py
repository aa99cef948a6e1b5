"""Predict how accurate networks are from tokens, one for each output channel, with a small transformer.

It prints its error on runs that it has not learned from, and that of a constant:
    python examples/digits_zoo.py digits-zoo
    python examples/learn_tokens.py digits-zoo
"""

import torch
from learning import given_zoo, learn
from torch import nn

import prepkit

torch.manual_seed(0)
zoo = given_zoo(__doc__)
view = prepkit.views.tokens(zoo)


class Learner(nn.Module):
    """A transformer over tokens `[N, T, S]`, which knows the layer of each."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.layer = nn.Linear(view.mask.shape[1], width), nn.Embedding(len(view.names), width)
        self.body = nn.TransformerEncoderLayer(width, 4, 64, dropout=0, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return predictions `[N]`."""
        embedded = self.embed(tokens) + self.layer(view.position[:, 1])
        return self.head(self.body(embedded).mean(1)).squeeze(1)


learn(Learner(), zoo, view, epochs=10, rate=4e-3)
