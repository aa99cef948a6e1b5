"""Networks of every kind for tests of views, and their layers, written by hand."""

from dataclasses import dataclass

import torch
from torch import nn

import prepkit


class Attention(nn.Module):
    """A transformer block on token ids, with an embedding, learned positions and a head without bias."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.bn_like_name = nn.Linear(8, 8)  # its name must not make a normalisation of it
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.after = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, ids):
        """Map ids `[B, 5]` to `[B, 3]`."""
        features = self.bn_like_name(self.embedding(ids) + self.positions)
        mixed, _ = self.attention(features, features, features)
        return self.head(self.after(features + mixed).mean(1))


class Transposed(nn.Module):
    """Grouped convolutions in both directions, a GroupNorm and a scalar parameter."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.norm = nn.GroupNorm(2, 6)
        self.up = nn.ConvTranspose2d(6, 4, (3, 2), groups=2)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, images):
        """Map `[B, 4, 5, 5]` to `[B, 4, 5, 4]`."""
        return self.up(self.norm(self.conv(images)).relu()) * self.scale


def biasless():
    return nn.Sequential(nn.Linear(4, 7, bias=False), nn.Tanh(), nn.Linear(7, 2, bias=False))


def turned(weight, groups):
    """The weight `[in, out / groups, ...]` of a transposed convolution as `[out, in / groups, ...]`."""
    parts = [part.transpose(0, 1) for part in weight.chunk(groups)]
    return torch.cat(parts)


@dataclass
class Sample:
    """A network, inputs for it, and the tensors of each layer, some with what brings their channels to the front.

    layers: None if all layers are a weight and a bias in the order of the state dict
    """

    build: object
    inputs: object
    layers: list | None


def _resnet():
    names, stages = ["conv", "bn"], [(0, ""), (1, "shortcut"), (2, "shortcut")]
    for stage, shortcut in stages:
        block = f"stages.{stage}.0"
        names += [f"{block}.{part}" for part in ("conv1", "bn1", "conv2", "bn2")]
        names += [f"{block}.shortcut.0", f"{block}.shortcut.1"] if shortcut else []
    layers = []
    for name in names:
        is_norm = "bn" in name or name.endswith("shortcut.1")
        tensors = ("weight", "bias", "running_mean", "running_var") if is_norm else ("weight",)
        layers.append([f"{name}.{tensor}" for tensor in tensors])
    return [*layers, ["linear.weight", "linear.bias"]]


SAMPLES = {
    "lenet": Sample(lambda: prepkit.architecture("lenet_like@digits").build(), lambda: torch.randn(3, 1, 8, 8), None),
    "resnet with BatchNorm": Sample(
        lambda: prepkit.architecture("resnet8@digits").build(), lambda: torch.randn(3, 1, 8, 8), _resnet()
    ),
    "siren": Sample(lambda: prepkit.architecture("sine_mlp@sdf_small").build(), lambda: torch.randn(5, 3), None),
    "without bias": Sample(biasless, lambda: torch.randn(3, 4), [["0.weight"], ["2.weight"]]),
    "attention": Sample(
        Attention,
        lambda: torch.randint(11, (2, 5)),
        [
            [("positions", lambda p: p[0])],
            [("embedding.weight", lambda w: w.T)],
            ["bn_like_name.weight", "bn_like_name.bias"],
            ["attention.in_proj_weight", "attention.in_proj_bias"],
            ["attention.out_proj.weight", "attention.out_proj.bias"],
            ["after.weight", "after.bias"],
            ["head.weight"],
        ],
    ),
    "transposed": Sample(
        Transposed,
        lambda: torch.randn(2, 4, 5, 5),
        [
            [("scale", lambda s: s.reshape(1))],
            ["conv.weight", "conv.bias"],
            ["norm.weight", "norm.bias"],
            [("up.weight", lambda w: turned(w, 2)), "up.bias"],
        ],
    ),
}


def networks(name, count=3):
    """`count` networks of a sample with random values everywhere, also in running statistics."""
    found = []
    with torch.random.fork_rng():
        for seed in range(count):
            torch.manual_seed(seed)
            network = SAMPLES[name].build().eval()
            for tensor in network.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand_like(tensor) + 0.1)
            found.append(network)
    return found


def packed(name, width=16, **settings):
    """Networks of a sample, and their PReps `[N, H, W]`."""
    made = networks(name, **settings)
    layout = prepkit.Layout.of(made[0])
    return made, torch.stack([layout.pack(network.state_dict(), layout.shape(width)) for network in made]).detach()


def rows_by_hand(name, state):
    """The values of each channel of each layer, taken from a state dict one by one: a list of lists of tensors."""
    layers = SAMPLES[name].layers
    if layers is None:
        tensors = [name for name in state if not name.endswith("num_batches_tracked")]
        layers = [tensors[number : number + 2] for number in range(0, len(tensors), 2)]
    found = []
    for layer in layers:
        pairs = [entry if isinstance(entry, tuple) else (entry, lambda tensor: tensor) for entry in layer]
        turned_ones = [turn(state[name]) for name, turn in pairs]
        channels = len(turned_ones[0])
        found.append([torch.cat([each[channel].reshape(-1) for each in turned_ones]) for channel in range(channels)])
    return found
