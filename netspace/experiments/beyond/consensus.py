"""Why weak unseen instances come back too good: predictions beside what training instances agree on.

A weak network errs in its own way, which its embedding does not tell of one that was never seen. What is left is what
its neighbours have in common: the mean of their outputs, which is right more often than any of them. Beside it stands
what could be said of an instance if nothing but the length of its training were known.
Shapes: N test instances, M training instances, K of them, E embedding values, B images, C classes.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import prepkit
from netspace.data import TEST, TRAIN
from netspace.experiments.judged import judge, outputs_of
from netspace.experiments.result import Cell, Picture, Progress, Result, Table, new_figure, save_figure
from netspace.experiments.statistics import spearman
from netspace.explore.figures import PREDICTED_COLOUR, TARGET_COLOUR

if TYPE_CHECKING:
    from torch import Tensor

    from netspace.run.run import Run

NAME = "consensus"
NEIGHBOURS = (1, 3, 5, 10)
DRAWN = 3
EPOCHS = "epochs"  # the zoo's column of how long an instance was trained
ALIKE = 5  # training instances of about the same epochs
CONSENSUS_OF_EPOCHS = f"consensus of {ALIKE} of the same epochs"
MEAN_OF_EPOCHS = f"mean accuracy of {ALIKE} of the same epochs"
COLOURS = {"target": TARGET_COLOUR, "predicted": PREDICTED_COLOUR}
# measure: its column, and what it is multiplied by there
MEASURES = {
    "accuracy": ("accuracy, %", 100),
    "agrees_with_prediction": ("same answer as the prediction, %", 100),
    "accuracy_from_prediction": ("accuracy apart from the prediction's, points", 100),
    "accuracy_from_target": ("accuracy apart from the target's, points", 100),
    "spearman_with_target": ("Spearman with the target's", 1),
}


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
    """Compare predictions for test instances with their targets, and with the mean outputs of training neighbours."""
    space = run.space(device=device)
    if progress is not None:
        progress("test instances beside the training instances that are nearest to them")
    test, train = judge(run, space, zoo, TEST), judge(run, space, zoo, TRAIN)
    images, labels = task.normalised(TEST)
    labels_B = labels.cpu()
    target_NBC, predicted_NBC = test.outputs(images)
    neighbour_MBC = outputs_of(run.registry, train.class_ids, train.preps, images)
    distance_NM = torch.cdist(test.latents.cpu().double(), train.latents.cpu().double())
    names = {"target": target_NBC.argmax(2), "predicted": predicted_NBC.argmax(2)}
    for count in NEIGHBOURS:
        if count <= len(neighbour_MBC):
            nearest = distance_NM.topk(count, dim=1, largest=False).indices
            names[f"consensus of {count}"] = torch.stack([neighbour_MBC[rows].mean(0) for rows in nearest]).argmax(2)
    alike_NK = same_epochs(test.view, train.view)
    if alike_NK is not None:
        names[CONSENSUS_OF_EPOCHS] = torch.stack([neighbour_MBC[rows].mean(0) for rows in alike_NK]).argmax(2)
    accuracy = {kind: (named == labels_B).double().mean(1) for kind, named in names.items()}
    if alike_NK is not None:
        accuracy[MEAN_OF_EPOCHS] = (neighbour_MBC.argmax(2) == labels_B).double().mean(1)[alike_NK].mean(1)
    numbers = {kind: _measures(kind, names, accuracy) for kind in accuracy}
    return Result(
        name=NAME,
        title="What an unseen instance is predicted from: the consensus of its neighbours",
        text=_text(len(test.view), numbers),
        numbers=numbers,
        tables=(_table(numbers),),
        pictures=(Picture("Accuracy of targets, predictions and a consensus", draw(accuracy, folder)),),
    )


def same_epochs(test: prepkit.Zoo, train: prepkit.Zoo) -> Tensor | None:
    """The K training instances `[N, K]` whose epochs are nearest to each test instance's, by their ratio.

    None where the zoo does not say how long its instances were trained, or all were trained alike.
    """
    if EPOCHS not in train.table.column_names or len(train) < ALIKE:
        return None
    columns = [view.table[EPOCHS].to_pylist() for view in (test, train)]
    if any(None in column or min(column) <= 0 for column in columns) or len(set(columns[1])) < 2:
        return None
    test_N, train_M = (np.log(np.array(column, np.float64)) for column in columns)
    distance_NM = np.abs(test_N[:, None] - train_M[None, :])
    return torch.from_numpy(np.argsort(distance_NM, axis=1, kind="stable")[:, :ALIKE].copy())


def _measures(kind: str, names: dict[str, Tensor], accuracy: dict[str, Tensor]) -> dict[str, float]:
    numbers = {
        "accuracy": float(accuracy[kind].mean()),
        "accuracy_from_prediction": float((accuracy[kind] - accuracy["predicted"]).abs().mean()),
        "accuracy_from_target": float((accuracy[kind] - accuracy["target"]).abs().mean()),
        "spearman_with_target": float(spearman(accuracy[kind], accuracy["target"])),
    }
    if kind in names:  # a mean of accuracies gives no answers
        numbers["agrees_with_prediction"] = float((names[kind] == names["predicted"]).double().mean())
    return numbers


def _text(instances: int, numbers: dict[str, dict[str, float]]) -> str:
    text = (
        f"{instances} test instances, each beside the training instances whose embeddings are nearest to its own. A "
        "consensus is the answer that the mean of their outputs gives. Where predictions give the same answers as a "
        "consensus more often than as their target, NetSpace writes what the neighbours have in common and not what is "
        "the target's own; and as networks that err in different ways outvote each other's errors, weak instances come "
        "back too good."
    )
    if MEAN_OF_EPOCHS not in numbers:
        return text
    mean, consensus = numbers[MEAN_OF_EPOCHS], numbers[CONSENSUS_OF_EPOCHS]
    return (
        f"{text}\n\nIf nothing were known of an unseen instance but the epochs it was trained for, the mean accuracy "
        f"of {ALIKE} training instances of about those epochs would be "
        f"{100 * mean['accuracy_from_target']:.1f} points off, with rank correlation "
        f"{mean['spearman_with_target']:.3f}; but a network that answers as those {ALIKE} do together, which is what "
        f"Eq. 1 asks for where no more is known, is {100 * consensus['accuracy_from_target']:.1f} points off. To be "
        "nearer than that, a space has to read an instance's own errors from its weights."
    )


def _table(numbers: dict[str, dict[str, float]]) -> Table:
    def cell(one: dict[str, float], measure: str, scale: float) -> Cell:
        return round(scale * one[measure], 4 if scale == 1 else 2) if measure in one else None

    rows = tuple(
        (kind, *(cell(one, measure, scale) for measure, (_, scale) in MEASURES.items()))
        for kind, one in numbers.items()
    )
    columns = ("network", *(column for column, _ in MEASURES.values()))
    return Table("Over all test images, means over the test instances", columns, rows)


def draw(accuracy: dict[str, Tensor], folder: Path) -> str:
    """Accuracies in the order of the targets'; the name of the file."""
    figure = new_figure(7.2, 3.6)
    axes = figure.subplots()
    order = accuracy["target"].argsort()
    for kind in ("target", "predicted", f"consensus of {DRAWN}"):
        if kind in accuracy:
            places = range(1, len(order) + 1)
            axes.plot(
                places, 100 * accuracy[kind][order], marker="o", markersize=4, color=COLOURS.get(kind), label=kind
            )
    axes.set(xlabel="test instance, in the order of target accuracy", ylabel="accuracy on test images, %")
    axes.grid(axis="y", color="0.92")
    axes.legend(frameon=False)
    return save_figure(figure, folder, f"{NAME}.png")
