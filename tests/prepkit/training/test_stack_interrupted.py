"""A stack that is interrupted goes on from its last epoch, bit for bit."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from stack_samples import STEPS, Poisoned, jobs, setting, trained, training
from torch import Tensor

from prepkit.training._plan import Job
from prepkit.training._stack import Stack
from prepkit.training._step import StackSetup
from prepkit.training._values import Keep, Schedule

pytestmark = pytest.mark.usefixtures("one_thread")


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
