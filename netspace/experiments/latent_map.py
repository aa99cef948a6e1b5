"""The latent map: where the instances of the zoo stand in the space, and what their PReps look like.

Shapes: N instances, E embedding values.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import prepkit
from netspace.checkpoint import Run
from netspace.data import TEST, TRAIN
from netspace.embedding import encode
from netspace.experiments.result import Picture, Progress, Result, claim, new_figure, save_figure
from prepkit.figures import PADDING_COLOUR, colour_limit, masked, pooled

ACCURACY = "accuracy"
THUMBNAILS = 6  # an architecture
MARKERS = {"train": "o", "validation": "s", "test": "^"}
TEXT = """\
Each point is an instance of the zoo, drawn where the encoder puts it: the two directions in which the embeddings \
differ most (principal components; the axes say which share of the variance each has). Triangles are test instances, \
which the space was never shown. They are coloured by their own accuracy and, where there are several, by architecture.

Below, PReps as the encoder sees them: one row an architecture, from the instance of the least accuracy to that of the \
highest; red is positive, blue negative, grey is padding."""


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
    `nearest_own`: the share of test instances whose own architecture has the nearest mean of training embeddings.
    """
    space = run.space(device=device)
    latent_NE = encode(space, zoo).double().cpu()
    places_N2, explained = principal(latent_NE, 2)
    splits = zoo.table["split"].to_pylist()
    accuracies = accuracies_of(zoo)
    numbers: dict[str, Any] = {"explained": explained, "instances": len(zoo)}
    claims = []
    if run.recipe.has_classes and TEST in splits:
        share = nearest_own(latent_NE, zoo.class_ids(), splits)
        numbers["nearest_own"] = share
        claims.append(
            claim("Share of unseen instances nearest to the centre of their own architecture", share, ">=", 1)
        )
    pictures = [
        Picture("Latent map", save_figure(map_figure(places_N2, explained, zoo, accuracies), folder, "latent_map.png")),
        Picture("PReps of the zoo", save_figure(thumbnails(zoo, accuracies), folder, "thumbnails.png")),
    ]
    return Result("latent_map", "The space and its zoo", TEXT, numbers, claims, (), pictures)


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
            label = name.partition("@")[0] if split == TRAIN and own else None
            panels[1].scatter(*places_N2[own].T.tolist(), color=f"C{class_id}", label=label, **kept)
    if known:
        figure.colorbar(shown, ax=panels[0], label="accuracy of the instance", fraction=0.05, pad=0.02)
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
        line[0].set_ylabel(name.partition("@")[0], fontsize=8, parse_math=False)
        for axes in line:
            axes.set(xticks=[], yticks=[])
        for axes, index in zip(line, spread(indices, accuracies), strict=False):
            prep, _ = zoo[index]
            cells = prep.values.double().numpy()
            limit = colour_limit(cells, prep.layout.total)
            axes.set_facecolor(PADDING_COLOUR)
            image = pooled(masked(cells, prep.layout.total))
            axes.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
            axes.set_title("" if math.isnan(accuracies[index]) else f"accuracy {accuracies[index]:.3f}", fontsize=7)
    return figure


def spread(indices: list[int], accuracies: list[float]) -> list[int]:
    """THUMBNAILS of the instances, from the least accuracy to the highest at equal steps of rank."""
    ordered = sorted(indices, key=lambda index: (math.isnan(accuracies[index]), accuracies[index], index))
    count = min(THUMBNAILS, len(ordered))
    return [ordered[round(place * (len(ordered) - 1) / max(1, count - 1))] for place in range(count)]
