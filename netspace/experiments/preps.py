"""Suppl. VII: PReps of unseen target instances and of predicted ones as images, and how far apart they are.

Shapes: N instances of an architecture, V values of its PRep.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from netspace.experiments._subject import runs_of
from netspace.experiments.result import Column, Result, claim, table_of_measures
from prepkit.figures import preps_side_by_side, short_name
from prepkit.support.bootstrap import interval_of_means
from prepkit.support.statistics import distances, evenly, mean_or_nan, off_diagonal

if TYPE_CHECKING:
    from netspace.experiments._subject import PredictedSplit, Subject

DIFFERENT = 0.5  # of the target's norm: at least this much is read as "significantly different" (Suppl. VII)
COLLAPSED = 0.1  # of the distance between targets: predictions that are nearer to each other are one network for all
EXAMPLES = 3  # of a single architecture; one of each where there are several
COLUMNS = (
    Column("instances", "instances"),
    Column("prediction to its target", "to_target", digits=4),
    Column("prediction to other targets", "to_other_targets", digits=4),
    Column("target to target", "among_targets", digits=4),
    Column("prediction to prediction", "among_predicted", digits=4),
    Column("cosine with the target", "cosine", digits=4),
    Column("norm over the target's", "norm_ratio", digits=4),
)


def run(subject: Subject) -> Result:
    """Decode the test instances and compare the parameters themselves; no network runs."""
    subject.progress("PReps of the test instances and of their predictions")
    test = subject.predicted()
    measured = {name: measures(*test.values(rows)) for name, rows in test.groups().items()}
    least = min(values["to_target"] for values in measured.values())
    runs = runs_of(test.view)
    distances_of = [(to_target(*test.values(rows)), [runs[row] for row in rows]) for rows in test.groups().values()]
    interval = interval_of_means(distances_of, np.minimum.reduce, subject.seed)
    text = "Distance between predicted and target PReps, relative to the target's norm (least over architectures)"
    of_all = claim(text, least, ">=", DIFFERENT, interval=interval, untold=collapsed(measured))
    return Result(
        name="preps",
        title="Target and predicted PReps (Suppl. VII)",
        text="A PRep holds all parameters of an instance. On the left are PReps of test instances, on the right those "
        "that NetSpace wrote for them, in the same colours and folded to the same width. NetSpace learns what networks "
        "do, not which values they hold, so the two need not look alike.\n\n"
        "Distances are Euclidean, over all parameters without padding, and relative to the norm of the PRep that the "
        "distance is measured to. They are means over instances, or over pairs of an architecture. Two unrelated "
        "networks of equal norm are about 1.4 apart. Where predictions are much nearer to each other than targets are, "
        "the decoder writes about the same network for all.",
        numbers={"by_architecture": measured},
        claims=[of_all],
        tables=(table_of_measures("Distances of PReps, relative to the norm", ("architecture",), measured, COLUMNS),),
        pictures=(subject.picture("Target and predicted PReps of test instances", "preps.png", preps_figure(test)),),
    )


def to_target(target_NV: Tensor, predicted_NV: Tensor) -> Tensor:
    """Return the distance `[N]` of each prediction to its own target, relative to the target's norm."""
    distance_N: Tensor = (predicted_NV - target_NV).norm(dim=1) / target_NV.norm(dim=1)
    return distance_N


def collapsed(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Say of which architecture the space writes one network for all targets, whatever is fed; empty if of none.

    A distance between such a network and the targets says nothing about how an instance is predicted.
    """
    for name, values in measured.items():
        predicted, targets = values["among_predicted"], values["among_targets"]
        if predicted < COLLAPSED * targets:  # false where there is one instance, and no distance
            return (
                f"predictions of {short_name(name)} are nearly one network for all targets: they are "
                f"{predicted:.2g} apart, where the targets are {targets:.2g} apart"
            )
    return ""


def measures(target_NV: Tensor, predicted_NV: Tensor) -> dict[str, Any]:
    """Return relative distances between float64 PReps of one architecture; those of pairs are NaN for one instance."""
    size_N, predicted_size_N = target_NV.norm(dim=1), predicted_NV.norm(dim=1)
    to_targets_NN = distances(predicted_NV, target_NV) / size_N
    return {
        "instances": len(target_NV),
        "to_target": mean_or_nan(to_targets_NN.diagonal()),
        "to_other_targets": mean_or_nan(off_diagonal(to_targets_NN)),
        "among_targets": mean_or_nan(off_diagonal(distances(target_NV, target_NV) / size_N)),
        "among_predicted": mean_or_nan(off_diagonal(distances(predicted_NV, predicted_NV) / predicted_size_N)),
        "cosine": mean_or_nan((target_NV * predicted_NV).sum(1) / (size_N * predicted_size_N)),
        "norm_ratio": mean_or_nan(predicted_size_N / size_N),
    }


def examples(split: PredictedSplit) -> list[int]:
    """Choose rows to draw: the middle one by accuracy of each architecture, or worst to best of a single one."""
    table = split.view.table
    accuracies = table["accuracy"].to_pylist() if "accuracy" in table.column_names else [None] * len(split.view)
    chosen = []
    groups = split.groups()
    for rows in groups.values():
        ranked = sorted(rows, key=lambda row: (accuracies[row] is not None, accuracies[row] or 0.0, split.ids[row]))
        chosen += [ranked[(len(ranked) - 1) // 2]] if len(groups) > 1 else evenly(ranked, EXAMPLES)
    return chosen


def preps_figure(split: PredictedSplit) -> Any:
    """Draw a row for each example, the target beside its prediction."""
    rows = []
    for row in examples(split):
        name = split.predictions.registry.by_class_id(split.class_ids[row]).name
        (target_V,), (predicted_V,) = split.values([row])
        id = split.ids[row]
        rows.append((short_name(name), {f"target: {id}": target_V, f"predicted: {id}": predicted_V}))
    return preps_side_by_side(rows)
