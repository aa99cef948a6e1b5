"""Fig. 5: several architectures in one space, in order along the line from the smallest to the largest ClassId.

left:   target and predicted accuracy by architecture, and ClassIds, of unseen instances
centre: accuracy by architecture along the lines between boundary instances, with steps finer than gamma
right:  the same in a space that was trained on the boundary architectures alone

Shapes: P pairs, S steps.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import prepkit
from netspace.data import TEST
from netspace.experiments._subject import runs_of
from netspace.experiments.result import Claim, Column, Result, Table, claim, table_of_measures
from netspace.experiments.verdict import Interval
from netspace.explore import colours
from netspace.explore.interpolation import interpolate
from netspace.explore.sampling import PointError
from netspace.space.evaluation import evaluate
from prepkit.errors import counted
from prepkit.figures import axis_limits, new_figure, short_name
from prepkit.support.bootstrap import interval_of_means
from prepkit.support.statistics import mean_or_nan
from prepkit.tasks.randomness import generator
from prepkit.zoo.read.groups import rows_by_architecture

if TYPE_CHECKING:
    from netspace.experiments._subject import Subject
    from netspace.explore.interpolation import Interpolation

PAIRS, FINER = 8, 4  # FINER steps lead from one multiple of gamma to the next
# The paper's picture has these forms and sizes of a step.
MARKERS = {"end of a line": ("o", 60), "gamma of the loss": ("*", 110), "between": (".", 30)}
NEAR = 0.05  # accuracy that unseen architectures may be below the mean of trained ones
LEAST_HEIGHT = 10.0  # points of accuracy that the picture shows, at least: smaller steps are chance
COLUMNS = (
    Column("target, %", "target_accuracy", 100, 1),
    Column("predicted, %", "predicted_accuracy", 100, 1),
    Column("at its gamma, %", "accuracy", 100, 1),
    Column("predicted at its gamma", "counts"),
)
UNSEEN_COLUMNS = (
    Column("from the mean of trained, points", "from_mean", 100, 1),
    Column("from the worst trained, points", "from_worst", 100, 1),
)


def run(subject: Subject, *, pairs: int = PAIRS) -> Result:
    """Evaluate unseen instances, then walk between boundary ones.

    pairs: at most; no instance is in two of them
    """
    registry, test = subject.run.registry, subject.zoo.split(TEST)
    names = list(registry.class_ids)
    evaluation = evaluate(subject.space, registry, test, subject.task, TEST)
    summary = evaluation.summary()
    first, second = boundary_ids(test, len(names), pairs, subject.seed)
    steps = (len(names) - 1) * FINER + 1
    subject.progress(f"{counted(len(first), 'pair')} of boundary instances, {steps} steps each")
    line = interpolate(subject.run, subject.zoo, first, second, steps, space=subject.space, task=subject.task)
    at_gamma, in_order = at_gammas(line), line.summary()["class_ids_in_order"]
    boundary = [name for name in summary["by_architecture"] if name in (names[0], names[-1])]
    trained = {name: summary["by_architecture"][name]["predicted_accuracy"] for name in boundary}
    unseen = compared_with_trained(at_gamma, trained) if subject.run.recipe.setting == "unseen" else None
    interval = None
    if unseen is not None:
        accuracy_N, runs = evaluation.column("predicted_accuracy").tolist(), runs_of(test)
        groups = rows_by_architecture(test)
        of_trained = (
            ([accuracy_N[row] for row in groups[name]], [runs[row] for row in groups[name]]) for name in boundary
        )
        interval = shortfall_interval(accuracies_at_gammas(line, list(unseen)), of_trained, subject.seed)
    title = "Accuracy along the line, by predicted architecture"
    return Result(
        name="boundaries",
        title="Several architectures in one space (Fig. 5)"
        if unseen is None
        else "Unseen architectures, sampled (Fig. 5 right)",
        text=_text(len(test), len(first), steps, at_gamma, unseen),
        numbers={
            "evaluation": summary,
            "class_ids_in_order": in_order,
            "at_gamma": at_gamma,
            "along_the_line": accuracy_by_class(line),
            "pairs": len(first),
        }
        | ({} if unseen is None else {"unseen": unseen}),
        claims=claims_of(in_order, at_gamma, unseen, interval, names_one_class(line)),
        tables=(table_of(summary["by_architecture"], at_gamma, unseen),),
        pictures=(subject.picture(title, "boundaries.png", line_figure(line)),),
    )


def boundary_ids(zoo: prepkit.Zoo, count: int, pairs: int, seed: int) -> tuple[list[str], list[str]]:
    """Draw ids of instances of the smallest and of the largest of `count` ClassIds, no one twice.

    pairs: at most; there are as many as instances of the rarer ClassId, if those are fewer
    raises PointError if there is none of one of them
    """
    class_ids, ids = zoo.class_ids().tolist(), zoo.table["id"].to_pylist()
    stream = generator("boundary pairs", seed)
    drawn = []
    for boundary in (0, count - 1):
        own = [id for id, class_id in zip(ids, class_ids, strict=True) if class_id == boundary]
        drawn.append([own[place] for place in torch.randperm(len(own), generator=stream).tolist()])
    pairs = min(pairs, *map(len, drawn))
    if not pairs:
        raise PointError(
            f"there is no pair of the boundary architectures among the {counted(len(ids), 'test instance')} of "
            f"'{zoo.name}'; a line between them needs one of each."
        )
    return drawn[0][:pairs], drawn[1][:pairs]


def accuracy_by_class(line: Interpolation) -> list[dict[str, Any]]:
    """Return for each step its gamma and, by predicted architecture, the share of pairs and their mean accuracy."""
    values_PS, class_ids_PS = line.values(), line.class_ids()
    steps = []
    for step, gamma in enumerate(line.gammas):
        predicted = {}
        for class_id, name in enumerate(line.registry.class_ids):
            here = class_ids_PS[:, step] == class_id
            if here.any():
                predicted[name] = {
                    "share": float(here.double().mean()),
                    "accuracy": float(values_PS[here, step].mean()),
                }
        steps.append({"gamma": gamma, "architectures": predicted})
    return steps


def at_gammas(line: Interpolation) -> dict[str, dict[str, float]]:
    """Return how often each architecture is predicted at its gamma = ClassId / (A - 1), and how accurate it is there.

    named:    on how many of the `pairs` it is predicted; `right` is their share
    accuracy: mean over those pairs; NaN if there are none
    """
    measures = {}
    for name, accuracies in accuracies_at_gammas(line, list(line.registry.class_ids)).items():
        accuracy_P = torch.tensor(accuracies, dtype=torch.float64)
        right_P = accuracy_P.isfinite()
        measures[name] = {
            "named": int(right_P.sum()),
            "pairs": len(right_P),
            "right": float(right_P.double().mean()),
            "accuracy": mean_or_nan(accuracy_P[right_P]),
        }
    return measures


def accuracies_at_gammas(line: Interpolation, names: Sequence[str]) -> dict[str, list[float]]:
    """Return the accuracy at each architecture's gamma, one for each pair; NaN where another is predicted there."""
    values_PS, class_ids_PS = line.values(), line.class_ids()
    known = list(line.registry.class_ids)
    found = {}
    for name in names:
        class_id = known.index(name)
        step = class_id * (len(line.gammas) - 1) // (len(known) - 1)
        found[name] = values_PS[:, step].where(class_ids_PS[:, step] == class_id, math.nan).tolist()
    return found


def compared_with_trained(
    at_gamma: Mapping[str, Mapping[str, float]], trained: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Return how much more accurate than trained architectures those without instances are at their gammas.

    trained: mean accuracy of the predictions for test instances, of each architecture that was trained on
    returns differences `from_mean` of trained architectures and `from_worst`, NaN if it was never predicted
    """
    accuracies = list(trained.values())
    mean, worst = sum(accuracies) / len(accuracies), min(accuracies)
    return {
        name: {"from_mean": values["accuracy"] - mean, "from_worst": values["accuracy"] - worst}
        for name, values in at_gamma.items()
        if name not in trained
    }


def names_one_class(line: Interpolation) -> bool:
    """Whether each line names one class throughout, as a space does that writes one architecture for everything."""
    class_ids_PS = line.class_ids()
    return bool((class_ids_PS == class_ids_PS[:, :1]).all())


def shortfall_interval(
    unseen: Mapping[str, Sequence[float]], trained: Iterable[tuple[Sequence[float], Sequence[str]]], seed: int
) -> Interval:
    """Return the interval of the largest shortfall of an unseen architecture from the mean of trained ones.

    unseen:  accuracy of each pair's instance at an architecture's gamma, NaN where another is predicted
    trained: predicted accuracies and runs of the test instances of each trained architecture
    """
    sampled = [(accuracies, range(len(accuracies))) for accuracies in unseen.values()]  # no instance is in two pairs

    def shortfall(means: Sequence[np.ndarray]) -> Any:
        worst_R = np.minimum.reduce(means[: len(sampled)])
        return np.mean(means[len(sampled) :], axis=0) - worst_R

    return interval_of_means([*sampled, *trained], shortfall, seed)


def _text(
    instances: int,
    pairs: int,
    steps: int,
    at_gamma: Mapping[str, Mapping[str, float]],
    unseen: Mapping[str, Mapping[str, float]] | None,
) -> str:
    counts = ", ".join(
        f"{short_name(name)} on {values['named']} of {values['pairs']}" for name, values in at_gamma.items()
    )
    text = (
        f"{counted(instances, 'test instance')}, and {counted(pairs, 'pair')} of boundary instances among them; {steps}"
        f" steps a line, {FINER} from one multiple of gamma to the next. Accuracy is measured on the task's test "
        "samples. An instance at a gamma is sampled and has no target. Its accuracy counts only on pairs where the "
        f"architecture of that gamma's ClassId is predicted: {counts}.\n\n"
        "In the picture, circles are the ends of the lines, stars the gammas that the interpolation loss asks for, "
        "small points the steps between. Colours show the predicted architecture. Steps of a pair are joined."
    )
    if unseen is None:
        return text
    points = "; ".join(
        f"{short_name(name)} {_points(values['from_mean'])} from the mean of the trained architectures and "
        f"{_points(values['from_worst'])} from the worst of them"
        for name, values in unseen.items()
    )
    return f"{text}\n\nAccuracy at their gammas of architectures that the space never saw, in points: {points}."


def claims_of(
    in_order: float,
    at_gamma: Mapping[str, Mapping[str, float]],
    unseen: Mapping[str, Mapping[str, float]] | None,
    interval: Interval | None = None,
    one_class: bool = False,
) -> list[Claim]:
    """Return the claims: in order, predicted where the loss asks for them, and as good as trained ones.

    interval:  that of the largest shortfall
    one_class: whether each line names one class throughout, which then says nothing about an order
    """
    rising = "Lines from the smallest to the largest ClassId along which the predicted ClassIds never fall"
    least = min(values["right"] for values in at_gamma.values())
    expected = "Lines that predict the expected architecture at its gamma (worst architecture)"
    no_order = "each line names one class throughout, so there is no order to keep" if one_class else ""
    claims = [
        claim(rising, in_order, "==", 1, unit="%", untold=no_order),
        claim(
            expected, least, "==", 1, unit="%", short="the share of lines with the expected architecture at its gamma"
        ),
    ]
    if unseen is not None:
        # A tensor's maximum is NaN where one value is: an architecture that was never predicted is no success.
        shortfall = float(torch.tensor([-values["from_mean"] for values in unseen.values()], dtype=torch.float64).max())
        text = "Unseen architectures at their own gamma, largest shortfall of accuracy from the mean of trained ones"
        below = "the largest shortfall of unseen architectures from trained ones"
        never = ", ".join(short_name(name) for name, values in unseen.items() if math.isnan(values["from_mean"]))
        why = f"{never} is never predicted at its own gamma" if never else ""
        claims.append(claim(text, shortfall, "<=", NEAR, unit="points", interval=interval, untold=why, short=below))
    return claims


def table_of(
    trained: Mapping[str, Mapping[str, float]],
    at_gamma: Mapping[str, Mapping[str, float]],
    unseen: Mapping[str, Mapping[str, float]] | None,
) -> Table:
    """Return a table with one row an architecture; unseen ones are also compared with the trained."""
    rows = {
        (name, class_id): {
            **trained.get(name, {}),
            **values,
            **(unseen or {}).get(name, {}),
            "counts": f"{values['named']} of {values['pairs']}",
        }
        for class_id, (name, values) in enumerate(at_gamma.items())
    }
    columns = COLUMNS if unseen is None else COLUMNS + UNSEEN_COLUMNS
    return table_of_measures("By architecture", ("architecture", "ClassId"), rows, columns)


def line_figure(line: Interpolation) -> Any:
    """Draw each step of each pair in the colour of its architecture."""
    figure = new_figure(8.0, 4.0)
    axes = figure.subplots()
    names = list(line.registry.class_ids)
    values_PS, class_ids_PS = 100 * line.values(), line.class_ids()
    axes.plot(line.gammas, values_PS.T.numpy(), color="grey", linewidth=0.5, alpha=0.4, zorder=1)
    for class_id, name in enumerate(names):
        for kind, (marker, size) in MARKERS.items():
            steps = [step for step in range(len(line.gammas)) if kind_of(step, len(line.gammas)) == kind]
            pairs, places = (class_ids_PS[:, steps] == class_id).nonzero(as_tuple=True)
            chosen = torch.tensor(steps, dtype=torch.int64)[places]  # two architectures have no gamma between
            style: dict[str, Any] = {
                "marker": marker,
                "s": size,
                "color": colours.of_architecture(class_id),
                "edgecolor": "black",
            }
            axes.scatter(torch.tensor(line.gammas)[chosen], values_PS[pairs, chosen], alpha=0.7, linewidth=0.3, **style)
        axes.scatter([], [], color=colours.of_architecture(class_id), label=short_name(name))
        axes.axvline(class_id / (len(names) - 1), color="grey", linewidth=0.6, linestyle=":", zorder=0)
    for kind, (marker, size) in MARKERS.items():
        axes.scatter([], [], marker=marker, s=size, color="white", edgecolor="black", label=kind)
    axes.set(xlabel="gamma, from the smallest ClassId to the largest", ylabel="test accuracy, %")
    axes.set_ylim(*axis_limits(float(values_PS.min()), float(values_PS.max()), LEAST_HEIGHT, top=101.0))
    figure.legend(fontsize="small", loc="outside right center")
    return figure


def kind_of(step: int, steps: int) -> str:
    """Return the kind of a step, one of MARKERS."""
    if step in (0, steps - 1):
        return "end of a line"
    return "gamma of the loss" if step % FINER == 0 else "between"


def _points(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:+.1f}"
