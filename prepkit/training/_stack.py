"""A stack: K instances of one architecture that are trained together, each exactly as it would be alone.

Instances share the calls of kernels and nothing else: each has its own start, data order, augmentation, learning rate,
schedule, number of epochs, BatchNorm statistics and optimiser state. One that has finished, or whose loss is no longer
finite, leaves the stack at the end of an epoch, and the rest go on in a smaller stack.
Shapes: K instances, B samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from prepkit.support.device import gpu_kernels
from prepkit.tasks.randomness import stream_seed
from prepkit.training._engine import ALL_AT_ONCE
from prepkit.training._hyperparameters import Training
from prepkit.training._initialisation import initialise
from prepkit.training._optimiser import Adam, Optimiser, Parameters, Sgd
from prepkit.training._plan import Job
from prepkit.training._schedule import factor
from prepkit.training._start import OWN
from prepkit.training._step import StackSetup, StackStep, Tensors, autocast


@dataclass(frozen=True)
class Snapshot:
    """The tensors of one instance after some of its epochs, on the CPU; `position` is that of its job in the stack."""

    position: int
    epoch: int
    tensors: Tensors

    def id_of(self, job: Job) -> str:
        """The id of the row that the snapshot becomes."""
        return job.id_at(self.epoch) if job.trajectory else job.run


@dataclass(frozen=True)
class Diverged:
    """An attempt whose loss or weights were not finite after an epoch."""

    run: str
    seed: int
    epoch: int


@dataclass
class BestWeights:
    """The weights that were best in validation so far, of each instance in the stack."""

    tensors: Tensors
    accuracy: list[float]
    loss: list[float]
    epoch: list[int]


class Stack:
    """K instances in training; a diverged one begins anew with its next seed once the others have finished.

    jobs:    all jobs, with the seeds of their present attempts
    active:  positions in `jobs` of the instances that are in the stack
    waiting: positions of those that diverged and will begin anew
    epoch:   epochs that the instances in the stack have behind them
    """

    def __init__(self, setup: StackSetup, jobs: Sequence[Job]) -> None:
        self.setup = setup
        self.first = tuple(jobs)
        self.attempts = [0] * len(jobs)
        self.snapshots: list[Snapshot] = []
        self.diverged: list[Diverged] = []
        self.waiting: list[int] = []
        self._start(range(len(jobs)))

    def _start(self, positions: Sequence[int]) -> None:
        self.active = list(positions)
        jobs = self.active_jobs
        shared = [None if job.start == OWN else self.setup.starts[job.start] for job in jobs]
        learning, self.statistics = fresh_tensors(self.setup, [job.seed for job in jobs], shared)
        self.parameters = Parameters(learning)
        self.optimiser = optimiser_of(self.setup.training)
        self._step: StackStep | None = None
        self.epoch = 0
        self.best: BestWeights | None = None

    @property
    def jobs(self) -> list[Job]:
        """All jobs, with the seeds of their present attempts."""
        return [job.reseeded(attempt) for job, attempt in zip(self.first, self.attempts, strict=True)]

    @property
    def active_jobs(self) -> list[Job]:
        """The jobs of the instances in the stack."""
        jobs = self.jobs
        return [jobs[position] for position in self.active]

    @property
    def tensors(self) -> Tensors:
        """All tensors `[K, ...]` of the instances in the stack; the training changes them in place."""
        return {**self.parameters.leaves, **self.statistics}

    def run(self, after_epoch: Callable[[Stack], None] = lambda stack: None) -> None:
        """Train until every instance has finished; `after_epoch` is called after each epoch.

        raises ZooError if an instance diverges with all of its seeds
        """
        with reproducible(self.setup.device):
            while self.active or self.waiting:
                if not self.active:
                    self._start(sorted(self.waiting))
                    self.waiting = []
                losses = self._train_epoch()
                self.epoch += 1
                self._update_best()
                self._dismiss(losses)
                after_epoch(self)

    # One epoch --------------------------------------------------------------------------------------------------

    def _train_epoch(self) -> list[float]:
        """Train one epoch, and return the sum of the losses of all steps for each instance.

        Where instances share dense convolutions, one that diverges spoils the numbers of the others. Then the epoch is
        trained again without, so that no instance ever depends on another.
        """
        setup = self.setup
        self._step = self._step or self._step_by(setup)
        if not setup.way.dense:
            return self._train_by(self._step)
        before = [tensor.clone() for tensor in self._changing()]
        steps = self.optimiser.steps
        losses = self._train_by(self._step)
        if all(map(math.isfinite, losses)) and all(self._finite_instances()):
            return losses
        for tensor, values in zip_longest(self._changing(), before):
            tensor.zero_() if values is None else tensor.copy_(values)  # an optimiser's first state is 0
        self.optimiser.steps = steps
        return self._train_by(self._step_by(replace(setup, way=ALL_AT_ONCE)))

    def _step_by(self, setup: StackSetup) -> StackStep:
        return StackStep(setup, self.parameters, self.statistics, self.optimiser, self.active_jobs)

    def _changing(self) -> list[Tensor]:
        """All tensors that a step changes; those of the optimiser come last."""
        return [self.parameters.values, *self.statistics.values(), *self.optimiser.state.values()]

    def _train_by(self, step: StackStep) -> list[float]:
        setup, training, jobs = self.setup, self.setup.training, self.active_jobs
        step.begin_epoch([job.learning_rate * factor(training.schedule, self.epoch, job.epochs) for job in jobs])
        seeds, items = [job.seed for job in jobs], [job.item for job in jobs]
        seed_all(stream_seed("network", seeds[0], self.epoch), setup.device)  # Dropout draws from it, in stacks of one
        total = torch.zeros(len(jobs), dtype=torch.float64, device=setup.device)
        for batch in setup.task.batches(seeds, items, self.epoch, training.batch_size):
            total += step(batch)
        sums: list[float] = total.tolist()
        return sums

    def _update_best(self) -> None:
        """With "best_validation", keep the weights of instances that are judged now and better than ever before."""
        keep = self.setup.training.keep
        judged = [index for index, job in enumerate(self.active_jobs) if keep.judges(self.epoch, job.epochs)]
        if not judged:
            return
        items = [job.item for job in self.active_jobs]
        size = self.setup.samples_at_once or self.setup.training.batch_size
        scores = self.setup.task.evaluate(self._run, items, "validation", size)
        accuracy, loss = scores["accuracy"].tolist(), scores["loss"].tolist()
        if self.best is None:
            count = len(self.active)
            tensors = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
            self.best = BestWeights(tensors, [-1.0] * count, [math.inf] * count, [0] * count)
        best = self.best
        for index in judged:
            if (accuracy[index], -loss[index]) > (best.accuracy[index], -best.loss[index]):
                best.accuracy[index], best.loss[index], best.epoch[index] = accuracy[index], loss[index], self.epoch
                for name, tensor in self.tensors.items():
                    best.tensors[name][index] = tensor.detach()[index]

    def _run(self, inputs: Tensor) -> Tensor:
        with torch.no_grad(), autocast(self.setup.training, self.setup.device):
            return self.setup.runner(self.tensors, inputs).to(self.setup.dtype)

    def _dismiss(self, losses: Sequence[float]) -> None:
        """Take the snapshots that are due, and remove instances that have finished or diverged from the stack."""
        finite = self._finite_instances()
        stay = []
        for index, (position, job) in enumerate(zip(self.active, self.active_jobs, strict=True)):
            if not (finite[index] and math.isfinite(losses[index])):
                self.give_up(position, self.epoch)
                continue
            if self.epoch in job.kept_epochs:
                self.snapshots.append(self._snapshot(index, position))
            if self.epoch < job.epochs:
                stay.append(index)
        self.keep(stay)

    def give_up(self, position: int, epoch: int) -> None:
        """Drop the snapshots of a job's attempt, which diverged, and put the job among those that begin anew."""
        job = self.jobs[position]
        self.diverged.append(Diverged(job.run, job.seed, epoch))
        self.attempts[position] += 1
        self.waiting.append(position)
        self.snapshots = [shot for shot in self.snapshots if shot.position != position]

    def _finite_instances(self) -> list[bool]:
        finite = torch.ones(len(self.active), dtype=torch.bool, device=self.setup.device)
        for tensor in self.tensors.values():
            finite &= tensor.detach().isfinite().reshape(len(self.active), -1).all(1)
        flags: list[bool] = finite.tolist()
        return flags

    def _snapshot(self, index: int, position: int) -> Snapshot:
        source, epoch = self.tensors, self.epoch
        if self.best is not None:
            source, epoch = self.best.tensors, self.best.epoch[index]
        tensors = {name: tensor.detach()[index].to("cpu", copy=True) for name, tensor in source.items()}
        return Snapshot(position, epoch, tensors)

    def keep(self, kept: Sequence[int]) -> None:
        """Go on with these instances alone; `kept` are their indices in the stack."""
        if len(kept) == len(self.active):
            return
        self.active = [self.active[index] for index in kept]
        self._step = None  # It works on the tensors of all; this also frees what its graph holds.
        if not kept:
            return
        at = torch.tensor(kept, device=self.setup.device)
        old = self.parameters
        self.optimiser.state = {name: old.rows(buffer, kept) for name, buffer in self.optimiser.state.items()}
        self.parameters = Parameters({name: leaf.detach()[at] for name, leaf in old.leaves.items()})
        self.statistics = {name: tensor[at] for name, tensor in self.statistics.items()}
        if self.best is not None:
            best = self.best
            tensors = {name: tensor[at] for name, tensor in best.tensors.items()}
            lists = [[values[index] for index in kept] for values in (best.accuracy, best.loss, best.epoch)]
            self.best = BestWeights(tensors, *lists)  # type: ignore[arg-type]

    # Between epochs, on the disk --------------------------------------------------------------------------------

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """The state from which `restore` goes on: tensors by name, and what JSON can hold."""
        tensors = {"values": self.parameters.values}
        tensors |= {f"optimiser.{name}": buffer for name, buffer in self.optimiser.state.items()}
        tensors |= {f"statistics.{name}": tensor for name, tensor in self.statistics.items()}
        if self.best is not None:
            tensors |= {f"best.{name}": tensor for name, tensor in self.best.tensors.items()}
        for number, shot in enumerate(self.snapshots):
            tensors |= {f"snapshot.{number}.{name}": tensor for name, tensor in shot.tensors.items()}
        best = self.best and {"accuracy": self.best.accuracy, "loss": self.best.loss, "epoch": self.best.epoch}
        facts = {
            "epoch": self.epoch,
            "active": self.active,
            "steps": self.optimiser.steps,
            "best": best,
            "snapshots": [[shot.position, shot.epoch] for shot in self.snapshots],
            "diverged": [[attempt.run, attempt.seed, attempt.epoch] for attempt in self.diverged],
            "attempts": self.attempts,
            "waiting": self.waiting,
        }
        return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, facts

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take over the state that `state` gave for a stack of the same jobs."""
        device = self.setup.device

        def part(prefix: str) -> Tensors:
            return {n.removeprefix(prefix): t.to(device) for n, t in tensors.items() if n.startswith(prefix)}

        self.attempts, self.waiting = list(facts["attempts"]), list(facts["waiting"])
        self.diverged = [Diverged(*attempt) for attempt in facts["diverged"]]
        self.snapshots = [
            Snapshot(position, epoch, {n: t.cpu() for n, t in part(f"snapshot.{number}.").items()})
            for number, (position, epoch) in enumerate(facts["snapshots"])
        ]
        self.active = facts["active"]
        if not self.active:
            return
        self._start(self.active)
        self.parameters.values.copy_(tensors["values"])
        self.optimiser.state, self.optimiser.steps = part("optimiser."), facts["steps"]
        self.statistics = part("statistics.")
        self.best = None if facts["best"] is None else BestWeights(part("best."), **facts["best"])
        self.epoch = facts["epoch"]


# Parts ------------------------------------------------------------------------------------------------------------


def fresh_tensors(
    setup: StackSetup, seeds: Sequence[int], starts: Sequence[Tensors | None] = ()
) -> tuple[Tensors, Tensors]:
    """The trainable parameters and all other tensors, `[K, *shape]`, of networks that are built from these seeds.

    starts: one per network: tensors that take the places of those that were drawn
    """
    learning: list[Tensors] = []
    others: list[Tensors] = []
    with torch.random.fork_rng(devices=[]):
        for seed, start in zip_longest(seeds, starts):
            torch.default_generator.manual_seed(seed)
            network = setup.architecture.build()
            initialise(network, setup.training.initialisation)
            drawn = tensors_of(network)
            tensors = drawn if start is None else {name: start[name] for name in drawn}
            learns = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
            learning.append({name: tensor for name, tensor in tensors.items() if name in learns})
            others.append({name: tensor for name, tensor in tensors.items() if name not in learns})
    return tuple(stacked(rows, setup) for rows in (learning, others))  # type: ignore[return-value]


def tensors_of(network: nn.Module) -> Tensors:
    """The parameters and buffers of a network, those that are tied once."""
    return {name: tensor.detach() for name, tensor in (*network.named_parameters(), *network.named_buffers())}


def stacked(rows: Sequence[Tensors], setup: StackSetup) -> Tensors:
    """K tensors of each name as one `[K, *shape]`, on the setup's device and in its dtype; integers keep theirs."""
    joined = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {
        name: tensor.to(setup.device, setup.dtype if tensor.is_floating_point() else None)
        for name, tensor in joined.items()
    }


def optimiser_of(training: Training) -> Optimiser:
    """The optimiser that a spec names."""
    if training.optimizer == "sgd":
        return Sgd(training.nesterov)
    return Adam(training.betas, training.eps, training.decoupled)


def seed_all(seed: int, device: torch.device) -> None:
    """Seed the global generators that layers such as Dropout draw from."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Use kernels that give the same result every time, and leave torch's global generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), gpu_kernels(device, deterministic=True):
        yield
