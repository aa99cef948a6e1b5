"""Run instances of a zoo again on their task's test data, and compare their accuracy with the stored accuracy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prepkit.errors import ZooError

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.tasks.task import Task
    from prepkit.zoo.read.zoo import Zoo

ACCURACY = "accuracy"
ITEM = "item"  # the column with the number of the data set that an instance was trained on
TEST = "test"


@dataclass(frozen=True)
class Rerun:
    """An instance that was run again: the accuracy that is stored, the accuracy found now, and whether they agree."""

    id: str
    stored: float | None
    found: float
    agrees: bool


def run_again(zoo: Zoo, count: int, data: str | os.PathLike[str] | None = None) -> tuple[Rerun, ...]:
    """Run `count` instances, spread evenly over the zoo, on the task's test data.

    data: the folder of the task's data, if it is one of the user's
    The classification of one sample may change where arithmetic differs from the machine that measured; two changes
    are a disagreement.
    raises ZooError if the task's data is not at hand or not that of the zoo, or the table has no column `accuracy`
    """
    from prepkit.tasks import load_task

    if ACCURACY not in zoo.table.column_names:
        raise ZooError(f"'{zoo.name}' has no column '{ACCURACY}' to compare with.")
    task = load_task(zoo.task, None if data is None else Path(data))
    indices = [index * len(zoo) // count for index in range(count)] if count < len(zoo) else range(len(zoo))
    return tuple(_run_one(zoo, index, task) for index in indices)


def _run_one(zoo: Zoo, index: int, task: Task) -> Rerun:
    row = zoo.metadata(index)
    network = zoo.network(index).float()
    shared = 1 + len(task.input_shape)  # number of axes if all instances share the inputs; else there is one more

    def run(inputs: Tensor) -> Tensor:
        outputs: Tensor = network(inputs if inputs.ndim == shared else inputs[0])
        return outputs[None]

    try:
        accuracy = task.evaluate(run, [row.get(ITEM) or 0], TEST)[ACCURACY].item()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ZooError(f"instance '{row['id']}' does not run on the task's test data: {reason}") from None
    stored = row[ACCURACY]
    one_sample = 1.001 / task.splits[TEST]  # a little more than one sample, as the stored number is rounded
    return Rerun(row["id"], stored, accuracy, stored is not None and abs(stored - accuracy) <= one_sample)
