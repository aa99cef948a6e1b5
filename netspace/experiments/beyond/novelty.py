"""Are the networks that a space writes copies of training networks, and better than what needs no space?

Networks from points that no training network is at (between instances, sampled, optimised, of unseen instances) are
compared with the training networks in weights and in outputs, beside controls; see prepkit.auditing.novelty.
Shapes: E embedding values.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.data import TEST, TRAIN
from netspace.experiments._subject import PredictedSplit
from netspace.experiments.result import Claim, Column, Result, Table, claim, table_of_measures
from netspace.explore.optimization import optimize
from netspace.explore.sampling import num_pairs, points_of, random_pairs, sample
from netspace.space.prediction import Prediction, predict
from netspace.training import losses
from prepkit.auditing.novelty import Made, novelty_of
from prepkit.auditing.novelty_report import EXPLANATION, figure_of, sentences_of, titles_of
from prepkit.auditing.novelty_result import MEASURES, Novelty
from prepkit.errors import counted
from prepkit.support.bootstrap import interval_of_means
from prepkit.support.statistics import evenly

if TYPE_CHECKING:
    from netspace.experiments._subject import Subject

NETWORKS = 16  # of each kind that the space writes
CONTROLS = {True: 6, False: 12}  # of each architecture, for several architectures and for one
STEPS = 30  # of optimisation, from as many starts as architectures, but no fewer than LEAST_STARTS
LEAST_STARTS = 4
OF_TRAINING, OF_UNSEEN = "written for training instances", "written for unseen instances"
SAMPLED, BETWEEN, OPTIMISED = "sampled", "half-way between training instances", "optimised"
SCALED = {"agreement": (100.0, 1), "accuracy": (100.0, 2)}


def run(subject: Subject, *, networks: int = NETWORKS, controls: int | None = None, steps: int = STEPS) -> Result:
    """Write networks from points of several kinds, and compare them with the training networks.

    networks: of each kind, at most
    controls: of each kind and architecture; 12, or 6 where there are several architectures
    steps:    of optimisation
    """
    has_classes = subject.run.recipe.has_classes
    subject.progress("networks from new points of the space")
    made = {kind: _of_split(subject.predicted(split), networks) for kind, split in KINDS_OF_SPLITS.items()}
    made |= _from_new_points(subject, networks)
    if subject.zoo.teacher is not None and not subject.signals:
        subject.progress(f"{counted(steps, 'step')} of optimisation")
        made[OPTIMISED] = _optimised(subject, steps)
    subject.progress("the nearest training networks of these and of controls, in weights and in outputs")
    count = CONTROLS[has_classes] if controls is None else controls
    found = novelty_of(made, subject.zoo, split=TRAIN, task=subject.task, controls=count, seed=subject.seed)
    title = "Accuracy, and how near the nearest training network is" if found.best else "The nearest training network"
    return Result(
        name="novelty",
        title="Novelty: copies of training networks, or better than simple controls?",
        text=_text(found),
        numbers=_numbers(found),
        claims=_claims(found, SAMPLED if SAMPLED in made else BETWEEN, subject.seed),
        tables=(_table(found),),
        pictures=(subject.picture(title, "novelty.png", figure_of(found)),),
    )


KINDS_OF_SPLITS = {OF_TRAINING: TRAIN, OF_UNSEEN: TEST}


def _of_split(split: PredictedSplit, count: int) -> Made:
    """Return what is decoded for some instances of a split, as many of each architecture."""
    groups = split.groups()
    rows = [row for own in groups.values() for row in evenly(own, max(1, count // len(groups)))]
    predicted = split.predictions
    class_ids = [predicted.class_ids[row] for row in rows]
    return Made(predicted.registry, class_ids, predicted.preps[rows], [f"for {split.ids[row]}" for row in rows])


def _from_new_points(subject: Subject, count: int) -> dict[str, Made]:
    """Return networks from lines between training instances: at the gammas of Eq. 12, or half-way."""
    run, space = subject.run, subject.space
    gammas = losses.gammas(len(run.recipe.architectures)) if run.recipe.has_classes else ()
    if gammas:
        pairs = min(max(1, count // len(gammas)), num_pairs(run, subject.view(TRAIN)))
        drawn = sample(run, subject.zoo, gammas, pairs=pairs, seed=subject.seed, space=space)
        ids = [f"{a} to {b} at {g:.2f}" for a, b in zip(drawn.first, drawn.second, strict=True) for g in drawn.gammas]
        return {SAMPLED: _made(drawn.predicted, ids)}
    view = subject.view(TRAIN)
    pairs = min(count, num_pairs(run, view))
    first, second = random_pairs(run, view, pairs, seed=subject.seed)
    ends = points_of(space, subject.zoo, [*first, *second])
    latent_NE = (ends.latents[:pairs] + ends.latents[pairs:]) / 2
    predicted = predict(space, latent_NE, run.registry)
    return {BETWEEN: _made(predicted, [f"{a} and {b}" for a, b in zip(first, second, strict=True)])}


def _optimised(subject: Subject, steps: int) -> Made:
    """Return networks at the best points on the way from embeddings of unseen instances."""
    unseen = subject.predicted(TEST)
    groups = unseen.groups()
    each = max(1, LEAST_STARTS // len(groups))
    ids = [unseen.ids[row] for own in groups.values() for row in evenly(own, each)]
    walk = optimize(
        subject.run,
        subject.zoo,
        ids,
        steps=steps,
        seed=subject.seed,
        space=subject.space,
        task=subject.task,
    )
    return _made(walk.predicted, [f"from {id_}" for id_ in ids])


def _made(predicted: Prediction, ids: Sequence[str]) -> Made:
    return Made(predicted.registry, predicted.class_ids, predicted.preps, ids)


# What is told -----------------------------------------------------------------------------------------------------


def _text(found: Novelty) -> str:
    source = (
        "Networks that NetSpace writes for training instances, for unseen ones, and from points at which no instance "
        "is, are compared with the training networks, as are controls that need no NetSpace: training networks with "
        "noise, averages of two training networks after alignment, and the held-out networks themselves. "
        f"All ran on {found.inputs}."
    )
    notes = " ".join(f"{note[0].upper()}{note[1:]}" for note in found.notes)
    return "\n\n".join(filter(None, [source, EXPLANATION, *sentences_of(found), notes]))


def _numbers(found: Novelty) -> dict[str, Any]:
    document = found.to_dict()
    return {key: document[key] for key in ("kind", "inputs", "tolerance", "networks", "best", "groups")}


def _claims(found: Novelty, kind: str, seed: int) -> list[Claim]:
    """Return that networks from new points are no copies, and that those of a kind are better than the controls."""
    new = [group for name, group in found.generated.items() if name != OF_TRAINING]
    copies, count = sum(len(group.copies) for group in new), sum(len(group.rows) for group in new)
    text = "Networks from points without a training instance that are copies of a training network"
    claims = [claim(text, copies / count, "==", 0, kind="beyond", unit="%")]
    if found.best:
        beside = found.compared(kind)
        groups = ((values, np.arange(len(values))) for values in (beside.gains, beside.deviations))
        interval = interval_of_means(groups, lambda means: means[0] - means[1], seed)
        text = (
            f"Networks {kind}: accuracy minus that of the best control (noise, averages) whose wrong images are at "
            "least as new"
        )
        untold = "" if beside.controls else "no control has wrong images as new"
        claims.append(
            claim(text, beside.gain, ">", 0.0, kind="beyond", unit="points", interval=interval, untold=untold)
        )
    return claims


def _table(found: Novelty) -> Table:
    titles = titles_of(found)
    columns = [Column("number", "number"), Column("copies", "copies")]
    for measure in MEASURES:
        if measure in titles:
            scale, digits = SCALED.get(measure, (1.0, 3))
            columns.append(Column(titles[measure] + (", %" if scale > 1 else ""), measure, scale, digits))
    rows: dict[str, dict[str, Any]] = {}
    for name, group in found.groups.items():
        means = {measure: group.mean(measure) for measure in MEASURES}
        known = {measure: value for measure, value in means.items() if math.isfinite(value)}
        rows[name] = {"number": len(group.rows), "copies": len(group.copies), **known}
    if found.best:
        rows["best training network"] = {"number": 1, "accuracy": found.best_accuracy}
    return table_of_measures(
        "Means over networks, each with its nearest training network", ("networks",), rows, columns
    )
