"""A unit of work: the jobs that are trained together, from their seeds to finished rows. Any machine can do one.

Shapes: K instances.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from prepkit.errors import ZooError, counted
from prepkit.families.registry import Architecture, architecture
from prepkit.files import replacing
from prepkit.running.instances import activation_bytes, forward_flops, is_linear, runner
from prepkit.tasks.task import Task
from prepkit.training.engine import Engine
from prepkit.training.hyperparameters import Training
from prepkit.training.plan import Job, Plan
from prepkit.training.results import Rows, rows_of
from prepkit.training.spec import Spec
from prepkit.training.stack import Diverged, Setting, Stack

CACHE_BYTES = 4 << 20  # measured: 2 to 5 MiB are equally good for sine MLPs, all of 20,000 points half as fast
SAVE_SECONDS = 30.0  # what a kill costs at most, and little beside what is trained meanwhile


@dataclass(frozen=True)
class Unit:
    """Jobs of one architecture that are trained together.

    number: in the order in which units stand in the zoo
    """

    number: int
    jobs: tuple[Job, ...]
    training: Training

    @property
    def architecture(self) -> str:
        """Of all its jobs."""
        return self.jobs[0].architecture

    @property
    def name(self) -> str:
        """For files and messages."""
        return f"unit-{self.number:05d}"

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Of all rows that it ends in."""
        return tuple(id for job in self.jobs for id in job.ids)

    def work(self, task: Task) -> float:
        """What it costs, in floating-point operations of forwards: for a share of all."""
        size = self.training.batch_size
        steps = sum(job.epochs for job in self.jobs) * task.num_batches(size)
        return float(steps * forward_flops(architecture(self.architecture), size))


@dataclass(frozen=True)
class Done:
    """A finished unit: its rows, and the attempts that diverged on the way."""

    unit: Unit
    rows: Rows
    diverged: list[Diverged]


def units_of(spec: Spec, plan: Plan, engine: Engine) -> list[Unit]:
    """All units of a zoo, without the teacher's."""
    stacks = plan.stacks(engine.stacks)
    return [Unit(number, jobs, spec.training[jobs[0].architecture]) for number, jobs in enumerate(stacks)]


def train_unit(
    unit: Unit,
    task: Task,
    engine: Engine,
    device: torch.device,
    folder: Path | None = None,
    tell: Callable[[float], None] = lambda work: None,
) -> Done:
    """Train the jobs of a unit.

    task:   on the device
    folder: where a training that is interrupted leaves what it needs to go on; None to begin anew then
    tell:   called after each epoch with the work that it was
    raises ZooError if instances diverge whatever their seed or do not fit the memory, UnfoldableNetwork,
    VerificationError
    """
    setting = setting_of(unit, task, engine, device)
    stack = Stack(setting, unit.jobs)
    file = None if folder is None else folder / f"{unit.name}.safetensors"
    if file is not None and file.exists():
        resume(stack, unit, file)
    saved = time.monotonic()
    epoch_work = unit.work(task) / max(1, sum(job.epochs for job in unit.jobs))
    before = len(stack.active) or len(stack.waiting)

    def after_epoch(stack: Stack) -> None:
        nonlocal saved, before
        tell(epoch_work * before)
        before = len(stack.active) or len(stack.waiting)
        if file is not None and time.monotonic() - saved >= SAVE_SECONDS and (stack.active or stack.waiting):
            save(stack, unit, file)
            saved = time.monotonic()

    tell(epoch_work * done_epochs(stack))
    with threads(engine.threads):
        try:
            rows = finished_rows(stack, after_epoch)
        except torch.OutOfMemoryError:
            raise ZooError(
                f"{counted(setting.stack, 'instance')} of {unit.architecture} at once, with batches of "
                f"{counted(unit.training.batch_size, 'sample')}, do not fit the memory of {device}. "
                "Train them into a new folder with a smaller --stack."
            ) from None
    return Done(unit, rows, stack.diverged)


def finished_rows(stack: Stack, after_epoch: Callable[[Stack], None]) -> Rows:
    """Train until every row can be judged: weights may be finite, and outputs on data that training never saw not."""
    while True:
        stack.run(after_epoch)
        rows = rows_of(stack.setting, stack.jobs, stack.snapshots)
        losses = [values for name, values in rows.columns.items() if name.endswith("loss")]
        infinite = {
            run for run, *each in zip(rows.columns["run"], *losses, strict=True) if not all(map(math.isfinite, each))
        }
        if not infinite:
            return rows
        for position, job in enumerate(stack.jobs):
            if job.run in infinite:
                stack.give_up(position, job.epochs)


def setting_of(unit: Unit, task: Task, engine: Engine, device: torch.device) -> Setting:
    """What the instances of a unit have in common."""
    known = architecture(unit.architecture)
    size = min(len(unit.jobs), engine.stacks.get(unit.architecture, 1))
    part = part_of(known, size, device)
    return Setting(known, unit.training, task, runner(known, False, size > 1, device), device, size, part)


def part_of(known: Architecture, stack: int, device: torch.device) -> int | None:
    """How many samples are run at once so that what layers put out stays in a CPU's cache; None for all of a batch.

    Only where samples do not meet (no batch statistics) and a layer takes any number equally well: linear ones.
    """
    if device.type != "cpu" or not is_linear(known):
        return None
    return max(1, CACHE_BYTES // (stack * activation_bytes(known, 1)))


def done_epochs(stack: Stack) -> int:
    """Epochs that a stack has behind it, of all its instances, when it is resumed."""
    active = set(stack.active)
    waiting = set(stack.waiting)
    left = [job for position, job in enumerate(stack.jobs) if position not in active | waiting]
    return stack.epoch * len(active) + sum(job.epochs for job in left)


# Interrupted units --------------------------------------------------------------------------------------------


def save(stack: Stack, unit: Unit, file: Path) -> None:
    """Write a stack's state, so that a killed training goes on from here."""
    from safetensors.torch import save_file

    tensors, facts = stack.state()
    facts["runs"] = [job.run for job in unit.jobs]
    cpu = {name: tensor.cpu() for name, tensor in tensors.items()}
    with replacing(file, overwrite=True) as path:
        save_file(cpu, path, {"facts": json.dumps(facts)})


def resume(stack: Stack, unit: Unit, file: Path) -> None:
    """Set a stack to the state that `save` wrote.

    raises ZooError if the file holds something else
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            facts: dict[str, Any] = json.loads((opened.metadata() or {})["facts"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
        if facts.pop("runs") != [job.run for job in unit.jobs]:
            raise ZooError("it is of other instances")
        stack.restore(tensors, facts)
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise ZooError(f"{file}: cannot be gone on with: {error}. Delete it to train these instances anew.") from None


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """A number of threads for torch, and the one before afterwards; None leaves it."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
