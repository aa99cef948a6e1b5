"""Every built-in spec trains: one real step of each network, on synthetic images and points.

Networks and inputs have their real sizes. Batches of the large specs are small on each push, and real in slow tests.
"""

from dataclasses import replace
from functools import cache
from math import isfinite

import pytest
import torch
from torch.nn.functional import cross_entropy

import prepkit
from prepkit.families.folding import fold_stack
from prepkit.running.instances import runner
from prepkit.tasks.task import TaskBatch
from prepkit.training._engine import stack_size_for
from prepkit.training._plan import Job
from prepkit.training._schedule import factor
from prepkit.training._stack import Stack, fresh_tensors
from prepkit.training._start import Start
from prepkit.training._step import StackSetup
from prepkit.training._values import CONSTANT, Epochs, Keep
from prepkit.training.spec import load_spec, spec_names

CPU = torch.device("cpu")


class Synthetic:
    """One batch of random images with random labels, or of points with distances to a sphere, of the real size."""

    def __init__(self, input_shape, num_outputs):
        self.input_shape, self.num_outputs = input_shape, num_outputs
        self.is_images = len(input_shape) == 3
        self.record = {"kind": "images" if self.is_images else "shapes"}
        self.splits = {"train": 1, "validation": 1, "test": 1}
        self.seen = []

    def batches(self, seeds, items, epoch, batch_size):
        generator = torch.Generator().manual_seed(seeds[0])
        inputs = torch.randn(len(seeds), batch_size, *self.input_shape, generator=generator)
        if self.is_images:
            targets = torch.randint(self.num_outputs, inputs.shape[:2], generator=generator)
        else:
            targets = inputs.norm(dim=-1, keepdim=True) - 0.5
        self.seen.append(tuple(inputs.shape))
        yield TaskBatch(inputs, targets)

    def losses(self, outputs, targets):
        assert outputs.shape[-1] == self.num_outputs
        if self.is_images:
            losses = cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
            losses = losses.view(targets.shape).mean(1)
        else:
            losses = (outputs - targets).square().mean((1, 2))
        self.loss = losses.tolist()
        return losses

    def evaluate(self, run, items, split):
        outputs = run(torch.zeros(2, *self.input_shape))
        return {"accuracy": torch.full((len(items),), 0.5), "loss": outputs.double().square().mean((1, 2))}


def networks(spec):
    """Each trained network and its training; the teacher too."""
    found = dict(spec.training)
    if spec.teacher:
        found[spec.teacher.architecture] = spec.teacher.training
    return found


@cache
def step(name, training):
    """The architecture, and what one step leaves of one instance. Specs that train a network alike share it."""
    known = prepkit.architecture(name)
    task = Synthetic(known.input_shape, known.build_folded()(known.example_input()).shape[-1])
    stacked = stack_size_for(known, training, CPU) > 1
    rate, momentum, decay = (r.at(0.5) for r in (training.learning_rate, training.momentum, training.weight_decay))
    job = Job(name, 0, "train", 1, 0, 1, rate, momentum, decay, run="run", kept_epochs=(1,))
    setting = StackSetup(known, training, task, runner(known, False, stacked, CPU), CPU)
    before, _ = fresh_tensors(setting, [job.seed])
    stack = Stack(setting, [job])
    stack.run()
    assert stack.diverged == []
    assert task.seen == [(1, training.batch_size, *known.input_shape)]
    assert all(map(isfinite, task.loss))
    (shot,) = stack.snapshots
    for tensor, old in before.items():
        new = shot.tensors[tensor]
        assert new.isfinite().all()
        assert not torch.equal(new, old[0]), f"{tensor} has not learned"
    return known, shot.tensors


LARGE = [name for name in spec_names() if name.startswith(("cifar10", "tiny_imagenet"))]
SMALL_BATCH = [(name, 4 if name in LARGE else None) for name in spec_names()]
REAL_BATCH = [pytest.param(name, None, marks=pytest.mark.slow) for name in LARGE]


@pytest.mark.parametrize(("name", "batch_size"), SMALL_BATCH + REAL_BATCH)
def test_every_network_of_a_spec_takes_a_step_and_is_packed(name, batch_size):
    spec = load_spec(name)
    for network, training in networks(spec).items():
        training = replace(training, batch_size=batch_size or training.batch_size)
        assert factor(training.schedule, 0, training.epochs.last) == 1.0  # the first step does not depend on the rest
        known, trained = step(
            network, replace(training, epochs=Epochs((1,)), schedule=CONSTANT, keep=Keep(), start=Start())
        )
        folded = fold_stack(known, [trained])
        if network in spec.architectures:
            prep = known.layout.pack(folded, known.layout.shape(spec.width, spec.height))
            assert prep.shape[2] == spec.width
            assert spec.height in (None, prep.shape[1])
            for tensor, value in known.layout.unpack(prep).items():
                assert torch.equal(value, folded[tensor])
