"""Fig. 5: several architectures in one space, in order along the line from the smallest to the largest ClassId.

left:   target and predicted accuracy by architecture, and ClassIds, of unseen instances
centre: accuracy by architecture along the lines between boundary instances, with steps finer than gamma
right:  the same in a space that was only shown the boundary architectures

Shapes: P pairs, S steps.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import prepkit
from netspace.evaluation import evaluate
from netspace.experiments.result import Picture, Progress, Result, Table, claim, new_figure, save_figure
from netspace.interpolation import interpolate
from prepkit.tasks.randomness import generator

if TYPE_CHECKING:
    from netspace.checkpoint import Run
    from netspace.interpolation import Interpolation

PAIRS, FINER = 8, 4  # steps between two multiples of gamma
NAME = "boundaries"
NEAR = 0.05  # accuracy: how near unseen architectures are to come to trained ones


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
    """Evaluate unseen instances, then walk between boundary ones."""
    space, test = run.space(device=device), zoo.split("test")
    names = list(run.registry.class_ids)
    found = evaluate(space, run.registry, test, task, "test")
    first, second = boundary_ids(test, len(names), pairs, seed)
    steps = (len(names) - 1) * FINER + 1
    if progress is not None:
        progress(f"{pairs} pairs of boundary instances, {steps} steps each")
    line = interpolate(run, zoo, first, second, steps, space=space, task=task)
    by_class = accuracy_by_class(line, names)
    asked = at_gammas(line, len(names))
    summary, order = found.summary(), line.summary()["class_ids_in_order"]
    trained = summary["by_architecture"]
    reference = {name: values["predicted_accuracy"] for name, values in trained.items()}
    least_trained = min(reference.values())
    between = {name: asked[name]["accuracy"] for name in names[1:-1]}
    claims = [
        claim("Along the line, pairs whose ClassIds never fall", order, ">=", 1.0),
        claim(
            "At each gamma the architecture of its ClassId is named for",
            min(one["right"] for one in asked.values()),
            ">=",
            1.0,
        ),
    ]
    if run.recipe.setting == "unseen":
        shortfall = max(least_trained - accuracy for accuracy in between.values())
        claims.append(claim("Unseen architectures are worse than the worst trained one by", shortfall, "<=", NEAR))
    rows = tuple(
        (
            name,
            class_id,
            _percent(trained.get(name, {}).get("target_accuracy")),
            _percent(trained.get(name, {}).get("predicted_accuracy")),
            _percent(asked[name]["accuracy"]),
            f"{100 * asked[name]['right']:.0f} %",
        )
        for class_id, name in enumerate(names)
    )
    columns = ("architecture", "ClassId", "target, %", "predicted, %", "at its gamma, %", "named at its gamma")
    unseen = run.recipe.setting == "unseen"
    return Result(
        name=NAME,
        title="Unseen architectures, sampled (Fig. 5 right)"
        if unseen
        else "Several architectures in one space (Fig. 5)",
        text=f"{len(test)} test instances and {len(first)} pairs of boundary ones among them; {steps} steps a line, "
        f"{FINER} from one multiple of gamma to the next. Accuracy on the task's test samples; an instance at gamma is "
        "sampled, it has no target.",
        numbers={
            "evaluation": summary,
            "class_ids_in_order": order,
            "at_gamma": asked,
            "along_the_line": by_class,
            "pairs": len(first),
        },
        claims=tuple(claims),
        tables=(Table("By architecture", columns, rows),),
        pictures=(Picture("Accuracy along the line, by predicted architecture", draw(line, names, folder)),),
    )


def boundary_ids(zoo: prepkit.Zoo, count: int, pairs: int, seed: int) -> tuple[list[str], list[str]]:
    """Ids of instances of the smallest and of the largest ClassId, drawn at random."""
    class_ids, ids = zoo.class_ids().tolist(), zoo.table["id"].to_pylist()
    stream = generator("boundary pairs", seed)
    chosen = []
    for boundary in (0, count - 1):
        own = [id for id, class_id in zip(ids, class_ids, strict=True) if class_id == boundary]
        order = torch.randperm(len(own), generator=stream).tolist()
        chosen.append([own[order[pair % len(own)]] for pair in range(pairs)])
    return chosen[0], chosen[1]


def accuracy_by_class(line: Interpolation, names: list[str]) -> list[dict[str, Any]]:
    """At each step: gamma, and of each architecture that is named there the share of pairs and the mean accuracy."""
    values_PS, class_ids_PS = line.values(), line.class_ids()
    found = []
    for step, gamma in enumerate(line.gammas):
        named = {}
        for class_id, name in enumerate(names):
            here = class_ids_PS[:, step] == class_id
            if here.any():
                named[name] = {
                    "share": float(here.double().mean()),
                    "accuracy": float(values_PS[here, step].mean()),
                }
        found.append({"gamma": gamma, "architectures": named})
    return found


def at_gammas(line: Interpolation, count: int) -> dict[str, dict[str, float]]:
    """Of each architecture, at gamma = ClassId / (A - 1): mean accuracy, and how often it is the one that is named."""
    values_PS, class_ids_PS = line.values(), line.class_ids()
    names = list(line.registry.class_ids)
    found = {}
    for class_id in range(count):
        step = class_id * (len(line.gammas) - 1) // (count - 1)
        right = class_ids_PS[:, step] == class_id
        found[names[class_id]] = {
            "right": float(right.double().mean()),
            "accuracy": float(values_PS[:, step].mean()),
        }
    return found


def draw(line: Interpolation, names: list[str], folder: Path) -> str:
    """Each step of each pair as a point in the colour of its architecture; the name of the file."""
    figure = new_figure(7.0, 3.6)
    plot = figure.subplots()
    values_PS, class_ids_PS = line.values(), line.class_ids()
    gammas_PS = torch.tensor(line.gammas).expand_as(values_PS)
    for class_id, name in enumerate(names):
        here = class_ids_PS == class_id
        plot.scatter(gammas_PS[here], 100 * values_PS[here], s=16, alpha=0.6, color=f"C{class_id}", label=name)
    for class_id in range(len(names)):
        plot.axvline(class_id / (len(names) - 1), color="grey", linewidth=0.6, linestyle=":")
    plot.set(xlabel="gamma, from the smallest ClassId to the largest", ylabel="test accuracy, %", ylim=(0, 100))
    plot.legend(fontsize="small", loc="lower right")
    return save_figure(figure, folder, f"{NAME}.png")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
