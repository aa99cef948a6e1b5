"""A stack equals its instances trained alone by a plain PyTorch loop that shares nothing with it but the data."""

from dataclasses import replace

import pytest
import torch
from stack_samples import (
    POISONED,
    STEPS,
    TRAININGS,
    Noise,
    Poisoned,
    ThreeSteps,
    alone,
    alone_by_epoch,
    counted,
    jobs,
    setting,
    trained,
    training,
    worst,
)
from torch.nn.functional import cross_entropy

import prepkit
from prepkit.errors import ZooError
from prepkit.training._stack import Diverged, Stack
from prepkit.training._values import Keep, Schedule

pytestmark = pytest.mark.usefixtures("one_thread")


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
