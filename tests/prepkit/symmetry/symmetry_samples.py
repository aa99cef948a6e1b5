"""Networks for the tests of symmetries, each with something that a hand-written rule forgets."""

import torch
from torch import nn
from torch.nn import functional


class Fn(nn.Module):
    """A network whose forward is a function of itself and the input."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._forward = forward

    def forward(self, *inputs):
        return self._forward(self, *inputs)


def dense_net():
    """Each layer reads what all before it made."""

    def forward(self, x):
        features = [torch.relu(self.first(x))]
        for layer in self.layers:
            features.append(torch.relu(layer(torch.cat(features, 1))))
        return self.last(torch.cat(features, 1).mean((2, 3)))

    layers = nn.ModuleList([nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(7, 5, 3, padding=1)])
    return Fn(forward, first=nn.Conv2d(2, 4, 3, padding=1), layers=layers, last=nn.Linear(12, 3)), torch.randn(
        2, 2, 5, 5
    )


def depthwise():
    """MobileNet's block: wide, one kernel a channel, narrow, and a sum."""

    def forward(self, x):
        x = self.stem(x)
        x = x + self.narrow(functional.relu6(self.each(functional.relu6(self.wide(x)))))
        return self.last(x.mean((2, 3)))

    return (
        Fn(
            forward,
            stem=nn.Conv2d(3, 4, 3),
            wide=nn.Conv2d(4, 6, 1),
            each=nn.Conv2d(6, 6, 3, padding=1, groups=6),
            narrow=nn.Sequential(nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)),
            last=nn.Linear(4, 3),
        ),
        torch.randn(2, 3, 6, 6),
    )


def grouped():
    """Two grouped convolutions, the second of which takes the first one's groups apart otherwise."""
    layers = [nn.Conv2d(2, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 6, 1, groups=2)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(54, 3)), torch.randn(2, 2, 5, 5)


def attention():
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 10, batch_first=True, dropout=0.3), 2, enable_nested_tensor=False
    )


def transformer():
    """Tokens of pictures, a token of its own, learnt positions, nn.MultiheadAttention."""

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.encoder(x)[:, 0]))

    network = Fn(
        forward, patches=nn.Conv2d(1, 8, 2, stride=2), encoder=attention(), norm=nn.LayerNorm(8), head=nn.Linear(8, 3)
    )
    network.token = nn.Parameter(torch.randn(1, 1, 8))
    network.places = nn.Parameter(torch.randn(1, 5, 8))
    return network, torch.randn(2, 1, 4, 4)


class HandMade(nn.Module):
    """Attention as timm writes it, with one matrix for queries, keys and values."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        count, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(count, tokens, width))


def hand_made_attention():
    def forward(self, tokens):
        x = self.table(tokens)
        x = x + self.attention(self.norm(x))
        return self.last(x) @ self.table.weight.T  # tied

    return (
        Fn(
            forward,
            table=nn.Embedding(7, 8),
            norm=nn.LayerNorm(8),
            attention=HandMade(),
            last=nn.Linear(8, 8),
        ),
        torch.randint(7, (2, 5)),
    )


def tied():
    """An autoencoder whose decoder is its encoder's matrix, and one layer used twice."""

    def forward(self, x):
        hidden = torch.tanh(self.again(torch.tanh(self.again(torch.tanh(self.encoder(x))))))
        return functional.linear(hidden, self.encoder.weight.T)

    return Fn(forward, encoder=nn.Linear(6, 5), again=nn.Linear(5, 5)), torch.randn(3, 6)


def still():
    """A sum along the units, a constant beside them, and one unit that is picked."""

    def forward(self, x):
        a = torch.relu(self.first(x)).cumsum(-1)
        b = torch.relu(self.second(a)) * torch.arange(4.0, dtype=x.dtype)
        c = torch.relu(self.third(b))
        return self.last(c) + c[:, 2:3]

    layers = {"first": nn.Linear(3, 5), "second": nn.Linear(5, 4), "third": nn.Linear(4, 6), "last": nn.Linear(6, 2)}
    return Fn(forward, **layers), torch.randn(3, 3)


def blocks():
    """Maps are flattened before a linear layer, and made of one behind it."""

    def forward(self, x):
        x = functional.leaky_relu(self.first(x)).flatten(1)
        x = functional.leaky_relu(self.second(x)).view(-1, 3, 2, 2)
        return self.third(x)

    return (
        Fn(forward, first=nn.Conv2d(1, 4, 3), second=nn.Linear(36, 12), third=nn.ConvTranspose2d(3, 2, 2)),
        torch.randn(2, 1, 5, 5),
    )


def group_normed():
    layers = [
        nn.Conv2d(2, 12, 3),
        nn.GroupNorm(3, 12),
        nn.ReLU(),
        nn.Conv2d(12, 4, 1),
        nn.InstanceNorm2d(4, affine=True),
    ]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)), torch.randn(2, 2, 5, 5)


def unet():
    """Down, up by transposed convolution, a skip by concatenation."""

    def forward(self, x):
        fine = torch.relu(self.down(x))
        coarse = torch.relu(self.middle(functional.max_pool2d(fine, 2)))
        return self.last(torch.relu(self.after(torch.cat([fine, torch.relu(self.up(coarse))], 1))))

    return (
        Fn(
            forward,
            down=nn.Conv2d(1, 4, 3, padding=1),
            middle=nn.Conv2d(4, 6, 3, padding=1),
            up=nn.ConvTranspose2d(6, 5, 2, stride=2),
            after=nn.Conv2d(9, 7, 3, padding=1),
            last=nn.Conv2d(7, 2, 1),
        ),
        torch.randn(2, 1, 6, 6),
    )


def recurrent():
    """Two LSTM layers and a GRU, whose gates stand one after another along an axis."""

    def forward(self, x):
        return self.last(self.gru(self.lstm(x)[0])[0][:, -1])

    return (
        Fn(
            forward,
            lstm=nn.LSTM(3, 4, 2, batch_first=True),
            gru=nn.GRU(4, 5, batch_first=True),
            last=nn.Linear(5, 2),
        ),
        torch.randn(2, 3, 3),
    )


def one_dimensional():
    layers = [nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.Tanh(), nn.AvgPool1d(2), nn.Conv1d(5, 4, 2), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool1d(2), nn.Flatten(), nn.Linear(8, 3)), torch.randn(2, 2, 9)


def mixer():
    """MLP-Mixer: one MLP along tokens and one along channels."""

    def forward(self, x):
        x = self.stem(x)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))

    def mlp(width, hidden):
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    return (
        Fn(
            forward,
            stem=nn.Linear(3, 6),
            norm1=nn.LayerNorm(6),
            norm2=nn.LayerNorm(6),
            tokens=mlp(4, 5),
            channels=mlp(6, 9),
            head=nn.Linear(6, 2),
        ),
        torch.randn(2, 4, 3),
    )


def shuffled():
    """ShuffleNet: grouped convolutions with a channel shuffle between them, a channel split, pixel shuffle."""

    def forward(self, x):
        x = torch.relu(self.second(self.shuffle(torch.relu(self.first(x)))))
        left, right = x.chunk(2, 1)
        x = torch.cat([left, torch.relu(self.third(right))], 1)
        return functional.pixel_shuffle(self.last(x), 2)

    return (
        Fn(
            forward,
            first=nn.Conv2d(4, 8, 1, groups=2),
            shuffle=nn.ChannelShuffle(2),
            second=nn.Conv2d(8, 8, 3, groups=2),
            third=nn.Conv2d(4, 4, 1),
            last=nn.Conv2d(8, 8, 1),
        ),
        torch.randn(2, 4, 4, 4),
    )


def interleaved():
    """ShuffleNet's second version: two branches are interleaved, and one half of the channels goes on."""

    def forward(self, x):
        x = self.shuffle(torch.cat([torch.relu(self.first(x)), torch.relu(self.second(x))], 1))
        left, right = x.chunk(2, 1)
        return self.last(torch.cat([left, torch.relu(self.third(right))], 1))

    return (
        Fn(
            forward,
            first=nn.Conv2d(2, 4, 1),
            second=nn.Conv2d(2, 4, 3, padding=1),
            shuffle=nn.ChannelShuffle(2),
            third=nn.Conv2d(4, 3, 1),
            last=nn.Conv2d(7, 2, 1),
        ),
        torch.randn(2, 2, 4, 4),
    )


def sines():
    """Sine units with frequencies of their own, and a residual sum that allows no phase."""

    def forward(self, x):
        x = torch.sin(30 * self.first(x))
        x = torch.sin(self.second(x) * 2.5)
        inner = self.third(x)
        return self.last(torch.sin(inner) + 0.1 * inner)

    return (
        Fn(forward, first=nn.Linear(2, 5), second=nn.Linear(5, 6), third=nn.Linear(6, 4), last=nn.Linear(4, 1)),
        torch.rand(5, 2) * 2 - 1,
    )


def padded_shortcut():
    """The residual sum of ResNet's option A: channels that come new are padded with zeros."""

    def forward(self, x):
        x = torch.relu(self.stem(x))
        short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = torch.relu(self.second(torch.relu(self.first(x))) + short)
        return self.last(x.mean((2, 3)))

    return (
        Fn(
            forward,
            stem=nn.Conv2d(1, 4, 3, padding=1),
            first=nn.Conv2d(4, 6, 3, 2, 1),
            second=nn.Conv2d(6, 8, 3, padding=1),
            last=nn.Linear(8, 3),
        ),
        torch.randn(2, 1, 6, 6),
    )


NETWORKS = {
    made.__name__: made
    for made in (
        dense_net, depthwise, grouped, transformer, hand_made_attention, tied, still, blocks, group_normed, unet,
        recurrent, one_dimensional, mixer, shuffled, interleaved, sines, padded_shortcut,
    )
}  # fmt: skip
