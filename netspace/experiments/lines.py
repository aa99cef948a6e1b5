"""Fig. 3 b, d: accuracy along lines of embeddings and along lines of weights, between weak and strong instances.

Shapes: P pairs, S steps, R draws of the bootstrap, K values of each pair.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import prepkit
from netspace.data import TEST, shares_starts
from netspace.experiments._subject import runs_of
from netspace.experiments.result import Claim, Column, Result, Table, claim, table_of_measures
from netspace.explore.figures import LINE_NAMES, interpolation_figure
from netspace.explore.interpolation import EMBEDDING, WEIGHTS, interpolate
from netspace.explore.sampling import PointError
from prepkit.errors import counted
from prepkit.support.bootstrap import Draws, drawn_pairs, middle
from prepkit.support.statistics import from_straight_line, largest_fall
from prepkit.tasks.randomness import generator

if TYPE_CHECKING:
    from netspace.experiments._subject import Subject

PAIRS, STEPS = 25, 11
LARGEST_FALL = 0.02  # accuracy: the paper's "grows almost linearly" is read as monotone within 2 points,
STRAIGHT = 0.05  # and as no farther than this from the straight line between both ends
ROUNDING = 1e-9  # 0.97 - 0.95 is more than 0.02 in floats
COLLAPSED = 0.3  # accuracy of a line of weights at its worst, where chance is 0.1
SHARED = "the instances of this zoo share their starts, so their weights can be interpolated too"
COLUMNS = (
    Column(f"pairs that never fall by more than {100 * LARGEST_FALL:g} points, %", "monotone", 100, 2),
    Column("largest fall of the mean, points", "largest_fall_of_mean", 100, 2),
    Column("from the straight line between own ends, points", "from_straight_line", 100, 2),
    Column("from the straight line between the targets, points", "from_line_between_targets", 100, 2),
)


def run(subject: Subject, *, pairs: int = PAIRS, steps: int = STEPS) -> Result:
    """Interpolate between unseen instances: from one of the weakest third to one of the strongest third.

    pairs: at most; no pair is drawn twice
    raises PointError if there are fewer than two test instances
    """
    view = subject.view(TEST)
    first, second = weak_and_strong(view, subject.accuracies(view), pairs, subject.seed)
    subject.progress(f"{counted(len(first), 'pair')}, {steps} steps each")
    interpolation = interpolate(subject.run, subject.zoo, first, second, steps, space=subject.space, task=subject.task)
    values = {line: interpolation.values(line) for line in LINE_NAMES}
    summary = interpolation.summary()
    shapes = {
        line: shape_of_lines(values[line], values[WEIGHTS][:, [0, -1]], interpolation.gammas)
        | {"from_straight_line": summary["lines"][line]["from_straight_line"]}
        for line in LINE_NAMES
    }
    runs = dict(zip(subject.zoo.table["id"].to_pylist(), runs_of(subject.zoo), strict=True))
    drawn_RP = drawn_pairs([runs[id] for id in first], [runs[id] for id in second], subject.seed)
    intervals = intervals_of_lines(values, interpolation.gammas, drawn_RP)
    title = "How accuracy goes along the lines"
    rows = {LINE_NAMES[line]: shape for line, shape in shapes.items()}
    return Result(
        name="lines",
        title="Lines between a weak and a strong instance (Fig. 3 b, d)",
        text=_text(first, second, steps, shapes),
        numbers={**summary, "shapes": shapes, "intervals": intervals, "pairs_of": [first, second]},
        claims=_claims(shapes, intervals, shares_starts(subject.zoo)),
        tables=(table_of_measures(title, ("line of",), rows, COLUMNS), _table_of_means(values, interpolation.gammas)),
        pictures=(subject.picture("Accuracy along the lines", "lines.png", interpolation_figure(interpolation)),),
    )


def weak_and_strong(
    zoo: prepkit.Zoo, accuracies: Sequence[float], pairs: int, seed: int
) -> tuple[list[str], list[str]]:
    """Draw pairs from the lowest and the highest third by accuracy; return ids of weak and ids of strong instances.

    accuracies: one for each instance
    pairs:      at most; all different ones are used if there are fewer
    raises PointError if there are fewer than two instances
    """
    ranked = sorted(zip(accuracies, zoo.table["id"].to_pylist(), strict=True))
    if len(ranked) < 2:
        raise PointError(
            f"'{zoo.name}' has {counted(len(ranked), 'test instance')}; a line between a weak and a strong one needs 2."
        )
    third = max(1, len(ranked) // 3)
    weak, strong = ([id for _, id in part] for part in (ranked[:third], ranked[-third:]))
    picks = torch.randperm(third * third, generator=generator("weak and strong", seed))[:pairs].tolist()
    return [weak[pick // third] for pick in picks], [strong[pick % third] for pick in picks]


def shape_of_lines(values_PS: Tensor, targets_P2: Tensor, gammas: Sequence[float]) -> dict[str, float]:
    """Return how accuracy goes along the lines of P pairs, as accuracies or shares.

    targets_P2: accuracies of the target instances at both ends
    rise_of_mean:              how much higher the mean over pairs is at the strong end than at the weak one
    largest_fall_of_mean:      largest fall of the mean over pairs
    monotone:                  share of pairs that never fall by more than LARGEST_FALL
    lowest:                    smallest mean between the ends
    middle:                    mean half-way
    from_line_between_targets: mean distance from the straight line between the targets' accuracies
    """
    mean_S = values_PS.mean(0)
    steps = len(gammas)
    return {
        "rise_of_mean": float(mean_S[-1] - mean_S[0]),
        "largest_fall_of_mean": float(largest_fall(mean_S)),
        "monotone": float((largest_fall(values_PS) <= LARGEST_FALL + ROUNDING).double().mean()),
        "lowest": float(mean_S[1:-1].min()),
        "middle": float(mean_S[_middle(steps)].mean()),
        "from_line_between_targets": from_straight_line(values_PS, targets_P2, gammas),
    }


def _middle(steps: int) -> list[int]:
    """Return the places half-way: one, or the two beside it."""
    return [(steps - 1) // 2, steps // 2]


def intervals_of_lines(
    values: Mapping[str, Tensor], gammas: Sequence[float], drawn_RP: Draws
) -> dict[str, tuple[float, float]]:
    """Return the intervals of the numbers that are claimed, by name.

    values:   accuracies `[P, S]` along both lines
    drawn_RP: how often each pair is in each draw of instances
    """

    def means(values_PK: Tensor) -> Tensor:
        """Means over the pairs of each draw, `[R, K]`; NaN for an empty draw."""
        drawn = torch.from_numpy(drawn_RP)
        return drawn @ values_PK / drawn.sum(1, keepdim=True)

    embedding_PS, weights_PS = values[EMBEDDING], values[WEIGHTS]
    embedding_RS, weights_RS = means(embedding_PS), means(weights_PS)
    straight_PS = torch.lerp(embedding_PS[:, :1], embedding_PS[:, -1:], torch.tensor(gammas, dtype=torch.float64))
    off_P1 = (embedding_PS - straight_PS).abs().mean(1, keepdim=True)
    monotone_P1 = (largest_fall(embedding_PS) <= LARGEST_FALL + ROUNDING).double()[:, None]
    places = _middle(len(gammas))
    draws = {
        "largest_fall_of_mean": largest_fall(embedding_RS),
        "monotone": means(monotone_P1)[:, 0],
        "from_straight_line": means(off_P1)[:, 0],
        "lowest": weights_RS[:, 1:-1].amin(1),
        "above_weights": (embedding_RS - weights_RS)[:, places].mean(1),
    }
    return {name: middle(values_R.numpy()) for name, values_R in draws.items()}


def _text(first: Sequence[str], second: Sequence[str], steps: int, shapes: Mapping[str, Mapping[str, float]]) -> str:
    embedding, weights = shapes[EMBEDDING], shapes[WEIGHTS]
    return (
        f"{counted(len(first), 'different pair')} of {len(set(first))} weak and {len(set(second))} strong test "
        f"instances (an instance may be in several pairs), {steps} steps, accuracy on the task's test samples. Thin "
        "lines are single pairs, thick ones their mean. The ends of an embedding line are predicted instances, those "
        "of a line of weights the targets themselves; the dashed line joins the mean accuracies of the targets.\n\n"
        f"Along embeddings, {embedding['monotone']:.0%} of the pairs never fall by more than {100 * LARGEST_FALL:g} "
        f"points, along weights {weights['monotone']:.0%}. On average over pairs and steps, accuracy along embeddings "
        f"is {100 * embedding['from_straight_line']:.1f} points off the straight line between the curve's own ends and "
        f"{100 * embedding['from_line_between_targets']:.1f} points off the one between the targets' accuracies. Along "
        f"weights, whose ends are the targets, it is {100 * weights['from_straight_line']:.1f} points off."
    )


def _claims(
    shapes: Mapping[str, Mapping[str, float]], intervals: Mapping[str, tuple[float, float]], shared: bool
) -> list[Claim]:
    """Return the claims; a line that does not rise cannot fall either, and says nothing.

    shared: whether the instances share their starts
    """
    embedding, weights = shapes[EMBEDDING], shapes[WEIGHTS]
    above = embedding["middle"] - weights["middle"]
    flat = ""
    if embedding["rise_of_mean"] < LARGEST_FALL:
        rise = f"{100 * embedding['rise_of_mean']:.1f} points"
        flat = f"the mean accuracy along embeddings rises by {rise} from end to end, so there is nothing to fall from"
    fall = "Along embeddings, largest fall of the mean accuracy over pairs"
    pairs = f"Along embeddings, single pairs whose accuracy never falls by more than {100 * LARGEST_FALL:g} points"
    straight = "Along embeddings, mean distance of accuracy from the straight line between the line's own ends"
    lowest = "Along weights, lowest mean accuracy over pairs"
    half_way = "Half-way along the line, accuracy along embeddings minus that along weights"
    weights_too = SHARED if shared else ""
    asked = (
        (fall, "largest_fall_of_mean", embedding["largest_fall_of_mean"], "<=", LARGEST_FALL, "points", flat),
        (pairs, "monotone", embedding["monotone"], ">=", 0.95, "%", flat),
        (straight, "from_straight_line", embedding["from_straight_line"], "<=", STRAIGHT, "points", flat),
        (lowest, "lowest", weights["lowest"], "<=", COLLAPSED, "%", weights_too),
        (half_way, "above_weights", above, ">=", 0.2, "points", flat or weights_too),
    )
    shorts = {"above_weights": "half-way accuracy along embeddings minus that along weights"}
    return [
        claim(
            text,
            number,
            relation,
            limit,
            unit=unit,
            interval=intervals[name],
            untold=untold,
            short=shorts.get(name, ""),
        )
        for text, name, number, relation, limit, unit, untold in asked
    ]


def _table_of_means(values: Mapping[str, Tensor], gammas: Sequence[float]) -> Table:
    """List mean and deviation over pairs at each step."""

    def cell(values_P: Tensor) -> str:
        deviation = float(values_P.std()) if len(values_P) > 1 else 0.0
        return f"{100 * float(values_P.mean()):.1f} ± {100 * deviation:.1f}"

    rows = tuple(
        (f"{gamma:.2f}", *(cell(values_PS[:, step]) for values_PS in values.values()))
        for step, gamma in enumerate(gammas)
    )
    return Table("Accuracy, %: mean and deviation over pairs", ("gamma", *(LINE_NAMES[line] for line in values)), rows)
