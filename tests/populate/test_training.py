"""A stack equals its instances trained alone by a plain PyTorch loop that shares nothing with it but the data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import prepkit
from prepkit.instances import runner
from prepkit.populate.plan import Job
from prepkit.populate.training import Setting, Stack
from prepkit.populate.training_spec import Training
from prepkit.populate.training_values import Epochs, Range, Schedule
from prepkit.registry import Architecture
from prepkit.tasks.task import Batch

CPU = torch.device("cpu")
CLASSES = 10


class Noise:
    """A task of random images: 3 batches of 8, one of 5; a function of seed and epoch alone."""

    record: Mapping[str, Any] = {"kind": "images"}
    input_shape = (1, 8, 8)
    num_outputs = CLASSES
    splits: Mapping[str, int] = {"train": 29, "validation": 16, "test": 16}

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype

    def to(self, device: object, dtype: torch.dtype | None = None) -> "Noise":
        return Noise(dtype or torch.float32)

    def num_batches(self, batch_size: int) -> int:
        return 4

    def batch(self, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000 + epoch * 10 + step)
        size = 8 if step < 3 else 5
        images = torch.randn(size, *self.input_shape, generator=generator, dtype=torch.float64).to(self.dtype)
        return images, torch.randint(0, CLASSES, (size,), generator=generator)

    def batches(self, seeds: Sequence[int], items: Sequence[int], epoch: int, batch_size: int) -> Iterator[Batch]:
        for step in range(4):
            pairs = [self.batch(seed, epoch, step) for seed in seeds]
            yield Batch(torch.stack([images for images, _ in pairs]), torch.stack([labels for _, labels in pairs]))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)

    def evaluate(self, run: Any, items: Sequence[int], split: str, batch_size: int = 512) -> dict[str, Tensor]:
        images, labels = self.batch(77, 0, 0)
        outputs = run(images)
        losses = cross_entropy(outputs.transpose(1, 2), labels.expand(len(items), -1), reduction="none").mean(1)
        accuracy = (outputs.argmax(-1) == labels).double().mean(1)
        return {"accuracy": accuracy.cpu(), "loss": losses.double().cpu()}


def training(**changes: Any) -> Training:
    fixed: dict[str, Any] = {"optimizer": "sgd", "learning_rate": Range(0.05, 0.05), "batch_size": 8}
    return Training(**{**fixed, "epochs": Epochs((3,)), **changes})


def jobs(architecture: str, count: int, epochs: Sequence[int] = (3,), **changes: Any) -> list[Job]:
    made = []
    for index in range(count):
        own = epochs[index % len(epochs)]
        fixed: dict[str, Any] = {"learning_rate": 0.02 * (index + 1), "momentum": 0.9, "weight_decay": 0.01 * index}
        run = f"run-{index:05d}"
        made.append(Job(architecture, index, "train", 40 + index, index, own, run=run, kept_epochs=(own,), **fixed))
    return [replace(job, **changes) for job in made]


def setting(name: str, own: Training, stacked: bool = True, dtype: torch.dtype = torch.float64) -> Setting:
    known = prepkit.architecture(name)
    return Setting(known, own, Noise(dtype), runner(known, False, stacked, CPU), CPU, stack=4, dtype=dtype)


def trained(own: Setting, all_jobs: Sequence[Job]) -> Stack:
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
        for step in range(4):
            images, labels = task.batch(job.seed, epoch, step)
            updates.zero_grad()
            cross_entropy(network(images), labels).backward()
            updates.step()
        scheduler.step()
    return dict(network.state_dict())


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


@pytest.mark.parametrize("kind", TRAININGS)
@pytest.mark.parametrize("name", ["resnet8@digits", "lenet_like@digits", "vanilla_cnn@digits"])
def test_a_stack_equals_its_instances_trained_alone(name: str, kind: str) -> None:
    own = TRAININGS[kind]
    rate = 0.1 if own.optimizer == "adam" else 1.0  # as large as SGD's, Adam's steps would leave any valley
    all_jobs = [replace(job, learning_rate=rate * job.learning_rate) for job in jobs(name, 3, epochs=(3, 1, 2))]
    stack = trained(setting(name, own), all_jobs)
    assert [(shot.position, shot.epoch) for shot in stack.snapshots] == [(1, 1), (2, 2), (0, 3)]
    for shot in stack.snapshots:
        expected = alone(prepkit.architecture(name), own, all_jobs[shot.position], Noise())
        shot.tensors.update({n: t for n, t in expected.items() if n.endswith("num_batches_tracked")})
        assert worst(shot.tensors, expected) < 1e-9


def test_one_after_another_is_the_same() -> None:
    own = TRAININGS["sgd"]
    (job,) = jobs("resnet8@digits", 1)
    (shot,) = trained(setting("resnet8@digits", own, stacked=False), [job]).snapshots
    assert worst(shot.tensors, alone(prepkit.architecture("resnet8@digits"), own, job, Noise())) < 1e-9
