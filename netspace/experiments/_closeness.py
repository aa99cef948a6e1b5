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
from netspace.experiments._subject import PredictedSplit, Subject, runs_of
from netspace.experiments.result import Claim, Column, Table, claim, table_of_measures
from netspace.space.evaluation import CLOSE, NEAR
from prepkit.errors import counted
from prepkit.running.groups import outputs_by_class_id
from prepkit.support.bootstrap import interval_of_mean
from prepkit.support.statistics import mean_or_nan
from prepkit.tasks.randomness import generator, others_of_each

CLOSENESS = 0.8
OTHERS = 15  # instances of the same split that each is compared with, if there are so many
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
    points, runs = subject.inputs(split.view), runs_of(split.view)
    shares_N23 = torch.stack([_shares_close(split, row, others, points[row]) for row, others in enumerate(others_NK)])
    return {
        "instances": len(others_NK),
        "others": len(others_NK[0]),
        ALL_POINTS: _compared(shares_N23[:, 0], runs, subject.seed),
        NEAR_SURFACE: _compared(shares_N23[:, 1], runs, subject.seed),
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


def _compared(shares_N3: Tensor, runs: Sequence[str], seed: int) -> dict[str, Any]:
    """Return means over instances, and the paired difference of own and others' predictions, with intervals."""
    own_N, difference_of_all_N = shares_N3[:, 0], shares_N3[:, 0] - shares_N3[:, 2]
    difference_N = difference_of_all_N[difference_of_all_N.isfinite()]
    count = len(difference_N)
    own, targets, predictions = shares_N3.nanmean(0).tolist()
    return {
        "own": own,
        "own_interval": interval_of_mean(own_N, runs, seed),
        "others_targets": targets,
        "others_predictions": predictions,
        "difference": mean_or_nan(difference_N),
        "difference_interval": interval_of_mean(difference_of_all_N, runs, seed),
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
    return f"{text} {_comparison(closeness[TEST][NEAR_SURFACE])}" if TEST in closeness else text


def _comparison(near: Mapping[str, Any]) -> str:
    (low, high), difference = near["difference_interval"], near["difference"]
    if not (math.isfinite(low) and math.isfinite(high)):
        return "There are too few held-out chairs to compare their predictions with those made for others."
    how = "nearer to" if low > 0 else "farther from" if high < 0 else "neither clearly nearer to nor farther from"
    return (
        f"Predictions of held-out chairs are {how} their own target than those made for another held-out chair: "
        f"near the surface {100 * near['own']:.1f} % of the outputs are close against "
        f"{100 * near['others_predictions']:.1f} %, a difference of {100 * difference:+.1f} points (95 % of the draws "
        f"of other chairs: {100 * low:+.1f} to {100 * high:+.1f}); other chairs' targets give "
        f"{100 * near['others_targets']:.1f} %."
    )


def closeness_claims(closeness: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """Return the paper's stop as a claim on training chairs, and that predictions of held-out ones are their own."""
    text = "Training chairs: outputs within 1e-2 of the target's near the surface"
    near, close = (
        closeness[TRAIN][NEAR_SURFACE],
        "the share of a training chair's distances within 1e-2 of its target's",
    )
    claims = [claim(text, near["own"], ">=", CLOSENESS, unit="%", interval=near["own_interval"], short=close)]
    if TEST in closeness:
        text = (
            "Held-out chairs near the surface: outputs within 1e-2 of the target's, own prediction minus one made for "
            "another chair"
        )
        near = closeness[TEST][NEAR_SURFACE]
        number, interval = near["difference"], near["difference_interval"]
        claims.append(claim(text, number, ">", 0.0, kind="beyond", unit="points", interval=interval))
    return claims
