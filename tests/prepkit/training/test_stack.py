"""A stack equals its instances trained alone by a plain PyTorch loop that shares nothing with it but the data."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import prepkit
from prepkit.errors import ZooError
from prepkit.families.registry import Architecture, architecture_from_callable
from prepkit.running.instances import is_stackable, runner
from prepkit.tasks.task import TaskBatch
from prepkit.training._hyperparameters import Training
from prepkit.training._plan import Job
from prepkit.training._stack import Diverged, Stack, stacked
from prepkit.training._step import StackSetup
from prepkit.training._values import Epochs, Keep, Range, Schedule

CPU = torch.device("cpu")
CLASSES = 10


pytestmark = pytest.mark.usefixtures("one_thread")


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
        assert worst(counted(shot.tensors, expected), expected) < 1e-9


def test_one_after_another_is_the_same() -> None:
    own = TRAININGS["sgd"]
    (job,) = jobs("resnet8@digits", 1)
    (shot,) = trained(setting("resnet8@digits", own, stacked=False), [job]).snapshots
    assert worst(shot.tensors, alone(prepkit.architecture("resnet8@digits"), own, job, Noise())) < 1e-9


def test_three_steps_in_float32_are_equal_to_rounding() -> None:
    own = training()
    all_jobs = jobs("resnet8@digits", 3, epochs=(1,))
    for shot in trained(setting("resnet8@digits", own, dtype=torch.float32, task=ThreeSteps), all_jobs).snapshots:
        job = all_jobs[shot.position]
        expected = alone(prepkit.architecture("resnet8@digits"), own, job, ThreeSteps(torch.float32))
        assert all(tensor.dtype == torch.float32 for tensor in shot.tensors.values() if tensor.is_floating_point())
        assert worst(counted(shot.tensors, expected), expected) < 2e-5  # at most 3.4e-6 in 15 instances


@pytest.mark.parametrize("kind", ["exponential", "cosine", "shares"])
def test_each_instance_follows_its_own_schedule(kind: str) -> None:
    """Where a schedule depends on the number of epochs, which differ: as one factor an epoch, worked out by hand."""
    schedule, factors = {
        "exponential": (Schedule("exponential", every=2, factor=0.5), lambda e, n: 0.5 ** (e // 2)),
        "cosine": (Schedule("cosine"), lambda e, n: {(4, 1): 0.5 + 0.125**0.5, (4, 2): 0.5, (2, 1): 0.5}.get((n, e))),
        "shares": (Schedule("step", at=(0.5,), factor=0.1), lambda e, n: 0.1 if e >= n / 2 else 1.0),
    }[kind]
    own = training(schedule=schedule)
    all_jobs = jobs("lenet_like@digits", 2, epochs=(4, 2))
    expected_factors = [[factors(epoch, job.epochs) or 1.0 for epoch in range(job.epochs)] for job in all_jobs]
    if kind == "cosine":
        expected_factors[0][3] = 0.5 - 0.125**0.5
    for shot in trained(setting("lenet_like@digits", own), all_jobs).snapshots:
        job = all_jobs[shot.position]
        *_, expected = alone_by_epoch(own, job, factors=expected_factors[shot.position])
        assert worst(shot.tensors, expected) < 1e-9


# What is kept -------------------------------------------------------------------------------------------------


def test_the_best_weights_in_validation_are_kept() -> None:
    """By a loop that judges each epoch's weights; the rates are large, so that the last epoch is not always best."""
    own = training(keep=Keep("best_validation"))
    all_jobs = [replace(job, learning_rate=0.3) for job in jobs("resnet8@digits", 4, epochs=(6, 5))]
    task = Noise()
    images, labels = task.batch(77, 0, 0)
    best_epochs = []
    for shot in trained(setting("resnet8@digits", own), all_jobs).snapshots:
        job = all_jobs[shot.position]
        epochs = list(alone_by_epoch(own, job))
        scores = []
        for state in epochs:
            network = prepkit.architecture(job.architecture).build().double().eval()
            network.load_state_dict(state)
            outputs = network(images)
            accuracy = (outputs.argmax(1) == labels).double().mean().item()
            scores.append((accuracy, -cross_entropy(outputs, labels).item()))
        best = max(range(job.epochs), key=scores.__getitem__)
        assert shot.epoch == best + 1
        assert worst(counted(shot.tensors, epochs[best]), epochs[best]) < 1e-9
        best_epochs.append((best + 1, job.epochs))
    assert len(best_epochs) == 4
    assert any(best < last for best, last in best_epochs)


def test_the_snapshots_of_a_trajectory_are_the_weights_on_its_way() -> None:
    own = training(schedule=STEPS)
    kept = [(2, 4, 5), (2, 3)]
    all_jobs = [
        replace(job, kept_epochs=epochs, trajectory=True)
        for job, epochs in zip(jobs("lenet_like@digits", 2, epochs=(5, 3)), kept, strict=True)
    ]
    stack = trained(setting("lenet_like@digits", own), all_jobs)
    shots = {(shot.position, shot.epoch): shot for shot in stack.snapshots}
    assert sorted(shots) == [(0, 2), (0, 4), (0, 5), (1, 2), (1, 3)]
    for (position, epoch), shot in shots.items():
        shorter = replace(all_jobs[position], epochs=epoch, kept_epochs=(epoch,), trajectory=False)
        (alone_shot,) = trained(setting("lenet_like@digits", own), [shorter]).snapshots
        assert worst(shot.tensors, alone_shot.tensors) < 1e-9
        assert shot.id_of(all_jobs[position]) == f"run-{position:05d}-e{epoch:04d}"
        assert alone_shot.id_of(shorter) == f"run-{position:05d}"


# Divergence ---------------------------------------------------------------------------------------------------

POISONED = 41  # the seed of the second job


class Poisoned(Noise):
    """Batches of one seed hold an infinite pixel from the second epoch on: its instance diverges."""

    def batch(self, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        images, labels = super().batch(seed, epoch, step)
        if seed == POISONED and epoch >= 1 and step == 2:
            images[3, 0, 2, 2] = torch.inf
        return images, labels


@pytest.mark.parametrize("keep", [Keep(), Keep("best_validation")])
@pytest.mark.parametrize("stacked", [True, False])
def test_a_diverged_instance_begins_anew_with_its_next_seed_and_the_others_do_not_notice(
    stacked: bool, keep: Keep
) -> None:
    own = training(schedule=STEPS, keep=keep)
    all_jobs = [replace(job, kept_epochs=(1, 3), trajectory=True) for job in jobs("resnet8@digits", 3)]
    stack = trained(setting("resnet8@digits", own, stacked=stacked, task=Poisoned), all_jobs)
    again = all_jobs[1].reseeded(1)
    assert again.seed != POISONED
    assert stack.diverged == [Diverged("run-00001", POISONED, 2)]
    assert stack.jobs == [all_jobs[0], again, all_jobs[2]]
    assert sorted(shot.position for shot in stack.snapshots) == [0, 0, 1, 1, 2, 2]
    assert all(tensor.isfinite().all() for shot in stack.snapshots for tensor in shot.tensors.values())
    for shot in stack.snapshots:
        states = list(alone_by_epoch(own, stack.jobs[shot.position], factors=[1, 0.5, 0.25]))
        expected = states[shot.epoch - 1]  # which epoch is the best one, is compared above
        assert worst(counted(shot.tensors, expected), expected) < 1e-9


def test_a_learning_rate_that_is_too_large_diverges_alone() -> None:
    own = training()
    all_jobs = jobs("lenet_like@digits", 3)
    all_jobs[1] = replace(all_jobs[1], learning_rate=1e200)
    with pytest.raises(ZooError) as error:
        trained(setting("lenet_like@digits", own), all_jobs)
    assert str(error.value) == "run-00001: diverged with 101 seeds at learning rate 1e+200; lower it."


def test_every_attempt_has_another_seed_and_the_others_are_trained_once() -> None:
    own = setting("lenet_like@digits", training())
    all_jobs = jobs("lenet_like@digits", 3, epochs=(2,))
    all_jobs[1] = replace(all_jobs[1], learning_rate=1e200)
    stack = Stack(own, all_jobs)
    with pytest.raises(ZooError, match="diverged with 101 seeds"):
        stack.run()
    assert [gone.seed for gone in stack.diverged] == [all_jobs[1].reseeded(attempt).seed for attempt in range(101)]
    assert len({gone.seed for gone in stack.diverged}) == 101
    assert {gone.run for gone in stack.diverged} == {"run-00001"}
    assert [(shot.position, shot.epoch) for shot in stack.snapshots] == [(0, 2), (2, 2)]
    for shot in stack.snapshots:
        *_, expected = alone_by_epoch(own.training, all_jobs[shot.position])
        assert worst(shot.tensors, expected) < 1e-9


# Interruption -------------------------------------------------------------------------------------------------


def saved(stack: Stack) -> tuple[dict[str, Tensor], str]:
    """A stack's state as a file holds it: copies, and JSON."""
    tensors, facts = stack.state()
    return {name: tensor.clone() for name, tensor in tensors.items()}, json.dumps(facts)


def resumed(own: StackSetup, all_jobs: Sequence[Job], state: tuple[dict[str, Tensor], str]) -> Stack:
    stack = Stack(own, all_jobs)
    stack.restore(state[0], json.loads(state[1]))
    return stack


def same(found: Stack, expected: Stack) -> None:
    assert found.diverged == expected.diverged
    assert found.jobs == expected.jobs
    assert [(s.position, s.epoch) for s in found.snapshots] == [(s.position, s.epoch) for s in expected.snapshots]
    for one, other in zip(found.snapshots, expected.snapshots, strict=True):
        assert one.tensors.keys() == other.tensors.keys()
        for name, tensor in other.tensors.items():
            assert tensor.dtype == one.tensors[name].dtype
            assert torch.equal(one.tensors[name], tensor)


INTERRUPTED = {
    "sgd": training(schedule=STEPS),
    "adam": training(optimizer="adam", schedule=Schedule("cosine")),
    "best": training(keep=Keep("best_validation")),
    "trajectory": training(keep=Keep("trajectory", 1)),
}


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("kind", INTERRUPTED)
def test_a_training_goes_on_from_any_epoch_bit_for_bit(kind: str, stacked: bool) -> None:
    """Also while a diverged one waits, while it runs again, and when all is done."""
    own = setting("resnet8@digits", INTERRUPTED[kind], stacked=stacked, dtype=torch.float32, task=Poisoned)
    all_jobs = jobs("resnet8@digits", 3, epochs=(3, 4, 2))
    if kind == "trajectory":
        kept = [tuple(range(1, job.epochs + 1)) for job in all_jobs]
        all_jobs = [replace(job, kept_epochs=own, trajectory=True) for job, own in zip(all_jobs, kept, strict=True)]
    states = []
    whole = Stack(own, all_jobs)
    states.append(saved(whole))
    whole.run(lambda stack: states.append(saved(stack)))
    facts = [json.loads(text) for _, text in states]
    assert len(states) == 1 + 3 + 4
    assert sum(bool(fact["waiting"]) for fact in facts) == 2  # after the second epoch and the third
    assert not facts[3]["active"]
    assert facts[3]["waiting"] == [1]
    assert not facts[-1]["active"]
    for state in states:
        stack = resumed(own, all_jobs, state)
        epochs: list[int] = []
        stack.run(lambda stack, epochs=epochs: epochs.append(stack.epoch))  # type: ignore[misc]
        same(stack, whole)
    assert epochs == []  # nothing was left to do after the last


def test_a_training_may_be_interrupted_after_every_epoch() -> None:
    own = setting("lenet_like@digits", training(optimizer="adam"), task=Poisoned)
    all_jobs = jobs("lenet_like@digits", 3, epochs=(2, 3))
    whole = trained(own, all_jobs)
    state, runs = None, 0
    while True:
        stack = Stack(own, all_jobs) if state is None else resumed(own, all_jobs, state)
        if not (stack.active or stack.waiting):
            break
        with pytest.raises(KeyboardInterrupt):
            stack.run(interrupt)
        state, runs = saved(stack), runs + 1
    assert runs == 3 - 1 + 1 + 3 - 1  # two epochs and what is left of the longest, then the diverged one's three
    same(stack, whole)


def interrupt(stack: Stack) -> None:
    raise KeyboardInterrupt


# Random numbers -----------------------------------------------------------------------------------------------


class Dropping(nn.Module):
    """A third party's network, which no stack can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.last = nn.Linear(64, 32), nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.linear(images.flatten(1)))
        outputs: Tensor = self.last(nn.functional.dropout(hidden, 0.5, self.training))
        return outputs


class Odd(nn.Module):
    """A third party's network with a tied and a frozen parameter, and buffers of three kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64)
        self.last = nn.Linear(64, CLASSES)
        self.second.weight = self.first.weight
        self.last.bias.requires_grad_(False)
        self.register_buffer("mixing", torch.randn(64, 64) / 8, persistent=False)
        self.register_buffer("order", torch.randperm(64))

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.first(images.flatten(1) @ self.mixing)))[:, self.order]
        outputs: Tensor = self.last(torch.tanh(self.second(hidden)))
        return outputs


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_third_partys_network_is_trained_as_by_the_loop(kind: str) -> None:
    known = architecture_from_callable(f"{__name__}:Odd", (1, 8, 8))
    own, all_jobs = TRAININGS[kind], jobs(known.name, 2, learning_rate=0.01)
    made = trained(
        StackSetup(known, own, Noise(), runner(known, False, False, CPU), CPU, dtype=torch.float64), all_jobs
    )
    for shot, job in zip(made.snapshots, all_jobs, strict=True):
        expected = alone(known, own, job, Noise())
        found = {**shot.tensors, "second.weight": shot.tensors["first.weight"]}
        assert found.pop("mixing").shape == (64, 64)
        assert torch.equal(found["order"], expected["order"])
        assert torch.equal(found["last.bias"], expected["last.bias"])
        assert worst(found, expected) < 1e-9


def test_a_network_with_dropout_depends_on_its_seed_alone() -> None:
    known = architecture_from_callable(f"{__name__}:Dropping", (1, 8, 8))
    assert not is_stackable(known, folded=False)
    own = StackSetup(known, training(), Noise(), runner(known, False, False, CPU), CPU, dtype=torch.float64)
    (job, other) = jobs(known.name, 2)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(trained(own, [job]).snapshots[0].tensors)
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(results[0][name], tensor) for name, tensor in results[1].items())
    same_start = replace(job, index=other.index, item=other.item, run=other.run)
    assert torch.equal(trained(own, [same_start]).snapshots[0].tensors["last.weight"], results[0]["last.weight"])
    reseeded = replace(job, seed=job.seed + 1)
    assert not torch.equal(trained(own, [reseeded]).snapshots[0].tensors["last.weight"], results[0]["last.weight"])


def test_dropout_drops_other_values_in_each_epoch() -> None:
    """On a task whose epochs are alike: with the first epoch's drops again, the second would be a plain repetition."""
    known = architecture_from_callable(f"{__name__}:Dropping", (1, 8, 8))
    drops: list[Tensor] = []

    class Watched(Noise):
        def batch(self, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
            return super().batch(seed, 0, step)

        def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
            drops.append(outputs.detach().clone())
            return super().losses(outputs, targets)

    own = StackSetup(known, training(), Watched(), runner(known, False, False, CPU), CPU, dtype=torch.float64)
    trained(own, jobs(known.name, 1, epochs=(2,), learning_rate=1e-30, weight_decay=0.0))
    assert not torch.allclose(drops[0], drops[4])


def test_training_leaves_the_global_generator_alone() -> None:
    own = setting("resnet8@digits", training(), task=Poisoned)
    before = torch.get_rng_state()
    trained(own, jobs("resnet8@digits", 3))
    assert torch.equal(torch.get_rng_state(), before)


# bfloat16 -----------------------------------------------------------------------------------------------------


def test_bfloat16_reaches_the_accuracy_of_float32_on_digits() -> None:
    """Mean over 12 instances after 6 epochs; weights, statistics and loss stay in float32.

    With other seeds the means are 0.849 to 0.883, and bfloat16's 0.016 above to 0.009 below float32's.
    """
    record = prepkit.load_spec("digits_multi").task
    task = prepkit.load_task(record)
    known = prepkit.architecture("lenet_like@digits")
    all_jobs = jobs(known.name, 12, epochs=(6,), learning_rate=0.05, momentum=0.9, weight_decay=5e-4)
    means: dict[str, Tensor] = {}
    for precision in ("float32", "bfloat16"):
        own = training(batch_size=64, precision=precision)
        stack = trained(StackSetup(known, own, task, runner(known, False, True, CPU), CPU, 12), all_jobs)
        tensors = stacked([shot.tensors for shot in sorted(stack.snapshots, key=lambda s: s.position)], stack.setup)
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        run = partial(runner(known, False, True, CPU), tensors)
        means[precision] = task.evaluate(run, range(12), "test")["accuracy"]
    difference = means["bfloat16"] - means["float32"]
    assert difference.count_nonzero() > 6  # it was another arithmetic
    assert abs(difference.mean()) < 0.03
    assert means["float32"].mean() > 0.83
