"""Finding out by timing in which way the stacks of a zoo share a GPU.

Which way is fastest depends on architecture, precision and device. On an H200, packs of four or eight ResNet8 with
dense convolutions on four streams take 1.7 times as many steps a second as all 32 in groups, and 13 times as many as
the loop that everybody writes (benchmarks/results). Sine MLPs are fastest all at once, so those without convolutions
are not tried.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from prepkit.errors import PrepkitError
from prepkit.families.registry import Architecture, architecture
from prepkit.running.instances import is_linear, padding_matters
from prepkit.tasks.task import Task, TaskBatch
from prepkit.training._engine import ALL_AT_ONCE, Engine, Way
from prepkit.training._plan import Job, TrainingPlan
from prepkit.training._stack import Stack, reproducible
from prepkit.training._start import OWN
from prepkit.training._step import WARMUPS, StackStep
from prepkit.training._units import Unit, setup_of
from prepkit.training.spec import Spec

LEAST_STEPS = 2_000  # A trial takes a few seconds, which fewer steps do not earn back.
ROUNDS, STEPS = 3, 8
# Four images of 1 or 3 channels have no multiple of 8 beside each other, which matrix units want; eight images have.
WAYS = (ALL_AT_ONCE, Way(4, 4, dense=True), Way(4, 4, dense=True, padded=True), Way(8, 4, dense=True), Way(1, 8))

Timed = Callable[[Callable[[], object]], float]


def with_ways(
    engine: Engine,
    spec: Spec,
    plan: TrainingPlan,
    task: Task,
    device: torch.device,
    say: Callable[[str], None] = lambda text: None,
    timed: Timed | None = None,
) -> Engine:
    """The engine with the fastest way for each architecture whose training is long enough to make a trial worth it.

    task:  its data are on the device
    say:   is given a line about each trial
    timed: gives the seconds of a call; for tests
    """
    ways = {}
    for name, size in engine.stacks.items():
        jobs, training = plan.by_architecture[name], spec.training[name]
        stacks = -(-len(jobs) // size)
        steps = stacks * max(job.epochs for job in jobs) * task.num_batches(training.batch_size)
        known = architecture(name)
        if size == 1 or steps < LEAST_STEPS or is_linear(known):
            continue
        smaller = ways_for(known, size)
        own = tuple(replace(job, start=OWN) for job in jobs[:size])  # a step takes as long from any start
        seconds = trial(Unit(0, known, own, training), smaller, engine, task, device, timed)
        if not seconds:
            continue
        best = min(seconds, key=lambda way: seconds[way])
        if best != ALL_AT_ONCE:
            ways[name] = best
        rates = "; ".join(f"{way} {1 / each:.1f}" for way, each in seconds.items())
        say(f"note: {size} {name} are trained {best}. Steps a second in a trial: {rates}.")
    return replace(engine, ways=ways)


def ways_for(architecture: Architecture, size: int) -> list[Way]:
    """The ways that differ for a stack of this size."""
    few = [way for way in WAYS if way.at_once is None or way.at_once < size]
    return [way for way in few if not way.padded or padding_matters(architecture, way.at_once or size)]


def trial(
    unit: Unit, ways: Iterable[Way], engine: Engine, task: Task, device: torch.device, timed: Timed | None = None
) -> dict[Way, float]:
    """Seconds of a step of a unit in each way; without those that do not fit the memory or cannot be run."""
    batch = first_batch(unit.jobs, task, unit.training.batch_size)
    seconds = {}
    for way in ways:
        own = replace(engine, ways={unit.architecture.name: way})
        try:
            seconds[way] = seconds_of_a_step(Stack(setup_of(unit, task, own, device), unit.jobs), batch, timed)
        except (torch.OutOfMemoryError, PrepkitError):  # it does not fit, or cannot be run so
            continue
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return seconds


def first_batch(jobs: tuple[Job, ...], task: Task, batch_size: int) -> TaskBatch:
    """A batch for all instances, out of the data of the first: data sets of their own may take long to make."""
    return next(iter(task.batches([job.seed for job in jobs], [jobs[0].item] * len(jobs), 0, batch_size)))


def seconds_of_a_step(stack: Stack, batch: TaskBatch, timed: Timed | None = None) -> float:
    """The median time of a step, once it is recorded."""
    setup, jobs = stack.setup, stack.active_jobs
    with reproducible(setup.device):
        step = StackStep(setup, stack.parameters, stack.statistics, stack.optimiser, jobs)
        step.begin_epoch([job.learning_rate for job in jobs])

        def steps(count: int = STEPS) -> None:
            for _ in range(count):
                step(batch)
            if setup.device.type == "cuda":
                torch.cuda.synchronize(setup.device)

        steps(WARMUPS + 1)
        return statistics.median((timed or clocked)(steps) for _ in range(ROUNDS)) / STEPS


def clocked(call: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
