"""Linear mode connectivity: how good the network half-way between the weights of two instances is.

In a zoo where the half-way network is about as good as the two, instances lie in one basin of the loss.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prepkit.errors import PrepkitError
from prepkit.families.loading import network_with_copies
from prepkit.tasks import load_task
from prepkit.zoo.change.rerun import ITEM, TEST
from prepkit.zoo.format.manifest import StoredArchitecture
from prepkit.zoo.read.accuracy import ACCURACY
from prepkit.zoo.read.zoo import Zoo

PAIRS = 4
RUN = "run"


@dataclass(frozen=True)
class Halfway:
    """Mean accuracies of pairs of instances on the task's test data.

    pairs:  number of pairs
    ends:   accuracy of the instances themselves
    before: accuracy half-way between the weights of a pair as they were
    after:  the same between the aligned weights
    """

    pairs: int
    ends: float
    before: float
    after: float


def halfway(
    zoo: Zoo, aligned: Zoo, stored: StoredArchitecture, rows: np.ndarray, data: str | os.PathLike[str] | None
) -> Halfway | str:
    """Evaluate networks half-way between some pairs of instances; return why not where that cannot be done.

    zoo, aligned: the same instances before and after
    """
    chosen = _of_different_runs(zoo, rows)
    if len(chosen) < 2:
        return "there is one instance only"
    try:
        task = load_task(zoo.task, None if data is None else Path(data))
        ends = {row: _measured(zoo, stored, [row], [row], task) for row in chosen}
        pairs = list(pairwise(chosen))
        before, after = (
            [_measured(each, stored, list(pair), list(pair), task) for pair in pairs] for each in (zoo, aligned)
        )
    except PrepkitError as error:
        return str(error)
    except (RuntimeError, ValueError) as error:
        return f"the instances do not run on the task's test data: {str(error).splitlines()[0]}"
    return Halfway(len(pairs), float(np.mean([*ends.values()])), float(np.mean(before)), float(np.mean(after)))


def _of_different_runs(zoo: Zoo, rows: np.ndarray) -> list[int]:
    """Return a few instances, spread evenly over the runs, of which the last instance counts."""
    if RUN in zoo.table.column_names:
        runs = zoo.table[RUN].to_pylist()
        last = {runs[row]: row for row in rows.tolist() if runs[row] is not None}
        rows = np.array([*last.values()]) if len(last) > 1 else rows
    places = np.unique(np.linspace(0, len(rows) - 1, min(PAIRS + 1, len(rows))).round().astype(int))
    chosen: list[int] = rows[places].tolist()
    return chosen


def _measured(zoo: Zoo, stored: StoredArchitecture, rows: list[int], own: list[int], task: Any) -> float:
    """Return the accuracy of the network at the mean of the weights of `rows`, on the data of the items of `own`."""
    preps = [zoo[row] for row in rows]
    states = [prep.state_dict(prefix=False) for prep, _ in preps]
    mean = {name: _mean([state[name] for state in states]) for name in states[0]}
    architecture = zoo.architecture_named(stored.name)
    network = network_with_copies(mean, architecture, folded=stored.fused).float()
    shared = 1 + len(task.input_shape)

    def run(inputs: Tensor) -> Tensor:
        outputs: Tensor = network(inputs if inputs.ndim == shared else inputs[0])
        return outputs[None]

    items = dict.fromkeys(zoo.metadata(row).get(ITEM) or 0 for row in own)
    return float(np.mean([float(task.evaluate(run, [item], TEST)[ACCURACY].item()) for item in items]))


def _mean(tensors: list[Tensor]) -> Tensor:
    """Return the mean of tensors; of whole numbers, which do not change with training, the first."""
    return torch.stack(tensors).mean(0) if tensors[0].is_floating_point() else tensors[0]
