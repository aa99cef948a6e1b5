"""Table I: latent space optimisation, the accuracy of each architecture before and after.

From the embeddings of instances as they are, and from disturbed ones: a space that writes one network a class has
nothing to improve at an embedding that it was trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import prepkit
from netspace.experiments.result import Picture, Progress, Result, Table, claim, new_figure, save_figure
from netspace.optimization import Optimisation, optimize

if TYPE_CHECKING:
    from netspace.checkpoint import Run

NAME = "optimisation"
STARTS, STEPS, LEARNING_RATE, NOISE = 2, 100, 1e-2, 1.5
AT_CEILING = 0.01  # accuracy: an initial one that is this near to the targets' has nothing to gain


def run(
    run: Run,
    zoo: prepkit.Zoo,
    task: Any,
    device: torch.device,
    folder: Path,
    *,
    seed: int = 0,
    starts: int = STARTS,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    noise: float = NOISE,
    progress: Progress | None = None,
) -> Result:
    """Optimise the embeddings of unseen instances of each architecture."""
    test, space = zoo.split("test"), run.space(device=device)
    ids, ceilings = _starts(test, starts)
    found: dict[str, Optimisation] = {}
    for kind, disturbance in (("as embedded", 0.0), ("disturbed", noise)):
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
    columns = ("architecture", "start", "initial, %", "optimised, %", "gain, points", "targets, %", "room to improve")
    text = "The least gain of an architecture that is not at its ceiling"
    return Result(
        name=NAME,
        title="Latent space optimisation (Table I)",
        text=f"{starts} test instances of each architecture; Adam on their embeddings, {steps} steps, learning rate "
        f"{learning_rate:g}; the best on validation samples is kept and judged on test samples. Disturbed: moved in a "
        f"random direction by {noise:g} of the embedding's length. At its ceiling: within {100 * AT_CEILING:g} points "
        "of the mean accuracy of the target instances.",
        numbers={kind: one.summary() for kind, one in found.items()} | {"targets": ceilings},
        claims=[claim(f"{text}, {kind}", min(own), ">", 0.0) for kind, own in gains.items() if own],
        tables=[Table("Accuracy by architecture", columns, tuple(rows))],
        pictures=[Picture("Validation accuracy on the way", draw(found, folder))],
    )


def _starts(zoo: prepkit.Zoo, count: int) -> tuple[list[str], dict[str, float]]:
    """Ids of the first instances of each architecture, and the mean accuracy of all of its instances."""
    ids: list[str] = []
    accuracies: dict[str, list[float]] = {}
    for row in zoo.table.select(["id", "architecture", "accuracy"]).to_pylist():
        own = accuracies.setdefault(row["architecture"], [])
        if len(own) < count:
            ids.append(row["id"])
        own.append(row["accuracy"])
    return ids, {name: sum(own) / len(own) for name, own in accuracies.items()}


def draw(found: dict[str, Optimisation], folder: Path) -> str:
    """Validation accuracy by step, a line a start point, one panel a kind of start; the name of the file."""
    figure = new_figure(4.2 * len(found), 3.4)
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for plot, (kind, one) in zip(panels, found.items(), strict=True):
        names = one.table["asked_architecture"].to_pylist()
        colours = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(names))}
        history = one.history.to_pylist()
        for point, name in enumerate(names):
            own = [row for row in history if row["point"] == point]
            first = names.index(name) == point
            plot.plot(
                [row["step"] for row in own],
                [100 * row["validation_accuracy"] for row in own],
                color=colours[name],
                alpha=0.7,
                label=name if first else None,
            )
        plot.set(title=kind, xlabel="step")
    panels[0].set_ylabel("validation accuracy, %")
    panels[-1].legend(fontsize="small", loc="lower right")
    return save_figure(figure, folder, f"{NAME}.png")
