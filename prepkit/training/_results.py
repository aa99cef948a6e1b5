"""Rows of a zoo from trained instances, which are folded and then evaluated on the task as they will be stored.

Shapes: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prepkit.families.folding import fold_stack
from prepkit.running.instances import Runner, runner
from prepkit.training._hyperparameters import Training
from prepkit.training._plan import Job
from prepkit.training._stack import Snapshot
from prepkit.training._step import StackSetup

SPLITS = ("train", "validation", "test")  # splits of the task's data


@dataclass(frozen=True)
class Rows:
    """Finished instances of one architecture.

    tensors: `[R, *shape]` by name: the packed networks, on the CPU
    columns: R values for each column
    costs:   for ids of which rounding the folded values changes the outputs more than usual: how far
    """

    ids: list[str]
    splits: list[str | None]
    tensors: dict[str, Tensor]
    columns: dict[str, list[Any]]
    costs: dict[str, float] = field(default_factory=dict)


def rows_of(setup: StackSetup, jobs: Sequence[Job], snapshots: Sequence[Snapshot]) -> Rows:
    """The rows of all snapshots, by job and epoch.

    jobs: with the seeds of the attempts that succeeded
    raises UnfoldableNetwork if a BatchNorm cannot be folded
    """
    shots = sorted(snapshots, key=lambda shot: (shot.position, shot.epoch))
    size = max(1, setup.stack)
    costs: list[float] = []
    starts = range(0, len(shots), size)
    parts = [_tensors_and_columns(setup, jobs, shots[start : start + size], costs) for start in starts]
    tensors = {name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]}
    columns = {name: [value for part in parts for value in part[1][name]] for name in parts[0][1]}
    due = [(jobs[shot.position], shot) for shot in shots]
    ids = [shot.id_of(job) for job, shot in due]
    costly = {name: cost for name, cost in zip(ids, costs, strict=True) if cost}
    return Rows(ids, [job.split for job, _ in due], tensors, columns, costly)


def _tensors_and_columns(
    setup: StackSetup, jobs: Sequence[Job], shots: Sequence[Snapshot], costs: list[float]
) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
    folded = fold_stack(setup.architecture, [shot.tensors for shot in shots], costs)
    columns = _hyper_parameters(setup.training, jobs, shots)
    items = [jobs[shot.position].item for shot in shots]
    if setup.task.record.get("kind") != "images":  # All instances share the images.
        columns["item"] = items
    return folded, columns | evaluation_columns(setup, folded, items)


def evaluation_columns(setup: StackSetup, folded: dict[str, Tensor], items: Sequence[int]) -> dict[str, list[float]]:
    """The columns of a zoo with accuracy and loss on each split of the task, for networks as they are stored."""
    run = _runner(setup)
    aliases = {alias: folded[name] for alias, name in setup.architecture.layout.ties}
    on_device = {name: tensor.to(setup.device) for name, tensor in {**folded, **aliases}.items()}
    columns: dict[str, list[float]] = {}
    for split in SPLITS:
        if setup.task.splits.get(split):
            size = setup.samples_at_once or setup.training.batch_size
            scores = setup.task.evaluate(lambda inputs: run(on_device, inputs), items, split, size)
            prefix = "" if split == "test" else f"{split}_"
            columns |= {f"{prefix}{name}": values.tolist() for name, values in scores.items()}
    return columns


def _runner(setup: StackSetup) -> Runner:
    # Without dense convolutions, where an infinite output of one instance would spoil those of others.
    return runner(setup.architecture, True, setup.runner.stacked, setup.device, dense=False)


def _hyper_parameters(training: Training, jobs: Sequence[Job], shots: Sequence[Snapshot]) -> dict[str, list[Any]]:
    """The columns that tell how a row was trained: all that may differ between instances or between merged zoos."""
    own = [jobs[shot.position] for shot in shots]
    same: dict[str, Any] = {
        "batch_size": training.batch_size,
        "schedule": str(training.schedule),
        "precision": training.precision,
        "optimizer": training.optimizer,
    }
    if training.optimizer == "sgd":
        same["nesterov"] = training.nesterov
    else:
        same |= {"beta1": training.betas[0], "beta2": training.betas[1], "eps": training.eps}
        same["decoupled"] = training.decoupled
    return {
        "run": [job.run for job in own],
        "seed": [job.seed for job in own],
        "start": [job.start for job in own],
        "epoch": [shot.epoch for shot in shots],
        "epochs": [job.epochs for job in own],
        "learning_rate": [job.learning_rate for job in own],
        "momentum": [job.momentum for job in own],
        "weight_decay": [job.weight_decay for job in own],
        **{name: [value] * len(own) for name, value in same.items()},
    }
