"""A stacked network equals its instances, which are run here one by one as plain networks with their own weights."""

import copy

import pytest
import torch
from torch import nn

import prepkit
from prepkit.running._stacking import StackedConvolution, StackedNetwork, Unstackable, stack_network

SMALL = [
    *prepkit.built_in_registry("digits").class_ids,
    "resnet20@digits",
    "sine_mlp@sdf_small",
    "sine_mlp@sdf",
    "lenet_like@cifar10",
    "vanilla_cnn@cifar10",
    "lenet_like@tiny_imagenet",
    "vanilla_cnn@tiny_imagenet",
]
MEDIUM = ["resnet8@cifar10", "resnet8@tiny_imagenet", "resnet32@cifar10"]
LARGE = ["resnet56@cifar10", "resnet32@tiny_imagenet", "resnet56@tiny_imagenet"]
LIMIT = 1e-9


pytestmark = pytest.mark.usefixtures("one_thread")


def values(network, count, seed=0):
    """Random tensors `[K, *shape]` for all of a network's state dict."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in network.state_dict().items():
        noise = torch.randn(count, *tensor.shape, generator=generator, dtype=torch.float64)
        if not tensor.is_floating_point():
            found[name] = torch.zeros(count, dtype=tensor.dtype)
        elif tensor.dim() > 1:
            found[name] = noise / tensor[0].numel() ** 0.5
        else:
            found[name] = 0.5 + noise.abs() if name.endswith(("running_var", "weight")) else noise
    return found


def is_statistic(name):
    return name.endswith(("running_mean", "running_var"))


def alone(network, tensors, inputs, training):
    """Outputs, gradients of parameters and inputs, and statistics, of one plain network after another."""
    rows = []
    for index in range(len(inputs)):
        single = copy.deepcopy(network).double().train(training)
        single.load_state_dict({name: tensor[index] for name, tensor in tensors.items()})
        given = inputs[index].clone().requires_grad_()
        output = single(given)
        score(output).backward()
        row = {"output": output.detach(), "inputs": given.grad}
        row |= {name: gradient(parameter) for name, parameter in single.named_parameters()}
        rows.append(row | {name: buffer for name, buffer in single.named_buffers() if is_statistic(name)})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def at_once(stacked, tensors, inputs, training, shared=False, channels_last=False):
    """The same of the stacked network; the inputs' gradients `[B, ...]` where they are shared."""
    own = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in own.items():
        tensor.requires_grad_(tensor.is_floating_point() and not is_statistic(name))
    given = (inputs[0] if shared else inputs).clone().requires_grad_()
    output = stacked.double().train(training).call(own, given, shared, channels_last)
    sum(score(row) for row in output).backward()
    found = {"output": output.detach(), "inputs": given.grad}
    return found | {name: gradient(t) if t.requires_grad else t for name, t in own.items() if t.is_floating_point()}


def gradient(parameter):
    """0 where the forward does not use a parameter."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def score(output):
    """A number to which every output contributes differently."""
    return (output * torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape)).sum()


def check(network, stacked, input_shape, training, shared, count=3, batch=4, channels_last=False):
    tensors = values(network, count)
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randn(1 if shared else count, batch, *input_shape, generator=generator, dtype=torch.float64)
    expected = alone(network, tensors, inputs.expand(count, *inputs.shape[1:]), training)
    found = at_once(stacked, tensors, inputs, training, shared, channels_last)
    if shared:
        expected["inputs"] = expected["inputs"].sum(0)
    assert found.keys() == expected.keys()
    gradients = max(g.abs().max() for name, g in expected.items() if name != "output" and not is_statistic(name))
    for name, value in expected.items():
        largest = value.abs().max() if name == "output" or is_statistic(name) else gradients
        assert found[name].shape == value.shape, name
        assert (found[name] - value).abs().max() <= LIMIT * largest, name


def check_all(network, input_shape, **sizes):
    stacked = stack_network(network, input_shape)
    for training in (True, False):
        for shared in (True, False):
            check(network, stacked, input_shape, training, shared, **sizes)


# Built-in architectures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_a_built_in_network_equals_its_instances(name, folded):
    known = prepkit.architecture(name)
    network = known.build_folded() if folded else known.build()
    check_all(network, known.input_shape, channels_last=folded)


@pytest.mark.parametrize("name", ["lenet_like@digits", "resnet8@digits", "vanilla_cnn@cifar10"])
def test_dense_convolutions_equal_the_instances(name, monkeypatch):
    """A GPU runs a few instances by convolutions without groups, whose weights are 0 between instances."""
    asked = []
    monkeypatch.setattr(StackedConvolution, "is_dense", lambda self, features: asked.append(self) or self.groups == 1)
    known = prepkit.architecture(name)
    check_all(known.build(), known.input_shape)
    assert asked


@pytest.mark.parametrize("name", ["lenet_like@digits", "resnet8@digits"])
def test_padded_channels_change_nothing(name):
    """Three instances' 3, 9 or 12 channels get zeros beside them, which no output and no gradient shows."""
    known = prepkit.architecture(name)
    network = known.build()
    padded = stack_network(network, known.input_shape, dense=True, padded=True)
    seen, convolve = set(), torch.nn.functional.conv2d
    for layer in padded.modules():
        if isinstance(layer, StackedConvolution):
            layer.convolve = lambda features, weight, *o, **k: (
                seen.add(weight.shape[1]) or convolve(features, weight, *o, **k)
            )
    for training, shared in ((True, False), (False, True)):
        check(network, padded, known.input_shape, training, shared, channels_last=True)
    assert not {count for count in seen if count % 8}
    plain = stack_network(network, known.input_shape, dense=True)
    tensors, inputs = values(network, 3), torch.randn(3, 4, *known.input_shape, dtype=torch.float64)
    expected = at_once(plain, tensors, inputs, training=True)
    for name, found in at_once(padded, tensors, inputs, training=True).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", MEDIUM)
def test_a_larger_one_in_training(name):
    known = prepkit.architecture(name)
    network = known.build()
    stacked = StackedNetwork(network, instances_first=False)  # the proof is repeated here, not twice
    check(network, stacked, known.input_shape, training=True, shared=False, count=2, batch=2, channels_last=True)
    check(network, stacked, known.input_shape, training=False, shared=True, count=2, batch=2)


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_ones_in_shape(name):
    known = prepkit.architecture(name)
    network = known.build()
    with torch.device("meta"):
        stacked = StackedNetwork(network, instances_first=False).to("meta")
        tensors = {name: torch.empty(5, *tensor.shape) for name, tensor in network.state_dict().items()}
        outputs = stacked.call(tensors, torch.empty(5, 2, *known.input_shape), shared=False)
    assert {name.removeprefix("network."): tuple(t.shape) for name, t in stacked.state_dict().items()} == {
        name: (1, *tensor.shape) for name, tensor in network.state_dict().items()
    }
    assert outputs.shape == (5, 2, *network(known.example_input()).shape[1:])


def test_every_built_in_architecture_is_tested():
    assert {*SMALL, *MEDIUM, *LARGE} == {name for name in prepkit.architectures() if "@" in name}


# Networks of all kinds ----------------------------------------------------------------------------------------


class Network(nn.Module):
    """Layers by name, and a forward that is given as a function."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, inputs):
        return self.run(self, inputs)


def head(channels, outputs=3):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


IMAGES = (4, 6, 6)
STACKABLE = {
    "a layer used twice": (
        lambda: Network(
            lambda n, x: n.head(n.conv(torch.tanh(n.conv(x)))), conv=nn.Conv2d(4, 4, 3, padding=1), head=head(4)
        ),
        IMAGES,
    ),
    "a linear layer used twice": (
        lambda: Network(lambda n, x: n.linear(torch.tanh(n.linear(x))), linear=nn.Linear(5, 5)),
        (5,),
    ),
    "groups": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8), head(8)), IMAGES),
    "depthwise first": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.ReLU(), head(4)), IMAGES),
    "dilation, stride, same": (
        lambda: nn.Sequential(nn.Conv2d(4, 5, 3, padding="same", dilation=2), nn.Conv2d(5, 6, 2, 2, 1), head(6)),
        IMAGES,
    ),
    "Conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.GELU(), nn.Flatten(), nn.Linear(20, 3)),
        (2, 7),
    ),
    "Conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), nn.Sigmoid(), nn.Flatten(), nn.Linear(24, 3)),
        (2, 3, 3, 3),
    ),
    "an MLP with BatchNorm": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, momentum=0.3), nn.ReLU(), nn.Linear(6, 2)),
        (5,),
    ),
    "an MLP with a softmax": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Softmax(-1), nn.Linear(6, 2)), (5,)),
    "BatchNorm first": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), head(5)), IMAGES),
    "BatchNorm first in an MLP": (lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 2, bias=False)), (5,)),
    "BatchNorm without weights": (
        lambda: nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, affine=False, eps=0.1), head(5)),
        IMAGES,
    ),
    "BatchNorm without statistics": (
        lambda: nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, track_running_stats=False), head(5)),
        IMAGES,
    ),
    "maps as outputs": (lambda: nn.Conv2d(4, 3, 3), IMAGES),
}


@pytest.mark.parametrize("kind", STACKABLE)
def test_a_network_of_another_kind(kind):
    build, input_shape = STACKABLE[kind]
    torch.manual_seed(0)
    check_all(build(), input_shape, batch=5)


def test_a_single_instance_can_be_stacked_too():
    network = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), head(8))
    check_all(network, IMAGES, count=1)


def hooked():
    network = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    network[1].register_forward_hook(lambda layer, arguments, output: 2 * output)
    return network


def tied():
    network = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    network[2].weight = network[0].weight
    return network


def twice():
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, inputs):
        return self.scale * self.linear(inputs)


class Masked(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs).clamp_min(0)


def dense(count, last):
    return Network(
        lambda n, x: n.head(torch.cat([n.first(x), n.second(n.first(x))][:count], 1)),
        first=nn.Conv2d(4, 4, 3, padding=1),
        second=nn.Conv2d(4, 4, 3, padding=1),
        head=head(last),
    )


UNSTACKABLE = {
    "LayerNorm": (lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)), (5,), "LayerNorm holds 'weight' itself"),
    "Dropout": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5)), (5,), "it draws random numbers"),
    "softmax over channels": (
        lambda: nn.Sequential(nn.Conv2d(4, 5, 3), nn.Softmax(1), head(5)),
        IMAGES,
        "its output differs from that of single instances by",
    ),
    "concatenated channels": (
        lambda: dense(2, last=8),
        IMAGES,
        "its output differs from that of single instances by",
    ),
    "hooks": (hooked, (5,), "a Linear has hooks"),
    "momentum": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=None)),
        (5,),
        "a BatchNorm with momentum=None counts its batches",
    ),
    "padding mode": (
        lambda: nn.Sequential(nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular"), head(5)),
        IMAGES,
        "padding mode 'circular'",
    ),
    "own parameters": (Scaled, (5,), "Scaled holds 'scale' itself"),
    "a subclass": (lambda: nn.Sequential(Masked(5, 4)), (5,), "Masked holds 'weight' itself"),
    "tied parameters": (tied, (5,), "tied"),
    "a layer under two names": (twice, (5,), "tied"),
    "no channels": (lambda: Network(lambda n, x: n.conv(x).amax(1), conv=nn.Conv2d(4, 5, 3)), IMAGES, "its output"),
    "tokens": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Flatten()), (3, 5), "its forward does not run on stacked"),
    "BatchNorm of nothing": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, affine=False, track_running_stats=False), nn.Softmax(1), head(5)
        ),
        IMAGES,
        "differs from that of single instances",
    ),
}


@pytest.mark.parametrize("kind", UNSTACKABLE)
def test_what_cannot_be_stacked_is_refused_with_the_reason(kind):
    build, input_shape, reason = UNSTACKABLE[kind]
    torch.manual_seed(0)
    with pytest.raises(Unstackable) as error:
        stack_network(build(), input_shape)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_one_half_of_the_concatenation_is_stacked():
    """The refusal above is for the concatenation, not for what stands around it."""
    check_all(dense(1, last=4), IMAGES)


@pytest.mark.parametrize("rate", [1e-6, 0.01])
def test_dropout_that_drops_next_to_nothing_is_refused_too(rate):
    """A trial in which nothing happens to be dropped proves nothing."""
    network = Network(lambda n, x: nn.functional.dropout(n.linear(x), rate, n.training), linear=nn.Linear(5, 4))
    with pytest.raises(Unstackable, match="it draws random numbers"):
        stack_network(network, (5,))


def test_stacking_leaves_network_and_random_numbers_alone():
    network = nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), head(5)).eval()
    before = copy.deepcopy(network.state_dict())
    random = nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.Dropout())
    state = torch.get_rng_state()
    stack_network(network, IMAGES)
    with pytest.raises(Unstackable):
        stack_network(random, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
