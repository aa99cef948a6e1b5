"""Table I: latent space optimisation, the accuracy of each architecture before and after.

From the embeddings of unseen instances as they are, weak ones and strong ones, and from disturbed ones: a space that
writes one network a class has nothing to improve at an embedding that it was trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import prepkit
from netspace.data import TEST
from netspace.experiments.judged import split_of
from netspace.experiments.result import Picture, Progress, Result, Table, claim, save_figure
from netspace.explore.figures import optimisation_figure
from netspace.explore.optimization import Optimisation, optimize

if TYPE_CHECKING:
    from netspace.run.run import Run

NAME = "optimisation"
STEPS, LEARNING_RATE, NOISE = 100, 1e-2, 1.5
POINTS, LEAST = 6, 2  # start points of all architectures together; of each one
AS_EMBEDDED, DISTURBED = "as embedded", "disturbed"
WORDS = {AS_EMBEDDED: "unseen instances'", DISTURBED: "disturbed"}
AT_CEILING = 0.01  # accuracy: an initial one that is this near to the ceiling has nothing to gain


def run(
    run: Run,
    zoo: prepkit.Zoo,
    task: Any,
    device: torch.device,
    folder: Path,
    *,
    seed: int = 0,
    starts: int | None = None,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    noise: float = NOISE,
    progress: Progress | None = None,
) -> Result:
    """Optimise the embeddings of unseen instances of each architecture.

    starts: instances of each architecture; 6 of one, 2 of each of four, if missing
    """
    test, space = split_of(zoo, TEST), run.space(device=device)
    ids, ceilings = start_points(test, starts)
    found: dict[str, Optimisation] = {}
    for kind, disturbance in ((AS_EMBEDDED, 0.0), (DISTURBED, noise)):
        if progress is not None:
            progress(f"{len(ids)} start points, {kind}, {steps} steps")
        found[kind] = optimize(
            run,
            zoo,
            ids,
            steps=steps,
            learning_rate=learning_rate,
            noise=disturbance,
            seed=seed,
            space=space,
            task=task,
        )
    rows: list[tuple[Any, ...]] = []
    gains: dict[str, list[float]] = {kind: [] for kind in found}
    for kind, one in found.items():
        for name, means in one.summary().items():
            gain = means["accuracy"] - means["initial_accuracy"]
            room = ceilings[name] - means["initial_accuracy"] > AT_CEILING
            if room:
                gains[kind].append(gain)
            rows.append(
                (
                    name,
                    kind,
                    round(100 * means["initial_accuracy"], 2),
                    round(100 * means["accuracy"], 2),
                    round(100 * gain, 2),
                    round(100 * ceilings[name], 2),
                    "yes" if room else "at its ceiling",
                )
            )
    columns = ("architecture", "start", "initial, %", "optimised, %", "gain, points", "ceiling, %", "room to improve")
    text = "Latent space optimisation from {} embeddings: least gain of an architecture that is not at its ceiling"
    return Result(
        name=NAME,
        title="Latent space optimisation (Table I)",
        text=f"{len(ids)} test instances, of each architecture from the least to the most accurate; Adam on their "
        f"embeddings, {steps} steps, learning rate {learning_rate:g}; the best on validation samples is kept and "
        f"judged on test samples. Disturbed: moved in a random direction by {noise:g} of the embedding's length. The "
        "ceiling of an architecture is the mean accuracy of the better half of its test instances; within "
        f"{100 * AT_CEILING:g} points of it there is no room to improve, and nothing is claimed.",
        numbers={kind: one.summary() for kind, one in found.items()} | {"ceilings": ceilings},
        claims=[
            claim(text.format(WORDS[kind]), min(own), ">", 0.0, unit="points") for kind, own in gains.items() if own
        ],
        tables=[Table("Mean accuracy by architecture", columns, tuple(rows)), _points_table(found)],
        pictures=[Picture("Validation accuracy on the way", draw(found, folder))],
    )


def start_points(zoo: prepkit.Zoo, count: int | None) -> tuple[list[str], dict[str, float]]:
    """Ids of instances of each architecture, from the least to the most accurate, and each architecture's ceiling.

    The ceiling is the mean accuracy of the better half: weak instances are not what can be reached, and the best one
    is the luckiest.
    """
    groups: dict[str, list[tuple[float, str]]] = {}
    for row in zoo.table.select(["id", "architecture", "accuracy"]).to_pylist():
        groups.setdefault(row["architecture"], []).append((row["accuracy"], row["id"]))
    wanted = max(LEAST, POINTS // len(groups)) if count is None else count
    ids: list[str] = []
    ceilings: dict[str, float] = {}
    for name, rows in groups.items():
        ranked = sorted(rows)
        places = {round(place) for place in torch.linspace(0, len(ranked) - 1, min(wanted, len(ranked))).tolist()}
        ids += [ranked[place][1] for place in sorted(places)]
        better = ranked[len(ranked) // 2 :]
        ceilings[name] = sum(accuracy for accuracy, _ in better) / len(better)
    return ids, ceilings


def _points_table(found: dict[str, Optimisation]) -> Table:
    rows = tuple(
        (
            *(row["start"], kind, row["architecture"]),
            round(100 * row["initial_accuracy"], 2),
            round(100 * row["accuracy"], 2),
            row["best_step"],
        )
        for kind, one in found.items()
        for row in one.table.to_pylist()
    )
    columns = ("start", "kind", "predicted architecture", "initial, %", "optimised, %", "best after step")
    return Table("Start points", columns, rows)


def draw(found: dict[str, Optimisation], folder: Path) -> str:
    """Validation accuracy by step, a line a start point, one panel a kind of start; the name of the file."""
    return save_figure(optimisation_figure(found), folder, f"{NAME}.png")
