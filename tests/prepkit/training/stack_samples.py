"""Jobs on random images, and plain loops that train them one after the other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import prepkit
from prepkit.families.registry import Architecture
from prepkit.running.instances import runner
from prepkit.tasks.task import TaskBatch
from prepkit.training._hyperparameters import Training
from prepkit.training._plan import Job
from prepkit.training._stack import Stack
from prepkit.training._step import StackSetup
from prepkit.training._values import Epochs, Range, Schedule

CPU = torch.device("cpu")

CLASSES = 10


class Noise:
    """A task of random images: 3 batches of 8, one of 5; a function of seed and epoch alone."""

    record: Mapping[str, Any] = {"kind": "images"}
    input_shape = (1, 8, 8)
    num_outputs = CLASSES
    splits: Mapping[str, int] = {"train": 29, "validation": 16, "test": 16}
    steps = 4

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype

    def to(self, device: object, dtype: torch.dtype | None = None) -> "Noise":
        return type(self)(dtype or torch.float32)

    def num_batches(self, batch_size: int) -> int:
        return self.steps

    def batch(self, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000 + epoch * 10 + step)
        size = 8 if step < 3 else 5
        images = torch.randn(size, *self.input_shape, generator=generator, dtype=torch.float64).to(self.dtype)
        return images, torch.randint(0, CLASSES, (size,), generator=generator)

    def batches(self, seeds: Sequence[int], items: Sequence[int], epoch: int, batch_size: int) -> Iterator[TaskBatch]:
        for step in range(self.steps):
            pairs = [self.batch(seed, epoch, step) for seed in seeds]
            yield TaskBatch(torch.stack([images for images, _ in pairs]), torch.stack([labels for _, labels in pairs]))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)

    def evaluate(self, run: Any, items: Sequence[int], split: str, batch_size: int = 512) -> dict[str, Tensor]:
        images, labels = self.batch(77, 0, 0)
        outputs = run(images)
        losses = cross_entropy(outputs.transpose(1, 2), labels.expand(len(items), -1), reduction="none").mean(1)
        accuracy = (outputs.argmax(-1) == labels).double().mean(1)
        return {"accuracy": accuracy.cpu(), "loss": losses.double().cpu()}


class ThreeSteps(Noise):
    """An epoch of three batches."""

    steps = 3


def training(**changes: Any) -> Training:
    fixed: dict[str, Any] = {"optimizer": "sgd", "learning_rate": Range(0.05, 0.05), "batch_size": 8}
    return Training(**{**fixed, "epochs": Epochs((3,)), **changes})


def jobs(architecture: str, count: int, epochs: Sequence[int] = (3,), **changes: Any) -> list[Job]:
    made = []
    for index in range(count):
        own = epochs[index % len(epochs)]
        fixed: dict[str, Any] = {
            "learning_rate": 0.02 * (index + 1),
            "momentum": 0.9 - index / 5,
            "weight_decay": 0.01 * index,
        }
        run = f"run-{index:05d}"
        made.append(Job(architecture, index, "train", 40 + index, index, own, run=run, kept_epochs=(own,), **fixed))
    return [replace(job, **changes) for job in made]


def setting(
    name: str, own: Training, stacked: bool = True, dtype: torch.dtype = torch.float64, task: type[Noise] = Noise
) -> StackSetup:
    known = prepkit.architecture(name)
    return StackSetup(known, own, task(dtype), runner(known, False, stacked, CPU), CPU, stack=4, dtype=dtype)


def trained(own: StackSetup, all_jobs: Sequence[Job]) -> Stack:
    stack = Stack(own, all_jobs)
    stack.run()
    return stack


def optimiser(own: Training, network: nn.Module, job: Job) -> torch.optim.Optimizer:
    common = {"lr": job.learning_rate, "weight_decay": job.weight_decay}
    if own.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), momentum=job.momentum, nesterov=own.nesterov, **common)
    kind = torch.optim.AdamW if own.decoupled else torch.optim.Adam
    return kind(network.parameters(), betas=own.betas, eps=own.eps, **common)


def alone(known: Architecture, own: Training, job: Job, task: Noise) -> dict[str, Tensor]:
    """The loop that everybody writes."""
    torch.manual_seed(job.seed)
    network = known.build().to(task.dtype).train()
    updates = optimiser(own, network, job)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(updates, [1, 2], 0.5)
    for epoch in range(job.epochs):
        for step in range(task.steps):
            images, labels = task.batch(job.seed, epoch, step)
            updates.zero_grad()
            cross_entropy(network(images), labels).backward()
            updates.step()
        scheduler.step()
    return dict(network.state_dict())


def alone_by_epoch(own: Training, job: Job, factors: Sequence[float] | None = None) -> Iterator[dict[str, Tensor]]:
    """The same loop with a learning rate set by hand; the state after each epoch."""
    torch.manual_seed(job.seed)
    network = prepkit.architecture(job.architecture).build().double().train()
    updates = optimiser(own, network, job)
    for epoch in range(job.epochs):
        updates.param_groups[0]["lr"] = job.learning_rate * (factors[epoch] if factors else 1.0)
        for step in range(Noise.steps):
            images, labels = Noise().batch(job.seed, epoch, step)
            updates.zero_grad()
            cross_entropy(network(images), labels).backward()
            updates.step()
        yield {name: tensor.clone() for name, tensor in network.state_dict().items()}


def counted(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with the numbers of batches of others, which a stack does not count."""
    return {**tensors, **{name: t for name, t in expected.items() if name.endswith("num_batches_tracked")}}


def worst(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest relative difference of a tensor."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - value).abs().amax() / value.abs().amax().clamp_min(1e-12))
        for name, value in expected.items()
        if value.is_floating_point()
    )


STEPS = Schedule("step", at=(1, 2), factor=0.5)

TRAININGS = {
    "sgd": training(schedule=STEPS),
    "nesterov": training(schedule=STEPS, nesterov=True),
    "adam": training(optimizer="adam", betas=(0.8, 0.95), eps=1e-6, schedule=STEPS),
    "adamw": training(optimizer="adam", decoupled=True, schedule=STEPS),
}

POISONED = 41  # the seed of the second job


class Poisoned(Noise):
    """Batches of one seed hold an infinite pixel from the second epoch on: its instance diverges."""

    def batch(self, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        images, labels = super().batch(seed, epoch, step)
        if seed == POISONED and epoch >= 1 and step == 2:
            images[3, 0, 2, 2] = torch.inf
        return images, labels
