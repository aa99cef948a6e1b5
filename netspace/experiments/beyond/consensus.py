"""Why weak unseen instances come back too good: predictions are compared with what training instances agree on.

A weak network makes errors of its own, which the embedding of an unseen one does not tell. What remains is what its
neighbours have in common: the mean of their outputs, which is right more often than any of them. It is compared with
what could be said of an instance if only the length of its training were known.
Shapes: N test instances, M training instances, K of them, E embedding values, B images, C classes.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import prepkit
from netspace.data import TEST, TRAIN
from netspace.experiments.result import Column, Result, table_of_measures
from netspace.explore import colours
from prepkit.errors import counted
from prepkit.figures import new_figure
from prepkit.running.groups import outputs_by_class_id
from prepkit.support.statistics import spearman

if TYPE_CHECKING:
    from torch import Tensor

    from netspace.experiments._subject import Subject

NEIGHBOURS = (1, 3, 5, 10)
DRAWN = 3
EPOCHS = "epochs"  # the zoo's column that says how long an instance was trained
ALIKE = 5  # training instances of about the same epochs
CONSENSUS_OF_EPOCHS = f"consensus of {ALIKE} of the same epochs"
MEAN_OF_EPOCHS = f"mean accuracy of {ALIKE} of the same epochs"
COLOURS = {"target": colours.TARGET, "predicted": colours.PREDICTED}
COLUMNS = (
    Column("accuracy, %", "accuracy", 100, 2),
    Column("same answer as the prediction, %", "agrees_with_prediction", 100, 2),
    Column("accuracy apart from the prediction's, points", "accuracy_from_prediction", 100, 2),
    Column("accuracy apart from the target's, points", "accuracy_from_target", 100, 2),
    Column("Spearman with the target's", "spearman_with_target", digits=4),
)


def run(subject: Subject) -> Result:
    """Compare predictions for test instances with their targets, and with the mean outputs of training neighbours."""
    subject.progress("test instances and the training instances that are nearest to them")
    test, train = subject.predicted(TEST), subject.predicted(TRAIN)
    images, labels_B = subject.inputs(test.view), subject.labels()
    target_NBC, predicted_NBC = test.outputs(images)
    neighbour_MBC = outputs_by_class_id(subject.run.registry, train.class_ids, train.preps, images)
    distance_NM = torch.cdist(test.latents.cpu().double(), train.latents.cpu().double())
    answers = {"target": target_NBC.argmax(2), "predicted": predicted_NBC.argmax(2)}
    for count in NEIGHBOURS:
        if count <= len(neighbour_MBC):
            nearest_NK = distance_NM.topk(count, dim=1, largest=False).indices
            answers[f"consensus of {count}"] = _consensus(neighbour_MBC, nearest_NK)
    alike_NK = same_epochs(test.view, train.view)
    if alike_NK is not None:
        answers[CONSENSUS_OF_EPOCHS] = _consensus(neighbour_MBC, alike_NK)
    accuracy = {kind: (answer_NB == labels_B).double().mean(1) for kind, answer_NB in answers.items()}
    if alike_NK is not None:
        accuracy[MEAN_OF_EPOCHS] = (neighbour_MBC.argmax(2) == labels_B).double().mean(1)[alike_NK].mean(1)
    numbers = {kind: _measures(kind, answers, accuracy) for kind in accuracy}
    title = "Over all test images, means over the test instances"
    picture = subject.picture(
        "Accuracy of targets, predictions and a consensus", "consensus.png", accuracy_figure(accuracy)
    )
    return Result(
        name="consensus",
        title="What an unseen instance is predicted from: the consensus of its neighbours",
        text=_text(len(test.view), numbers),
        numbers=numbers,
        tables=(table_of_measures(title, ("network",), numbers, COLUMNS),),
        pictures=(picture,),
    )


def _consensus(outputs_MBC: Tensor, rows_NK: Tensor) -> Tensor:
    """Return the classes `[N, B]` that the mean outputs of K instances name."""
    return torch.stack([outputs_MBC[rows_K].mean(0) for rows_K in rows_NK]).argmax(2)


def same_epochs(test: prepkit.Zoo, train: prepkit.Zoo) -> Tensor | None:
    """Return the K training instances `[N, K]` whose epochs are nearest to each test instance's, by their ratio.

    returns None where the zoo does not say how long its instances were trained, or all were trained equally long
    """
    if EPOCHS not in train.table.column_names or len(train) < ALIKE:
        return None
    columns = [view.table[EPOCHS].to_pylist() for view in (test, train)]
    if any(None in column or min(column) <= 0 for column in columns) or len(set(columns[1])) < 2:
        return None
    test_N, train_M = (np.log(np.array(column, np.float64)) for column in columns)
    distance_NM = np.abs(test_N[:, None] - train_M[None, :])
    return torch.from_numpy(np.argsort(distance_NM, axis=1, kind="stable")[:, :ALIKE].copy())


def _measures(kind: str, answers: dict[str, Tensor], accuracy: dict[str, Tensor]) -> dict[str, float]:
    numbers = {
        "accuracy": float(accuracy[kind].mean()),
        "accuracy_from_prediction": float((accuracy[kind] - accuracy["predicted"]).abs().mean()),
        "accuracy_from_target": float((accuracy[kind] - accuracy["target"]).abs().mean()),
        "spearman_with_target": float(spearman(accuracy[kind], accuracy["target"])),
    }
    if kind in answers:  # a mean of accuracies gives no answers
        numbers["agrees_with_prediction"] = float((answers[kind] == answers["predicted"]).double().mean())
    return numbers


def _text(instances: int, numbers: dict[str, dict[str, float]]) -> str:
    text = (
        f"{counted(instances, 'test instance')}, each compared with the training instances whose embeddings are "
        "nearest to its own. A consensus is the answer that the mean of their outputs gives. Where predictions answer "
        "like a consensus more often than like their target, NetSpace writes what the neighbours have in common, not "
        "what is the target's own. Networks that err in different ways outvote each other's errors, so weak instances "
        "come back too good."
    )
    if MEAN_OF_EPOCHS not in numbers:
        return text
    mean, consensus = numbers[MEAN_OF_EPOCHS], numbers[CONSENSUS_OF_EPOCHS]
    return (
        f"{text}\n\nIf nothing were known of an unseen instance but the epochs it was trained for, the mean accuracy "
        f"of {ALIKE} training instances of about those epochs would be "
        f"{100 * mean['accuracy_from_target']:.1f} points off, with rank correlation "
        f"{mean['spearman_with_target']:.3f}. But a network that answers as those {ALIKE} do together, which is what "
        f"Eq. 1 asks for where no more is known, is {100 * consensus['accuracy_from_target']:.1f} points off. To be "
        "nearer than that, a space has to read an instance's own errors from its weights."
    )


def accuracy_figure(accuracy: dict[str, Tensor]) -> Any:
    """Draw accuracies in the order of the targets'."""
    figure = new_figure(7.2, 3.6)
    axes = figure.subplots()
    order = accuracy["target"].argsort()
    for kind in ("target", "predicted", f"consensus of {DRAWN}"):
        if kind in accuracy:
            style: dict[str, Any] = {"marker": "o", "markersize": 4, "color": COLOURS.get(kind, colours.CONSENSUS)}
            axes.plot(range(1, len(order) + 1), 100 * accuracy[kind][order], label=kind, **style)
    axes.set(xlabel="test instance, in the order of target accuracy", ylabel="accuracy on test images, %")
    axes.grid(axis="y", color="0.92")
    axes.legend(frameon=False)
    return figure
