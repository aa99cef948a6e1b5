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
from netspace.experiments.result import Picture, Progress, Result, Table, claim, new_figure, save_figure
from netspace.interpolation import EMBEDDING, WEIGHTS, interpolate
from prepkit.tasks.randomness import generator

if TYPE_CHECKING:
    from netspace.checkpoint import Run

PAIRS, STEPS = 10, 11
NAME = "lines"
LARGEST_FALL = 0.02  # accuracy: the paper's "grows almost linearly" read as monotone within 2 points
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
    """Interpolate between unseen instances: each from the weakest third, with one of the strongest third."""
    first, second = weak_and_strong(zoo.split("test"), pairs, seed)
    space = run.space(device=device)
    if progress is not None:
        progress(f"{pairs} pairs, {steps} steps each")
    found = interpolate(run, zoo, first, second, steps, space=space, task=task)
    values = {line: found.values(line) for line in (EMBEDDING, WEIGHTS)}
    summary = found.summary()
    mean_S = {line: values_PS.mean(0) for line, values_PS in values.items()}
    fall = float((mean_S[EMBEDDING].cummax(0).values - mean_S[EMBEDDING]).max())
    lowest = {line: float(mean[1:-1].min()) for line, mean in mean_S.items()}
    middle = {line: float(mean[len(mean) // 2]) for line, mean in mean_S.items()}
    rows = [
        (
            f"{gamma:.2f}",
            *(f"{100 * float(mean_S[line][step]):.1f} ± {100 * _spread(values[line], step):.1f}" for line in values),
        )
        for step, gamma in enumerate(found.gammas)
    ]
    return Result(
        name=NAME,
        title="Lines between a weak and a strong instance (Fig. 3 b, d)",
        text=f"{len(first)} pairs of test instances, {steps} steps, accuracy on the task's test samples; mean and "
        "deviation over the pairs. The ends of an embedding line are predicted instances, those of a line of weights "
        "the targets themselves.",
        numbers={
            **summary,
            "largest_fall_of_mean": fall,
            "lowest": lowest,
            "middle": middle,
            "pairs_of": [first, second],
        },
        claims=(
            claim("Along embeddings the mean accuracy never falls by more than", fall, "<=", LARGEST_FALL),
            claim("Along weights the mean accuracy falls to", lowest[WEIGHTS], "<=", COLLAPSED),
            claim(
                "In the middle, embeddings are better than weights by", middle[EMBEDDING] - middle[WEIGHTS], ">=", 0.2
            ),
        ),
        tables=(Table("Accuracy, %", ("gamma", "embeddings", "weights"), tuple(rows)),),
        pictures=(Picture("Accuracy along the lines", draw(found.gammas, values, folder)),),
    )


def weak_and_strong(zoo: prepkit.Zoo, pairs: int, seed: int) -> tuple[list[str], list[str]]:
    """Ids of weak and of strong instances, one each a pair: drawn from the lowest and the highest third by accuracy."""
    ranked = sorted(zip(zoo.table["accuracy"].to_pylist(), zoo.table["id"].to_pylist(), strict=True))
    third = max(1, len(ranked) // 3)
    stream = generator("weak and strong", seed)
    chosen = []
    for part in (ranked[:third], ranked[-third:]):
        picks = torch.randint(len(part), (pairs,), generator=stream).tolist()
        chosen.append([part[pick][1] for pick in picks])
    return chosen[0], chosen[1]


def draw(gammas: tuple[float, ...], values: dict[str, Tensor], folder: Path) -> str:
    """Mean and deviation along both lines; the name of the file."""
    figure = new_figure(6.0, 3.6)
    plot = figure.subplots()
    for line, values_PS in values.items():
        mean = values_PS.mean(0).numpy() * 100
        spread = [100 * _spread(values_PS, step) for step in range(len(gammas))]
        (drawn,) = plot.plot(gammas, mean, marker="o", label="embeddings" if line == EMBEDDING else "weights")
        plot.fill_between(gammas, mean - spread, mean + spread, alpha=0.2, color=drawn.get_color(), linewidth=0)
    plot.set(xlabel="gamma, from the weak instance to the strong one", ylabel="test accuracy, %", ylim=(0, 100))
    plot.legend()
    return save_figure(figure, folder, f"{NAME}.png")


def _spread(values_PS: Tensor, step: int) -> float:
    return float(values_PS[:, step].std()) if len(values_PS) > 1 else 0.0
