"""Fig. 3 a, c: accuracy of unseen target instances and of the instances that are predicted for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.data import TEST, TRAIN
from netspace.experiments._subject import runs_of
from netspace.experiments.result import Claim, Column, Result, Table, claim, table_of_measures
from netspace.explore.figures import evaluation_figure
from netspace.space.evaluation import Evaluation, evaluate
from prepkit.support.bootstrap import interval_of, interval_of_mean, interval_of_means
from prepkit.support.statistics import pearson, spearman

if TYPE_CHECKING:
    from netspace.experiments._subject import Subject

SPEARMAN, MEAN_DIFFERENCE = 0.95, 0.03  # what is aimed at on the embedded zoos
COLUMNS = (
    Column("instances", "instances"),
    Column("target, %", "target_accuracy", 100, 2),
    Column("predicted, %", "predicted_accuracy", 100, 2),
    Column("mean difference, points", "mean_difference", 100, 2),
    Column("Spearman", "spearman", digits=3),
    Column("Pearson", "pearson", digits=3),
)


def run(subject: Subject) -> Result:
    """Measure the accuracy of test instances, training instances and predictions for both, on the test samples."""
    evaluations: dict[str, Evaluation] = {}
    runs: dict[str, list[str]] = {}
    for split in (TEST, TRAIN):
        subject.progress(f"accuracy of the {split} instances and of their predictions")
        view = subject.view(split)
        evaluations[split] = evaluate(subject.space, subject.run.registry, view, subject.task, TEST)
        runs[split] = runs_of(view)
    numbers = {split: measures(evaluations[split], runs[split], subject.seed) for split in evaluations}
    median = float(evaluations[TRAIN].column("target_accuracy").median())
    constant = float((evaluations[TEST].column("target_accuracy") - median).abs().mean())
    test = numbers[TEST]
    has_classes = subject.run.recipe.has_classes
    picture = subject.picture(
        "Target and predicted accuracy of unseen instances", "accuracy.png", evaluation_figure(evaluations[TEST])
    )
    return Result(
        name="accuracy",
        title="Accuracy of unseen instances (Fig. 3 a, c)",
        text=_text(has_classes, numbers, constant, subject.task.splits[TEST]),
        numbers={**test, "of_constant_guess": constant, "training_instances": numbers[TRAIN]},
        claims=_claims(has_classes, test),
        tables=(_summary(numbers), _instances(evaluations[TEST])),
        pictures=(picture,),
    )


def measures(evaluation: Evaluation, runs: Sequence[str], seed: int) -> dict[str, Any]:
    """Return how target and predicted accuracy go together, over all instances and by architecture.

    runs: the training run of each instance, for the intervals
    `accuracy_lost` is how much less accurate than their targets predictions are, of the worst architecture.
    """
    table = [row | {"run": run} for row, run in zip(evaluation.table.to_pylist(), runs, strict=True)]
    names = sorted({(row["class_id"], row["architecture"]) for row in table})
    groups = {name: [row for row in table if row["architecture"] == name] for _, name in names}
    lost = {name: [row["target_accuracy"] - row["predicted_accuracy"] for row in rows] for name, rows in groups.items()}
    means = ((lost[name], [row["run"] for row in rows]) for name, rows in groups.items())
    return {
        **_measures(table, seed),
        "accuracy_lost": max(sum(values) / len(values) for values in lost.values()),
        "accuracy_lost_interval": interval_of_means(means, np.maximum.reduce, seed),
        "by_architecture": {name: _measures(rows, seed) for name, rows in groups.items()},
    }


def _measures(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    target, predicted = ([row[f"{kind}_accuracy"] for row in rows] for kind in ("target", "predicted"))
    differences = [abs(a - b) for a, b in zip(target, predicted, strict=True)]
    runs = [row["run"] for row in rows]
    return {
        "instances": len(rows),
        "target_accuracy": sum(target) / len(rows),
        "predicted_accuracy": sum(predicted) / len(rows),
        "mean_difference": sum(differences) / len(rows),
        "mean_difference_interval": interval_of_mean(differences, runs, seed),
        "largest_difference": max(differences),
        "spearman": float(spearman(target, predicted)),
        "spearman_interval": interval_of(spearman, target, predicted, runs, seed),
        "pearson": float(pearson(target, predicted)),
        "class_id_accuracy": sum(row["class_id"] == row["predicted_class_id"] for row in rows) / len(rows),
    }


def _claims(has_classes: bool, test: dict[str, Any]) -> list[Claim]:
    # Architectures that have all learnt what there is to learn differ by luck, and so does their order.
    if has_classes:
        text = "Unseen instances: accuracy that predictions lose against their targets (worst architecture)"
        lost, interval = test["accuracy_lost"], test["accuracy_lost_interval"]
        return [
            claim("Unseen instances with the right ClassId", test["class_id_accuracy"], "==", 1, unit="%"),
            claim(text, lost, "<=", MEAN_DIFFERENCE, unit="points", interval=interval),
        ]
    text = "Unseen instances: rank correlation (Spearman) of target and predicted accuracy"
    equal = "" if math.isfinite(test["spearman"]) else "all targets or all predictions are equally accurate"
    difference = "Unseen instances: mean difference of target and predicted accuracy"
    number, interval = test["mean_difference"], test["mean_difference_interval"]
    followed = "the rank correlation of target and predicted accuracy"
    return [
        claim(text, test["spearman"], ">=", SPEARMAN, interval=test["spearman_interval"], untold=equal, short=followed),
        claim(difference, number, "<=", MEAN_DIFFERENCE, unit="points", interval=interval),
    ]


def _text(has_classes: bool, numbers: dict[str, dict[str, Any]], constant: float, images: int) -> str:
    test, train = numbers[TEST], numbers[TRAIN]
    low, high = test["spearman_interval"]
    if has_classes:
        order = (
            "Several architectures that have all learnt what there is to learn differ by little more than the luck of "
            "the test images, and so does the order of their instances. The claim is therefore only that predictions "
            "are not worse than their targets."
        )
    elif math.isfinite(test["spearman"]):
        drawn = (
            f"over bootstrap draws of the instances, 95 % of its values lie between {low:.3f} and {high:.3f}."
            if math.isfinite(low)
            else "the test instances are all of one training run, so there are no other draws of them."
        )
        order = f"The rank correlation is {test['spearman']:.3f}; {drawn}"
    else:
        order = "There is no rank correlation, because all targets or all predictions are equally accurate."
    return (
        f"{test['instances']} test instances that NetSpace never saw are encoded and decoded. Each target and its "
        f"prediction run on the task's {images} test images. The picture shows them in the order of target accuracy: "
        "the better the space, the closer the two lines.\n\n"
        f"Target and predicted accuracy differ by {100 * test['mean_difference']:.1f} points on average and by "
        f"{100 * test['largest_difference']:.1f} points at most. A guess that is always the median of the training "
        f"targets would differ by {100 * constant:.1f} points on average. For training instances, predictions differ "
        f"by {100 * train['mean_difference']:.1f} points. {order}"
    )


def _summary(numbers: dict[str, dict[str, Any]]) -> Table:
    rows = {}
    for split, kind in ((TEST, "unseen"), (TRAIN, "training")):
        by_architecture = numbers[split]["by_architecture"]
        if len(by_architecture) > 1:
            rows[kind, "all"] = numbers[split]
        rows |= {(kind, name): values for name, values in by_architecture.items()}
    return table_of_measures("Target and predicted accuracy", ("kind", "architecture"), rows, COLUMNS)


def _instances(evaluation: Evaluation) -> Table:
    names = ("id", "architecture", "predicted_architecture")
    rows = {tuple(row[name] for name in names): row for row in evaluation.table.to_pylist()}
    titles = ("id", "architecture", "predicted architecture")
    return table_of_measures("Unseen instances", titles, rows, COLUMNS[1:3])
