"""The picture of a zoo's card: accuracy by architecture, and a grid of PReps, one row an architecture.

A zoo of many architectures, such as one of networks that all differ, has one box for all accuracies.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from prepkit.figures import LONGEST_NAME, draw_prep_grid, new_figure, short_name

if TYPE_CHECKING:
    from prepkit.zoo.read.zoo import Zoo

ACCURACY = "accuracy"
PREPS_A_ROW = 4
MAX_ARCHITECTURES = 6  # rows of the grid; a zoo of more shows the first ones
MAX_BOXES = 24


def card_figure(zoo: Zoo) -> Any:
    """Draw the picture as a matplotlib Figure; without a column `accuracy` it has the grid only.

    raises PlotsMissing without matplotlib
    """
    rows = chosen(zoo)
    accuracies = accuracy_by_architecture(zoo)
    figure = new_figure(11, 1.2 + 1.1 * max(2, len(rows)))
    preps = {
        name: ((row["id"][:24], prep) for prep, row in map(zoo.__getitem__, indices)) for name, indices in rows.items()
    }
    if not accuracies:
        draw_prep_grid(figure, preps, PREPS_A_ROW)
        return figure
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2)).tolist()
    _draw_accuracies(left, accuracies)
    draw_prep_grid(right, preps, PREPS_A_ROW)
    return figure


def chosen(zoo: Zoo) -> dict[str, list[int]]:
    """Return the first instances of the first architectures, by architecture."""
    rows: dict[str, list[int]] = {
        stored.name: [] for stored in zoo.manifest.architectures if stored.class_id is not None
    }
    for index, name in enumerate(zoo.table["architecture"].to_pylist()):
        if len(rows[name]) < PREPS_A_ROW:
            rows[name].append(index)
    return dict([(name, indices) for name, indices in rows.items() if indices][:MAX_ARCHITECTURES])


def accuracy_by_architecture(zoo: Zoo) -> dict[str, list[float]]:
    """Return the finite values of the column `accuracy`, by architecture; those of many architectures together.

    returns nothing for a zoo without a column of such numbers
    """
    from pyarrow import types

    table = zoo.table
    if ACCURACY not in table.column_names or not types.is_floating(table.schema.field(ACCURACY).type):
        return {}
    values: dict[str, list[float]] = {}
    for name, value in zip(table["architecture"].to_pylist(), table[ACCURACY].to_pylist(), strict=True):
        if value is not None and math.isfinite(value):
            values.setdefault(name, []).append(value)
    if len(values) > MAX_BOXES:
        return {f"all {len(values):,} architectures": [value for some in values.values() for value in some]}
    order = {stored.name: place for place, stored in enumerate(zoo.manifest.architectures)}
    return dict(sorted(values.items(), key=lambda item: order[item[0]]))


def _draw_accuracies(figure: Any, accuracies: dict[str, list[float]]) -> None:
    axes = figure.subplots()
    axes.boxplot(list(accuracies.values()), widths=0.6, flierprops={"markersize": 2})
    names = [name if len(name) <= LONGEST_NAME else short_name(name) for name in accuracies]
    axes.set_xticks(range(1, len(accuracies) + 1), names, rotation=30, ha="right", parse_math=False)
    axes.set_ylabel("accuracy")
