"""The latent map: where the instances of the zoo stand in the space, and what their PReps look like.

Of several architectures also whether their clusters are aligned and sorted, as the interpolation loss is to make them.
Shapes: N instances, A architectures, M points, E embedding values.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import prepkit
from netspace.data import TEST, TRAIN
from netspace.experiments.judged import groups_of, short, split_of
from netspace.experiments.result import Claim, Picture, Progress, Result, Table, claim, new_figure, save_figure
from netspace.experiments.statistics import spearman
from netspace.explore.embedding import encode
from netspace.run.run import Run
from prepkit.figures import draw_cells

ACCURACY = "accuracy"
THUMBNAILS = 6  # an architecture
MARKERS = {"train": "o", "validation": "s", "test": "^"}
FARTHEST = 0.25  # of a cluster's centre off the boundary line, of its length: still called aligned
MAP_TEXT = """\
Each point is an instance of the zoo, drawn where the encoder puts it: the two directions in which the embeddings \
differ most (principal components; the axes say which share of the variance each has). Triangles are test instances, \
which the space was never shown. They are coloured by their own accuracy and, where there are several, by architecture.\
"""
PREPS_TEXT = """\
The last picture shows PReps as the encoder sees them: one row an architecture, from the instance of the least \
accuracy to that of the highest; red is positive, blue negative, grey is padding."""


def run(
    run: Run,
    zoo: prepkit.Zoo,
    task: Any,
    device: torch.device,
    folder: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Draw the map and the thumbnails; see netspace.experiments.

    The numbers hold `explained` (share of the variance of both axes), and for several architectures
    `nearest_own`: the share of test instances whose own architecture has the nearest mean of training embeddings,
    `clusters`:    where the test instances lie by the boundary line; see `clusters`. Missing without three of them.
    """
    space = run.space(device=device)
    latent_NE = encode(space, zoo).double().cpu()
    places_N2, explained = principal(latent_NE, 2)
    splits = zoo.table["split"].to_pylist()
    accuracies = accuracies_of(zoo)
    numbers: dict[str, Any] = {"explained": explained, "instances": len(zoo)}
    text, claims, tables = [MAP_TEXT], list[Claim](), list[Table]()
    pictures = [
        Picture("Latent map", save_figure(map_figure(places_N2, explained, zoo, accuracies), folder, "latent_map.png"))
    ]
    if run.recipe.has_classes and TEST in splits:
        share = nearest_own(latent_NE, zoo.class_ids(), splits)
        numbers["nearest_own"] = share
        what = "Test instances whose embedding is nearest to the centre of their own architecture"
        claims.append(claim(what, share, ">=", 1, unit="%"))
        test_NE = latent_NE[torch.tensor([split == TEST for split in splits])]
        groups = {name: test_NE[rows] for name, rows in groups_of(split_of(zoo, TEST)).items()}
        found = clusters(groups) if has_line(list(groups), run.recipe.architectures) else None
        text.append(words_on_clusters(list(groups), found))
        if found is not None:
            numbers["clusters"] = found
            claims += claims_on_clusters(found)
            tables.append(table_of_clusters(found))
            file = save_figure(clusters_figure(groups, found), folder, "clusters.png")
            pictures.append(Picture("Test instances by the boundary line", file))
    pictures.append(Picture("PReps of the zoo", save_figure(thumbnails(zoo, accuracies), folder, "thumbnails.png")))
    text.append(PREPS_TEXT)
    return Result("latent_map", "The space and its zoo", "\n\n".join(text), numbers, claims, tables, pictures)


def principal(values_NE: Tensor, count: int) -> tuple[Tensor, list[float]]:
    """Places `[N, count]` along the principal components, and the share of the variance that each explains.

    Signs are chosen so that each component's largest entry is positive: the same map for the same space.
    """
    centred = values_NE - values_NE.mean(0)
    _, sizes, directions_KE = torch.linalg.svd(centred, full_matrices=False)
    directions_KE = directions_KE[:count]
    largest = directions_KE.gather(1, directions_KE.abs().argmax(1, keepdim=True))
    places = centred @ (directions_KE * largest.sign()).T
    shares = sizes.square() / sizes.square().sum().clamp(min=1e-30)
    missing = max(0, count - places.shape[1])  # fewer instances than components
    return torch.nn.functional.pad(places, (0, missing)), [*shares[:count].tolist(), *[0.0] * missing]


def nearest_own(latent_NE: Tensor, class_ids: Tensor, splits: list[str]) -> float:
    """The share of test instances whose own architecture has the nearest mean of training embeddings."""
    train, test = (torch.tensor([one == split for one in splits]) for split in (TRAIN, TEST))
    trained = sorted(set(class_ids[train].tolist()))
    centres = torch.stack([latent_NE[train & (class_ids == one)].mean(0) for one in trained])
    nearest = torch.cdist(latent_NE[test], centres).argmin(1)
    return float((torch.tensor(trained)[nearest] == class_ids[test]).double().mean())


# Clusters by the boundary line ------------------------------------------------------------------------------------


def has_line(embedded: Sequence[str], architectures: Sequence[str]) -> bool:
    """Whether there are instances of every architecture, and some architectures between the boundaries."""
    return len(architectures) > 2 and list(embedded) == list(architectures)


def by_line(points_ME: Tensor, groups: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Positions along the boundary line and distances off it, `[M]` each, as shares of the line's length.

    groups: `[N, E]` of each architecture; the line goes from the centre of the first, 0, to that of the last, 1
    """
    centres = [group_NE.mean(0) for group_NE in groups.values()]
    line_E = centres[-1] - centres[0]
    from_first_ME = points_ME - centres[0]
    position_M = from_first_ME @ line_E / line_E.square().sum()
    off_ME = from_first_ME - position_M[:, None] * line_E
    return position_M, off_ME.norm(dim=1) / line_E.norm()


def clusters(groups: Mapping[str, Tensor]) -> dict[str, Any]:
    """Whether clusters are sorted and aligned; lengths are shares of the boundary line's.

    groups: embeddings `[N, E]` of each architecture, in the order of the ClassIds
    returns `by_architecture`: `position` and distance `off` of the centre, `spread`, the deviation of its instances'
            positions (NaN of one); `smallest_step` from one centre to the next, `largest_distance` of a centre off the
            line, and `spearman`: of ClassId and position over instances
    """
    position_A, off_A = by_line(torch.stack([group_NE.mean(0) for group_NE in groups.values()]), groups)
    own = [by_line(group_NE, groups)[0] for group_NE in groups.values()]
    ranks = [class_id for class_id, positions in enumerate(own) for _ in positions]
    return {
        "by_architecture": {
            name: {
                "instances": len(positions),
                "position": float(position_A[place]),
                "spread": float(positions.std()) if len(positions) > 1 else math.nan,
                "off": float(off_A[place]),
            }
            for place, (name, positions) in enumerate(zip(groups, own, strict=True))
        },
        "smallest_step": float(position_A.diff().min()),
        "largest_distance": float(off_A.max()),
        "spearman": float(spearman(ranks, torch.cat(own).numpy())),
    }


def words_on_clusters(embedded: Sequence[str], found: Mapping[str, Any] | None) -> str:
    """What `clusters` found in plain words, or why there was nothing to find."""
    names = ", ".join(map(short, embedded))
    if found is None:
        return (
            "Whether clusters are aligned and sorted is not asked here: that takes test instances of architectures "
            f"between both boundaries too, and these are of {names} alone."
        )
    centres = list(found["by_architecture"].values())
    places = ", ".join(f"{one['position']:.0%}" for one in centres)
    even = ", ".join(f"{place / (len(centres) - 1):.0%}" for place in range(len(centres)))
    return (
        f"Are the clusters aligned and sorted? Take the line from the centre of {short(embedded[0])}'s test embeddings "
        f"to that of {short(embedded[-1])}'s, the boundary line. The centres of {names} lie at {places} of its length "
        f"(in equal steps: {even}), so they are {'' if found['smallest_step'] > 0 else 'not '}sorted by ClassId. Those "
        f"between the ends lie up to {found['largest_distance']:.0%} of its length off the line; up to {FARTHEST:.0%} "
        f"counts as aligned here. The rank correlation (Spearman) of ClassId and position over all test instances is "
        f"{found['spearman']:.2f}. The interpolation loss asks for ClassIds at points of lines; it does not ask where "
        "the encoder puts the architectures between, so ClassIds may be sorted along a line while clusters are not."
    )


def claims_on_clusters(found: Mapping[str, Any]) -> list[Claim]:
    """Sorted, and aligned."""
    step = (
        "Multi-architecture clusters along the boundary line: smallest step from one architecture's centre to the next"
    )
    off = "Multi-architecture clusters: largest distance of a cluster's centre off the boundary line"
    return [
        claim(f"{step}, of the line's length", found["smallest_step"], ">", 0, unit="%"),
        claim(f"{off}, of the line's length", found["largest_distance"], "<=", FARTHEST, unit="%"),
    ]


def table_of_clusters(found: Mapping[str, Any]) -> Table:
    """One row an architecture."""
    columns = ("architecture", "ClassId", "instances", "position", "in equal steps", "spread", "off the line")
    by_architecture = found["by_architecture"]
    rows = [
        (
            name,
            class_id,
            one["instances"],
            _percent(one["position"]),
            _percent(class_id / (len(by_architecture) - 1)),
            _percent(one["spread"]),
            _percent(one["off"]),
        )
        for class_id, (name, one) in enumerate(by_architecture.items())
    ]
    return Table("Clusters of test instances by the boundary line, % of its length", columns, tuple(rows))


def clusters_figure(groups: Mapping[str, Tensor], found: Mapping[str, Any]) -> Any:
    """A matplotlib Figure: position along the boundary line and distance off it of each test instance and centre."""
    figure = new_figure(7.5, 3.6)
    axes = figure.subplots()
    for class_id, (name, group_NE) in enumerate(groups.items()):
        one = found["by_architecture"][name]
        places = [values.tolist() for values in by_line(group_NE, groups)]
        axes.scatter(*places, marker=MARKERS[TEST], s=18, alpha=0.5, color=f"C{class_id}", linewidth=0)
        style: dict[str, Any] = {"marker": "o", "s": 90, "color": f"C{class_id}", "edgecolor": "black", "zorder": 3}
        axes.scatter(one["position"], one["off"], label=short(name), clip_on=False, **style)
        axes.axvline(class_id / (len(groups) - 1), color="grey", linewidth=0.7, linestyle=":")
    axes.set(xlabel="position along the boundary line", ylabel="distance off the line")
    axes.set_ylim(bottom=0)
    axes.set_title("shares of the line's length; circles: centres, dotted: equal steps", fontsize=9)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def _percent(share: float) -> float:
    return round(100 * share, 1)


# Pictures ---------------------------------------------------------------------------------------------------------


def accuracies_of(zoo: prepkit.Zoo) -> list[float]:
    """The column `accuracy` of the zoo's table, NaN where there is none."""
    if ACCURACY not in zoo.table.column_names:
        return [math.nan] * len(zoo)
    return [math.nan if one is None else float(one) for one in zoo.table[ACCURACY].to_pylist()]


def map_figure(places_N2: Tensor, explained: list[float], zoo: prepkit.Zoo, accuracies: list[float]) -> Any:
    """A matplotlib Figure: the map by accuracy and, where there are several, by architecture."""
    names, splits = zoo.table["architecture"].to_pylist(), zoo.table["split"].to_pylist()
    several = len(set(names)) > 1
    figure = new_figure(10 if several else 6.5, 4.4)
    panels = figure.subplots(1, 2 if several else 1, sharex=True, sharey=True, squeeze=False)[0]
    known = [one for one in accuracies if math.isfinite(one)]
    for split in dict.fromkeys(splits):
        rows = [row for row, one in enumerate(splits) if one == split]
        style: dict[str, Any] = {"marker": MARKERS.get(split, "D"), "s": 34 if split == TEST else 18, "linewidth": 0.5}
        style["edgecolor"] = "black" if split == TEST else "none"
        colours: Any = "C0"
        if known:
            colours = [accuracies[row] for row in rows]
            style |= {"vmin": min(known), "vmax": max(known), "cmap": "viridis"}
        shown = panels[0].scatter(*places_N2[rows].T.tolist(), c=colours, label=split, **style)
        for class_id, name in enumerate(zoo.registry.class_ids if several else ()):
            own = [row for row in rows if names[row] == name]
            kept = {key: style[key] for key in ("marker", "s", "linewidth", "edgecolor")}
            label = short(name) if split == TRAIN and own else None
            panels[1].scatter(*places_N2[own].T.tolist(), color=f"C{class_id}", label=label, **kept)
    if known:
        # Below its own panel: beside it, its label would read as the vertical axis of the right one.
        figure.colorbar(shown, ax=panels[0], location="bottom", label="accuracy of the instance", aspect=40)
    panels[0].set_ylabel(f"component 2 ({explained[1]:.0%})")
    for axes, title in zip(panels, ("by accuracy", "by architecture"), strict=False):
        axes.set(xlabel=f"component 1 ({explained[0]:.0%})", title=title)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure


def thumbnails(zoo: prepkit.Zoo, accuracies: list[float]) -> Any:
    """A matplotlib Figure: a few PReps of each architecture in the order of accuracy, each in colours of its own."""
    rows: dict[str, list[int]] = {}
    for index, name in enumerate(zoo.table["architecture"].to_pylist()):
        rows.setdefault(name, []).append(index)
    figure = new_figure(10, 0.5 + 1.25 * len(rows))
    grid = figure.subplots(len(rows), THUMBNAILS, squeeze=False)
    for line, (name, indices) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(short(name), fontsize=8, parse_math=False)
        for axes in line:
            axes.set(xticks=[], yticks=[])
        for axes, index in zip(line, spread(indices, accuracies), strict=False):
            prep, _ = zoo[index]
            draw_cells(axes, prep.values.double().numpy(), prep.layout.total)
            axes.set_title("" if math.isnan(accuracies[index]) else f"accuracy {accuracies[index]:.3f}", fontsize=7)
    return figure


def spread(indices: list[int], accuracies: list[float]) -> list[int]:
    """THUMBNAILS of the instances, from the least accuracy to the highest at equal steps of rank."""
    ordered = sorted(indices, key=lambda index: (math.isnan(accuracies[index]), accuracies[index], index))
    count = min(THUMBNAILS, len(ordered))
    return [ordered[round(place * (len(ordered) - 1) / max(1, count - 1))] for place in range(count)]
