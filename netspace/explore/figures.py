"""What was found in a space, as pictures. matplotlib is the extra `[plots]` and imported when drawing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from prepkit.figures import PlotsMissing
from prepkit.files import replacing

if TYPE_CHECKING:
    from netspace.explore.interpolation import Interpolation
    from netspace.explore.optimization import Optimisation
    from netspace.space.evaluation import Evaluation

LINE_COLOURS = {"embedding": "#1f77b4", "weights": "#7f7f7f"}
LINE_NAMES = {"embedding": "through the embedding space", "weights": "from weight to weight"}
DOTS_PER_INCH = 150


def draw_interpolation(found: Interpolation, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Accuracy, or volume, along the lines: the mean over pairs with its deviation, and every predicted architecture.

    raises PlotsMissing without matplotlib, OutputError if the picture exists or cannot be written
    """
    figure, axes = _axes()
    lines = found.summary()["lines"]
    for line, means in lines.items():
        colour = LINE_COLOURS[line]
        axes.plot(found.gammas, means["mean"], color=colour, label=LINE_NAMES[line], zorder=3)
        if None not in means["deviation"]:
            low, high = (
                [mean + sign * deviation for mean, deviation in zip(means["mean"], means["deviation"], strict=True)]
                for sign in (-1, 1)
            )
            axes.fill_between(found.gammas, low, high, color=colour, alpha=0.2, linewidth=0)
    class_ids, values = found.class_ids(), found.values()
    names = list(found.registry.class_ids)
    if len(names) > 1:
        gammas = class_ids.new_tensor(found.gammas, dtype=values.dtype).expand_as(values)
        for class_id in sorted(set(class_ids.flatten().tolist())):
            here = class_ids == class_id
            style: dict[str, Any] = {"color": f"C{class_id + 1}", "label": names[class_id], "s": 14}
            axes.scatter(gammas[here], values[here], zorder=4, clip_on=False, **style)
    pairs = (
        f"{len(found.first)} pairs" if len(found.first) > 1 else f"{found.first.names[0]} to {found.second.names[0]}"
    )
    axes.set(xlabel="gamma", ylabel=found.value, xlim=(0, 1))
    axes.set_title(pairs, parse_math=False)
    axes.legend()
    _save(figure, path, overwrite)


def draw_evaluation(found: Evaluation, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Target and predicted accuracy of every instance, in the order of the targets', one panel an architecture.

    raises PlotsMissing without matplotlib, OutputError if the picture exists or cannot be written
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in found.table.to_pylist():
        groups.setdefault(row["architecture"], []).append(row)
    figure, panels = _panels(len(groups))
    for axes, (name, rows) in zip(panels, groups.items(), strict=True):
        rows.sort(key=lambda row: row["target_accuracy"])
        axes.plot([row["target_accuracy"] for row in rows], color="black", marker=".", label="target")
        axes.plot([row["predicted_accuracy"] for row in rows], color="#1f77b4", marker=".", label="predicted")
        wrong = [place for place, row in enumerate(rows) if row["class_id"] != row["predicted_class_id"]]
        if wrong:
            accuracies = [rows[place]["predicted_accuracy"] for place in wrong]
            axes.scatter(wrong, accuracies, marker="x", color="red", label="another class", zorder=4)
        axes.set(xlabel="instance, in the order of target accuracy")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(name, parse_math=False)
    panels[0].set(ylabel="accuracy")
    panels[0].legend()
    _save(figure, path, overwrite)


def draw_optimisation(found: Optimisation, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Validation accuracy of every start point on its way, one panel an architecture that was asked for.

    raises PlotsMissing without matplotlib, OutputError if the picture exists or cannot be written
    """
    asked = found.table["asked_architecture"].to_pylist()
    history = found.history.to_pylist()
    names = list(dict.fromkeys(asked))
    figure, panels = _panels(len(names))
    for axes, name in zip(panels, names, strict=True):
        for point in (place for place, one in enumerate(asked) if one == name):
            lines = [line for line in history if line["point"] == point]
            (curve,) = axes.plot(
                [line["step"] for line in lines], [line["validation_accuracy"] for line in lines], linewidth=1
            )
            best = found.table.slice(point, 1).to_pylist()[0]
            axes.scatter(best["best_step"], best["validation_accuracy"], color=curve.get_color(), s=16, zorder=4)
        axes.set(xlabel="step")
        axes.set_title(name, parse_math=False)
    panels[0].set(ylabel="validation accuracy")
    _save(figure, path, overwrite)


def _axes() -> tuple[Any, Any]:
    figure, (axes,) = _panels(1)
    return figure, axes


def _panels(count: int) -> tuple[Any, list[Any]]:
    """A figure with panels side by side that share their vertical axis."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotsMissing("drawing needs matplotlib; pip install 'prepkit[plots]'.") from None
    figure = Figure(figsize=(6.4 if count == 1 else 3.4 * count, 4.0), layout="constrained")
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def _save(figure: Any, path: str | os.PathLike[str], overwrite: bool) -> None:
    with replacing(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
