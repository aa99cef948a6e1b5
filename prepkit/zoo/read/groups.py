"""The instances of a zoo by architecture, and statistics of their layers."""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prepkit.views.slot_statistics import NUM_STATISTICS, slot_statistics

if TYPE_CHECKING:
    from prepkit.zoo.read.zoo import Zoo


def rows_by_architecture(zoo: Zoo) -> dict[str, list[int]]:
    """Return the rows of each architecture of a zoo or view, in the order of the ClassIds."""
    class_ids = zoo.class_ids().tolist()
    names = {stored.class_id: stored.name for stored in zoo.manifest.architectures}
    return {
        names[class_id]: [row for row, own in enumerate(class_ids) if own == class_id]
        for class_id in sorted(set(class_ids))
    }


def layer_statistics(zoo: Zoo) -> np.ndarray:
    """Return seven statistics of each tensor of each instance, and its ClassId as 0s and a 1, `[N, F]` float64.

    They are those of prepkit.views.statistics. Zeros stand after the last tensor of an architecture, so that all rows
    are as long as those of the one with the most tensors.
    """
    layouts = [architecture.layout for architecture in zoo.registry]
    most = NUM_STATISTICS * max(len(layout.slots) for layout in layouts)
    statistics_NF = np.zeros((len(zoo), most + len(layouts)))
    preps_NV = zoo.preps().flatten(1)
    class_ids = zoo.class_ids().tolist()
    for rows in rows_by_architecture(zoo).values():
        class_id = class_ids[rows[0]]
        of_tensors = slot_statistics(preps_NV[rows], layouts[class_id]).flatten(1).numpy()
        statistics_NF[rows, : of_tensors.shape[1]] = of_tensors
        statistics_NF[rows, most + class_id] = 1.0
    return statistics_NF
