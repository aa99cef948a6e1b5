"""Why weak unseen instances come back too good: predictions beside what the nearest training instances agree on.

A weak network errs in its own way, which its embedding does not tell of one that was never seen. What is left is what
its neighbours have in common: the mean of their outputs, which is right more often than any of them.
Shapes: N test instances, M training instances, E embedding values, B images, C classes.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import prepkit
from netspace.data import TEST, TRAIN
from netspace.experiments.judged import judge, outputs_of
from netspace.experiments.result import Picture, Progress, Result, Table, new_figure, save_figure

if TYPE_CHECKING:
    from torch import Tensor

    from netspace.checkpoint import Run

NAME = "consensus"
NEIGHBOURS = (1, 3, 5, 10)
DRAWN = 3


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
    accuracy = {kind: (named == labels_B).double().mean(1) for kind, named in names.items()}
    numbers = {kind: _measures(kind, names, accuracy) for kind in names}
    rows = tuple(
        (
            kind,
            round(100 * one["accuracy"], 2),
            round(100 * one["agrees_with_prediction"], 2),
            round(100 * one["accuracy_from_prediction"], 2),
        )
        for kind, one in numbers.items()
    )
    columns = (
        "network",
        "accuracy, %",
        "same answer as the prediction, %",
        "accuracy apart from the prediction's, points",
    )
    return Result(
        name=NAME,
        title="What an unseen instance is predicted from: the consensus of its neighbours",
        text=f"{len(test.view)} test instances, each beside the training instances whose embeddings are nearest to its "
        "own. A consensus is the answer that the mean of their outputs gives. Where predictions give the same answers "
        "as a consensus more often than as their target, NetSpace writes what the neighbours have in common and not "
        "what is the target's own; and as networks that err in different ways outvote each other's errors, weak "
        "instances come back too good.",
        numbers=numbers,
        tables=(Table("Over all test images, means over the test instances", columns, rows),),
        pictures=(Picture("Accuracy of targets, predictions and a consensus", draw(accuracy, folder)),),
    )


def _measures(kind: str, names: dict[str, Tensor], accuracy: dict[str, Tensor]) -> dict[str, float]:
    return {
        "accuracy": float(accuracy[kind].mean()),
        "agrees_with_prediction": float((names[kind] == names["predicted"]).double().mean()),
        "accuracy_from_prediction": float((accuracy[kind] - accuracy["predicted"]).abs().mean()),
    }


def draw(accuracy: dict[str, Tensor], folder: Path) -> str:
    """Accuracies in the order of the targets'; the name of the file."""
    figure = new_figure(7.2, 3.6)
    axes = figure.subplots()
    order = accuracy["target"].argsort()
    for kind in ("target", "predicted", f"consensus of {DRAWN}"):
        if kind in accuracy:
            axes.plot(range(1, len(order) + 1), 100 * accuracy[kind][order], marker="o", markersize=4, label=kind)
    axes.set(xlabel="test instance, in the order of target accuracy", ylabel="accuracy on test images, %")
    axes.grid(axis="y", color="0.92")
    axes.legend(frameon=False)
    return save_figure(figure, folder, f"{NAME}.png")
