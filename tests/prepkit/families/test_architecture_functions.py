"""The built-in networks compute what independent forwards do, with weights of their own and with others'."""

import pytest
import torch
import torch.nn.functional as F
from built_networks import BATCH_NORM, COUNTS, build, trained_looking
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from prepkit.families.registry import architecture


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(7)


# Function: each network once more, written with torch.nn.functional and typed from the method ------------------


def lrelu(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, 0.01 * x)


def plain_cnn(tensors, x, strides_and_paddings, linears):
    for index, (stride, padding) in enumerate(strides_and_paddings):
        x = F.conv2d(x, tensors[f"convs.{index}.weight"], tensors[f"convs.{index}.bias"], stride, padding)
        x = lrelu(x)
    x = x.reshape(x.shape[0], -1)
    for index, linear in enumerate(linears):
        x = x @ tensors[f"{linear}.weight"].mT + tensors[f"{linear}.bias"]
        x = x if index == len(linears) - 1 else lrelu(x)
    return x


def plain_resnet(tensors, x, blocks, pool):
    def conv(x, name, stride=1):
        weight = tensors[f"{name}.weight"]
        return F.conv2d(x, weight, tensors[f"{name}.bias"], stride, padding={3: 1, 1: 0}[weight.shape[-1]])

    x = lrelu(conv(x, "conv"))
    for stage in range(3):
        for block in range(blocks):
            place = f"stages.{stage}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            y = lrelu(conv(x, f"{place}.conv1", stride))
            y = conv(y, f"{place}.conv2")
            if stride == 2:
                x = conv(x, f"{place}.shortcut.0", stride)
            x = lrelu(x + y)
    x = F.avg_pool2d(x, pool).reshape(x.shape[0], -1)
    return x @ tensors["linear.weight"].mT + tensors["linear.bias"]


def plain_sine(tensors, x):
    for name in ("hidden.0", "hidden.1"):
        x = torch.sin(30 * (x @ tensors[f"{name}.weight"].mT + tensors[f"{name}.bias"]))
    return x @ tensors["linear.weight"].mT + tensors["linear.bias"]


LENET = ["hidden.0", "hidden.1", "linear"]

BY_HAND = {
    "lenet_like@cifar10": lambda t, x: plain_cnn(t, x, [(2, 0), (2, 0)], LENET),
    "lenet_like@tiny_imagenet": lambda t, x: plain_cnn(t, x, [(2, 2), (2, 0), (2, 0)], LENET),
    "lenet_like@digits": lambda t, x: plain_cnn(t, x, [(1, 1), (2, 0)], LENET),
    "vanilla_cnn@cifar10": lambda t, x: plain_cnn(t, x, [(2, 1), (1, 1), (2, 1), (1, 1), (2, 1)], ["linear"]),
    "vanilla_cnn@tiny_imagenet": lambda t, x: plain_cnn(t, x, [(2, 1)] * 5, ["linear"]),
    "vanilla_cnn@digits": lambda t, x: plain_cnn(t, x, [(1, 1), (2, 1), (1, 1), (2, 1)], ["linear"]),
    "resnet8@cifar10": lambda t, x: plain_resnet(t, x, 1, 8),
    "resnet32@cifar10": lambda t, x: plain_resnet(t, x, 5, 8),
    "resnet56@cifar10": lambda t, x: plain_resnet(t, x, 9, 8),
    "resnet8@tiny_imagenet": lambda t, x: plain_resnet(t, x, 1, 8),
    "resnet32@tiny_imagenet": lambda t, x: plain_resnet(t, x, 5, 8),
    "resnet56@tiny_imagenet": lambda t, x: plain_resnet(t, x, 9, 8),
    "resnet8@digits": lambda t, x: plain_resnet(t, x, 1, 2),
    "resnet14@digits": lambda t, x: plain_resnet(t, x, 2, 2),
    "resnet20@digits": lambda t, x: plain_resnet(t, x, 3, 2),
    "sine_mlp@sdf": plain_sine,
    "sine_mlp@sdf_small": plain_sine,
}


def unpacked(name: str, network: nn.Module) -> dict[str, torch.Tensor]:
    """The network's tensors after a trip through a PRep of width 512."""
    layout = architecture(name).layout
    return layout.unpack(layout.pack(network.state_dict(), layout.shape(width=512)))


@pytest.mark.parametrize("name", COUNTS)
def test_unpacked_tensors_in_an_independent_forward(name):
    network = build(name, "folded").double()
    inputs = architecture(name).example_input().double()
    with torch.no_grad():
        torch.testing.assert_close(
            BY_HAND[name](unpacked(name, network), inputs), network(inputs), rtol=1e-9, atol=1e-9
        )


def fold_by_hand(network: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors with each BatchNorm folded into the convolution registered right before it (suppl. VI of the paper)."""
    tensors, previous = {}, None
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            tensors[f"{path}.weight"] = module.weight
            tensors[f"{path}.bias"] = (
                torch.zeros_like(module.weight[:, 0, 0, 0]) if module.bias is None else module.bias
            )
            previous = path
        if isinstance(module, nn.BatchNorm2d):
            scale = module.weight / torch.sqrt(module.running_var + module.eps)
            tensors[f"{previous}.weight"] = tensors[f"{previous}.weight"] * scale[:, None, None, None]
            tensors[f"{previous}.bias"] = module.bias + (tensors[f"{previous}.bias"] - module.running_mean) * scale
    return tensors


@pytest.mark.parametrize("name", BATCH_NORM)
def test_folded_network_computes_what_the_trainable_one_does(name):
    trainable = trained_looking(build(name, "trainable").double())
    folded = build(name, "folded").double()
    inputs = architecture(name).example_input().double()
    with torch.no_grad():
        folded.load_state_dict(fold_by_hand(trainable))
        expected = trainable(inputs)
        torch.testing.assert_close(folded(inputs), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(BY_HAND[name](unpacked(name, folded), inputs), expected, rtol=1e-9, atol=1e-9)


# Weights from outside -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COUNTS)
def test_functional_call_and_vmap_equal_the_plain_call(name):
    networks = [build(name, "folded") for _ in range(2)]
    inputs = architecture(name).example_input()
    stacked, _ = stack_module_state(networks)
    skeleton = build(name, "folded").to("meta")

    with torch.no_grad():
        plain = torch.stack([network(inputs) for network in networks])
        one_by_one = [functional_call(skeleton, network.state_dict(), (inputs,)) for network in networks]
        together = vmap(lambda tensors: functional_call(skeleton, tensors, (inputs,)))(stacked)

    assert torch.equal(torch.stack(one_by_one), plain)
    torch.testing.assert_close(together, plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain[0], plain[1])


@pytest.mark.parametrize("training", [False, True])
def test_vmap_over_trainable_resnets_with_their_running_statistics(training):
    networks = [trained_looking(build("resnet8@digits", "trainable")).train(training) for _ in range(3)]
    inputs = architecture("resnet8@digits").example_input(batch=8)
    parameters, buffers = stack_module_state(networks)
    skeleton = networks[0]

    with torch.no_grad():
        together = vmap(lambda p, b: functional_call(skeleton, (p, b), (inputs,)))(parameters, buffers)
        plain = torch.stack([network(inputs) for network in networks])

    torch.testing.assert_close(together, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(buffers["bn.running_mean"][2], networks[2].bn.running_mean)


@pytest.mark.parametrize("name", ["lenet_like@digits", "vanilla_cnn@digits", "resnet8@digits", "sine_mlp@sdf_small"])
def test_gradient_reaches_every_tensor_through_functional_call(name):
    network = build(name, "folded")
    tensors = {key: value.detach().requires_grad_() for key, value in network.state_dict().items()}
    functional_call(network, tensors, (architecture(name).example_input(),)).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in tensors.values())


@pytest.mark.parametrize("name", ["lenet_like@digits", "vanilla_cnn@digits", "resnet8@digits", "sine_mlp@sdf_small"])
def test_forward_leaves_its_input_alone(name):
    inputs = architecture(name).example_input()
    before = inputs.clone()
    build(name, "trainable")(inputs)
    assert torch.equal(inputs, before)
