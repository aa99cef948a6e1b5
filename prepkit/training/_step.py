"""One step of a stack: forward, losses, gradients and update of all its instances, repeated by a CUDA graph on a GPU.

Shapes: K instances in the stack, B samples, g instances in a pack, N values of all parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prepkit.families.registry import Architecture
from prepkit.running.instances import Runner, runner
from prepkit.support.graphs import GraphedStep, Recorder
from prepkit.tasks.task import Task, TaskBatch
from prepkit.training._engine import ALL_AT_ONCE, Way
from prepkit.training._hyperparameters import Training
from prepkit.training._optimiser import Optimiser, Parameters, Rates
from prepkit.training._plan import Job

Tensors = dict[str, Tensor]

WARMUPS = 2  # A stack is recorded anew each time that it shrinks, so its first steps must be few.


@dataclass(frozen=True)
class StackSetup:
    """What all instances of a stack have in common.

    task:            its data are on the device, in the dtype of the weights
    runner:          the forward of the trained network
    stack:           largest number of instances that are run at once
    samples_at_once: samples of a batch that are run at once, their gradients added up; None for all
    way:             how the instances of a stack share the device
    starts:          tensors of networks that instances begin with, by the name of the start
    """

    architecture: Architecture
    training: Training
    task: Task
    runner: Runner
    device: torch.device
    stack: int = 1
    samples_at_once: int | None = None
    dtype: torch.dtype = torch.float32
    way: Way = ALL_AT_ONCE
    starts: Mapping[str, Tensors] = field(default_factory=dict)


class StackStep:
    """The step of a stack as long as the same instances are in it; its tensors are changed in place.

    recorder: for tests, in place of CUDA graphs
    """

    def __init__(
        self,
        setup: StackSetup,
        parameters: Parameters,
        statistics: Tensors,
        optimiser: Optimiser,
        jobs: Sequence[Job],
        recorder: Recorder[Tensor] | None = None,
    ) -> None:
        graphed = recorder is not None or setup.device.type == "cuda"
        decay, momentum = [job.weight_decay for job in jobs], [job.momentum for job in jobs]
        self.parameters, self.optimiser = parameters, optimiser
        self.rates = Rates(parameters, decay, momentum, in_place=graphed)
        # What is recorded does not know this object: without a circle, a graph's memory is freed with it at once.
        own = Operations(setup, parameters, statistics, optimiser, self.rates, len(jobs))
        self._step = GraphedStep(own.step, setup.device, WARMUPS, recorder=recorder)

    def begin_epoch(self, learning_rates: Sequence[float]) -> None:
        """Take a learning rate for each instance."""
        self.rates.set_learning_rates(learning_rates)

    def __call__(self, batch: TaskBatch) -> Tensor:
        """Make a step, and return the losses `[K]`, which hold until the next one."""
        self.optimiser.count_step(self.parameters)
        return self._step(batch.inputs, batch.targets)


class Operations:
    """All that the device does in a step; a CUDA graph may repeat it."""

    def __init__(
        self,
        setup: StackSetup,
        parameters: Parameters,
        statistics: Tensors,
        optimiser: Optimiser,
        rates: Rates,
        count: int,
    ) -> None:
        self.setup, self.parameters, self.optimiser, self.rates = setup, parameters, optimiser, rates
        size = setup.way.at_once or count
        self._packs = [
            Pack.of(parameters, statistics, slice(first, min(first + size, count))) for first in range(0, count, size)
        ]
        self._streams = Streams(setup.device, min(setup.way.streams, len(self._packs)))
        self._forward = forward_of(setup)

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Update all instances by a batch, and return their losses `[K]`."""
        self.parameters.gradients.zero_()
        losses = []
        with self._streams.forked():
            for number, pack in enumerate(self._packs):
                with self._streams.at(number):
                    losses.append(self._differentiate(pack, inputs[pack.rows], targets[pack.rows]))
        self.optimiser.step(self.parameters, self.rates)
        return torch.cat(losses)

    def _differentiate(self, pack: Pack, inputs: Tensor, targets: Tensor) -> Tensor:
        """Add the gradients of a pack to theirs, and return its losses `[g]`."""
        setup = self.setup
        total: Tensor | None = None
        for part, expected, share in parts(inputs, targets, setup.samples_at_once):
            with autocast(setup.training, setup.device):
                outputs = self._forward({**pack.leaves, **pack.statistics}, part, training=True)
            losses = setup.task.losses(outputs.to(setup.dtype), expected) * share
            found = torch.autograd.grad(losses.sum(), list(pack.leaves.values()), allow_unused=True)
            used = [(own, new) for own, new in zip(pack.gradients, found, strict=True) if new is not None]
            torch._foreach_add_([own for own, _ in used], [new for _, new in used])
            total = losses.detach() if total is None else total + losses.detach()
        assert total is not None
        return total


@dataclass(frozen=True)
class Pack:
    """Instances that run at once: views `[g, ...]` of the stack's tensors.

    rows:      where the instances stand in the stack
    gradients: in the order of the leaves
    """

    rows: slice
    leaves: Tensors
    gradients: list[Tensor]
    statistics: Tensors

    @classmethod
    def of(cls, parameters: Parameters, statistics: Tensors, rows: slice) -> Pack:
        """The pack of some rows of a stack."""
        leaves = {name: leaf.detach()[rows].requires_grad_() for name, leaf in parameters.leaves.items()}
        gradients = [gradient[rows] for gradient in parameters.tensors(parameters.gradients).values()]
        return cls(rows, leaves, gradients, {name: tensor[rows] for name, tensor in statistics.items()})


class Streams:
    """Streams of a GPU among which packs are dealt, so that small kernels run side by side; one is the current one."""

    def __init__(self, device: torch.device, count: int) -> None:
        self.device = device
        several = device.type == "cuda" and count > 1
        self.streams = [torch.cuda.Stream(device) for _ in range(count)] if several else []  # type: ignore[no-untyped-call]

    @contextmanager
    def forked(self) -> Iterator[None]:
        """Let all streams begin after what the current one has to do, and the current one go on after them."""
        for stream in self.streams:
            stream.wait_stream(torch.cuda.current_stream(self.device))
        yield
        for stream in self.streams:
            torch.cuda.current_stream(self.device).wait_stream(stream)

    @contextmanager
    def at(self, number: int) -> Iterator[None]:
        """Use the stream whose turn it is."""
        if not self.streams:
            yield
            return
        with torch.cuda.stream(self.streams[number % len(self.streams)]):
            yield


def forward_of(setup: StackSetup) -> Runner:
    """The forward of a pack; `setup.runner` itself unless the way asks for another."""
    if setup.way.at_once == 1:
        return runner(setup.architecture, False, False, setup.device)
    if setup.way.dense and setup.runner.stacked:
        return runner(setup.architecture, False, True, setup.device, dense=True, padded=setup.way.padded)
    return setup.runner


def parts(inputs: Tensor, targets: Tensor, size: int | None) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Divide a batch into parts of `size` samples: inputs, targets, and the part's share of the batch."""
    count = inputs.shape[1]
    if size is None or size >= count:
        yield inputs, targets, 1.0
        return
    for part, expected in zip(torch.split(inputs, size, 1), torch.split(targets, size, 1), strict=True):
        yield part, expected, part.shape[1] / count


def autocast(training: Training, device: torch.device) -> torch.autocast:
    """The context in which the forward runs: matrix products in bfloat16 where the spec says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16")
