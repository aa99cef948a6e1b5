"""Evaluations, lines and optimisations as pictures. matplotlib is in the extra `[plots]` and imported when drawing.

Each function returns a matplotlib Figure, which `prepkit.figures.save_figure` writes; it raises PlotsMissing without
matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prepkit.figures import new_figure

if TYPE_CHECKING:
    from netspace.explore.interpolation import Interpolation
    from netspace.explore.optimization import Optimisation
    from netspace.space.evaluation import Evaluation

TARGET_COLOUR, PREDICTED_COLOUR, WRONG_COLOUR = "#222222", "#1f77b4", "#d62728"
LINE_COLOURS = {"embedding": "#1f77b4", "weights": "#7f7f7f"}
LINE_NAMES = {"embedding": "through the embedding space", "weights": "from weight to weight"}


def interpolation_figure(found: Interpolation) -> Any:
    """Mean accuracy or volume along the lines, its deviation over pairs, and every predicted architecture."""
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    for line, means in found.summary()["lines"].items():
        colour = LINE_COLOURS[line]
        axes.plot(found.gammas, means["mean"], color=colour, label=LINE_NAMES[line], zorder=3)
        if None not in means["deviation"]:
            spread = list(zip(means["mean"], means["deviation"], strict=True))
            low, high = (
                [mean - deviation for mean, deviation in spread],
                [mean + deviation for mean, deviation in spread],
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
    count = len(found.first)
    axes.set(xlabel="gamma", ylabel=found.value, xlim=(0, 1))
    axes.set_title(
        f"{count} pairs" if count > 1 else f"{found.first.names[0]} to {found.second.names[0]}", parse_math=False
    )
    axes.legend()
    return figure


def evaluation_figure(found: Evaluation) -> Any:
    """Target and predicted accuracy of every instance, in the order of the targets', one panel an architecture."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(found.table.to_pylist(), key=lambda row: (row["class_id"], row["target_accuracy"], row["id"])):
        groups.setdefault(row["architecture"], []).append(row)
    figure = new_figure(7.2 if len(groups) == 1 else max(7.2, 2.9 * len(groups)), 3.8)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, (name, rows) in zip(panels, groups.items(), strict=True):
        places = list(range(1, len(rows) + 1))
        target, predicted = ([100 * row[f"{kind}_accuracy"] for row in rows] for kind in ("target", "predicted"))
        axes.vlines(places, target, predicted, color="0.75", linewidth=1, zorder=1)
        axes.plot(places, target, color=TARGET_COLOUR, marker="o", markersize=4, label="target")
        axes.plot(places, predicted, color=PREDICTED_COLOUR, marker="s", markersize=4, label="predicted")
        wrong = [place for place, row in enumerate(rows) if row["class_id"] != row["predicted_class_id"]]
        if wrong:
            at = [places[place] for place in wrong], [predicted[place] for place in wrong]
            axes.scatter(*at, marker="x", s=50, color=WRONG_COLOUR, label="predicted, of another ClassId", zorder=4)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(name.partition("@")[0], parse_math=False, fontsize="medium")
        axes.grid(axis="y", color="0.92")
    panels[0].set_ylabel("accuracy, %")
    figure.supxlabel("instance, in the order of target accuracy", fontsize="medium")
    handles = {label: one for axes in panels for one, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def optimisation_figure(optimisations: Mapping[str, Optimisation]) -> Any:
    """Validation accuracy by step, a line a start point in the colour of the architecture that was asked for.

    optimisations: one panel each, by title
    """
    figure = new_figure(max(6.4, 4.2 * len(optimisations)), 3.8)
    panels = figure.subplots(1, len(optimisations), squeeze=False, sharey=True)[0]
    for axes, (title, found) in zip(panels, optimisations.items(), strict=True):
        names = found.table["asked_architecture"].to_pylist()
        best = found.table.to_pylist()
        colours = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(names))}
        history = found.history.to_pylist()
        for point, name in enumerate(names):
            rows = [row for row in history if row["point"] == point]
            accuracies = [100 * row["validation_accuracy"] for row in rows]
            label = name if names.index(name) == point else None
            axes.plot([row["step"] for row in rows], accuracies, color=colours[name], alpha=0.7, label=label)
            kept = best[point]["best_step"], 100 * best[point]["validation_accuracy"]
            axes.scatter(*kept, color=colours[name], s=16, zorder=4)
        axes.set(xlabel="step")
        axes.set_title(title, parse_math=False)
    panels[0].set_ylabel("validation accuracy, %")
    panels[-1].legend(fontsize="small", loc="lower right")
    return figure
