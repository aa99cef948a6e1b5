"""SmallTransformer: the networks of the Small Transformer Zoo, for pictures, or without their embedding for texts.

Shapes: B inputs, S patches or tokens, E numbers each, H heads, C channels, h x w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm


class SmallTransformer(nn.Module):
    """Patches or tokens, blocks of attention and two layers, the mean over the sequence, and two layers.

    width:     E
    hidden:    numbers between the two layers of each block
    outputs:   number of outputs
    heads:     number of attention heads, a divisor of E
    sums:      whether the input of attention, and of a block's two layers, is added to their output
    patches:   channels, and height and width of a patch; None for a network that takes embedded tokens `[B, S, E]`
    positions: shape of the stored numbers that are added to patches; None for sines and cosines
    """

    def __init__(
        self,
        width: int,
        depth: int,
        hidden: int,
        outputs: int,
        heads: int,
        sums: bool = False,
        patches: tuple[int, int] | None = None,
        positions: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.embedding = None if patches is None else Patches(width, patches[0], patches[1], positions)
        self.encoder = nn.ModuleList(Block(width, hidden, heads, sums) for _ in range(depth))
        self.classifier = Two(width, width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images `[B, C, h, w]` or embedded tokens `[B, S, E]` to logits `[B, outputs]`."""
        features = inputs if self.embedding is None else self.embedding(inputs)
        for block in self.encoder:
            features = block(features)
        logits: Tensor = self.classifier(normalised(features).mean(1))
        return logits


class Patches(nn.Module):
    """A linear map of each patch, to which its place is added."""

    def __init__(self, width: int, channels: int, size: int, positions: Sequence[int] | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, size, stride=size)
        self.pos_embedding = None if positions is None else nn.Parameter(torch.zeros(*positions))

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, h, w]` to `[B, S, E]`."""
        features: Tensor = self.conv1(images).flatten(2).transpose(1, 2)
        if self.pos_embedding is None:
            return features + sines_and_cosines(features.shape[1], features.shape[2]).to(features)
        return features + self.pos_embedding


class Attention(nn.Module):
    """Attention of each of a sequence to all, without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Linear(width, width, bias=False)
        self.keys = nn.Linear(width, width, bias=False)
        self.values = nn.Linear(width, width, bias=False)
        self.out_projection = nn.Linear(width, width, bias=False)

    def forward(self, features_BSE: Tensor) -> Tensor:  # noqa: N803 - its name ends in its axes
        """Map `[B, S, E]` to the same shape."""
        queries, keys, values = (
            layer(features_BSE).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.queries, self.keys, self.values)
        )  # each [B, H, S, E / H]
        weights = torch.softmax(queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1]), -1)
        mixed: Tensor = self.out_projection((weights @ values).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Attention and two layers, each of normalised inputs."""

    def __init__(self, width: int, hidden: int, heads: int, sums: bool) -> None:
        super().__init__()
        self.sums = sums
        self.attention = Attention(width, heads)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, S, E]` to the same shape."""
        attended = self.attention(normalised(features))
        features = features + attended if self.sums else attended
        mapped: Tensor = self.fc2(torch.relu(self.fc1(normalised(features))))
        return features + mapped if self.sums else mapped


class Two(nn.Module):
    """Two linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, inputs]` to `[B, outputs]`."""
        outputs: Tensor = self.fc2(torch.relu(self.fc1(features)))
        return outputs


def normalised(features: Tensor) -> Tensor:
    """Return `[B, S, E]` with mean 0 and variance 1 over E: a LayerNorm without weights."""
    return layer_norm(features, features.shape[-1:])


def sines_and_cosines(length: int, width: int) -> Tensor:
    """Return the places `[length, width]` of Vaswani et al.: sines in even columns, cosines in odd ones."""
    places = torch.arange(length)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    return torch.stack((places.sin(), places.cos()), -1).flatten(1)[:, :width]
