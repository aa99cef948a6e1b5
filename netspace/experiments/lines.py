"""Fig. 3 b, d: accuracy along lines of embeddings and along lines of weights, between weak and strong instances.

Shapes: P pairs, S steps.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import prepkit
from netspace.experiments.result import Cell, Claim, Picture, Progress, Result, Table, claim, new_figure, save_figure
from netspace.explore.interpolation import EMBEDDING, WEIGHTS, interpolate
from netspace.explore.sampling import PointError
from prepkit.tasks.randomness import generator

if TYPE_CHECKING:
    from netspace.run.run import Run

PAIRS, STEPS = 25, 11
NAME = "lines"
NAMES = {EMBEDDING: "embeddings", WEIGHTS: "weights"}
LARGEST_FALL = 0.02  # accuracy: the paper's "grows almost linearly" read as monotone within 2 points
ROUNDING = 1e-9  # 0.97 - 0.95 is more than 0.02 in floats
COLLAPSED = 0.3  # accuracy of a line of weights at its worst, where chance is 0.1


def run(
    run: Run,
    zoo: prepkit.Zoo,
    task: Any,
    device: torch.device,
    folder: Path,
    *,
    seed: int = 0,
    pairs: int = PAIRS,
    steps: int = STEPS,
    progress: Progress | None = None,
) -> Result:
    """Interpolate between unseen instances: each from the weakest third, with one of the strongest third.

    pairs: at most; all are different
    raises PointError if there are less than two test instances
    """
    first, second = weak_and_strong(zoo.split("test"), pairs, seed)
    space = run.space(device=device)
    if progress is not None:
        progress(f"{len(first)} pairs, {steps} steps each")
    found = interpolate(run, zoo, first, second, steps, space=space, task=task)
    values = {line: found.values(line) for line in NAMES}
    summary = found.summary()
    shapes = {
        line: shape_of(values[line], values[WEIGHTS][:, [0, -1]], found.gammas)
        | {"from_straight_line": summary["lines"][line]["from_straight_line"]}
        for line in NAMES
    }
    return Result(
        name=NAME,
        title="Lines between a weak and a strong instance (Fig. 3 b, d)",
        text=text_of(first, second, steps, shapes),
        numbers={**summary, "shapes": shapes, "pairs_of": [first, second]},
        claims=claims_of(shapes),
        tables=(table_of_shapes(shapes), table_of_means(values, found.gammas)),
        pictures=(Picture("Accuracy along the lines", draw(found.gammas, values, folder)),),
    )


def weak_and_strong(zoo: prepkit.Zoo, pairs: int, seed: int) -> tuple[list[str], list[str]]:
    """Ids of the weak and of the strong instance of each pair, from the lowest and the highest third by accuracy.

    pairs: different ones, drawn at random; all that there are, if those are fewer
    raises PointError if there are less than two instances
    """
    ranked = sorted(zip(zoo.table["accuracy"].to_pylist(), zoo.table["id"].to_pylist(), strict=True))
    if len(ranked) < 2:
        raise PointError(f"'{zoo.name}' has {len(ranked)} test instances; a line between a weak and a strong needs 2.")
    third = max(1, len(ranked) // 3)
    weak, strong = ([id for _, id in part] for part in (ranked[:third], ranked[-third:]))
    picks = torch.randperm(third * third, generator=generator("weak and strong", seed))[:pairs].tolist()
    return [weak[pick // third] for pick in picks], [strong[pick % third] for pick in picks]


def falls(values_S: Tensor) -> Tensor:
    """How far values fall below the largest one before, at most: `[..., S]` -> `[...]`."""
    return (values_S.cummax(-1).values - values_S).amax(-1)


def shape_of(values_PS: Tensor, targets_P2: Tensor, gammas: tuple[float, ...]) -> dict[str, float]:
    """How accuracy goes along the lines of P pairs; all are accuracies or shares.

    targets_P2: accuracies of the target instances at both ends
    returns `largest_fall_of_mean`, of the mean over pairs; `monotone`, the share of pairs that never fall by more than
            LARGEST_FALL; `lowest` mean between the ends, `middle`: mean half-way; `from_line_between_targets`: mean
            distance from the straight line between the targets' accuracies
    """
    mean_S = values_PS.mean(0)
    straight_PS = torch.lerp(targets_P2[:, :1], targets_P2[:, 1:], torch.tensor(gammas, dtype=values_PS.dtype))
    steps = len(gammas)
    return {
        "largest_fall_of_mean": float(falls(mean_S)),
        "monotone": float((falls(values_PS) <= LARGEST_FALL + ROUNDING).double().mean()),
        "lowest": float(mean_S[1:-1].min()),
        "middle": float(mean_S[[(steps - 1) // 2, steps // 2]].mean()),
        "from_line_between_targets": float((values_PS - straight_PS).abs().mean()),
    }


def text_of(first: list[str], second: list[str], steps: int, shapes: dict[str, dict[str, float]]) -> str:
    """What was done and found, in plain words."""
    embedding, weights = shapes[EMBEDDING], shapes[WEIGHTS]
    return (
        f"{len(first)} different pairs of {len(set(first))} weak and {len(set(second))} strong test instances (an "
        f"instance is in several pairs), {steps} steps, accuracy on the task's test samples. Thin lines are single "
        "pairs, thick ones their mean. The ends of an embedding line are predicted instances, those of a line of "
        "weights the targets themselves; the dashed line joins the mean accuracies of the targets.\n\n"
        f"Along embeddings, {embedding['monotone']:.0%} of the pairs never fall by more than {100 * LARGEST_FALL:g} "
        f"points, along weights {weights['monotone']:.0%}. On average over pairs and steps, accuracy along embeddings "
        f"is {100 * embedding['from_straight_line']:.1f} points off the straight line between the curve's own ends and "
        f"{100 * embedding['from_line_between_targets']:.1f} off the one between the targets' accuracies; along "
        f"weights, whose ends are the targets, {100 * weights['from_straight_line']:.1f}."
    )


def claims_of(shapes: dict[str, dict[str, float]]) -> tuple[Claim, ...]:
    """Monotone on average and pair by pair, where weights collapse."""
    embedding, weights = shapes[EMBEDDING], shapes[WEIGHTS]
    above = embedding["middle"] - weights["middle"]
    return (
        claim(
            "Along embeddings, largest fall of the mean accuracy over pairs",
            embedding["largest_fall_of_mean"],
            "<=",
            LARGEST_FALL,
            unit="points",
        ),
        claim(
            f"Along embeddings, single pairs whose accuracy never falls by more than {100 * LARGEST_FALL:g} points",
            embedding["monotone"],
            ">=",
            0.95,
            unit="%",
        ),
        claim("Along weights, lowest mean accuracy over pairs", weights["lowest"], "<=", COLLAPSED, unit="%"),
        claim(
            "Half-way along the line, accuracy along embeddings above that along weights",
            above,
            ">=",
            0.2,
            unit="points",
        ),
    )


def table_of_shapes(shapes: dict[str, dict[str, float]]) -> Table:
    """One row a kind of line."""
    columns = {
        "monotone": f"pairs that never fall by more than {100 * LARGEST_FALL:g} points, %",
        "largest_fall_of_mean": "largest fall of the mean",
        "from_straight_line": "from the straight line between own ends",
        "from_line_between_targets": "from the straight line between the targets",
    }
    rows: list[tuple[Cell, ...]] = [
        (NAMES[line], *(round(100 * one[key], 2) for key in columns)) for line, one in shapes.items()
    ]
    title = "How accuracy goes along the lines; falls and mean distances in points"
    return Table(title, ("", *columns.values()), tuple(rows))


def table_of_means(values: dict[str, Tensor], gammas: tuple[float, ...]) -> Table:
    """One row a step: mean and deviation over pairs."""
    rows = tuple(
        (
            f"{gamma:.2f}",
            *(f"{100 * float(one[:, step].mean()):.1f} ± {100 * _spread(one, step):.1f}" for one in values.values()),
        )
        for step, gamma in enumerate(gammas)
    )
    return Table("Accuracy, %: mean and deviation over pairs", ("gamma", *(NAMES[line] for line in values)), rows)


def draw(gammas: tuple[float, ...], values: dict[str, Tensor], folder: Path) -> str:
    """Single pairs and their mean along both lines; the name of the file."""
    figure = new_figure(6.5, 4.0)
    plot = figure.subplots()
    for number, (line, values_PS) in enumerate(values.items()):
        colour = f"C{number}"
        plot.plot(gammas, 100 * values_PS.T.numpy(), color=colour, linewidth=0.6, alpha=0.35)
        plot.plot(gammas, 100 * values_PS.mean(0).numpy(), color=colour, linewidth=2.5, marker="o", label=NAMES[line])
    ends = 100 * values[WEIGHTS].mean(0)[[0, -1]]
    plot.plot((0, 1), ends.tolist(), color="black", linewidth=1, linestyle="--", label="straight between the targets")
    plot.set(xlabel="gamma, from the weak instance to the strong one", ylabel="test accuracy, %", ylim=(0, 102))
    figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    return save_figure(figure, folder, f"{NAME}.png")


def _spread(values_PS: Tensor, step: int) -> float:
    return float(values_PS[:, step].std()) if len(values_PS) > 1 else 0.0
