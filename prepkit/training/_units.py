"""Units: jobs that are trained together, from their seeds to finished rows. Any machine can train one.

Shapes: K instances.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from prepkit.errors import ZooError, counted
from prepkit.families.registry import Architecture, architecture
from prepkit.running.instances import activation_bytes, forward_flops, is_linear, runner
from prepkit.support.files import replacing
from prepkit.tasks.task import Task
from prepkit.training._engine import ALL_AT_ONCE, Engine
from prepkit.training._fitting import Fit, TaskOfAll
from prepkit.training._hyperparameters import Training
from prepkit.training._plan import Job, TrainingPlan, fitting_job
from prepkit.training._results import Rows, rows_of
from prepkit.training._stack import Diverged, Stack
from prepkit.training._step import StackSetup, Tensors
from prepkit.training.spec import Spec

# Measured for sine MLPs: 2 to 5 MiB are equally good, and all of 20,000 points at once are half as fast.
CACHE_BYTES = 4 << 20
SAVE_SECONDS = 30.0  # A kill costs at most this much, and saving takes little beside what is trained meanwhile.


@dataclass(frozen=True)
class Unit:
    """Jobs of one architecture that are trained together.

    number: position of the unit's rows in the zoo, and in all lists of units
    fit:    what its one job is fitted to, if it gives no row of the zoo but a start
    starts: the tensors that jobs begin with, by the name of the start
    """

    number: int
    architecture: Architecture
    jobs: tuple[Job, ...]
    training: Training
    fit: Fit | None = None
    starts: Mapping[str, Tensors] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Name of the unit in files and messages."""
        return f"unit-{self.number:05d}"

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The ids of all rows that the unit gives."""
        return tuple(id for job in self.jobs for id in job.ids)

    def work(self, task: Task) -> float:
        """The cost of the unit in floating-point operations of forwards, to tell its share of all work."""
        size = self.training.batch_size
        steps = sum(job.epochs for job in self.jobs) * task.num_batches(size) if self.fit is None else self.fit.steps
        return float(steps * forward_flops(self.architecture, size))


@dataclass(frozen=True)
class FinishedUnit:
    """A unit with its rows, and the attempts that diverged on the way."""

    unit: Unit
    rows: Rows
    diverged: list[Diverged]


def units_of(spec: Spec, plan: TrainingPlan, engine: Engine) -> list[Unit]:
    """All units of a zoo, without the teacher's."""
    known = {name: architecture(name) for name in plan.by_architecture}
    stacks = [(jobs[0].architecture, jobs) for jobs in plan.stacks(engine.stacks)]
    return [Unit(number, known[name], jobs, spec.training[name]) for number, (name, jobs) in enumerate(stacks)]


def fits_of(spec: Spec, plan: TrainingPlan, task: Task, first: int) -> list[Unit]:
    """The units whose networks become the starts that are fitted to items; they give no rows of the zoo.

    first: number of the first of them
    """
    fits: list[Unit] = []
    for name, training in spec.training.items():
        if training.start.kind == "fitted":
            items = tuple(job.item for job in plan.by_architecture[name] if job.split == "train")
            fit = Fit(items, training.start.steps)
            own = training.fitting(fit.epochs(task, training.batch_size))
            fits.append(Unit(first + len(fits), architecture(name), (fitting_job(spec, name, own),), own, fit))
    return fits


def train_unit(
    unit: Unit,
    task: Task,
    engine: Engine,
    device: torch.device,
    folder: Path | None = None,
    advance: Callable[[float], None] = lambda work: None,
) -> FinishedUnit:
    """Train the jobs of a unit.

    task:    its data are on the device
    folder:  keeps the state of an interrupted training, which goes on from there; without one it begins anew
    advance: is called after each epoch with the work that was done in it
    raises ZooError if instances diverge whatever their seed or do not fit the memory, UnfoldableNetwork
    """
    if unit.fit is not None:
        task = TaskOfAll(task, unit.fit)
    setup = setup_of(unit, task, engine, device)
    stack = Stack(setup, unit.jobs)
    file = None if folder is None else folder / f"{unit.name}.safetensors"
    if file is not None and file.exists():
        resume(stack, unit, file)
    saved = time.monotonic()
    epoch_work = unit.work(task) / max(1, sum(job.epochs for job in unit.jobs))
    before = len(stack.active) or len(stack.waiting)

    def after_epoch(stack: Stack) -> None:
        nonlocal saved, before
        advance(epoch_work * before)
        before = len(stack.active) or len(stack.waiting)
        if file is not None and time.monotonic() - saved >= SAVE_SECONDS and (stack.active or stack.waiting):
            save(stack, unit, file)
            saved = time.monotonic()

    advance(epoch_work * done_epochs(stack))
    with threads(engine.threads):
        try:
            rows = finished_rows(stack, after_epoch) if unit.fit is None else finished_start(stack, after_epoch)
        except torch.OutOfMemoryError:
            raise ZooError(
                f"{counted(setup.stack, 'instance')} of {unit.architecture.name} at once, with batches of "
                f"{counted(unit.training.batch_size, 'sample')}, do not fit the memory of {device}. "
                "Train them into a new folder with a smaller `stack`."
            ) from None
    return FinishedUnit(unit, rows, stack.diverged)


def finished_rows(stack: Stack, after_epoch: Callable[[Stack], None]) -> Rows:
    """Train until all losses are finite: weights may be finite while outputs on data outside the training are not."""
    while True:
        stack.run(after_epoch)
        rows = rows_of(stack.setup, stack.jobs, stack.snapshots)
        losses = [values for name, values in rows.columns.items() if name.endswith("loss")]
        infinite = {
            run for run, *each in zip(rows.columns["run"], *losses, strict=True) if not all(map(math.isfinite, each))
        }
        if not infinite:
            return rows
        for position, job in enumerate(stack.jobs):
            if job.run in infinite:
                stack.give_up(position, job.epochs)


def finished_start(stack: Stack, after_epoch: Callable[[Stack], None]) -> Rows:
    """Train the one network that becomes a start, and return its tensors as they are, with BatchNorm."""
    stack.run(after_epoch)
    (shot,) = stack.snapshots
    return Rows([stack.first[0].run], [None], {name: tensor[None] for name, tensor in shot.tensors.items()}, {})


def setup_of(unit: Unit, task: Task, engine: Engine, device: torch.device) -> StackSetup:
    """What the instances of a unit have in common."""
    architecture = unit.architecture
    size = min(len(unit.jobs), engine.stacks.get(architecture.name, 1))
    run = runner(architecture, False, size > 1, device, dense=False)
    samples = samples_at_once(architecture, size, device)
    way = engine.way_of(architecture.name) if size > 1 else ALL_AT_ONCE
    return StackSetup(architecture, unit.training, task, run, device, size, samples, way=way, starts=unit.starts)


def samples_at_once(architecture: Architecture, stack: int, device: torch.device) -> int | None:
    """How many samples to run at once so that activations stay in a CPU's cache; None for a whole batch.

    A batch is only divided for linear layers: they keep no batch statistics and are fast for any number of samples.
    """
    if device.type != "cpu" or not is_linear(architecture):
        return None
    return max(1, CACHE_BYTES // (stack * activation_bytes(architecture, 1)))


def done_epochs(stack: Stack) -> int:
    """The sum of the epochs that the instances of a stack have behind them when it is resumed."""
    unfinished = {*stack.active, *stack.waiting}
    finished = [job for position, job in enumerate(stack.jobs) if position not in unfinished]
    return stack.epoch * len(stack.active) + sum(job.epochs for job in finished)


# Interrupted units --------------------------------------------------------------------------------------------


def save(stack: Stack, unit: Unit, file: Path) -> None:
    """Write the state of a stack, from which a killed training goes on."""
    from safetensors.torch import save_file

    tensors, facts = stack.state()
    facts["runs"] = [job.run for job in unit.jobs]
    cpu = {name: tensor.cpu() for name, tensor in tensors.items()}
    with replacing(file, overwrite=True) as path:
        save_file(cpu, path, {"facts": json.dumps(facts)})


def resume(stack: Stack, unit: Unit, file: Path) -> None:
    """Set a stack to the state that `save` wrote; raises ZooError if the file does not hold the state of this unit."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            facts: dict[str, Any] = json.loads((opened.metadata() or {})["facts"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
        if facts.pop("runs") != [job.run for job in unit.jobs]:
            raise ZooError("it holds other instances")
        stack.restore(tensors, facts)
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise ZooError(f"{file}: cannot be resumed: {error}. Delete it to train these instances anew.") from None


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use this number of threads, and the former number afterwards; None changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
