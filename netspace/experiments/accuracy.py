"""Fig. 3 a, c: accuracy of unseen target instances and of the instances that are predicted for them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import prepkit
from netspace.data import TEST, TRAIN
from netspace.experiments.judged import split_of
from netspace.experiments.result import Picture, Progress, Result, Table, claim, save_figure
from netspace.experiments.statistics import interval, pearson, spearman
from netspace.explore.figures import evaluation_figure
from netspace.space.evaluation import Evaluation, evaluate

if TYPE_CHECKING:
    from netspace.run.run import Run

NAME = "accuracy"
SPEARMAN, MEAN_DIFFERENCE = 0.95, 0.03  # what is aimed at on the embedded zoos


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
    """Judge all test instances and those predicted for them on the task's test samples, and training instances too."""
    space = run.space(device=device)
    found: dict[str, Evaluation] = {}
    for split in (TEST, TRAIN):
        if progress is not None:
            progress(f"accuracy of the {split} instances and of what is predicted for them")
        found[split] = evaluate(space, run.registry, split_of(zoo, split), task, TEST)
    numbers = {split: measures(one, seed) for split, one in found.items()}
    guess = float(found[TRAIN].column("target_accuracy").median())
    constant = float((found[TEST].column("target_accuracy") - guess).abs().mean())
    test = numbers[TEST]
    if run.recipe.has_classes:  # all learnt what there is to learn: differences and their order are luck
        text = "Unseen instances: the worst architecture's predictions are less accurate than their targets by"
        claims = [
            claim("Unseen instances with the right ClassId", test["class_id_accuracy"], ">=", 1.0, unit="%"),
            claim(text, worst_loss(test), "<=", MEAN_DIFFERENCE, unit="points"),
        ]
    else:
        text = "Unseen instances: mean difference of target and predicted accuracy"
        claims = [
            claim(
                "Unseen instances: rank correlation of target and predicted accuracy", test["spearman"], ">=", SPEARMAN
            ),
            claim(text, test["mean_difference"], "<=", MEAN_DIFFERENCE, unit="points"),
        ]
    return Result(
        name=NAME,
        title="Accuracy of unseen instances (Fig. 3 a, c)",
        text=_text(run, numbers, constant, task.splits[TEST]),
        numbers={**test, "of_constant_guess": constant, "training_instances": numbers[TRAIN]},
        claims=claims,
        tables=(_summary(numbers), _instances(found[TEST])),
        pictures=(Picture("Target and predicted accuracy of unseen instances", draw(found[TEST], folder)),),
    )


def measures(found: Evaluation, seed: int) -> dict[str, Any]:
    """How target and predicted accuracy go together, over all instances and by architecture."""
    table = found.table.to_pylist()
    names = sorted({(row["class_id"], row["architecture"]) for row in table})
    groups = {name: [row for row in table if row["architecture"] == name] for _, name in names}
    return {**_measures(table, seed), "by_architecture": {name: _measures(rows, seed) for name, rows in groups.items()}}


def worst_loss(numbers: dict[str, Any]) -> float:
    """Mean target accuracy less mean predicted accuracy of the architecture where that is most."""
    return float(max(one["target_accuracy"] - one["predicted_accuracy"] for one in numbers["by_architecture"].values()))


def _measures(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    target, predicted = ([row[f"{kind}_accuracy"] for row in rows] for kind in ("target", "predicted"))
    differences = [abs(a - b) for a, b in zip(target, predicted, strict=True)]
    return {
        "instances": len(rows),
        "target_accuracy": sum(target) / len(rows),
        "predicted_accuracy": sum(predicted) / len(rows),
        "mean_difference": sum(differences) / len(rows),
        "largest_difference": max(differences),
        "spearman": float(spearman(target, predicted)),
        "spearman_interval": list(interval(spearman, target, predicted, seed)),
        "pearson": float(pearson(target, predicted)),
        "class_id_accuracy": sum(row["class_id"] == row["predicted_class_id"] for row in rows) / len(rows),
    }


def _text(run: Run, numbers: dict[str, dict[str, Any]], constant: float, images: int) -> str:
    test, train = numbers[TEST], numbers[TRAIN]
    low, high = test["spearman_interval"]
    if run.recipe.has_classes:
        order = (
            "Where several architectures have all learnt what there is to learn, differences between instances and "
            "their order are little more than the luck of the test images; so what is claimed is that predictions are "
            "not worse than their targets."
        )
    elif math.isfinite(test["spearman"]):
        order = (
            f"Their rank correlation is {test['spearman']:.3f}; 95 % of bootstrap draws of the instances lie between "
            f"{low:.3f} and {high:.3f}."
        )
    else:
        order = "They have no rank correlation, as all of one kind are equal."
    return (
        f"{test['instances']} test instances that NetSpace never saw are encoded and decoded; both networks, target "
        f"and predicted, are judged on the task's {images} test images. The picture shows them in the order of "
        "target accuracy: the better the space, the closer the two lines.\n\n"
        f"Target and predicted accuracy differ by {100 * test['mean_difference']:.1f} points on average, "
        f"{100 * test['largest_difference']:.1f} at most. Always guessing the median of the training targets would be "
        f"off by {100 * constant:.1f} points on average; on training instances predictions are off by "
        f"{100 * train['mean_difference']:.1f}. {order}"
    )


def draw(found: Evaluation, folder: Path) -> str:
    """Accuracies in the order of the targets', one panel an architecture; the name of the file."""
    return save_figure(evaluation_figure(found), folder, f"{NAME}.png")


def _summary(numbers: dict[str, dict[str, Any]]) -> Table:
    rows = []
    for split, kind in ((TEST, "unseen"), (TRAIN, "training")):
        parts = [("all", numbers[split]), *numbers[split]["by_architecture"].items()]
        for name, one in parts if len(parts) > 2 else parts[1:]:
            values = [round(100 * one[key], 2) for key in ("target_accuracy", "predicted_accuracy", "mean_difference")]
            rows.append((kind, name, one["instances"], *values, round(one["spearman"], 3), round(one["pearson"], 3)))
    columns = ("instances", "architecture", "number", "target, %", "predicted, %", "mean difference, points")
    return Table("Target and predicted accuracy", (*columns, "Spearman", "Pearson"), tuple(rows))


def _instances(found: Evaluation) -> Table:
    rows = tuple(
        (
            row["id"],
            row["architecture"],
            row["predicted_architecture"],
            round(100 * row["target_accuracy"], 2),
            round(100 * row["predicted_accuracy"], 2),
        )
        for row in found.table.to_pylist()
    )
    return Table(
        "Unseen instances", ("id", "architecture", "predicted architecture", "target, %", "predicted, %"), rows
    )
