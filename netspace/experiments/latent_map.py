"""The latent map: where the instances of the zoo lie in the space, and what their PReps look like.

With several architectures, it also shows whether their clusters are aligned and sorted, which is the purpose of the
interpolation loss.
Shapes: N instances, A architectures, M points, E embedding values, R draws of the bootstrap, K directions.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import prepkit
from netspace.data import TEST, TRAIN
from netspace.experiments._subject import runs_of
from netspace.experiments.result import Claim, Column, Result, Table, claim, table_of_measures
from netspace.experiments.verdict import Interval
from netspace.explore import colours
from netspace.explore.embedding import encode
from prepkit.figures import draw_prep_grid, new_figure, short_name
from prepkit.support.bootstrap import drawn, middle
from prepkit.support.statistics import along_line, evenly, grouped, nearest_mean_is_own, principal_components, spearman
from prepkit.zoo.read.accuracy import recorded_accuracies
from prepkit.zoo.read.groups import rows_by_architecture

if TYPE_CHECKING:
    from netspace.experiments._subject import Subject

THUMBNAILS = 6  # an architecture
MARKERS = {"train": "o", "validation": "s", "test": "^"}
FARTHEST = 0.25  # of the boundary line's length: a cluster whose centre is farther off the line is not aligned
CLUSTER_COLUMNS = (
    Column("ClassId", "class_id"),
    Column("instances", "instances"),
    Column("position, %", "position", 100, 1),
    Column("in equal steps, %", "in_equal_steps", 100, 1),
    Column("spread, points", "spread", 100, 1),
    Column("off the line, %", "off", 100, 1),
)
MAP_TEXT = """\
Each point is an instance of the zoo, drawn where the encoder puts it: the two directions in which the embeddings \
differ most (principal components; each axis says its share of the variance). Triangles are test instances, which the \
space never saw. The points are coloured by the instances' own accuracy and, where there are several, by architecture.\
"""
NO_LINE_LOSS = (
    "The interpolation loss asks for ClassIds at points of lines. It does not ask where the encoder puts the "
    "architectures between, so ClassIds may be sorted along a line while clusters are not."
)
LINE_LOSS = (
    "This recipe has a line loss, which the paper does not have: it asks the encoder to put the centre of each "
    "architecture on the line between the centres of the boundary architectures, in equal steps."
)
PREPS_TEXT = """\
The last picture shows PReps as the encoder sees them: one row for each architecture, from the least accurate instance \
to the most accurate; red is positive, blue negative, grey is padding."""


def run(subject: Subject) -> Result:
    """Draw the map and the thumbnails.

    explained:   share of the variance along both axes
    nearest_own: share of test instances whose own architecture has the nearest mean of training embeddings
    clusters:    where test instances lie along the boundary line; see `clusters`
    The last two are there with several architectures, `clusters` with three or more.
    """
    zoo, recipe = subject.zoo, subject.run.recipe
    latent_NE = encode(subject.space, zoo).double().cpu()
    places_N2, explained = principal_components(latent_NE, 2)
    splits = zoo.table["split"].to_pylist()
    accuracies = recorded_accuracies(zoo)
    numbers: dict[str, Any] = {"explained": explained, "instances": len(zoo)}
    text, claims, tables = [MAP_TEXT], list[Claim](), list[Table]()
    latent_map = map_figure(places_N2, explained, zoo, accuracies)
    pictures = [subject.picture("Latent map", "latent_map.png", latent_map)]
    if recipe.has_classes and TEST in splits:
        train, test = (torch.tensor([split == wanted for split in splits]) for wanted in (TRAIN, TEST))
        ids, test_NE = zoo.class_ids(), latent_NE[test]
        numbers["nearest_own"] = nearest_mean_is_own(latent_NE[train], ids[train], test_NE, ids[test])
        what = "Test instances whose embedding is nearest to the centre of their own architecture"
        claims.append(claim(what, numbers["nearest_own"], "==", 1, unit="%"))
        groups = {name: test_NE[rows] for name, rows in rows_by_architecture(subject.view(TEST)).items()}
        measured = clusters(groups) if has_line(list(groups), recipe.architectures) else None
        text.append(text_on_clusters(list(groups), measured, has_line_loss=recipe.loss.line > 0))
        if measured is not None:
            numbers["clusters"] = measured
            test_runs = runs_of(subject.view(TEST))
            runs = [[test_runs[row] for row in rows] for rows in rows_by_architecture(subject.view(TEST)).values()]
            claims += claims_on_clusters(measured, cluster_intervals(groups, runs, subject.seed))
            tables.append(table_of_clusters(measured))
            title = "Test instances by the boundary line"
            pictures.append(subject.picture(title, "clusters.png", clusters_figure(groups, measured)))
    pictures.append(subject.picture("PReps of the zoo", "thumbnails.png", thumbnails_figure(zoo, accuracies)))
    text.append(PREPS_TEXT)
    return Result("latent_map", "The space and its zoo", "\n\n".join(text), numbers, claims, tables, pictures)


# Clusters along the boundary line ---------------------------------------------------------------------------------


def has_line(embedded: Sequence[str], architectures: Sequence[str]) -> bool:
    """Whether there are instances of every architecture, and some architectures between the boundaries."""
    return len(architectures) > 2 and list(embedded) == list(architectures)


def by_line(points_ME: Tensor, groups: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return positions along the boundary line and distances off it, `[M]` each, as shares of the line's length.

    groups: `[N, E]` of each architecture; the line goes from the centre of the first, 0, to that of the last, 1
    """
    first_NE, *_, last_NE = groups.values()
    return along_line(points_ME, first_NE.mean(0), last_NE.mean(0))


def clusters(groups: Mapping[str, Tensor]) -> dict[str, Any]:
    """Measure whether clusters are sorted and aligned; lengths are shares of the boundary line's.

    groups: embeddings `[N, E]` of each architecture, in the order of the ClassIds
    by_architecture:  `position` of the centre and its distance `off` the line, and `spread`, the deviation of its
                      instances' positions (NaN for one instance)
    smallest_step:    smallest difference of positions from one centre to the next
    largest_distance: largest distance of a centre off the line
    spearman:         rank correlation of ClassId and position over instances
    """
    position_A, off_A = by_line(torch.stack([group_NE.mean(0) for group_NE in groups.values()]), groups)
    positions_AN = [by_line(group_NE, groups)[0] for group_NE in groups.values()]
    class_ids = [class_id for class_id, positions in enumerate(positions_AN) for _ in positions]
    return {
        "by_architecture": {
            name: {
                "instances": len(positions),
                "position": float(position_A[class_id]),
                "spread": float(positions.std()) if len(positions) > 1 else math.nan,
                "off": float(off_A[class_id]),
            }
            for class_id, (name, positions) in enumerate(zip(groups, positions_AN, strict=True))
        },
        "smallest_step": float(position_A.diff().min()),
        "largest_distance": float(off_A.max()),
        "spearman": float(spearman(class_ids, torch.cat(positions_AN).numpy())),
    }


def cluster_intervals(
    groups: Mapping[str, Tensor], runs: Sequence[Sequence[str]], seed: int
) -> tuple[Interval, Interval]:
    """Return the intervals of `smallest_step` and of `largest_distance`; see `clusters`.

    runs: the training run of each instance, architecture by architecture
    """
    sizes = [len(group_NE) for group_NE in groups.values()]
    if min(len(set(own)) for own in runs) < 2:
        return (math.nan, math.nan), (math.nan, math.nan)
    # All centres lie in the span of the instances, which has no more directions than there are instances.
    flat_NE = torch.cat(list(groups.values()))
    left_NK, sizes_K, _ = torch.linalg.svd(flat_NE, full_matrices=False)
    places_AnK = torch.split(left_NK * sizes_K, sizes)
    centres = []
    for number, (places_nK, own) in enumerate(zip(places_AnK, runs, strict=True)):
        drawn_Rn = torch.from_numpy(drawn(np.asarray(own), seed + number))
        centres.append(drawn_Rn @ places_nK / drawn_Rn.sum(1, keepdim=True))
    centre_ARK = torch.stack(centres)
    line_RK, from_first_ARK = centre_ARK[-1] - centre_ARK[0], centre_ARK - centre_ARK[0]
    position_AR = (from_first_ARK * line_RK).sum(2) / line_RK.square().sum(1)
    off_AR = (from_first_ARK - position_AR[:, :, None] * line_RK).norm(dim=2) / line_RK.norm(dim=1)
    return middle(position_AR.diff(dim=0).amin(0).numpy()), middle(off_AR.amax(0).numpy())


def text_on_clusters(
    embedded: Sequence[str], measured: Mapping[str, Any] | None, *, has_line_loss: bool = False
) -> str:
    """Say what `clusters` measured, or why nothing was measured.

    has_line_loss: whether the recipe asks for clusters on the line
    """
    names = ", ".join(map(short_name, embedded))
    if measured is None:
        return (
            "Whether clusters are aligned and sorted is not measured here: that takes test instances of the "
            f"architectures between both boundaries too, and there are only those of {names}."
        )
    centres = list(measured["by_architecture"].values())
    places = ", ".join(f"{cluster['position']:.0%}" for cluster in centres)
    even = ", ".join(f"{place / (len(centres) - 1):.0%}" for place in range(len(centres)))
    return (
        "Are the clusters aligned and sorted? The boundary line goes from the centre of "
        f"{short_name(embedded[0])}'s test embeddings to that of {short_name(embedded[-1])}'s. The centres of {names} "
        f"lie at {places} of its length (in equal steps: {even}), so they are "
        f"{'' if measured['smallest_step'] > 0 else 'not '}sorted by ClassId. Those between the ends lie up to "
        f"{measured['largest_distance']:.0%} of its length off the line; up to {FARTHEST:.0%} counts as aligned. The "
        f"rank correlation (Spearman) of ClassId and position over all test instances is {measured['spearman']:.2f}. "
        f"{LINE_LOSS if has_line_loss else NO_LINE_LOSS}"
    )


def claims_on_clusters(
    measured: Mapping[str, Any], intervals: tuple[Interval | None, Interval | None] = (None, None)
) -> list[Claim]:
    """Return the claims that clusters are sorted, and aligned.

    intervals: of the smallest step and of the largest distance
    """
    step_number, off_number = measured["smallest_step"], measured["largest_distance"]
    step_interval, off_interval = intervals
    step = "Clusters along the boundary line: smallest step from one architecture's centre to the next"
    off = "Clusters along the boundary line: largest distance of a centre off the line"
    return [
        claim(f"{step}, of the line's length", step_number, ">", 0, unit="%", interval=step_interval),
        claim(f"{off}, of the line's length", off_number, "<=", FARTHEST, unit="%", interval=off_interval),
    ]


def table_of_clusters(measured: Mapping[str, Any]) -> Table:
    """Return a table with one row an architecture."""
    last = len(measured["by_architecture"]) - 1
    rows = {
        name: {**cluster, "class_id": class_id, "in_equal_steps": class_id / last}
        for class_id, (name, cluster) in enumerate(measured["by_architecture"].items())
    }
    title = "Clusters of test instances along the boundary line, % of its length"
    return table_of_measures(title, ("architecture",), rows, CLUSTER_COLUMNS)


def clusters_figure(groups: Mapping[str, Tensor], measured: Mapping[str, Any]) -> Any:
    """Draw each test instance and centre by its position along the boundary line and its distance off it."""
    figure = new_figure(7.5, 3.6)
    axes = figure.subplots()
    for class_id, (name, group_NE) in enumerate(groups.items()):
        cluster = measured["by_architecture"][name]
        places = [(100 * values).tolist() for values in by_line(group_NE, groups)]
        axes.scatter(
            *places, marker=MARKERS[TEST], s=18, alpha=0.5, color=colours.of_architecture(class_id), linewidth=0
        )
        style: dict[str, Any] = {
            "marker": "o",
            "s": 90,
            "color": colours.of_architecture(class_id),
            "edgecolor": "black",
            "zorder": 3,
        }
        axes.scatter(100 * cluster["position"], 100 * cluster["off"], label=short_name(name), clip_on=False, **style)
        axes.axvline(100 * class_id / (len(groups) - 1), color="grey", linewidth=0.7, linestyle=":")
    axes.set(xlabel="position along the boundary line, %", ylabel="distance off the line, %")
    axes.set_ylim(bottom=0)
    axes.set_title("of the line's length; circles: centres, dotted: equal steps", fontsize=9)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


# Pictures ---------------------------------------------------------------------------------------------------------


def map_figure(places_N2: Tensor, explained: Sequence[float], zoo: prepkit.Zoo, accuracies: Sequence[float]) -> Any:
    """Draw the map by accuracy and, where there are several, by architecture."""
    names, splits = zoo.table["architecture"].to_pylist(), zoo.table["split"].to_pylist()
    several = len(set(names)) > 1
    figure = new_figure(10 if several else 6.5, 4.4)
    panels = figure.subplots(1, 2 if several else 1, sharex=True, sharey=True, squeeze=False)[0]
    known = [accuracy for accuracy in accuracies if math.isfinite(accuracy)]
    for split in dict.fromkeys(splits):
        rows = [row for row, own in enumerate(splits) if own == split]
        style: dict[str, Any] = {"marker": MARKERS.get(split, "D"), "s": 34 if split == TEST else 18, "linewidth": 0.5}
        style["edgecolor"] = "black" if split == TEST else "none"
        scale = {"vmin": 100 * min(known), "vmax": 100 * max(known), "cmap": "viridis"} if known else {}
        inside: Any = [100 * accuracies[row] for row in rows] if known else colours.NEUTRAL
        points = panels[0].scatter(*places_N2[rows].T.tolist(), c=inside, label=split, **scale, **style)
        for class_id, name in enumerate(zoo.registry.class_ids if several else ()):
            own_rows = [row for row in rows if names[row] == name]
            label = short_name(name) if split == TRAIN and own_rows else None
            panels[1].scatter(
                *places_N2[own_rows].T.tolist(), color=colours.of_architecture(class_id), label=label, **style
            )
    if known:
        # The bar stands below its own panel: beside it, its label would read as the vertical axis of the right one.
        figure.colorbar(points, ax=panels[0], location="bottom", label="accuracy of the instance, %", aspect=40)
    panels[0].set_ylabel(f"component 2 ({explained[1]:.0%})")
    for axes, title in zip(panels, ("by accuracy", "by architecture"), strict=False):
        axes.set(xlabel=f"component 1 ({explained[0]:.0%})", title=title)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure


def thumbnails_figure(zoo: prepkit.Zoo, accuracies: Sequence[float]) -> Any:
    """Draw a few PReps of each architecture in the order of accuracy, each in a range of colours of its own."""
    rows = thumbnails(zoo.table["architecture"].to_pylist(), accuracies)
    figure = new_figure(10, 0.5 + 1.25 * len(rows))

    def titled(index: int) -> tuple[str, prepkit.PRep]:
        return "" if math.isnan(accuracies[index]) else f"accuracy {100 * accuracies[index]:.1f} %", zoo[index][0]

    draw_prep_grid(figure, {name: map(titled, indices) for name, indices in rows.items()}, THUMBNAILS, points=7)
    return figure


def thumbnails(names: Sequence[str], accuracies: Sequence[float]) -> dict[str, list[int]]:
    """Choose instances of each architecture, from the least accuracy to the highest at equal steps of rank."""
    ranked = sorted(range(len(names)), key=lambda index: (math.isnan(accuracies[index]), accuracies[index]))
    groups = grouped(ranked, names.__getitem__)
    return {name: evenly(groups[name], THUMBNAILS) for name in dict.fromkeys(names)}
