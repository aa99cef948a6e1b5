"""Fig. 5: several architectures in one space, in order along the line from the smallest to the largest ClassId.

left:   target and predicted accuracy by architecture, and ClassIds, of unseen instances
centre: accuracy by architecture along the lines between boundary instances, with steps finer than gamma
right:  the same in a space that was only shown the boundary architectures

Shapes: P pairs, S steps.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import prepkit
from netspace.experiments.judged import mean_or_nan, short
from netspace.experiments.result import Cell, Claim, Picture, Progress, Result, Table, claim, new_figure, save_figure
from netspace.explore.interpolation import interpolate
from netspace.space.evaluation import evaluate
from prepkit.tasks.randomness import generator

if TYPE_CHECKING:
    from netspace.explore.interpolation import Interpolation
    from netspace.run.run import Run

PAIRS, FINER = 8, 4  # steps between two multiples of gamma
NAME = "boundaries"
# Of the picture, as the paper has them: the form and the size of a step.
MARKERS = {"end of a line": ("o", 60), "gamma of the loss": ("*", 110), "between": (".", 30)}
NEAR = 0.05  # accuracy: how near unseen architectures are to come to the mean of trained ones
LEAST_HEIGHT = 10.0  # points of accuracy that the picture shows, at least: smaller steps are chance


def run(
    run: Run,
    zoo: prepkit.Zoo,
    task: Any,
    device: torch.device,
    folder: Path,
    *,
    seed: int = 0,
    pairs: int = PAIRS,
    progress: Progress | None = None,
) -> Result:
    """Evaluate unseen instances, then walk between boundary ones.

    pairs: at most; no instance is in two of them
    """
    space, test = run.space(device=device), zoo.split("test")
    names = list(run.registry.class_ids)
    summary = evaluate(space, run.registry, test, task, "test").summary()
    first, second = boundary_ids(test, len(names), pairs, seed)
    steps = (len(names) - 1) * FINER + 1
    if progress is not None:
        progress(f"{len(first)} pairs of boundary instances, {steps} steps each")
    line = interpolate(run, zoo, first, second, steps, space=space, task=task)
    asked, order = at_gammas(line), line.summary()["class_ids_in_order"]
    trained = {name: one["predicted_accuracy"] for name, one in summary["by_architecture"].items()}
    unseen = beside_trained(asked, trained) if run.recipe.setting == "unseen" else None
    return Result(
        name=NAME,
        title="Several architectures in one space (Fig. 5)"
        if unseen is None
        else "Unseen architectures, sampled (Fig. 5 right)",
        text=text_of(len(test), len(first), steps, asked, unseen),
        numbers={
            "evaluation": summary,
            "class_ids_in_order": order,
            "at_gamma": asked,
            "along_the_line": accuracy_by_class(line),
            "pairs": len(first),
        }
        | ({} if unseen is None else {"unseen": unseen}),
        claims=claims_of(order, asked, unseen),
        tables=(table_of(summary["by_architecture"], asked, unseen),),
        pictures=(Picture("Accuracy along the line, by predicted architecture", draw(line, folder)),),
    )


def boundary_ids(zoo: prepkit.Zoo, count: int, pairs: int, seed: int) -> tuple[list[str], list[str]]:
    """Ids of instances of the smallest and of the largest of `count` ClassIds, drawn at random, no one twice.

    pairs: at most; as many as there are of the rarer one, if those are fewer
    """
    class_ids, ids = zoo.class_ids().tolist(), zoo.table["id"].to_pylist()
    stream = generator("boundary pairs", seed)
    chosen = []
    for boundary in (0, count - 1):
        own = [id for id, class_id in zip(ids, class_ids, strict=True) if class_id == boundary]
        chosen.append([own[place] for place in torch.randperm(len(own), generator=stream).tolist()])
    pairs = min(pairs, *map(len, chosen))
    return chosen[0][:pairs], chosen[1][:pairs]


def accuracy_by_class(line: Interpolation) -> list[dict[str, Any]]:
    """At each step: gamma, and of each architecture that is named there the share of pairs and the mean accuracy."""
    values_PS, class_ids_PS = line.values(), line.class_ids()
    found = []
    for step, gamma in enumerate(line.gammas):
        named = {}
        for class_id, name in enumerate(line.registry.class_ids):
            here = class_ids_PS[:, step] == class_id
            if here.any():
                named[name] = {
                    "share": float(here.double().mean()),
                    "accuracy": float(values_PS[here, step].mean()),
                }
        found.append({"gamma": gamma, "architectures": named})
    return found


def at_gammas(line: Interpolation) -> dict[str, dict[str, float]]:
    """Of each architecture, at gamma = ClassId / (A - 1): on how many pairs it is the one that is named, and how good.

    returns `named` of how many `pairs`, `right`, their share, and the mean `accuracy` of those, NaN if there are none
    """
    values_PS, class_ids_PS = line.values(), line.class_ids()
    names = list(line.registry.class_ids)
    found = {}
    for class_id, name in enumerate(names):
        step = class_id * (len(line.gammas) - 1) // (len(names) - 1)
        right_P = class_ids_PS[:, step] == class_id
        found[name] = {
            "named": int(right_P.sum()),
            "pairs": len(right_P),
            "right": float(right_P.double().mean()),
            "accuracy": mean_or_nan(values_PS[right_P, step]),
        }
    return found


def beside_trained(asked: dict[str, dict[str, float]], trained: dict[str, float]) -> dict[str, dict[str, float]]:
    """Of each architecture without instances: how much more accuracy it has at its gamma than trained ones have.

    trained: accuracy of instances that are predicted for test instances, of each architecture that has them
    returns differences `from_mean` of trained architectures and `from_worst`, NaN where it was never named
    """
    accuracies = list(trained.values())
    mean, worst = sum(accuracies) / len(accuracies), min(accuracies)
    return {
        name: {"from_mean": one["accuracy"] - mean, "from_worst": one["accuracy"] - worst}
        for name, one in asked.items()
        if name not in trained
    }


def text_of(
    instances: int,
    pairs: int,
    steps: int,
    asked: dict[str, dict[str, float]],
    unseen: dict[str, dict[str, float]] | None,
) -> str:
    """What was done and found, in plain words."""
    named = ", ".join(f"{short(name)} on {one['named']} of {one['pairs']}" for name, one in asked.items())
    text = (
        f"{instances} test instances and {pairs} pairs of boundary ones among them; {steps} steps a line, {FINER} from "
        "one multiple of gamma to the next. Accuracy on the task's test samples; an instance at gamma is sampled, it "
        "has no target. Its accuracy counts only on pairs where the architecture of that gamma's ClassId is named: "
        f"{named}.\n\n"
        "In the picture circles are the ends of the lines, stars the gammas that the interpolation loss asks for, "
        "small points the steps between; colours tell which architecture is named. Steps of a pair are joined."
    )
    if unseen is None:
        return text
    points = "; ".join(
        f"{short(name)} {_points(one['from_mean'])} from the mean of the trained architectures and "
        f"{_points(one['from_worst'])} from the worst of them"
        for name, one in unseen.items()
    )
    return f"{text}\n\nAccuracy of architectures that the space was never shown, at their gammas, in points: {points}."


def claims_of(
    order: float, asked: dict[str, dict[str, float]], unseen: dict[str, dict[str, float]] | None
) -> tuple[Claim, ...]:
    """In order, named where they are asked for, and as good as trained ones."""
    rising = "Lines from the smallest to the largest ClassId along which the named ClassIds never fall"
    least = min(one["right"] for one in asked.values())
    named = "Lines that name the architecture whose gamma it is, least share over the architectures"
    claims = [claim(rising, order, ">=", 1, unit="%"), claim(named, least, ">=", 1, unit="%")]
    if unseen is not None:
        # A tensor's maximum is NaN where one is: an architecture that was never named is no success.
        shortfall = float(torch.tensor([-one["from_mean"] for one in unseen.values()], dtype=torch.float64).max())
        text = "Unseen architectures at their own gamma, largest shortfall of accuracy from the mean of trained ones"
        claims.append(claim(text, shortfall, "<=", NEAR, unit="points"))
    return tuple(claims)


def table_of(
    trained: dict[str, dict[str, float]],
    asked: dict[str, dict[str, float]],
    unseen: dict[str, dict[str, float]] | None,
) -> Table:
    """One row an architecture; of unseen ones also how far from the trained."""
    columns = ["architecture", "ClassId", "target, %", "predicted, %", "at its gamma, %", "named at its gamma"]
    if unseen is not None:
        columns += ["from the mean of trained, points", "from the worst trained, points"]
    rows: list[tuple[Cell, ...]] = []
    for class_id, (name, one) in enumerate(asked.items()):
        known = trained.get(name, {})
        row = [_percent(known.get("target_accuracy")), _percent(known.get("predicted_accuracy"))]
        row += [_percent(one["accuracy"]), f"{one['named']} of {one['pairs']}"]
        if unseen is not None:
            row += [_points(unseen.get(name, {}).get(key)) for key in ("from_mean", "from_worst")]
        rows.append((name, class_id, *row))
    return Table("By architecture", tuple(columns), tuple(rows))


def draw(line: Interpolation, folder: Path) -> str:
    """Each step of each pair in the colour of its architecture; the name of the file."""
    figure = new_figure(8.0, 4.0)
    plot = figure.subplots()
    names = list(line.registry.class_ids)
    values_PS, class_ids_PS = 100 * line.values(), line.class_ids()
    plot.plot(line.gammas, values_PS.T.numpy(), color="grey", linewidth=0.5, alpha=0.4, zorder=1)
    for class_id, name in enumerate(names):
        for kind, (marker, size) in MARKERS.items():
            steps = [step for step in range(len(line.gammas)) if kind_of(step, len(line.gammas)) == kind]
            pairs, places = (class_ids_PS[:, steps] == class_id).nonzero(as_tuple=True)
            chosen = torch.tensor(steps)[places]
            style: dict[str, Any] = {"marker": marker, "s": size, "color": f"C{class_id}", "edgecolor": "black"}
            plot.scatter(torch.tensor(line.gammas)[chosen], values_PS[pairs, chosen], alpha=0.7, linewidth=0.3, **style)
        plot.scatter([], [], color=f"C{class_id}", label=short(name))
    for kind, (marker, size) in MARKERS.items():
        plot.scatter([], [], marker=marker, s=size, color="white", edgecolor="black", label=kind)
    for class_id in range(len(names)):
        plot.axvline(class_id / (len(names) - 1), color="grey", linewidth=0.6, linestyle=":", zorder=0)
    plot.set(xlabel="gamma, from the smallest ClassId to the largest", ylabel="test accuracy, %")
    plot.set_ylim(*limits(float(values_PS.min()), float(values_PS.max())))
    figure.legend(fontsize="small", loc="outside right center")
    return save_figure(figure, folder, f"{NAME}.png")


def kind_of(step: int, steps: int) -> str:
    """Which of MARKERS a step has."""
    if step in (0, steps - 1):
        return "end of a line"
    return "gamma of the loss" if step % FINER == 0 else "between"


def limits(lowest: float, highest: float) -> tuple[float, float]:
    """Where a picture of accuracies in % begins and ends: around them, LEAST_HEIGHT or more, little above 100."""
    height = max(LEAST_HEIGHT, 1.2 * (highest - lowest))
    top = min((lowest + highest + height) / 2, 101.0)
    return top - height, top


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _points(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:+.1f}"
