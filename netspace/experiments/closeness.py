"""How close predicted signals come to their own targets, and how close what is predicted for others comes to these.

Without the second the first says little: all chairs share much, and the smooth mean of all is close to each of them.
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
from netspace.experiments.result import Claim, Table, claim
from netspace.experiments.subject import PredictedSplit, Subject
from netspace.space.evaluation import CLOSE, NEAR
from prepkit.running.groups import outputs_by_class_id
from prepkit.statistics import mean_or_nan
from prepkit.tasks.randomness import generator

CLOSENESS = 0.8
OTHERS = 15  # instances of the same split that each is compared with, if there are so many
CLEAR = 2  # standard errors: a smaller difference is called none
ALL_POINTS, NEAR_SURFACE = "all points", "near the surface"


def closeness_to_own(subject: Subject, split: PredictedSplit) -> dict[str, Any]:
    """Measure how many outputs come within 1e-2 of each instance's target, on points that were not trained on.

    Of all points, and of those where the target's outputs are within 0.1 of the surface, means over instances are:
    own:                the share of outputs of the instance's own prediction
    others_targets:     that of other instances' targets, drawn from the same split: what any other chair gives
    others_predictions: that of predictions for these others: what the space gives for someone else
    difference:         own - others_predictions, paired, and its standard_error over instances
    All that needs others is NaN where an instance is alone in its split.
    """
    others_NK = _others(len(split.view), subject.seed)
    points = subject.inputs(split.view)
    shares_N23 = torch.stack([_shares_close(split, row, others, points[row]) for row, others in enumerate(others_NK)])
    return {
        "instances": len(others_NK),
        "others": len(others_NK[0]),
        ALL_POINTS: _compared(shares_N23[:, 0]),
        NEAR_SURFACE: _compared(shares_N23[:, 1]),
    }


def _others(count: int, seed: int) -> list[list[int]]:
    """Of each instance up to OTHERS different ones; all are asked for equally often."""
    order = torch.randperm(count, generator=generator("other instances", seed)).tolist()
    drawn = min(count - 1, OTHERS)
    place = {row: at for at, row in enumerate(order)}
    return [[order[(place[row] + step) % count] for step in range(1, drawn + 1)] for row in range(count)]


def _shares_close(split: PredictedSplit, row: int, others: Sequence[int], points: Tensor) -> Tensor:
    """Return shares `[2, 3]` of all points and near the surface: of own prediction, others' targets and predictions."""
    rows, predicted = [row, *others], split.predicted
    class_ids = [split.class_ids[place] for place in rows] + [predicted.class_ids[place] for place in rows]
    preps = torch.cat([split.preps[rows], predicted.preps[rows]])
    outputs = outputs_by_class_id(predicted.registry, class_ids, preps, points).view(2, len(rows), len(points))
    target = outputs[0, 0]
    close = ((outputs - target).abs() <= CLOSE).double()
    chosen = (torch.ones_like(target, dtype=torch.bool), target.abs() <= NEAR)
    return torch.stack(
        [torch.stack([close[1, 0, at].mean(), close[0, 1:, at].mean(), close[1, 1:, at].mean()]) for at in chosen]
    )


def _compared(shares_N3: Tensor) -> dict[str, float]:
    """Means over instances, and the paired difference of own and others' predictions."""
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
    """A row of each split and choice of points; closeness: of each split what closeness_to_own gives."""
    rows = [
        (split, points, *(round(100 * value, 1) for value in one[points].values()))
        for split, one in closeness.items()
        for points in (ALL_POINTS, NEAR_SURFACE)
    ]
    columns = ("split", "outputs", "own prediction, %", "other chairs' targets, %", "predictions for other chairs, %")
    return Table(
        "What is close to an instance's own signal",
        (*columns, "own above predictions for others, points", "standard error, points"),
        tuple(rows),
    )


def closeness_text(closeness: Mapping[str, Mapping[str, Any]]) -> str:
    """What was compared, and whether predictions of held-out chairs are their own."""
    counts = " and ".join(
        f"{one['others']} others for each of {one['instances']} chairs of the split {split}"
        for split, one in closeness.items()
    )
    text = (
        "Closeness is the share of outputs within 1e-2 of the target's, on points of the target's shape that training "
        "did not see; near the surface are those where the target's outputs are within 0.1 of it. On the same points "
        "stand beside an instance's own prediction other instances' targets (what any other chair gives) and what the "
        f"space predicts for these other instances (what it gives for someone else): {counts}. The standard error is "
        "over instances, of the paired difference."
    )
    return f"{text} {_verdict(closeness[TEST])}" if TEST in closeness else text


def _verdict(held_out: Mapping[str, Any]) -> str:
    near = held_out[NEAR_SURFACE]
    difference, error = near["difference"], near["standard_error"]
    if not math.isfinite(error):
        return "There are too few held-out chairs to compare their predictions with those made for others."
    if abs(difference) <= CLEAR * error:
        how = "neither nearer to their own target than those made for another held-out chair, nor farther, by more"
        how += f" than {CLEAR} standard errors"
    else:
        how = "nearer to" if difference > 0 else "farther from"
        how += " their own target than those made for another held-out chair"
    return (
        f"Predictions of held-out chairs are {how}: near the surface {100 * near['own']:.1f} % of the outputs are "
        f"close against {100 * near['others_predictions']:.1f} %, a difference of {100 * difference:+.1f} points "
        f"(standard error {100 * error:.1f}); other chairs' targets give {100 * near['others_targets']:.1f} %."
    )


def closeness_claims(closeness: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """Of training chairs the paper's stop; of held-out ones, if there are any, that predictions are their own."""
    claims = [
        claim(
            "Training chairs: outputs within 1e-2 of the target's near the surface",
            closeness[TRAIN][NEAR_SURFACE]["own"],
            ">=",
            CLOSENESS,
            unit="%",
        )
    ]
    if TEST in closeness:
        claims.append(
            claim(
                "Held-out chairs near the surface: outputs within 1e-2 of the target's, more of the own prediction "
                "than of one made for another chair",
                closeness[TEST][NEAR_SURFACE]["difference"],
                ">",
                0.0,
                kind="beyond",
                unit="points",
            )
        )
    return claims
