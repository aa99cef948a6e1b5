"""The step of a stack: recorded or run, all at once or in packs, it is the same; and it never waits for the host."""

import gc
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from random_images import random_images
from stack_samples import CPU, TRAININGS, Noise, jobs, setting, trained, worst
from traced_graphs import HostTraffic, TracedRecorder

from prepkit.errors import RecordingFailed
from prepkit.training import _stack as stack_module
from prepkit.training._engine import Way
from prepkit.training._stack import Stack
from prepkit.training._step import StackStep

pytestmark = pytest.mark.usefixtures("one_thread")


class Longer(Noise):
    """An epoch of six batches: three of 8 images and three of 5."""

    steps = 6


@pytest.fixture
def recorders(monkeypatch):
    """Lets stacks record their steps; returns the recorders, one for each time that a stack begins or shrinks."""
    made = []

    def recorded_step(setup, parameters, statistics, optimiser, jobs):
        def state():
            return [parameters.values, parameters.gradients, *statistics.values(), *optimiser.state.values()]

        made.append(TracedRecorder(state))
        return StackStep(setup, parameters, statistics, optimiser, jobs, recorder=made[-1])

    monkeypatch.setattr(stack_module, "StackStep", recorded_step)
    return made


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_recorded_training_is_one_that_is_run(recorders, monkeypatch, kind):
    """With learning rates that change from epoch to epoch, and an instance that leaves after the first."""
    own, all_jobs = TRAININGS[kind], jobs("lenet_like@digits", 3, epochs=(4, 1, 3))
    rate = 0.1 if own.optimizer == "adam" else 1.0
    all_jobs = [replace(job, learning_rate=rate * job.learning_rate) for job in all_jobs]
    recorded = trained(setting("lenet_like@digits", own, task=Longer), all_jobs)
    assert [recorder.recorded for recorder in recorders] == [2, 2, 2]  # two sizes of batches
    assert [recorder.repeated for recorder in recorders] == [2, 8, 2]
    monkeypatch.setattr(stack_module, "StackStep", StackStep)
    for found, expected in zip(recorded.snapshots, trained(recorded.setup, all_jobs).snapshots, strict=True):
        assert worst(found.tensors, expected.tensors) < 1e-12


@pytest.mark.parametrize("way", [Way(1), Way(2), Way(2, 2), Way(2, dense=True, padded=True), Way(4)])
@pytest.mark.parametrize("stacked", [True, False])
def test_packs_are_the_same_as_all_at_once(way, stacked):
    own, all_jobs = TRAININGS["adam"], jobs("resnet8@digits", 3, epochs=(2, 1))
    setup = replace(setting("resnet8@digits", own, stacked=stacked), way=way)
    whole = trained(setting("resnet8@digits", own), all_jobs)
    for found, expected in zip(trained(setup, all_jobs).snapshots, whole.snapshots, strict=True):
        assert worst(found.tensors, expected.tensors) < 1e-9


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_step_and_its_batch_never_wait(kind):
    own, all_jobs = TRAININGS[kind], jobs("resnet8@digits", 3)
    task = random_images(CPU, (1, 8, 8), count=64, kept_normalised=False)
    setup = replace(setting("resnet8@digits", own), task=task, dtype=torch.float32)
    stack = Stack(setup, all_jobs)
    step = StackStep(setup, stack.parameters, stack.statistics, stack.optimiser, all_jobs)
    step.begin_epoch([0.1, 0.2, 0.3])
    batches = task.batches([1, 2, 3], [0, 1, 2], 0, 8)
    step(next(batches))
    with HostTraffic() as traffic:
        for _ in range(3):
            step(next(batches))
    assert traffic.found == []


def test_traffic_is_seen():
    with HostTraffic() as traffic:
        torch.tensor([1.0, 2.0])
        torch.ones(()).item()
    assert traffic.found == ["aten::lift_fresh", "aten::_local_scalar_dense"]


def test_a_step_that_cannot_be_recorded_is_run(monkeypatch):
    def failing(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(stack_module, "StackStep", partial(StackStep, recorder=failing))
    own, all_jobs = TRAININGS["adam"], jobs("lenet_like@digits", 2)
    setup = setting("lenet_like@digits", own, task=Longer)
    with pytest.warns(RecordingFailed, match="slower"):
        found = trained(setup, all_jobs)
    monkeypatch.setattr(stack_module, "StackStep", StackStep)
    for ours, expected in zip(found.snapshots, trained(setup, all_jobs).snapshots, strict=True):
        assert worst(ours.tensors, expected.tensors) < 1e-12


# Dense packs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [Way(2, 2, dense=True), Way(3, dense=True)])
def test_dense_packs_are_the_same_as_groups(way):
    own, all_jobs = TRAININGS["nesterov"], jobs("resnet8@digits", 3, epochs=(3, 1, 2))
    dense = trained(replace(setting("resnet8@digits", own), way=way), all_jobs)
    for found, expected in zip(
        dense.snapshots, trained(setting("resnet8@digits", own), all_jobs).snapshots, strict=True
    ):
        assert worst(found.tensors, expected.tensors) < 1e-9


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_instance_that_diverges_spoils_no_other_of_its_dense_pack(epoch, kind):
    """Its images are infinite in one step of an epoch, and 0 times infinity is no number in its neighbours."""

    class Poisoned(Noise):
        def batch(self, seed, at, step):
            images, labels = super().batch(seed, at, step)
            return (images * torch.inf if (seed, at, step) == (41, epoch, 2) else images), labels

    own, all_jobs = TRAININGS[kind], jobs("resnet8@digits", 3, epochs=(2,))
    rate = 0.1 if kind == "adam" else 1.0
    all_jobs = [replace(job, learning_rate=rate * job.learning_rate) for job in all_jobs]
    dense = trained(replace(setting("resnet8@digits", own, task=Poisoned), way=Way(3, dense=True)), all_jobs)
    assert [(attempt.run, attempt.epoch) for attempt in dense.diverged] == [("run-00001", epoch + 1)]
    grouped = trained(setting("resnet8@digits", own, task=Poisoned), all_jobs)
    assert dense.diverged == grouped.diverged
    for found, expected in zip(dense.snapshots, grouped.snapshots, strict=True):
        assert (found.position, found.epoch) == (expected.position, expected.epoch)
        assert worst(found.tensors, expected.tensors) < 1e-9


def test_a_step_that_is_dropped_is_freed_at_once():
    """Or the memory of its graph would stay until Python looks for circles."""
    all_jobs = jobs("lenet_like@digits", 2)
    setup = setting("lenet_like@digits", TRAININGS["adam"])
    stack = Stack(setup, all_jobs)
    step = StackStep(setup, stack.parameters, stack.statistics, stack.optimiser, all_jobs)
    step.begin_epoch([0.1, 0.1])
    step(next(setup.task.batches([1, 2], [0, 1], 0, 8)))
    recorded = weakref.ref(step._step)
    gc.disable()
    try:
        del step
        assert recorded() is None
    finally:
        gc.enable()
