"""Table I: latent space optimisation, the accuracy of each architecture before and after.

Optimisation starts from embeddings of unseen instances, weak and strong ones, and from disturbed embeddings: a space
that writes one network for a whole class has nothing to improve at an embedding that it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING

import torch

import prepkit
from netspace.data import TEST
from netspace.experiments.result import Column, Result, Table, claim, table_of_measures
from netspace.explore.figures import optimisation_figure
from netspace.explore.optimization import Optimisation, optimize
from prepkit.errors import counted
from prepkit.support.statistics import grouped

if TYPE_CHECKING:
    from netspace.experiments._subject import Subject

STEPS, LEARNING_RATE, NOISE = 100, 1e-2, 1.5
POINTS, LEAST = 6, 2  # start points of all architectures together; of each one
WORDS = {"as embedded": "unseen instances'", "disturbed": "disturbed"}
AT_CEILING = 0.01  # accuracy: a start that is this near to the ceiling has nothing to gain
BEFORE_AND_AFTER = (Column("initial, %", "initial_accuracy", 100, 2), Column("optimised, %", "accuracy", 100, 2))
COLUMNS = (
    *BEFORE_AND_AFTER,
    Column("gain, points", "gain", 100, 2),
    Column("ceiling, %", "ceiling", 100, 2),
    Column("room to improve", "room"),
)


def run(
    subject: Subject,
    *,
    starts: int | None = None,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    noise: float = NOISE,
) -> Result:
    """Optimise the embeddings of unseen instances of each architecture.

    starts: instances of each architecture; by default 6 of a single one, or 2 of each of four
    """
    ids, ceilings = start_points(subject.view(TEST), starts)
    walks: dict[str, Optimisation] = {}
    for kind, disturbance in zip(WORDS, (0.0, noise), strict=True):
        subject.progress(f"{counted(len(ids), 'start point')}, {kind}, {steps} steps")
        walks[kind] = optimize(
            subject.run,
            subject.zoo,
            ids,
            steps=steps,
            learning_rate=learning_rate,
            noise=disturbance,
            seed=subject.seed,
            space=subject.space,
            task=subject.task,
        )
    summaries = {kind: walk.summary() for kind, walk in walks.items()}
    rows, gains = {}, dict[str, list[float]]()
    for kind, summary in summaries.items():
        for name, means in summary.items():
            gain = means["accuracy"] - means["initial_accuracy"]
            has_room = ceilings[name] - means["initial_accuracy"] > AT_CEILING
            if has_room:
                gains.setdefault(kind, []).append(gain)
            room = "yes" if has_room else "at its ceiling"
            rows[name, kind] = {**means, "gain": gain, "ceiling": ceilings[name], "room": room}
    text = "Latent space optimisation from {} embeddings: least gain of accuracy of an architecture below its ceiling"
    title = "Mean accuracy by architecture"
    return Result(
        name="optimisation",
        title="Latent space optimisation (Table I)",
        text=f"{counted(len(ids), 'test instance')}, from the least to the most accurate of each architecture. Adam "
        f"moves their embeddings for {steps} steps with learning rate {learning_rate:g}; the best embedding on "
        "validation samples is kept and its accuracy measured on test samples. Disturbed embeddings are moved in a "
        f"random direction by {noise:g} of their length first. The ceiling of an architecture is the mean accuracy of "
        f"the better half of its test instances; within {AT_CEILING:.0%} accuracy of it there is no room to "
        "improve, and nothing is claimed.",
        numbers={**summaries, "ceilings": ceilings},
        claims=[
            claim(text.format(WORDS[kind]), min(values), ">", 0.0, unit="points") for kind, values in gains.items()
        ],
        tables=[table_of_measures(title, ("architecture", "start"), rows, COLUMNS), _points_table(walks)],
        pictures=[subject.picture("Validation accuracy by step", "optimisation.png", optimisation_figure(walks))],
    )


def start_points(zoo: prepkit.Zoo, count: int | None) -> tuple[list[str], dict[str, float]]:
    """Return ids of instances of each architecture, from the least to the most accurate, and its ceiling.

    count: of each architecture
    The ceiling is the mean accuracy of the better half: weak instances do not show what can be reached, and the best
    one is the luckiest.
    """
    groups = grouped(zoo.table.select(["id", "architecture", "accuracy"]).to_pylist(), itemgetter("architecture"))
    wanted = max(LEAST, POINTS // len(groups)) if count is None else count
    ids: list[str] = []
    ceilings: dict[str, float] = {}
    for name, rows in groups.items():
        ranked = sorted((row["accuracy"], row["id"]) for row in rows)
        places = {round(place) for place in torch.linspace(0, len(ranked) - 1, min(wanted, len(ranked))).tolist()}
        ids += [ranked[place][1] for place in sorted(places)]
        better = ranked[len(ranked) // 2 :]
        ceilings[name] = sum(accuracy for accuracy, _ in better) / len(better)
    return ids, ceilings


def _points_table(walks: Mapping[str, Optimisation]) -> Table:
    rows = {
        (row["start"], kind, row["architecture"]): row for kind, walk in walks.items() for row in walk.table.to_pylist()
    }
    columns = (*BEFORE_AND_AFTER, Column("best after step", "best_step"))
    return table_of_measures("Start points", ("start", "kind", "predicted architecture"), rows, columns)
