"""How close predicted signals come to their own targets, compared with predictions for other chairs.

A small distance alone proves little: chairs resemble each other, and their mean is close to all.
Shapes: N instances, K others of each.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from netspace.data import TEST, TRAIN
from netspace.experiments._subject import PredictedSplit, Subject
from netspace.experiments.result import Claim, Column, Table, claim, table_of_measures
from netspace.space.evaluation import CLOSE, NEAR
from prepkit.errors import counted
from prepkit.running.groups import outputs_by_class_id
from prepkit.support.statistics import mean_or_nan
from prepkit.tasks.randomness import generator, others_of_each

CLOSENESS = 0.8
OTHERS = 15  # instances of the same split that each is compared with, if there are so many
CLEAR = 2  # standard errors: a smaller difference is called none
ALL_POINTS, NEAR_SURFACE = "all points", "near the surface"
COLUMNS = (
    Column("own prediction, %", "own", 100, 1),
    Column("other chairs' targets, %", "others_targets", 100, 1),
    Column("predictions for other chairs, %", "others_predictions", 100, 1),
    Column("own minus predictions for others, points", "difference", 100, 1),
    Column("standard error, points", "standard_error", 100, 1),
)


def closeness_to_own(subject: Subject, split: PredictedSplit) -> dict[str, Any]:
    """Measure how many outputs come within 1e-2 of each instance's target, on points that were not trained on.

    Of all points, and of those where the target's outputs are within 0.1 of the surface, means over instances are:
    own:                the share of outputs of the instance's own prediction
    others_targets:     that of other instances' targets, drawn from the same split: what any other chair gives
    others_predictions: that of predictions for these others: what the space gives for someone else
    difference:         own - others_predictions, paired, and its standard_error over instances
    All that needs others is NaN where an instance is alone in its split.
    """
    others_NK = others_of_each(len(split.view), OTHERS, generator("other instances", subject.seed))
    points = subject.inputs(split.view)
    shares_N23 = torch.stack([_shares_close(split, row, others, points[row]) for row, others in enumerate(others_NK)])
    return {
        "instances": len(others_NK),
        "others": len(others_NK[0]),
        ALL_POINTS: _compared(shares_N23[:, 0]),
        NEAR_SURFACE: _compared(shares_N23[:, 1]),
    }


def _shares_close(split: PredictedSplit, row: int, others: Sequence[int], points: Tensor) -> Tensor:
    """Return shares `[2, 3]` of all points and near the surface: of own prediction, others' targets and predictions."""
    rows, predictions = [row, *others], split.predictions
    class_ids = [split.class_ids[place] for place in rows] + [predictions.class_ids[place] for place in rows]
    preps = torch.cat([split.preps[rows], predictions.preps[rows]])
    outputs = outputs_by_class_id(predictions.registry, class_ids, preps, points).view(2, len(rows), len(points))
    target = outputs[0, 0]
    close = ((outputs - target).abs() <= CLOSE).double()
    chosen = (torch.ones_like(target, dtype=torch.bool), target.abs() <= NEAR)
    return torch.stack(
        [torch.stack([close[1, 0, at].mean(), close[0, 1:, at].mean(), close[1, 1:, at].mean()]) for at in chosen]
    )


def _compared(shares_N3: Tensor) -> dict[str, float]:
    """Return means over instances, and the paired difference of own and others' predictions."""
    difference_N = shares_N3[:, 0] - shares_N3[:, 2]
    difference_N = difference_N[difference_N.isfinite()]
    count = len(difference_N)
    own, targets, predictions = shares_N3.nanmean(0).tolist()
    return {
        "own": own,
        "others_targets": targets,
        "others_predictions": predictions,
        "difference": mean_or_nan(difference_N),
        "standard_error": float(difference_N.std()) / count**0.5 if count > 1 else float("nan"),
    }


def closeness_table(closeness: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table with a row for each split and choice of points.

    closeness: what closeness_to_own returns, by split
    """
    rows = {
        (split, points): measures[points]
        for split, measures in closeness.items()
        for points in (ALL_POINTS, NEAR_SURFACE)
    }
    return table_of_measures("Outputs close to an instance's own signal", ("split", "outputs"), rows, COLUMNS)


def closeness_text(closeness: Mapping[str, Mapping[str, Any]]) -> str:
    """Say what was compared, and whether predictions of held-out chairs are nearer to their own targets than others."""
    counts = " and ".join(
        f"{counted(values['others'], 'other')} for each of {counted(values['instances'], 'chair')} of the split {split}"
        for split, values in closeness.items()
    )
    text = (
        "Closeness is the share of outputs within 1e-2 of the target's, on points of the target's shape that training "
        "did not see; points near the surface are those where the target's outputs are within 0.1 of it. An instance's "
        "own prediction is compared on the same points with other instances' targets (what any other chair gives) and "
        f"with predictions for these other instances (what the space gives for someone else): {counts}. The standard "
        "error is that of the paired difference over instances."
    )
    return f"{text} {_verdict(closeness[TEST][NEAR_SURFACE])}" if TEST in closeness else text


def _verdict(near: Mapping[str, float]) -> str:
    difference, error = near["difference"], near["standard_error"]
    if not math.isfinite(error):
        return "There are too few held-out chairs to compare their predictions with those made for others."
    if abs(difference) <= CLEAR * error:
        how, end = "neither nearer to nor farther from", f" by more than {CLEAR} standard errors"
    else:
        how, end = "nearer to" if difference > 0 else "farther from", ""
    return (
        f"Predictions of held-out chairs are {how} their own target than those made for another held-out chair{end}: "
        f"near the surface {100 * near['own']:.1f} % of the outputs are close against "
        f"{100 * near['others_predictions']:.1f} %, a difference of {100 * difference:+.1f} points (standard error "
        f"{100 * error:.1f}); other chairs' targets give {100 * near['others_targets']:.1f} %."
    )


def closeness_claims(closeness: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """Return the paper's stop as a claim on training chairs, and that predictions of held-out ones are their own."""
    text = "Training chairs: outputs within 1e-2 of the target's near the surface"
    claims = [claim(text, closeness[TRAIN][NEAR_SURFACE]["own"], ">=", CLOSENESS, unit="%")]
    if TEST in closeness:
        text = (
            "Held-out chairs near the surface: outputs within 1e-2 of the target's, own prediction minus one made for "
            "another chair"
        )
        difference = closeness[TEST][NEAR_SURFACE]["difference"]
        claims.append(claim(text, difference, ">", 0.0, kind="beyond", unit="points"))
    return claims
