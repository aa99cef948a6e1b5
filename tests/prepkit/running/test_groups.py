"""Instances of several architectures, run together by architecture, against networks that are run one by one."""

import pytest
import torch

import prepkit
from prepkit.running.groups import group_by_architecture, outputs_by_class_id, run_by_class_id

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("lenet_like@digits", "resnet8@digits")
CLASS_IDS = (1, 0, 1)


@pytest.fixture
def registry():
    return prepkit.Registry([prepkit.architecture(name) for name in NAMES])


@pytest.fixture
def networks(registry):
    torch.manual_seed(0)
    return [registry.by_class_id(class_id).build_folded().double() for class_id in CLASS_IDS]


@pytest.fixture
def preps(registry, networks):
    shape = prepkit.PRepShape(80, 128)
    layouts = [registry.by_class_id(class_id).layout for class_id in CLASS_IDS]
    packed = [
        layout.pack({name: tensor.detach() for name, tensor in network.state_dict().items()}, shape)
        for layout, network in zip(layouts, networks, strict=True)
    ]
    return torch.stack(packed)


@pytest.mark.parametrize("shared", [True, False])
def test_each_instance_runs_by_its_own_architecture(registry, networks, preps, shared):
    inputs = torch.randn(*(() if shared else (3,)), 4, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        own = [inputs if shared else inputs[position] for position in range(3)]
        expected = torch.stack([network(images) for network, images in zip(networks, own, strict=True)])
        torch.testing.assert_close(run_by_class_id(registry, CLASS_IDS, preps, inputs), expected)
    torch.testing.assert_close(outputs_by_class_id(registry, CLASS_IDS, preps, inputs), expected)


def test_gradients_reach_each_prep(registry, preps):
    preps = preps.requires_grad_()
    outputs = run_by_class_id(registry, CLASS_IDS, preps, torch.randn(4, 1, 8, 8, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(outputs[1].sum(), preps)
    assert gradient[1].abs().max() > 0
    assert gradient[[0, 2]].abs().max() == 0


def test_groups_keep_the_order_of_instances(registry):
    groups = group_by_architecture(registry, CLASS_IDS)
    assert [(group.architecture.name, group.positions) for group in groups] == [(NAMES[1], (0, 2)), (NAMES[0], (1,))]
