"""Is a predicted instance its own target's, or the same good network for all targets of its class?

Eq. 1 learns a target's outputs; Eq. 3 to 6 never use them, only the teacher's, the labels and the ClassId.
Shapes: N instances of an architecture, B images, C classes.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from netspace.data import TEST, TRAIN
from netspace.experiments._subject import runs_of
from netspace.experiments.preps import measures as prep_measures
from netspace.experiments.result import Claim, Column, Result, Table, claim, table_of_measures
from prepkit.errors import counted
from prepkit.figures import panels, short_name
from prepkit.running.likeness import beyond_margins, compare, matching_measures, shares_paired_rightly, shares_preferred
from prepkit.support.bootstrap import interval_of_means
from prepkit.support.statistics import mean_or_nan, off_diagonal

if TYPE_CHECKING:
    from netspace.experiments._subject import PredictedSplit, Subject

PREFERRED = "own preferred"
KEPT = 0.75  # of comparisons; chance is 0.5
INSTANCES = {TEST: "unseen", TRAIN: "training"}
WITHIN_COLOURS = 0.95  # of the values lie within the range of colours: a few pairs would take it from all others
LEAST_RANGE = 1.0  # points: less is an image or two
MEANS = {"own": "with its own target", "others": "with others", "nearest_in_accuracy": "with the nearest in accuracy"}
SHARES = (
    Column("own is nearer than another, %", "own_preferred", 100, 1),
    Column("own is the nearest, %", "own_first", 100, 1),
    Column("paired rightly, %", "paired", 100, 1),
    Column("paired rightly, nearest in accuracy, %", "paired_nearest", 100, 1),
)
MEASURES = {  # title and columns of each measure of likeness
    "agreement": ("agreement, %", (*(Column(title, key, 100, 2) for key, title in MEANS.items()), *SHARES)),
    "kl": ("KL divergence, nats", (*(Column(title, key, digits=4) for key, title in MEANS.items()), *SHARES)),
}
SPREAD_COLUMNS = (
    Column("agreement of two targets, %", "agreement_among_targets", 100, 2),
    Column("agreement of two predictions, %", "agreement_among_predicted", 100, 2),
    Column("distance of two targets' PReps, of their norm", "prep_distance_among_targets", digits=4),
    Column("distance of two predicted PReps, of their norm", "prep_distance_among_predicted", digits=4),
)


def run(subject: Subject) -> Result:
    """Compare each predicted instance, of test and of training, with every target of its class, on the test images."""
    by_split: dict[str, dict[str, dict[str, Any]]] = {}
    for split in (TRAIN, TEST):
        subject.progress(f"outputs of the {split} instances and of their predictions on all test images")
        by_split[split], each = measures_of_split(subject, subject.predicted(split))  # each: of the test split
    test = by_split[TEST]
    means = {split: _means(by_architecture) for split, by_architecture in by_split.items()}
    spread_title = "How different instances of an architecture are"
    title = "Agreement of every prediction with every target of its class"
    return Result(
        name="identity",
        title="Identity: its own target, or any of its class?",
        text=_text(subject, len(subject.view(TEST)), means),
        numbers={"means": means, "by_architecture": test, "training_instances": by_split[TRAIN]},
        claims=_claims(means[TEST], each, subject.seed),
        tables=(
            _agreement_table(by_split),
            table_of_measures(spread_title, ("architecture",), test, SPREAD_COLUMNS),
        ),
        pictures=(subject.picture(title, "identity.png", agreement_figure(each)),),
    )


@dataclass(frozen=True)
class Matching:
    """How the predictions of an architecture match its targets, one by one.

    agreement: `[N, N]` of each prediction (row) and target (column)
    accuracy:  `[N]` of the targets
    shares:    by measure of likeness, the share of comparisons of each instance that come out rightly, `[N]`
    runs:      the training run of each instance
    """

    agreement: Tensor
    accuracy: Tensor
    shares: Mapping[str, Tensor]
    runs: Sequence[str]


def measures_of_split(subject: Subject, split: PredictedSplit) -> tuple[dict[str, dict[str, Any]], dict[str, Matching]]:
    """Return all measures of each architecture, and how its predictions match one by one."""
    target_NBC, predicted_NBC = split.outputs(subject.inputs(split.view))
    labels_B = subject.labels()
    runs = runs_of(split.view)
    measured, each = {}, {}
    for name, rows in split.groups().items():
        target, predicted = target_NBC[rows], predicted_NBC[rows]
        agreement_NN, kl_NN = compare(predicted, target)
        accuracy_N = (target.argmax(-1) == labels_B).double().mean(1)
        preps = prep_measures(*split.values(rows))
        measured[name] = {
            "instances": len(rows),
            "agreement": matching_measures(agreement_NN, accuracy_N),
            "kl": matching_measures(-kl_NN, accuracy_N, sign=-1),
            "agreement_among_targets": mean_or_nan(off_diagonal(compare(target, target)[0])),
            "agreement_among_predicted": mean_or_nan(off_diagonal(compare(predicted, predicted)[0])),
            "prep_distance_among_targets": preps["among_targets"],
            "prep_distance_among_predicted": preps["among_predicted"],
        }
        shares = {
            PREFERRED: shares_preferred(agreement_NN),
            "agreement": shares_paired_rightly(agreement_NN, accuracy_N),
            "kl": shares_paired_rightly(-kl_NN, accuracy_N),
        }
        each[name] = Matching(agreement_NN, accuracy_N, shares, [runs[row] for row in rows])
    return measured, each


def _means(by_architecture: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return means over the architectures that have two instances or more; NaN if there are none."""
    several = [values for values in by_architecture.values() if values["instances"] > 1]
    names = ("own_preferred", "paired", "paired_nearest")
    return {
        kind: {
            name: mean_or_nan(torch.tensor([values[kind][name] for values in several], dtype=torch.float64))
            for name in names
        }
        for kind in MEASURES
    }


def _claims(unseen: Mapping[str, Mapping[str, float]], each: Mapping[str, Matching], seed: int) -> list[Claim]:
    text = "Unseen instances of nearest accuracy that are paired rightly with their targets, by {} (chance: 50 %)"
    agree = "Unseen instances agree with their own target more than with another (chance: 50 %)"
    asked = (
        (agree, unseen["agreement"]["own_preferred"], PREFERRED),
        (text.format("agreement"), unseen["agreement"]["paired_nearest"], "agreement"),
        (text.format("divergence"), unseen["kl"]["paired_nearest"], "kl"),
    )
    several = [matching for matching in each.values() if len(matching.accuracy) > 1]
    claims = []
    for words, share, name in asked:
        groups = [(matching.shares[name], matching.runs) for matching in several]
        interval = interval_of_means(groups, lambda means: np.mean(means, axis=0), seed)
        claims.append(claim(words, share, ">=", KEPT, kind="beyond", unit="%", interval=interval))
    return claims


def _text(subject: Subject, instances: int, means: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    recipe = subject.run.recipe
    learnt = (
        "In this setting the paper's loss knows the teacher, the labels and the ClassId, not the target's outputs"
        if recipe.has_classes
        else "In this setting the loss is the divergence from the target's own outputs (Eq. 1)"
    )
    added = f", but this recipe adds them with weight {recipe.loss.identity:g}" if recipe.loss.identity else ""
    unseen, seen = means[TEST]["kl"], means[TRAIN]["kl"]
    return (
        f"Each of {counted(instances, 'predicted test instance')} is compared with all test targets of its "
        f"architecture on {subject.task.splits[TEST]} test images: the share of images that both put into the same "
        f"class, and the divergence KL(target || predicted) of their outputs. {learnt}{added}.\n\n"
        "Some targets are easy to agree with, whatever is predicted, and some predictions agree with all. So two "
        "predictions and their two targets are taken at a time. Do they fit better if paired rightly than if paired "
        "crosswise? Half of the pairs do if identity is lost, all if it is kept. As instances of equal accuracy are "
        "alike, a prediction that keeps nothing but the accuracy does better than half. So claims are about pairs of "
        "nearest accuracy, which show what is kept beyond it. The picture leaves out the mean agreement of each "
        "prediction and of each target: a red diagonal is identity.\n\n"
        f"By divergence {_percent(unseen['paired'])} of the pairs of unseen instances are paired rightly, and "
        f"{_percent(unseen['paired_nearest'])} of those of nearest accuracy; of training instances "
        f"{_percent(seen['paired'])} and {_percent(seen['paired_nearest'])}. What is not kept for training instances "
        "was not learnt; what is kept for them alone does not carry over to unseen ones."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else "none"


def agreement_figure(each: Mapping[str, Matching]) -> Any:
    """Draw agreement beyond the means of row and column, one panel an architecture."""
    count = len(each)
    figure, plots = panels(count, *((5.2, 4.2) if count == 1 else (2.7 + 1 / count, 3.4)))
    beyond = {name: 100 * beyond_margins(matching.agreement) for name, matching in each.items()}
    together = torch.cat([values_NN.flatten().abs() for values_NN in beyond.values()])
    limit = max(LEAST_RANGE, float(together.quantile(WITHIN_COLOURS)))
    for axes, (name, matching) in zip(plots, each.items(), strict=True):
        order = matching.accuracy.argsort(stable=True)
        last = len(order)
        image = axes.imshow(
            beyond[name][order][:, order].numpy(),
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            interpolation="nearest",
            extent=(0.5, last + 0.5, last + 0.5, 0.5),
        )
        axes.set(xticks=[1, last], yticks=[1, last], xlabel="target")
        axes.set_title(short_name(name), parse_math=False, fontsize="medium")
    plots[0].set_ylabel("prediction")
    figure.supxlabel("from the least to the most accurate target", fontsize="small")
    label = "agreement beyond the means, points"
    figure.colorbar(image, ax=plots, fraction=0.046, pad=0.02, extend="both", label=label)
    return figure


def _agreement_table(by_split: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """List agreement and divergence of each split and architecture; both have the same titles of columns."""
    title, names = "A prediction and the targets of its class", ("instances", "architecture", "measure")
    tables = [
        table_of_measures(title, names, {(INSTANCES[split], name, unit): values[kind]}, columns)
        for split, by_architecture in by_split.items()
        for name, values in by_architecture.items()
        for kind, (unit, columns) in MEASURES.items()
    ]
    return Table(title, tables[0].columns, tuple(row for table in tables for row in table.rows))
