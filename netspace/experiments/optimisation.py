"""Table I: latent space optimisation, the accuracy of each architecture before and after.

Optimisation starts from embeddings of unseen instances, weak and strong ones, and from disturbed embeddings: a space
that writes one network for a whole class has nothing to improve at an embedding that it was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import prepkit
from netspace.data import TEST
from netspace.experiments._subject import runs_of
from netspace.experiments.result import Claim, Column, Result, Table, claim, table_of_measures
from netspace.explore.figures import optimisation_figure
from netspace.explore.optimization import Optimisation, optimize
from prepkit.errors import counted
from prepkit.support.bootstrap import interval_of_means
from prepkit.support.statistics import finite_mean, grouped

if TYPE_CHECKING:
    from netspace.experiments._subject import Subject

STEPS, VALIDATE_EVERY, PATIENCE, NOISE = 500, 10, 10, 1.5
POINTS, LEAST = 6, 2  # start points of all architectures together; of each one
WORDS = {"as embedded": "unseen instances'", "disturbed": "disturbed"}
AT_CEILING = 0.01  # accuracy: a start that is this near to the ceiling has nothing to gain
NO_ROOM = "every architecture is at its ceiling from the start"
OTHER_CLASS = "no start point below its ceiling predicts its own architecture at first, so there is no gain of accuracy"
BEFORE_AND_AFTER = (Column("initial, %", "initial_accuracy", 100, 2), Column("optimised, %", "accuracy", 100, 2))
NEVER_REACHED = (
    "no start point below its ceiling predicts its own architecture in the end, so there is no gain of accuracy"
)
COLUMNS = (
    Column("input instances, %", "input_accuracy", 100, 2),
    *BEFORE_AND_AFTER,
    Column("gain, points", "gain", 100, 2),
    Column("gain over the input, points", "gain_over_input", 100, 2),
    Column("ceiling, %", "ceiling", 100, 2),
    Column("improved", "improved_of"),
    Column("came to their class", "reached"),
    Column("room to improve", "room"),
)


def run(
    subject: Subject,
    *,
    starts: int | None = None,
    steps: int = STEPS,
    patience: int = PATIENCE,
    noise: float = NOISE,
) -> Result:
    """Optimise the embeddings of unseen instances of each architecture until they do not improve any more.

    starts: instances of each architecture; by default 6 of a single one, or 2 of each of four
    steps:  at most; see `optimize`
    """
    view = subject.view(TEST)
    accuracies = subject.accuracies(view)
    ids, ceilings = start_points(view, accuracies, starts)
    walks: dict[str, Optimisation] = {}
    for kind, disturbance in zip(WORDS, (0.0, noise), strict=True):
        subject.progress(f"{counted(len(ids), 'start point')}, {kind}")
        walks[kind] = optimize(
            subject.run,
            subject.zoo,
            ids,
            steps=steps,
            patience=patience,
            validate_every=VALIDATE_EVERY,
            noise=disturbance,
            seed=subject.seed,
            space=subject.space,
            task=subject.task,
        )
    runs = dict(zip(view.table["id"].to_pylist(), runs_of(view), strict=True))
    inputs = dict(zip(view.table["id"].to_pylist(), accuracies, strict=True))
    measured = {kind: measures(walk, inputs, ceilings) for kind, walk in walks.items()}
    rows = {(name, kind): values for kind, by_name in measured.items() for name, values in by_name.items()}
    return Result(
        name="optimisation",
        title="Latent space optimisation (Table I)",
        text=_text(subject, len(ids), patience, noise, walks),
        numbers={**measured, "ceilings": ceilings},
        claims=_claims(walks, measured, inputs, runs, subject.seed),
        tables=[
            table_of_measures("Mean accuracy by architecture", ("architecture", "start"), rows, COLUMNS),
            _points_table(walks, inputs),
        ],
        pictures=[subject.picture("Validation accuracy by step", "optimisation.png", optimisation_figure(walks))],
    )


def start_points(
    zoo: prepkit.Zoo, accuracies: Sequence[float], count: int | None
) -> tuple[list[str], dict[str, float]]:
    """Return ids of instances of each architecture, from the least to the most accurate, and its ceiling.

    accuracies: one for each instance
    count:      of each architecture
    The ceiling is the mean accuracy of the better half: weak instances do not show what can be reached, and the best
    one is the luckiest.
    """
    names, ids_of_all = (zoo.table[column].to_pylist() for column in ("architecture", "id"))
    groups = grouped(range(len(zoo)), names.__getitem__)
    wanted = max(LEAST, POINTS // len(groups)) if count is None else count
    ids: list[str] = []
    ceilings: dict[str, float] = {}
    for name, rows in groups.items():
        ranked = sorted((accuracies[row], ids_of_all[row]) for row in rows)
        places = {round(place) for place in torch.linspace(0, len(ranked) - 1, min(wanted, len(ranked))).tolist()}
        ids += [ranked[place][1] for place in sorted(places)]
        better = ranked[len(ranked) // 2 :]
        ceilings[name] = sum(accuracy for accuracy, _ in better) / len(better)
    return ids, ceilings


def measures(
    walk: Optimisation, inputs: Mapping[str, float], ceilings: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Return the walk's summary of each architecture, with gains and whether there was room for one.

    inputs: accuracy of each input instance, by id
    gain:   mean over the points that were of the architecture from the start; coming to it is no gain of accuracy
    """
    points = grouped(walk.table.to_pylist(), itemgetter("asked_architecture"))
    found = {}
    for name, summary in walk.summary().items():
        input_accuracy = sum(inputs[row["start"]] for row in points[name]) / len(points[name])
        reached = [row for row in points[name] if row["class_id"] == row["asked_class_id"]]
        found[name] = {
            **summary,
            "input_accuracy": input_accuracy,
            "gain": summary["accuracy"] - summary["initial_accuracy"],
            "gain_over_input": finite_mean(row["accuracy"] - inputs[row["start"]] for row in reached),
            "ceiling": ceilings[name],
            "improved_of": f"{summary['improved']} of {summary['in_class']}",
            "room": _room(summary, ceilings[name]),
            "room_above_input": ceilings[name] - input_accuracy > AT_CEILING,
        }
    return found


def _room(summary: Mapping[str, float], ceiling: float) -> str:
    if not summary["in_class"]:
        return "of another class at first"
    return "yes" if ceiling - summary["initial_accuracy"] > AT_CEILING else "at its ceiling"


def _claims(
    walks: Mapping[str, Optimisation],
    measured: Mapping[str, Mapping[str, Mapping[str, Any]]],
    inputs: Mapping[str, float],
    runs: Mapping[str, str],
    seed: int,
) -> list[Claim]:
    text = "Latent space optimisation from {} embeddings: least gain of accuracy of an architecture below its ceiling"
    claims = []
    for kind, walk in walks.items():
        rows = [row for row in walk.table.to_pylist() if row["initial_class_id"] == row["asked_class_id"]]
        gains = {row["start"]: row["accuracy"] - row["initial_accuracy"] for row in rows}
        with_room = [name for name, values in measured[kind].items() if values["room"] == "yes"]
        other = any(values["room"].startswith("of another") for values in measured[kind].values())
        why = OTHER_CLASS if other else NO_ROOM
        claims.append(_least_gain(text.format(WORDS[kind]), walk, gains, with_room, runs, seed, why))
    # The first row of Table I has the accuracies of the instances that were embedded.
    first, walk = next(iter(walks.items()))
    rows = [row for row in walk.table.to_pylist() if row["class_id"] == row["asked_class_id"]]
    gains = {row["start"]: row["accuracy"] - inputs[row["start"]] for row in rows}
    with_room = [name for name, values in measured[first].items() if values["room_above_input"]]
    text = "Latent space optimisation: least gain of accuracy over the input instances of an architecture (Table I)"
    why = NEVER_REACHED if with_room else NO_ROOM
    return [*claims, _least_gain(text, walk, gains, with_room, runs, seed, why)]


def _least_gain(
    text: str,
    walk: Optimisation,
    gains: Mapping[str, float],
    names: Sequence[str],
    runs: Mapping[str, str],
    seed: int,
    why: str,
) -> Claim:
    """Return the claim that the mean gain of each of these architectures is above 0.

    gains: of the start points that have one
    why:   why it is not told where there is no gain
    """
    points = grouped(walk.table.to_pylist(), itemgetter("asked_architecture"))
    starts = [[row["start"] for row in points[name] if row["start"] in gains] for name in names]
    groups = [([gains[start] for start in group], [runs[start] for start in group]) for group in starts if group]
    if not groups:
        return claim(text, math.nan, ">", 0.0, unit="points", untold=why)
    least = min(finite_mean(values) for values, _ in groups)
    return claim(text, least, ">", 0.0, unit="points", interval=interval_of_means(groups, np.minimum.reduce, seed))


def _text(subject: Subject, count: int, patience: int, noise: float, walks: Mapping[str, Optimisation]) -> str:
    settings, loss = subject.run.recipe.latent, subject.run.recipe.loss
    alpha = loss.alpha if settings.alpha is None else settings.alpha
    by_alpha = (
        "the divergence from the teacher alone (Eq. 5 without labels, as the reference has it for one architecture)"
        if alpha == 1
        else f"Eq. 5 with {alpha:g} of the teacher and {1 - alpha:g} of the labels"
    )
    return (
        f"{counted(count, 'test instance')}, from the least to the most accurate of each architecture. Adam moves "
        f"their embeddings with learning rate {settings.learning_rate:g} on {by_alpha}, each until its accuracy on the "
        f"validation samples has not risen in {patience} validations, one every {counted(VALIDATE_EVERY, 'step')}. The "
        "best embedding on validation samples is kept and its accuracy measured on test samples. Disturbed embeddings "
        f"are moved in a random direction by {noise:g} of their length first. {_ends(walks)}\n\n"
        "Only accuracy counts as a gain. An embedding whose instance is of another architecture at first has no "
        "accuracy to improve, so coming to its own class is told in a column of its own. The ceiling of an "
        "architecture is the mean accuracy of the better half of its test instances; within "
        f"{100 * AT_CEILING:g} point of it there is no room to improve. Table I compares with the input instances; a "
        "space that writes a better network at once, from the embedding of a weak one, gains there before anything is "
        "optimised."
    )


def _ends(walks: Mapping[str, Optimisation]) -> str:
    rows = [row for walk in walks.values() for row in walk.table.to_pylist()]
    last, moving = [row["last_step"] for row in rows], sum(not row["stopped"] for row in rows)
    told = f"The start points moved for {min(last)} to {max(last)} steps."
    if not moving:
        return told
    return f"{told} {counted(moving, 'of them', 'of them')} had not stopped when the steps ended."


def _points_table(walks: Mapping[str, Optimisation], inputs: Mapping[str, float]) -> Table:
    rows = {
        (row["start"], kind, row["initial_architecture"], row["architecture"]): {
            **row,
            "input_accuracy": inputs[row["start"]],
        }
        for kind, walk in walks.items()
        for row in walk.table.to_pylist()
    }
    columns = (
        COLUMNS[0],
        *BEFORE_AND_AFTER,
        Column("best after step", "best_step"),
        Column("stopped after step", "last_step"),
    )
    names = ("start", "kind", "predicted at first", "predicted in the end")
    return table_of_measures("Start points", names, rows, columns)
