"""Tests of what an architecture says of itself, and of recognising state dicts."""

import json
import pickle
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from registry_samples import NAMES, message, small

from prepkit.errors import RegistryError
from prepkit.families.architecture import floating_shapes
from prepkit.families.detection import Detection, detect, explain_mismatch
from prepkit.families.registry import (
    Architecture,
    architecture,
    built_in_registry,
)
from prepkit.prep.layout import Layout


@pytest.mark.parametrize("name", ["", "../evil", ".hidden", "a/b", "a b", "a\n", "é", "a" * 101, "-x"])
def test_names_that_cannot_be_file_names_are_refused(name):
    with pytest.raises(RegistryError, match="cannot name an architecture: use up to 100 letters, digits and _ "):
        small(name)


@pytest.mark.parametrize("shape", [(), (3, 0), (-1,), (3.0,), (True,), ("3",)])
def test_input_shapes_are_whole_numbers(shape):
    with pytest.raises(RegistryError, match="is not an input shape; give whole numbers such as 3x32x32"):
        replace(small("a"), input_shape=shape)


@pytest.mark.parametrize("arguments", [{"x": object()}, {"x": float("nan")}, {"x": {1, 2}}])
def test_arguments_are_json(arguments):
    with pytest.raises(RegistryError, match="'a': the builder's arguments are not JSON: "):
        replace(small("a"), arguments=arguments)


def test_config_is_a_copy_and_enough_to_rebuild():
    one = architecture("resnet8@digits")
    config = one.config
    assert config["builder"] == "prepkit.families.resnet:ResNet"
    config["arguments"]["widths"][0] = 99
    assert one.config["arguments"]["widths"] == [4, 8, 16]
    again = Architecture.from_dict(json.loads(json.dumps(one.to_dict())))
    assert floating_shapes(again.build().state_dict()) == floating_shapes(one.build().state_dict())
    assert again == one
    assert again != "resnet8@digits"


def test_example_input_is_seeded_and_leaves_the_global_generator_alone():
    one = architecture("resnet8@cifar10")
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    first, second = one.example_input(batch=4, seed=1), one.example_input(batch=4, seed=1)
    assert first.shape == (4, 3, 32, 32)
    assert torch.equal(first, second)
    assert not torch.equal(first, one.example_input(batch=4, seed=2))
    assert torch.equal(torch.rand(5), expected)


def test_layouts_and_counts_leave_the_global_generator_alone():
    fresh = small("fresh")
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    assert fresh.layout.total == fresh.num_parameters == fresh.num_trainable == 21
    assert fresh.trainable_shapes == fresh.folded_shapes
    assert torch.equal(torch.rand(5), expected)


def test_a_family_in_sizes_of_ones_own_has_a_layout():
    builder, sizes = "prepkit.families.sine_mlp:SineMLP", [3, 5, 4, 1]
    sines = Architecture("small_sines", "sine_mlp", (3,), builder, {"sizes": sizes})
    assert sines.layout.total == sum(out * (size + 1) for size, out in pairwise(sizes))
    assert sines.layout == Layout.of(sines.build())


def test_architectures_and_registries_can_be_pickled():
    for original in (architecture("resnet8@digits"), built_in_registry("digits")):
        assert pickle.loads(pickle.dumps(original)) == original


def test_build_follows_the_global_generator():
    one = architecture("lenet_like@digits")
    networks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks.append(torch.cat([parameter.flatten() for parameter in one.build().parameters()]))
    assert torch.equal(networks[0], networks[1])
    assert not torch.equal(networks[0], networks[2])


def reversed_order(tensors):
    return dict(reversed(tensors.items()))


@pytest.mark.parametrize("name", NAMES)
def test_detect_trainable_and_folded_in_any_order(name):
    one = architecture(name)
    trainable, folded = one.build().state_dict(), one.build_folded().state_dict()
    has_batch_norm = len(trainable) != len(folded)
    assert detect(trainable) == detect(reversed_order(trainable)) == Detection(one, folded=not has_batch_norm)
    assert detect(folded) == detect(reversed_order(folded)) == Detection(one, folded=True)


def test_detect_ignores_integer_buffers_and_dtypes():
    tensors = architecture("resnet8@cifar10").build().state_dict()
    without = {name: tensor.half() for name, tensor in tensors.items() if tensor.is_floating_point()}
    assert len(without) < len(tensors)
    assert detect(without) == Detection(architecture("resnet8@cifar10"), folded=False)
    assert detect({**without, "step": torch.tensor(3)}) == Detection(architecture("resnet8@cifar10"), folded=False)


def test_detect_tells_datasets_apart_by_shapes():
    cifar10, tiny_imagenet = architecture("resnet8@cifar10"), architecture("resnet8@tiny_imagenet")
    assert list(cifar10.trainable_shapes) == list(tiny_imagenet.trainable_shapes)
    for one in (cifar10, tiny_imagenet):
        found = detect(one.build().state_dict())
        assert found is not None
        assert found.architecture is one


def without(tensors, part):
    return {name: tensor for name, tensor in tensors.items() if part not in name}


# What is done to the folded tensors, or (the last two) to those with BatchNorm.
NEAR_MISSES = {
    "missing": lambda folded, _: without(folded, "linear.bias"),
    "extra": lambda folded, _: {**folded, "extra": torch.zeros(1)},
    "renamed": lambda folded, _: {**without(folded, "linear.bias"), "fc.bias": folded["linear.bias"]},
    "other axes": lambda folded, _: {**folded, "linear.bias": folded["linear.bias"].reshape(2, 5)},
    "resized": lambda folded, _: {**folded, "linear.bias": folded["linear.bias"][:9]},
    "transposed": lambda folded, _: {**folded, "conv.weight": folded["conv.weight"].transpose(0, 1)},
    "empty": lambda folded, _: {},
    "no running statistics": lambda _, trainable: without(trainable, "running"),
    "half folded": lambda _, trainable: without(trainable, "stages.0.0.bn1"),
}


@pytest.mark.parametrize("what", NEAR_MISSES)
def test_detect_refuses_near_misses(what):
    one = architecture("resnet8@digits")
    assert detect(NEAR_MISSES[what](one.build_folded().state_dict(), one.build().state_dict())) is None


def test_detect_among_candidates():
    one, twin = small("one"), small("twin")
    tensors = one.build().state_dict()
    assert detect(tensors) is None
    assert detect(tensors, [small("other", 9), one]) == Detection(one, folded=True)
    assert detect(tensors, []) is None
    with pytest.raises(RegistryError) as error:
        detect(tensors, [one, twin])
    assert message(error) == "these tensors fit several architectures: one, twin. Name the one that is meant."


def test_detect_among_the_members_of_a_file_needs_no_builder():
    data = small("mine").to_dict()
    data["config"]["builder"] = "no_such_module:net"
    mine = Architecture.from_dict(data)
    assert detect(small("mine").build().state_dict(), [mine]) == Detection(mine, folded=True)


def test_explain_mismatch_names_what_differs():
    one = architecture("resnet8@digits")
    folded = one.build_folded().state_dict()
    assert explain_mismatch(folded, one) == "the tensors fit resnet8@digits with BatchNorm folded."
    del folded["linear.bias"]
    folded["head.bias"] = torch.zeros(10)
    folded["conv.weight"] = torch.zeros(4, 3, 3, 3)
    assert explain_mismatch(folded, one) == (
        "the tensors do not fit resnet8@digits with BatchNorm folded: 1 missing (linear.bias); "
        "1 unexpected (head.bias); 1 of another shape (conv.weight is [4, 3, 3, 3], expected [4, 1, 3, 3])."
    )


def test_explain_mismatch_compares_with_the_nearer_form():
    one = architecture("resnet8@digits")
    trainable = one.build().state_dict()
    assert explain_mismatch(trainable, one) == "the tensors fit resnet8@digits with BatchNorm."
    del trainable["bn.weight"]
    assert explain_mismatch(trainable, one) == (
        "the tensors do not fit resnet8@digits with BatchNorm: 1 missing (bn.weight)."
    )


def test_explain_mismatch_lists_a_few_and_counts_all():
    one = architecture("lenet_like@digits")
    assert explain_mismatch({}, one) == (
        "the tensors do not fit lenet_like@digits: 10 missing (convs.0.weight, convs.0.bias, convs.1.weight, "
        "convs.1.bias, hidden.0.weight, hidden.0.bias and 4 more)."
    )
