"""Networks, PReps and inputs, and what plain networks compute with them one after the other."""

from dataclasses import replace

import torch
from torch import nn

import prepkit
from prepkit.families.registry import architecture_from_callable

CPU = torch.device("cpu")

NAMES = ["lenet_like@digits", "resnet8@digits", "sine_mlp@sdf_small", "resnet8@cifar10"]


class Normed(nn.Module):
    """A third party's network that cannot be stacked."""

    def __init__(self, width=6):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, width), nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, inputs):
        return self.last(self.norm(torch.tanh(self.first(inputs))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.second(torch.tanh(self.first(inputs)))


class Attentive(nn.Module):
    """One of its layers returns a tuple."""

    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, inputs):
        return self.last(self.attention(inputs, inputs, inputs)[0].mean(1))


class Constant(nn.Module):
    """With buffers that its state dict does not hold, or that are no numbers to learn."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 2)
        self.register_buffer("mixing", torch.randn(5, 5, generator=torch.Generator().manual_seed(0)), persistent=False)
        self.register_buffer("order", torch.tensor([2, 0, 1, 4, 3]))

    def forward(self, inputs):
        return self.last(torch.tanh(self.first(inputs @ self.mixing))[:, self.order])


class Dropping(nn.Module):
    def __init__(self, rate=0.5):
        super().__init__()
        self.linear, self.rate = nn.Linear(5, 4), rate

    def forward(self, inputs):
        return nn.functional.dropout(self.linear(inputs), self.rate, self.training)


def foreign(network, input_shape, **arguments):
    return architecture_from_callable(f"{__name__}:{network.__name__}", input_shape, arguments=arguments)


FOREIGN = {
    "Normed": (Normed, (5,)),
    "Tied": (Tied, (5,)),
    "Attentive": (Attentive, (6, 4)),
    "Constant": (Constant, (5,)),
}


def known(name):
    return foreign(*FOREIGN[name]) if name in FOREIGN else prepkit.architecture(name)


def some_preps(architecture, count, width=64, taller=0, dtype=torch.float64):
    """PReps of networks with fresh weights, rows of rubbish below; `[K, H, W]`."""
    shape = architecture.layout.shape(width)
    shape = replace(shape, height=shape.height + taller)
    preps = []
    for seed in range(count):
        torch.manual_seed(seed)
        state = architecture.build_folded().to(dtype).state_dict()
        preps.append(architecture.layout.pack(state, shape))
    preps = torch.stack(preps)
    preps.flatten(1)[:, architecture.layout.total :] = 7.0
    return preps


def some_inputs(architecture, *batch, dtype=torch.float64):
    return torch.randn(*batch, *architecture.input_shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


def plain(architecture, prep):
    """The network that a PRep holds, its values sliced off one after another."""
    network = architecture.build_folded().to(prep.dtype)
    values, start, state = prep.flatten(), 0, {}
    for slot in architecture.layout:
        state[slot.name] = values[start : start + slot.size].view(slot.shape)
        start += slot.size
    state |= {alias: state[name] for alias, name in architecture.layout.ties}
    integers = {name: buffer for name, buffer in network.named_buffers() if not buffer.is_floating_point()}
    network.load_state_dict(state | integers)
    return network


def flat_gradients(architecture, network, cells):
    """The gradients of a network's parameters where its PRep holds them, 0 after the last."""
    own = dict(network.named_parameters())
    gradients = torch.cat([own[slot.name].grad.flatten() for slot in architecture.layout])
    return torch.cat([gradients, gradients.new_zeros(cells - len(gradients))])


def expected_results(architecture, preps, inputs, weights):
    """Outputs, gradients of PReps, and of inputs `[K, B, ...]`, by autograd of one network after another."""
    outputs, of_preps, of_inputs = [], [], []
    for prep, given, weight in zip(preps, inputs, weights, strict=True):
        network, own = plain(architecture, prep.detach()), given.clone().requires_grad_()
        output = network.eval()(own)
        (output * weight).sum().backward()
        outputs.append(output.detach())
        of_preps.append(flat_gradients(architecture, network, prep.numel()).view(prep.shape))
        of_inputs.append(own.grad)
    return torch.stack(outputs), torch.stack(of_preps), torch.stack(of_inputs)


def close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def check(architecture, shared, count=3, batch=4, dense=False, **sizes):
    preps = some_preps(architecture, count, **sizes).requires_grad_()
    inputs = some_inputs(architecture, *([batch] if shared else [count, batch])).requires_grad_()
    outputs = prepkit.run_instances(architecture, preps, inputs, dense=dense)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    (outputs * weights).sum().backward()
    each = inputs.detach().expand(count, *inputs.shape) if shared else inputs.detach()
    expected, of_preps, of_inputs = expected_results(architecture, preps, each, weights)
    close(outputs.detach(), expected)
    close(preps.grad, of_preps)
    close(inputs.grad, of_inputs.sum(0) if shared else of_inputs)
    assert preps.grad.flatten(1)[:, architecture.layout.total :].count_nonzero() == 0
    assert preps.grad.flatten(1)[:, : architecture.layout.total].count_nonzero() > 0
