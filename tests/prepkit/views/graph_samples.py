"""Networks whose channels are summed, joined, gated, sliced and flattened, for tests of graphs."""

import torch
from torch import nn
from torch.nn import functional as F


class Dense(nn.Module):
    """Two layers read all that was made before them, side by side."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(5, 4, 1)
        self.norm, self.head = nn.BatchNorm2d(9), nn.Linear(9 * 4, 3)

    def forward(self, images):
        """Map `[B, 2, 4, 4]` to `[B, 3]`."""
        features = torch.cat([images, torch.tanh(self.first(images))], 1)
        features = torch.cat([features, torch.tanh(self.second(features))], 1)
        return self.head(F.avg_pool2d(self.norm(features), 2).flatten(1))


class Park(nn.Module):
    """The first channels of an earlier output are added in place, as the CNN Wild Park does."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)])
        self.fc = nn.Linear(3, 2)

    def forward(self, images):
        """Map `[B, 2, 4, 4]` to `[B, 2]`."""
        saved = F.leaky_relu(self.layers[0](images))
        features = self.layers[1](saved)
        features[:, :2] += saved[:, :2]
        return self.fc(F.leaky_relu(features).mean((2, 3)))


class InPlace(nn.Module):
    """A part of an output changes after another activation was made of the whole."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 1), nn.Linear(6, 2)

    def forward(self, images):
        """Map `[B, 2, 4, 4]` to `[B, 2]`."""
        features = self.conv(images)
        before = torch.tanh(features)
        part = features[:, 1:]
        part.add_(images)
        return self.fc(torch.cat([features, before], 1).mean((2, 3)))


class Gated(nn.Module):
    """A gate for each channel, a shortcut that is padded with zeros, and channels that are shuffled."""

    def __init__(self):
        super().__init__()
        self.conv, self.squeeze = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Linear(4, 4)
        self.last = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        """Map `[B, 2, 4, 4]` to `[B, 2]`."""
        features = self.conv(images)
        features = features * torch.sigmoid(self.squeeze(features.mean((2, 3))))[:, :, None, None]
        shortcut = F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        features = F.channel_shuffle(features + shortcut, 2)
        return self.head(F.adaptive_avg_pool2d(self.last(features), 1).view(len(images), -1))


class Tokens(nn.Module):
    """Layers over the last axis, with a LayerNorm and a residual sum."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)
        self.up, self.down, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3, bias=False)

    def forward(self, ids):
        """Map ids `[B, T]` to `[B, 3]`."""
        features = self.embedding(ids)
        features = features + self.down(F.gelu(self.up(self.norm(features))))
        return self.head(features.mean(1))


class Upwards(nn.Module):
    """Grouped convolutions in both directions."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3, groups=2), nn.GroupNorm(2, 6)
        self.up = nn.ConvTranspose2d(6, 4, (3, 2), groups=2)

    def forward(self, images):
        """Map `[B, 4, 5, 5]` to `[B, 4, 5, 4]`."""
        return self.up(F.leaky_relu(self.norm(self.conv(images))))


GRAPHS = {
    "dense": (Dense, lambda: torch.randn(3, 2, 4, 4)),
    "park": (Park, lambda: torch.randn(3, 2, 4, 4)),
    "in place": (InPlace, lambda: torch.randn(3, 2, 4, 4)),
    "gated": (Gated, lambda: torch.randn(3, 2, 4, 4)),
    "tokens": (Tokens, lambda: torch.randint(7, (3, 5))),
    "upwards": (Upwards, lambda: torch.randn(2, 4, 5, 5)),
}
