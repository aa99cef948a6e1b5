"""The ceiling of Kendall's tau: what a perfect ranker of the networks reaches against values that were measured.

Equal values cannot be ranked, and an accuracy on a few samples depends on which samples these are.
Shapes: N test instances, B samples.
"""

# ruff: noqa: N806 - names of arrays end in their axes

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from prepkit.benching.target import TEST, Question
from prepkit.errors import PrepkitError, ZooError
from prepkit.support.statistics import tau_of_halves, tau_of_perfect_ranker, tau_of_ties
from prepkit.zoo.read.accuracy import ACCURACY, right_on_samples

HALVINGS = 50
AGREES = 1e-3  # of samples; recorded accuracies that differ by more were measured otherwise


@dataclass(frozen=True)
class Ceiling:
    """The tau that can be reached at best, and what bounds it.

    bound:   "ties", equal values alone; or "samples", the luck of the samples on which an accuracy was measured
    samples: the number of samples, for "samples"
    halves:  the tau between accuracies on two halves of them, from which the ceiling follows
    """

    tau: float
    bound: str
    samples: int | None = None
    halves: float | None = None


def ceiling_of(
    question: Question, *, rerun: bool, data: str | os.PathLike[str] | None = None
) -> tuple[Ceiling | None, list[str]]:
    """Return the ceiling, and notes on it; none for classes.

    rerun: run the test instances on the test samples of the zoo's task
    data:  folder of the task's data
    raises PrepkitError where that says nothing of the column; ZooError, DataMissing
    """
    if data is not None and not rerun:
        raise PrepkitError("data is the folder for running test instances again; give rerun=True too.")
    if rerun and question.column != ACCURACY:
        raise PrepkitError(
            f"rerun=True measures the luck of the samples in the column '{ACCURACY}'; '{question.column}' is another."
        )
    if question.kind == "class":
        return None, []
    if rerun:
        return _of_samples(question, data)
    notes = []
    if question.column == ACCURACY:
        notes.append(
            "the ceiling of tau counts equal values only; with rerun=True the test instances are run, and it also "
            "counts the luck of the samples."
        )
    return Ceiling(tau_of_ties(question.truth), "ties"), notes


def _of_samples(question: Question, data: str | os.PathLike[str] | None) -> tuple[Ceiling, list[str]]:
    from prepkit.tasks import load_task

    zoo = question.test.zoo
    record = zoo.task
    if record is None or record.get("kind") != "images":
        raise ZooError(
            f"'{zoo.name}' has no task with samples that its instances share, so rerun=True cannot run them."
        )
    task = load_task(record, data)
    right_NB = right_on_samples(zoo, task, TEST)
    measured = np.exp(question.truth) if question.is_log else question.truth
    furthest = float(np.abs(right_NB.mean(1) - measured).max())
    notes = []
    if furthest > AGREES:
        notes.append(
            f"run again, a test instance has another accuracy than the table says, by {100 * furthest:.2f} points at "
            "most; so the column was measured otherwise, and the ceiling is that of the task's samples."
        )
    halves = tau_of_halves(right_NB, HALVINGS, question.test.seed)
    reached = tau_of_perfect_ranker(halves)
    if not np.isfinite(reached):
        notes.append("two halves of the samples do not rank the networks alike at all, so there is no ceiling of tau.")
    ties = tau_of_ties(question.truth)
    return Ceiling(min(reached, ties) if np.isfinite(reached) else reached, "samples", right_NB.shape[1], halves), notes
