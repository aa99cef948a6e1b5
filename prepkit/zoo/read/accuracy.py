"""The accuracy of a zoo's instances, or of others of its architectures, on the samples of its task.

    task = prepkit.load_task(zoo.task)
    zoo_accuracies(zoo, task, "test")           # one number for each instance

Shapes: N instances, H x W the PRep, B samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prepkit.families.registry import Architecture, Registry
from prepkit.running.groups import group_by_architecture, outputs_by_class_id
from prepkit.running.instances import run_instances
from prepkit.support.device import bf16_autocast
from prepkit.tasks.task import EVALUATION_BATCH
from prepkit.zoo.read.zoo import Zoo

if TYPE_CHECKING:
    from numpy.typing import NDArray

INSTANCES_AT_ONCE = 64
POINTS_AT_ONCE = 4096  # points that networks of shapes are run on together
ACCURACY = "accuracy"  # column with the accuracy that was measured when the instance was added
ITEM = "item"  # column with the number of the shape that an instance fits


def has_items(zoo: Zoo) -> bool:
    """Whether each instance has a shape of its own; in other zoos a column `item` is the user's and means nothing."""
    return zoo.task is not None and zoo.task.get("kind") == "shapes" and ITEM in zoo.table.column_names


def recorded_accuracies(zoo: Zoo) -> list[float]:
    """Return the column `accuracy` of the zoo's table, NaN where there is none, or no number."""
    if ACCURACY not in zoo.table.column_names:
        return [math.nan] * len(zoo)
    found = zoo.table[ACCURACY].to_pylist()
    return [float(accuracy) if isinstance(accuracy, int | float) else math.nan for accuracy in found]


def items_of(zoo: Zoo) -> list[int]:
    """The number of each instance's own shape; 0 where the task has the same data for all."""
    if not has_items(zoo):
        return [0] * len(zoo)
    return [0 if item is None else int(item) for item in zoo.table[ITEM].to_pylist()]


def zoo_accuracies(zoo: Zoo, task: Any, split: str) -> list[float]:
    """The accuracies of a zoo's own instances on a split of the task's samples, in the zoo's order."""
    accuracies: list[float] = []
    with torch.inference_mode():
        for rows in chunks(len(zoo)):
            view = zoo.select(rows)
            preps = view.preps().to(task.device, torch.float32)
            accuracies += accuracies_of(zoo.registry, view.class_ids().tolist(), preps, view, task, split)
    return accuracies


def right_on_samples(zoo: Zoo, task: Any, split: str) -> NDArray[np.float64]:
    """Whether each instance of a zoo is right about each sample of a split, `[N, B]`: 1 or 0.

    task: a task of images, whose samples all instances share
    """
    inputs, truth = task.normalised(split)
    right = []
    for rows in chunks(len(zoo)):
        view = zoo.select(rows)
        preps = view.preps().to(inputs.device, torch.float32)
        outputs = outputs_by_class_id(zoo.registry, view.class_ids().tolist(), preps, inputs)
        right.append((outputs.argmax(-1) == truth.cpu()).double().numpy())
    return np.concatenate(right)


def accuracies_of(
    registry: Registry,
    class_ids: Sequence[int],
    preps: Tensor,
    zoo: Zoo | None,
    task: Any,
    split: str,
    *,
    bf16: bool = False,
) -> list[float]:
    """The accuracies of instances `[N, H, W]` on a split of the task's samples; NaN outputs count as wrong.

    class_ids: ClassIds of the architectures that run the instances
    zoo:       its N rows say, for shapes, which shape each instance fits
    bf16:      compute convolutions and matrix products in bfloat16, except for shapes
    """
    shapes = zoo is not None and has_items(zoo)
    items = [0] * len(preps) if zoo is None else items_of(zoo)
    accuracies = [0.0] * len(preps)
    for group in group_by_architecture(registry, class_ids):
        own = group.select(preps)

        def run(inputs: Tensor, own: Tensor = own, architecture: Architecture = group.architecture) -> Tensor:
            with bf16_autocast(own.device, bf16 and not shapes):
                return run_instances(architecture, own, inputs).float()

        batch = POINTS_AT_ONCE if shapes else EVALUATION_BATCH
        judged = task.evaluate(run, [items[position] for position in group.positions], split, batch)["accuracy"]
        for position, accuracy in zip(group.positions, judged.tolist(), strict=True):
            accuracies[position] = accuracy
    return accuracies


def chunks(count: int, size: int = INSTANCES_AT_ONCE) -> Iterator[list[int]]:
    """Yield 0 .. count - 1 in lists of `size` numbers."""
    for first in range(0, count, size):
        yield list(range(first, min(first + size, count)))
