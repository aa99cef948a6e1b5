"""The built-in networks against METHOD.md and the paper's Table I: counts, order, names, bytes, start values."""

import hashlib
import math

import pytest
import torch
from built_networks import BATCH_NORM, COUNTS, FORMS, build
from torch import nn

from prepkit.errors import RegistryError
from prepkit.families.registry import architecture, architectures
from prepkit.families.resnet import ResNet
from prepkit.families.table import DATASETS, FAMILIES, TABLE
from prepkit.prep.layout import Layout


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(7)


# Heights that the method names, at a width: (name, width) -> rows.
HEIGHTS = {
    ("lenet_like@cifar10", 512): 124,
    ("resnet8@cifar10", 512): 152,
    ("resnet32@cifar10", 512): 912,
    ("resnet8@cifar10", 10_000): 8,
    ("resnet8@tiny_imagenet", 10_000): 16,
    ("resnet32@cifar10", 10_000): 48,
    ("resnet32@tiny_imagenet", 10_000): 52,
    ("resnet56@cifar10", 10_000): 88,
    ("sine_mlp@sdf", 10_000): 8,
}

# sha256 of the layout, and of the packed bytes (width 512) of the folded network built after torch.manual_seed(0).
# The first must never change: zoos name it. The second changes if weights are drawn in another order or way.
GOLDEN = {
    "lenet_like@cifar10": (
        "71666fd19e2f6b60846d45660f9515272756402e57173c017055268c5d3dbd0e",
        "71fb0664cd254624a80f72b184cf4e9779fc5ec440426671195639288b553b9e",
    ),
    "vanilla_cnn@cifar10": (
        "505fa7b011b6f2b92c8895a92fb63f7501747833ad63590a54ffb2f464837709",
        "153a2ad787846c8b520169a49726bd94ddacf46e398559359d1007d6a7ca3b73",
    ),
    "resnet8@cifar10": (
        "e775bd28293e12806cb1f7b4f3194197a3b55cc289b25e22cd8a11753ac2b746",
        "59e4cfefb1a9f8a37daa4231688f5be8e5a3a0fb34fc6d325b9ad729a58e157f",
    ),
    "resnet32@cifar10": (
        "364d17b7c1678d39975a876277c1985f7bfa78e0a71a1d0b2d4106279e0d27c6",
        "80a31c3dd3ee9358e45c2c4ac54bb9d5c6353d8057ecf4ef01c32bfe6cc7e9ca",
    ),
    "resnet56@cifar10": (
        "dc5c9103318c23d5277c6c3b3804bd8f4e5680ae9fab4f97ab159d0b0a832e31",
        "a2e74170f5c75056cc2acfd3d0492c38014aa352a3a7ccad3d441bb60fbb1281",
    ),
    "lenet_like@tiny_imagenet": (
        "b4f88189f05fba02d8f1d86c7453ff8965cefc4e0c618cf92103232acef8d5d7",
        "09b99fb70f997ea349fb9916a7e2cfac85490d6c9745eebd13ab124210135998",
    ),
    "vanilla_cnn@tiny_imagenet": (
        "5de98634536d1b5e347273bfbe658ee09e29c6c2e969329cdffcac663a45e2fb",
        "0e603f02b6097450a01a112e8167e076c30523d2e7a8d65da469cc87dcf9700b",
    ),
    "resnet8@tiny_imagenet": (
        "fa1459898655872c613bc8b90c89baca5db554c8b0efdf91d91b63e6006b0eef",
        "b3d9d1811df9217d592eb9e4740beb32d0d85f93146cd34eab7a3c79cf1cce06",
    ),
    "resnet32@tiny_imagenet": (
        "092f52a6274b07560dabe0fcf465e63a04a8d528d86eb24170689cf8b0da25b5",
        "7580ac67cb5d9c65032652830b218450b42d33e3ed569853008b59edf8d69e58",
    ),
    "resnet56@tiny_imagenet": (
        "f0075ffe506000acc1961d4c85c6d5d3f768ebf42014064b47c61ee06da342b2",
        "fd17e43a62845f909162e4072c39383088b32ffdccea5090ae6b47a02f371e08",
    ),
    "lenet_like@digits": (
        "08041a6c62f24f0fee554e25589660543f77c4cc1e70b69f4fce784d1f55c1f0",
        "fd5846c2afbc2f85350f1bfacf5164d326b56fc5f1d667d0356bfb7069e07cf5",
    ),
    "vanilla_cnn@digits": (
        "e0d192a448c9d51637749733ba027dd8ce2373324d4d8e7bc795db024d9d8c17",
        "c16e1d66ed66d50bfb67836d4a235fde197f5ea403d90de5268214bd9eeed8f7",
    ),
    "resnet8@digits": (
        "e372d93ea47eae771b4527b6d2a79cebdc9ca0277f86661e6210c3a32c08cd01",
        "d9125a888a451b43baa8796c59a088132bb38a1b7653a1e42649a2b1b15883e0",
    ),
    "resnet14@digits": (
        "c65e82309c6e4c25c3091d06723bc03478dd0f9e621f3c668e5e6bcfcc643aaa",
        "0ff2946aec273c9a0691c85732ab3ae278fa3dca4954e4b126eb87c34cdd7679",
    ),
    "resnet20@digits": (
        "2838016aaaa8dac57c0a578a76ec481a2dd883b5606940ab2fe13046cdcac603",
        "48124b83e3f23df910823180d00f9f724bb8d3192694566e92529af76ab3456f",
    ),
    "sine_mlp@sdf": (
        "e14d7eb6dd1beb606cb5ad39a8830fab14e300952c7d6e214b2df53abf26871b",
        "102bf66032dcb240dd5005eb593780857678f4c7286aeda382ba6acb868b8036",
    ),
    "sine_mlp@sdf_small": (
        "3ce9e8c07bc1d9a7592e4ef004c099878e9111427e7554db3b224ba2e2bfe5a5",
        "9bdb085e3eeee98c6c9ef48e89595e96ada786709979f9181e358b2a1ada64ed",
    ),
}


# Counts and sizes ---------------------------------------------------------------------------------------------


def test_table_holds_exactly_the_architectures_of_the_method():
    assert [row.name for row in TABLE] == list(COUNTS)
    assert architectures()[: len(COUNTS)] == list(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    trained, packed, class_id = COUNTS[name]
    row = next(row for row in TABLE if row.name == name)
    assert (row.num_trainable, row.num_parameters, row.class_id) == COUNTS[name]
    assert sum(parameter.numel() for parameter in architecture(name).build().parameters()) == trained
    folded = architecture(name).build_folded()
    assert sum(parameter.numel() for parameter in folded.parameters()) == packed
    assert Layout.of(folded).total == packed
    assert not list(folded.buffers())
    assert class_id == row.class_id


@pytest.mark.parametrize(("name", "width"), HEIGHTS)
def test_heights_of_the_reference(name, width):
    assert architecture(name).layout.shape(width).height == HEIGHTS[name, width]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", COUNTS)
def test_output_shape(name, form):
    _, outputs = DATASETS[name.partition("@")[2]]
    with torch.no_grad():
        assert build(name, form)(architecture(name).example_input(batch=3)).shape == (3, outputs)


def test_input_shapes_and_outputs():
    assert DATASETS == {
        "cifar10": ((3, 32, 32), 10),
        "tiny_imagenet": ((3, 64, 64), 200),
        "digits": ((1, 8, 8), 10),
        "sdf": ((3,), 1),
        "sdf_small": ((3,), 1),
    }


def test_every_family_is_used():
    assert {row.family for row in TABLE} == set(FAMILIES)


# Names and order ----------------------------------------------------------------------------------------------


def called_modules(network: nn.Module, inputs: torch.Tensor) -> list[str]:
    """Names of the modules that hold tensors, in the order in which forward calls them."""
    called: list[str] = []
    for name, module in network.named_modules():
        if module._parameters:
            module.register_forward_pre_hook(lambda _module, _inputs, name=name: called.append(name))
    with torch.no_grad():
        network(inputs)
    return called


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", COUNTS)
def test_registration_order_is_forward_order(name, form):
    network = build(name, form)
    registered = list(dict.fromkeys(key.rpartition(".")[0] for key in network.state_dict()))
    assert called_modules(network, architecture(name).example_input()) == registered


@pytest.mark.parametrize("name", COUNTS)
def test_folded_names_are_what_folding_leaves(name):
    trainable, folded = build(name, "trainable"), build(name, "folded")
    expected = [
        f"{path}.{tensor}"
        for path, module in trainable.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        for tensor in ("weight", "bias")
    ]
    assert list(folded.state_dict()) == expected
    assert [slot.name for slot in architecture(name).layout] == expected
    modules = dict(folded.named_modules())
    assert list(modules) == [path for path, _ in trainable.named_modules()]
    for path, module in trainable.named_modules():
        wanted = nn.Identity if isinstance(module, nn.BatchNorm2d) else type(module)
        assert type(modules[path]) is wanted


@pytest.mark.parametrize("name", BATCH_NORM)
def test_trainable_resnet_convolutions_leave_the_bias_to_batch_norm(name):
    convolutions = [module for module in build(name, "trainable").modules() if isinstance(module, nn.Conv2d)]
    assert convolutions
    assert all(module.bias is None for module in convolutions)


def test_order_in_a_block_is_conv1_conv2_shortcut():
    names = [slot.name for slot in architecture("resnet8@cifar10").layout]
    assert names[6:12] == [
        f"stages.1.0.{conv}.{tensor}" for conv in ("conv1", "conv2", "shortcut.0") for tensor in ("weight", "bias")
    ]


@pytest.mark.parametrize("name", COUNTS)
def test_golden_layout(name):
    assert architecture(name).signature == GOLDEN[name][0]
    assert Layout.of(architecture(name).build_folded()).sha256 == GOLDEN[name][0]


@pytest.mark.parametrize("name", COUNTS)
def test_golden_bytes(name):
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("the golden bytes were drawn with fused multiply-adds; without them uniform_ rounds otherwise")
    torch.manual_seed(0)
    network = architecture(name).build_folded()
    layout = architecture(name).layout
    prep = layout.pack(network.state_dict(), layout.shape(width=512))
    assert hashlib.sha256(prep.numpy().tobytes()).hexdigest() == GOLDEN[name][1]


# Start values and arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sine_mlp@sdf", "sine_mlp@sdf_small"])
def test_siren_initialisation(name):
    network = build(name, "trainable")
    width = {"sine_mlp@sdf": 256, "sine_mlp@sdf_small": 64}[name]
    bounds = {"hidden.0": 1 / 3, "hidden.1": math.sqrt(6 / width) / 30, "linear": math.sqrt(6 / width) / 30}
    for path, bound in bounds.items():
        largest = network.get_submodule(path).weight.abs().max().item()
        assert 0.9 * bound < largest <= bound


@pytest.mark.parametrize("depth", [2, 7, 9, 10, 0, -4])
def test_resnet_depth_is_6n_plus_2(depth):
    with pytest.raises(RegistryError, match=rf"depth {depth} is not 6n \+ 2 for n >= 1 blocks a stage; use 8, 14, 20"):
        ResNet(depth=depth, in_channels=1, widths=[4, 8, 16], pool=2, linear=[16, 10])


def test_resnet_needs_three_widths():
    with pytest.raises(ValueError, match="zip"):
        ResNet(depth=8, in_channels=1, widths=[4, 8], pool=2, linear=[16, 10])
