"""Losses of instances that are differentiated one after another, against all at once by autograd."""

import weakref

import pytest
import torch

import prepkit
from prepkit.running.groups import ArchitectureGroup, group_by_architecture
from prepkit.running.instance_losses import groups_to_run, instance_losses

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("lenet_like@digits", "resnet8@digits")
CLASS_IDS = (1, 0, 1, 1, 0)


@pytest.fixture
def registry():
    return prepkit.Registry([prepkit.architecture(name) for name in NAMES])


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def preps(registry):
    torch.manual_seed(0)
    rows = []
    for class_id in CLASS_IDS:
        architecture = registry.by_class_id(class_id)
        tensors = architecture.build_folded().double().state_dict()
        rows.append(architecture.layout.pack(tensors, prepkit.PRepShape(80, 128)))
    return torch.stack(rows)


def judged(images, seen=None):
    def judge(group, preps_kHW):
        outputs = prepkit.run_instances(group.architecture, preps_kHW, images)
        if seen is not None:
            seen.append((group, outputs))
        return {"square": outputs.square().mean((1, 2)), "first": outputs[:, 0, 0].exp()}

    return judge


def test_losses_and_gradients_are_those_of_autograd(registry, images, preps):
    weight_M = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    expected, plain = [], preps.clone().requires_grad_()
    for prep_HW, class_id in zip(plain, CLASS_IDS, strict=True):
        network = registry.by_class_id(class_id).build_folded().double()
        tensors = registry.by_class_id(class_id).layout.unpack(prep_HW)
        outputs = torch.func.functional_call(network, dict(tensors), (images,))
        expected.append(outputs.square().mean() + outputs[0, 0].exp())
    (torch.stack(expected) * weight_M).sum().backward()
    for single in (False, True):
        ours = preps.clone().requires_grad_()
        loss_M, parts = instance_losses(
            groups_to_run(group_by_architecture(registry, CLASS_IDS), images, single), ours, judged(images)
        )
        (loss_M * weight_M).sum().backward()
        torch.testing.assert_close(loss_M.detach(), torch.stack(expected).detach(), rtol=1e-10, atol=0)
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-8, atol=1e-12)
        assert list(parts) == ["square", "first"]
        assert not any(part.requires_grad for part in parts.values())
        torch.testing.assert_close(parts["square"] + parts["first"], loss_M.detach(), rtol=1e-12, atol=0)


def test_an_instance_is_forgotten_before_the_next_one_runs(registry, images, preps):
    kept, alive = weakref.WeakSet(), []

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor
            kept.add(self)

    def judge(group, preps_kHW):
        alive.append(len(kept))
        outputs = prepkit.run_instances(group.architecture, preps_kHW, images)
        assert len(kept) > 5  # what layers keep for the backward pass
        return {"loss": outputs.square().mean((1, 2))}

    groups = groups_to_run(group_by_architecture(registry, CLASS_IDS), images, single=True)
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda one: one.tensor):
        loss_M, _ = instance_losses(groups, preps.requires_grad_(), judge)
    assert alive == [0] * len(CLASS_IDS)
    assert loss_M.requires_grad


def test_groups(registry, images, monkeypatch):
    together = groups_to_run(group_by_architecture(registry, CLASS_IDS), images)
    assert [(group.architecture.name, group.positions) for group in together] == [
        (NAMES[1], (0, 2, 3)),
        (NAMES[0], (1, 4)),
    ]
    alone = groups_to_run(group_by_architecture(registry, CLASS_IDS), images, single=True)
    assert [group.positions for group in alone] == [(0,), (2,), (3,), (1,), (4,)]
    monkeypatch.setattr("prepkit.running.instances.STACKED_FLOPS_ON_CPU", 1.0)  # too large to run at once
    assert [group.positions for group in groups_to_run(group_by_architecture(registry, CLASS_IDS), images)] == [
        (0,),
        (2,),
        (3,),
        (1,),
        (4,),
    ]


def test_rows_of_a_group():
    rows = torch.arange(6.0).view(3, 2)
    architecture = prepkit.architecture(NAMES[0])
    assert ArchitectureGroup(architecture, (0, 1, 2)).select(rows) is rows
    assert ArchitectureGroup(architecture, (2, 0)).select(rows).tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert ArchitectureGroup(architecture, (0, 1)).select(rows).tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_without_gradients_nothing_is_differentiated(registry, images, preps):
    seen = []
    with torch.no_grad():
        loss_M, _ = instance_losses(
            groups_to_run(group_by_architecture(registry, CLASS_IDS), images), preps, judged(images, seen)
        )
    assert not loss_M.requires_grad
    assert not any(outputs.requires_grad for _, outputs in seen)
    assert torch.isfinite(loss_M).all()
