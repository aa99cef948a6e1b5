"""What becomes of trained instances: folded, judged on the task as they will be stored, one row of the zoo each.

Shapes: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prepkit.running.instances import Runner, runner
from prepkit.training.folding import fold_stack
from prepkit.training.hyperparameters import Training
from prepkit.training.plan import Job
from prepkit.training.stack import Setting, Snapshot

SPLITS = ("train", "validation", "test")  # of the task's data


@dataclass(frozen=True)
class Rows:
    """Finished instances of one architecture.

    tensors: `[R, *shape]` by name, of the packed network, on the CPU
    columns: R values each
    """

    ids: list[str]
    splits: list[str | None]
    tensors: dict[str, Tensor]
    columns: dict[str, list[Any]]


def rows_of(setting: Setting, jobs: Sequence[Job], snapshots: Sequence[Snapshot]) -> Rows:
    """The rows of all snapshots, by job and epoch.

    jobs: as they were trained, at their last attempt
    raises UnfoldableNetwork, VerificationError if a BatchNorm cannot be folded
    """
    shots = sorted(snapshots, key=lambda shot: (shot.position, shot.epoch))
    size = max(1, setting.stack)
    parts = [_judged(setting, jobs, shots[start : start + size]) for start in range(0, len(shots), size)]
    tensors = {name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]}
    columns = {name: [value for part in parts for value in part[1][name]] for name in parts[0][1]}
    due = [(jobs[shot.position], shot) for shot in shots]
    return Rows([shot.id_of(job) for job, shot in due], [job.split for job, _ in due], tensors, columns)


def _judged(
    setting: Setting, jobs: Sequence[Job], shots: Sequence[Snapshot]
) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
    folded = fold_stack(setting.architecture, [shot.tensors for shot in shots])
    columns = _hyper_parameters(setting.training, jobs, shots)
    items = [jobs[shot.position].item for shot in shots]
    if setting.task.record.get("kind") != "images":  # which all instances share
        columns["item"] = items
    return folded, columns | judge(setting, folded, items)


def judge(setting: Setting, folded: dict[str, Tensor], items: Sequence[int]) -> dict[str, list[float]]:
    """Accuracy and loss on each split of the task, of networks as they are stored: columns of a zoo."""
    run = _runner(setting)
    aliases = {alias: folded[name] for alias, name in setting.architecture.layout.ties}
    on_device = {name: tensor.to(setting.device) for name, tensor in {**folded, **aliases}.items()}
    columns: dict[str, list[float]] = {}
    for split in SPLITS:
        if setting.task.splits.get(split):
            size = setting.part or setting.training.batch_size
            found = setting.task.evaluate(lambda inputs: run(on_device, inputs), items, split, size)
            prefix = "" if split == "test" else f"{split}_"
            columns |= {f"{prefix}{name}": values.tolist() for name, values in found.items()}
    return columns


def _runner(setting: Setting) -> Runner:
    return runner(setting.architecture, True, setting.runner.stacked, setting.device)


def _hyper_parameters(training: Training, jobs: Sequence[Job], shots: Sequence[Snapshot]) -> dict[str, list[Any]]:
    """What a row's training was like: all that may differ between instances, and between zoos that are merged."""
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
        "epoch": [shot.epoch for shot in shots],
        "epochs": [job.epochs for job in own],
        "learning_rate": [job.learning_rate for job in own],
        "momentum": [job.momentum for job in own],
        "weight_decay": [job.weight_decay for job in own],
        **{name: [value] * len(own) for name, value in same.items()},
    }
