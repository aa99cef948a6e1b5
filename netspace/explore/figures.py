"""Pictures of what was computed in a space. matplotlib is the extra `[plots]` and imported when drawing."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from netspace.explore import colours
from prepkit.errors import counted
from prepkit.figures import new_figure, panels, short_name
from prepkit.support.statistics import grouped

if TYPE_CHECKING:
    from netspace.explore.interpolation import Interpolation
    from netspace.explore.optimization import Optimisation
    from netspace.space.evaluation import Evaluation

OTHER_CLASS = "with another ClassId"
LINE_COLOURS = {"embedding": colours.PREDICTED, "weights": colours.WEIGHTS}
LINE_NAMES = {"embedding": "embeddings", "weights": "weights"}


def interpolation_figure(walk: Interpolation) -> Any:
    """Draw accuracy, or volume, along the lines: each pair, the mean over pairs, and every predicted architecture.

    raises PlotsMissing without matplotlib
    """
    figure = new_figure(6.5, 4.0)
    axes = figure.subplots()
    accuracy = walk.value == "accuracy"
    scale = 100 if accuracy else 1
    for line, means in walk.summary()["lines"].items():
        colour, mean = LINE_COLOURS[line], [scale * value for value in means["mean"]]
        axes.plot(walk.gammas, scale * walk.values(line).T.numpy(), color=colour, linewidth=0.6, alpha=0.35)
        axes.plot(walk.gammas, mean, color=colour, linewidth=2.5, marker="o", label=LINE_NAMES[line])
        if line == "weights":
            style: dict[str, Any] = {"color": "black", "linewidth": 1, "linestyle": "--"}
            axes.plot((0, 1), (mean[0], mean[-1]), label="straight between the targets", **style)
    class_ids, values = walk.class_ids(), scale * walk.values()
    names = list(walk.registry.class_ids)
    if len(names) > 1:
        gammas = class_ids.new_tensor(walk.gammas, dtype=values.dtype).expand_as(values)
        for class_id in sorted(set(class_ids.flatten().tolist())):
            here = class_ids == class_id
            style = {"color": colours.of_architecture(class_id), "label": names[class_id], "s": 14}
            axes.scatter(gammas[here], values[here], zorder=4, clip_on=False, **style)
    count = len(walk.first)
    pairs = counted(count, "pair") if count > 1 else f"{walk.first.names[0]} to {walk.second.names[0]}"
    axes.set(xlabel="gamma, from the first end to the second", ylabel="accuracy, %" if accuracy else walk.value)
    if accuracy:
        axes.set_ylim(0, 102)
    axes.set_title(pairs, parse_math=False, fontsize="medium")
    figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    return figure


def evaluation_figure(evaluation: Evaluation) -> Any:
    """Draw target and predicted accuracy of every instance, in the order of the targets', one panel an architecture.

    raises PlotsMissing without matplotlib
    """
    rows = sorted(evaluation.table.to_pylist(), key=itemgetter("class_id", "target_accuracy", "id"))
    groups = grouped(rows, itemgetter("architecture"))
    figure, plots = panels(len(groups), 2.9, 3.8, least_width=7.2, sharey=True)
    for axes, (name, rows) in zip(plots, groups.items(), strict=True):
        places = list(range(1, len(rows) + 1))
        target, predicted = ([100 * row[f"{kind}_accuracy"] for row in rows] for kind in ("target", "predicted"))
        axes.vlines(places, target, predicted, color="0.75", linewidth=1, zorder=1)
        axes.plot(places, target, color=colours.TARGET, marker="o", markersize=4, label="target")
        axes.plot(places, predicted, color=colours.PREDICTED, marker="s", markersize=4, label="predicted")
        wrong = [place for place, row in enumerate(rows) if row["class_id"] != row["predicted_class_id"]]
        if wrong:
            at = [places[place] for place in wrong], [predicted[place] for place in wrong]
            label = f"predicted, {OTHER_CLASS}"
            axes.scatter(*at, marker="x", s=50, color=colours.MISTAKE, label=label, zorder=4)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(short_name(name), parse_math=False, fontsize="medium")
        axes.grid(axis="y", color="0.92")
    plots[0].set_ylabel("accuracy, %")
    figure.supxlabel("instance, in the order of target accuracy", fontsize="medium")
    handles = {label: handle for axes in plots for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def optimisation_figure(walks: Mapping[str, Optimisation]) -> Any:
    """Draw validation accuracy by step, a line and its best step for each start point, in colours of architectures.

    walks: optimisations by title, one panel each
    raises PlotsMissing without matplotlib
    """
    figure, plots = panels(len(walks), 4.2, 3.6, least_width=6.4, sharey=True)
    for axes, (title, optimisation) in zip(plots, walks.items(), strict=True):
        points, history = optimisation.table.to_pylist(), optimisation.history.to_pylist()
        names = [point["asked_architecture"] for point in points]
        marked = False
        for number, point in enumerate(points):
            name = names[number]
            rows = [row for row in history if row["point"] == number]
            style = {"color": colours.of_architecture(point["asked_class_id"]), "alpha": 0.7}
            label = name if names.index(name) == number else None
            accuracies = [100 * row["validation_accuracy"] for row in rows]
            others = [row for row in rows if row["class_id"] != point["asked_class_id"]]
            if others:
                at = [row["step"] for row in others], [100 * row["validation_accuracy"] for row in others]
                label_of_others = None if marked else OTHER_CLASS
                axes.scatter(*at, marker="x", s=18, color=colours.MISTAKE, zorder=3, label=label_of_others)
                marked = True
            axes.plot([row["step"] for row in rows], accuracies, label=label, **style)
            axes.scatter(point["best_step"], 100 * point["validation_accuracy"], s=16, zorder=4, **style)
        axes.set(title=title, xlabel="step")
    plots[0].set_ylabel("validation accuracy, %")
    plots[-1].legend(fontsize="small", loc="lower right")
    return figure
