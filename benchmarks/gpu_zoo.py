"""The zoo's half of `gpu_check.py`: waits in a step, speed of several engines, resuming, stacks against instances.

Each function takes a device and `tiny`, returns figures that JSON can hold, and raises AssertionError for a wrong one.
Images are random; there is nothing to download. With `tiny` all runs on a CPU in seconds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import prepkit
from benchmarks.gpu_sheet import Figures, counted_waits, say, wait
from benchmarks.gpu_zoo_ways import ADAM, SGD, Tensors, release, zoo_speed
from prepkit.running.instances import runner
from prepkit.tasks import load_task
from prepkit.tasks._augmentation import Normalisation
from prepkit.tasks._image_record import Augmentation
from prepkit.tasks._image_set import Part
from prepkit.tasks.images import Dealt, ImageTask
from prepkit.tasks.task import Task
from prepkit.training import _engine as sharing
from prepkit.training import _trial as trials
from prepkit.training import _units as units
from prepkit.training._engine import Engine
from prepkit.training._hyperparameters import Training
from prepkit.training._plan import Job
from prepkit.training._stack import Stack, reproducible
from prepkit.training._step import StackSetup

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DENSE = sharing.Way(4, 4, dense=True)


# Tasks, jobs and stacks out of nothing ----------------------------------------------------------------------------


def image_task(device: torch.device, images: int, dtype: torch.dtype = torch.float32) -> ImageTask:
    """Random images of CIFAR-10's shape, cropped and mirrored as the paper's are."""
    draws = torch.Generator().manual_seed(0)

    def part(count: int) -> Dealt:
        pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=draws)
        return Dealt(Part(pixels, torch.randint(10, (count,), generator=draws)))

    parts = {"train": part(images), "validation": part(64), "test": part(64)}
    task = ImageTask({"kind": "images"}, parts, 10, Normalisation(255, MEAN, STD), Augmentation(4, True))
    return task.to(device, dtype)


def shape_task(device: torch.device, pool: int, steps: int) -> Task:
    record = {
        "kind": "shapes",
        "dataset": "procedural_chairs",
        "seed": 3,
        "points": {"pool": pool, "near_surface": 0.5, "sigma": 0.05},
        "split": {"seed": 1, "test": 64, "validation": 64},
        "steps_per_epoch": steps,
    }
    return load_task(record).to(device)


def jobs_of(name: str, count: int, epochs: int) -> tuple[Job, ...]:
    """Jobs with rates, momenta and weight decays of their own."""
    return tuple(
        Job(
            architecture=name,
            index=index,
            split="train",
            seed=100 + index,
            item=index,
            epochs=epochs,
            learning_rate=0.001 * (1 + index % 5),
            momentum=0.9 - index % 3 / 10,
            weight_decay=1e-4 * (index % 4),
            run=f"run-{index:05d}",
            kept_epochs=(epochs,),
        )
        for index in range(count)
    )


def stack_of(
    name: str,
    task: Task,
    jobs: Sequence[Job],
    training: Training,
    device: torch.device,
    dtype: torch.dtype,
    way: sharing.Way = sharing.ALL_AT_ONCE,
) -> Stack:
    known = prepkit.architecture(name)
    run = runner(known, False, len(jobs) > 1, device, dense=False)
    return Stack(StackSetup(known, training, task, run, device, len(jobs), None, dtype, way), jobs)


# (b) Waits of a step ----------------------------------------------------------------------------------------------


def zoo_waits(device: torch.device, tiny: bool) -> Figures:
    """Which lines of one epoch make the host wait for the device, and how often a step; after a first epoch.

    4 ResNet8@cifar10 with cropping and mirroring, and 4 sine MLPs on chairs.
    """
    batch = 4 if tiny else 128
    steps = 2 if tiny else 32  # so many images that they are kept as bytes, as those of CIFAR-10 are
    settings = {
        "resnet8@cifar10": (image_task(device, batch * steps), replace(SGD, batch_size=batch)),
        "sine_mlp@sdf_small": (shape_task(device, 512, steps), replace(ADAM, batch_size=batch)),
    }
    figures: Figures = {}
    for name, (task, training) in settings.items():
        stack = stack_of(name, task, jobs_of(name, 4, 9), training, device, torch.float32)
        stack._train_epoch()
        stack.epoch += 1
        with counted_waits(device) as places:
            losses = stack._train_epoch()
        assert all(loss == loss for loss in losses), losses
        figures[name] = {"steps": steps, "waits a step": sum(places.values()) / steps, "places": dict(places)}
        say(f"waits, {name}: {figures[name]}")
    return figures


def zoo_epoch(device: torch.device, tiny: bool) -> Figures:
    """Steps a second of `zoo train` itself, batches included, and of its batches alone: K = 32 ResNet8@cifar10."""
    count, batch, steps = (2, 4, 2) if tiny else (32, 128, 32)
    figures: Figures = {}
    for way in (DENSE, sharing.ALL_AT_ONCE):
        for precision in ("bfloat16", "float32"):
            release(device)
            task = image_task(device, batch * steps)
            jobs = jobs_of("resnet8@cifar10", count, 9)
            training = replace(SGD, batch_size=batch, precision=precision)
            stack = stack_of("resnet8@cifar10", task, jobs, training, device, torch.float32, way)
            rates = []
            with reproducible(device):
                for number in range(2 if tiny else 4):
                    wait(device)
                    began = time.perf_counter()
                    stack._train_epoch()
                    wait(device)
                    if number:
                        rates.append(steps / (time.perf_counter() - began))
                    stack.epoch += 1
            rate = statistics.median(rates)
            found: Figures = {
                "steps a second": round(rate, 2),
                "spread": [round(min(rates), 2), round(max(rates), 2)],
                "instance-steps a second": round(rate * count, 1),
            }
            if device.type == "cuda":
                found["peak MiB"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
            began = time.perf_counter()
            for made in task.batches([job.seed for job in jobs], [job.item for job in jobs], 7, batch):
                assert made.inputs.shape[:2] == (count, batch)
            wait(device)
            found["batches a second, alone"] = round(steps / (time.perf_counter() - began), 1)
            figures[f"{way}, {precision}"] = found
            say(f"zoo train, {way}, {precision}: {found}")
    return figures


def zoo_trials(device: torch.device, tiny: bool) -> Figures:
    """Steps a second of all ways that `zoo train` tries, for ResNet8, ResNet32 and sine MLPs."""
    images, shapes = image_task(device, 8 if tiny else 4096), shape_task(device, 512 if tiny else 65_536, 2)
    few = replace(SGD, batch_size=4 if tiny else 128)
    points = replace(ADAM, batch_size=16 if tiny else 20_000)
    sdf = "sine_mlp@sdf_small" if tiny else "sine_mlp@sdf"
    cases = [
        ("resnet8@cifar10", 2 if tiny else 32, images, few),
        (sdf, 2 if tiny else 32, shapes, points),
        ("lenet_like@cifar10" if tiny else "resnet32@cifar10", 2 if tiny else 16, images, few),
    ]
    figures: Figures = {}
    for name, count, task, training in cases:
        known = prepkit.architecture(name)
        for precision in ("bfloat16", "float32"):
            release(device)
            unit = units.Unit(0, known, jobs_of(name, count, 9), replace(training, precision=precision))
            engine = Engine(device.type, None, {name: count})
            ways = trials.ways_for(known, count)[: 2 if tiny else None]
            seconds = trials.trial(unit, ways, engine, task, device)
            found = {str(way): round(1 / each, 2) for way, each in seconds.items()}
            figures[f"{name}, K = {count}, {precision}"] = found
            say(f"trial, {name}, K = {count}, {precision}: {found}")
    return figures


# (e) Resumed, and many against one --------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def zoo_resumed(device: torch.device, tiny: bool) -> Figures:
    """Whether a unit that is killed between epochs and resumed gives the same bytes as one that is not."""
    name = "resnet8@cifar10"
    count, batch, images = (2, 4, 8) if tiny else (8, 128, 1024)
    figures: Figures = {}
    for precision, way in (("float32", DENSE), ("bfloat16", DENSE), ("bfloat16", sharing.ALL_AT_ONCE)):
        training = replace(SGD, batch_size=batch, precision=precision)
        task = image_task(device, images)
        unit = units.Unit(0, prepkit.architecture(name), jobs_of(name, count, 3), training)
        threads = 1 if device.type == "cpu" else None
        engine = Engine(device.type, threads, {name: count}, {} if way == sharing.ALL_AT_ONCE else {name: way})
        whole = [units.train_unit(unit, task, engine, device) for _ in range(2)]
        with tempfile.TemporaryDirectory() as folder:
            resumed = killed_and_resumed(unit, task, engine, device, Path(folder))
        figures[f"{precision}, {way}"] = {
            "repeated": differences(whole[0].rows.tensors, whole[1].rows.tensors),
            "resumed": differences(whole[0].rows.tensors, resumed.rows.tensors),
        }
        say(f"resumed, {precision}, {way}: {figures[f'{precision}, {way}']}")
    assert all(not worst for found in figures.values() for worst in found.values()), figures
    return figures


def killed_and_resumed(
    unit: units.Unit, task: Task, engine: Engine, device: torch.device, folder: Path
) -> units.FinishedUnit:
    """Train a unit, kill it after one epoch, and train it to its end."""
    seconds = units.SAVE_SECONDS
    units.SAVE_SECONDS = 0.0
    calls = 0

    def advance(work: float) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:  # the first call is for what was done before; the state is saved after each epoch's call
            raise Killed

    try:
        try:
            units.train_unit(unit, task, engine, device, folder, advance)
        except Killed:
            pass
        else:
            raise AssertionError("it was not killed")
        assert list(folder.glob("*.safetensors")), "no state was saved"
        return units.train_unit(unit, task, engine, device, folder)
    finally:
        units.SAVE_SECONDS = seconds


def zoo_many_against_one(device: torch.device, tiny: bool) -> Figures:
    """The largest relative difference in float64 between instances of a stack and the same ones trained alone."""
    figures: Figures = {}
    count, batch, images = (2, 4, 12) if tiny else (8, 32, 128)
    name, task = "resnet8@cifar10", image_task(device, images, torch.float64)
    for training, way in ((SGD, sharing.ALL_AT_ONCE), (ADAM, sharing.ALL_AT_ONCE), (ADAM, DENSE)):
        own = replace(training, batch_size=batch)
        jobs = jobs_of(name, count, 1)
        many = snapshots(stack_of(name, task, jobs, own, device, torch.float64, way))
        worst = 0.0
        for job, found in zip(jobs, many, strict=True):
            (alone,) = snapshots(stack_of(name, task, [job], own, device, torch.float64))
            worst = max(worst, differences(alone, found, count_batches=False))
        figures[f"{name}, {training.optimizer}, {way}"] = worst
        say(f"{count} against one in float64, {name}, {training.optimizer}, {way}: {worst:.1e}")
        assert worst < 1e-8, worst
    return figures


def snapshots(stack: Stack) -> list[Tensors]:
    stack.run()
    return [shot.tensors for shot in sorted(stack.snapshots, key=lambda shot: shot.position)]


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], count_batches: bool = True) -> float:
    """The largest difference of a tensor, relative to its largest value."""
    worst = 0.0
    for name, tensor in expected.items():
        if count_batches or not name.endswith("num_batches_tracked"):
            scale = tensor.abs().amax().clamp_min(1e-12)
            worst = max(worst, float(((found[name] - tensor).abs().amax() / scale).double()))
    return worst


CHECKS: dict[str, Callable[[torch.device, bool], Figures]] = {
    "zoo waits": zoo_waits,
    "zoo many against one": zoo_many_against_one,
    "zoo resumed": zoo_resumed,
    "zoo epoch": zoo_epoch,
    "zoo trials": zoo_trials,
    "zoo speed": zoo_speed,
}


def main() -> None:
    """Run all checks of this half on the device at hand: `python -m benchmarks.gpu_zoo [--tiny]`."""
    import sys

    tiny = "--tiny" in sys.argv
    device = torch.device("cpu" if tiny else "cuda")
    for name, check in CHECKS.items():
        began = time.monotonic()
        try:
            check(device, tiny)
        except Exception as error:
            say(f"FAILED {name}: {type(error).__name__}: {error}")
        say(f"{name}: {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
