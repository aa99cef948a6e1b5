"""Suppl. VII: PReps of unseen target instances and of predicted ones as images, and how far apart they are.

Shapes: N instances of an architecture, V values of its PRep.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import prepkit
from netspace.experiments.judged import Judged, distances, judge, mean_or_nan, off_diagonal, short
from netspace.experiments.result import Picture, Progress, Result, Table, claim, new_figure, save_figure
from prepkit.figures import colour_limit, draw_cells

if TYPE_CHECKING:
    from netspace.run.run import Run

NAME = "preps"
DIFFERENT = 0.5  # of the target's norm: what "significantly different" (Suppl. VII) is taken to be at least
EXAMPLES = 3  # of a single architecture; one of each where there are several
COLOURS = "viridis"


def run(
    run: Run,
    zoo: prepkit.Zoo,
    task: Any,
    device: torch.device,
    folder: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Decode the test instances and compare the parameters themselves; nothing is run."""
    if progress is not None:
        progress("PReps of the test instances and of what is predicted for them")
    judged = judge(run, run.space(device=device), zoo)
    found = {name: measures(*judged.values(rows)) for name, rows in judged.groups().items()}
    least = min(one["to_target"] for one in found.values())
    columns = (
        *("architecture", "instances", "prediction to its target", "prediction to other targets"),
        *("target to target", "prediction to prediction", "cosine with the target", "norm over the target's"),
    )
    keys = ("to_target", "to_other_targets", "among_targets", "among_predicted", "cosine", "norm_ratio")
    rows = tuple((name, one["instances"], *(round(one[key], 4) for key in keys)) for name, one in found.items())
    return Result(
        name=NAME,
        title="Target and predicted PReps (Suppl. VII)",
        text="A PRep holds all parameters of an instance. On the left PReps of test instances, on the right those that "
        "NetSpace wrote for them, in the same colours and folded to the same width. NetSpace learns what networks do, "
        "not what they hold, so the two need not look alike.\n\n"
        "Distances are Euclidean, over all parameters without padding, relative to the norm of what the distance is "
        "measured to; means over instances, or over pairs of an architecture. Two unrelated networks of equal norm are "
        "about 1.4 apart. Where predictions are much nearer to each other than targets are, the decoder writes about "
        "the same network for all.",
        numbers={"by_architecture": found},
        claims=[
            claim("Predicted PReps differ from their targets', of these' norm, at least by", least, ">=", DIFFERENT)
        ],
        tables=(Table("Distances of PReps", columns, rows),),
        pictures=(Picture("Target and predicted PReps of test instances", draw(judged, folder)),),
    )


def measures(target_NV: Tensor, predicted_NV: Tensor) -> dict[str, Any]:
    """Relative distances between the PReps of one architecture, float64; NaN where there is one instance alone."""
    size_N, own_N = target_NV.norm(dim=1), predicted_NV.norm(dim=1)
    to_targets_NN = distances(predicted_NV, target_NV) / size_N
    return {
        "instances": len(target_NV),
        "to_target": mean_or_nan(to_targets_NN.diagonal()),
        "to_other_targets": mean_or_nan(off_diagonal(to_targets_NN)),
        "among_targets": mean_or_nan(off_diagonal(distances(target_NV, target_NV) / size_N)),
        "among_predicted": mean_or_nan(off_diagonal(distances(predicted_NV, predicted_NV) / own_N)),
        "cosine": mean_or_nan((target_NV * predicted_NV).sum(1) / (size_N * own_N)),
        "norm_ratio": mean_or_nan(own_N / size_N),
    }


def examples(judged: Judged) -> list[int]:
    """Which instances are drawn: of several architectures the middle one by accuracy, of one the worst to the best."""
    table = judged.view.table
    accuracies = table["accuracy"].to_pylist() if "accuracy" in table.column_names else [None] * len(judged.view)
    chosen = []
    groups = judged.groups()
    for rows in groups.values():
        ranked = sorted(rows, key=lambda row: (accuracies[row] is not None, accuracies[row] or 0.0, judged.ids[row]))
        last = len(ranked) - 1
        places = [last // 2] if len(groups) > 1 else [round(last * part / (EXAMPLES - 1)) for part in range(EXAMPLES)]
        chosen += [ranked[place] for place in dict.fromkeys(places)]
    return chosen


def draw(judged: Judged, folder: Path) -> str:
    """A row an example, target beside prediction, in one range of colours; the name of the file."""
    chosen = examples(judged)
    figure = new_figure(9.0, 0.5 + 1.9 * len(chosen))
    panels = figure.subplots(len(chosen), 2, squeeze=False)
    for (left, right), row in zip(panels, chosen, strict=True):
        both = [folded(values[0]) for values in judged.values([row])]
        architecture = judged.predicted.registry.by_class_id(judged.class_ids[row])
        total = architecture.layout.total
        limit = max(colour_limit(cells, total) for cells in both)
        for axes, cells, kind in zip((left, right), both, ("target", "predicted"), strict=True):
            image = draw_cells(axes, cells, total, limit, cmap=COLOURS)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{kind}: {judged.ids[row]}", parse_math=False, fontsize="small")
        left.set_ylabel(short(architecture.name), parse_math=False, fontsize="small")
        figure.colorbar(image, ax=[left, right], extend="both", fraction=0.03, pad=0.01)
    return save_figure(figure, folder, f"{NAME}.png")


def folded(values_V: Tensor) -> np.ndarray:
    """Values as a picture about three times as wide as high, zeros after the last; a PRep of 8 x 10,000 is a line."""
    width = max(1, math.ceil(math.sqrt(3 * len(values_V))))
    rows = math.ceil(len(values_V) / width)
    cells: np.ndarray = torch.nn.functional.pad(values_V, (0, rows * width - len(values_V))).numpy()
    return cells.reshape(rows, width)
