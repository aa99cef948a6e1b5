"""Beyond the paper: how far an embedding moves when the hidden units of its network are put into another order.

The function stays the same, which is checked on outputs; an encoder that knew networks by what they do would not move.
Shapes: N instances, K orders, E embedding values, V values of an architecture's PRep, B inputs.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import prepkit
from netspace.data import TEST
from netspace.experiments.judged import (
    Judged,
    distances,
    inputs_of,
    judge,
    mean_or_nan,
    off_diagonal,
    outputs_of,
    short,
)
from netspace.experiments.permutations import permutation, permute
from netspace.experiments.result import Picture, Progress, Result, Table, claim, new_figure, save_figure
from netspace.space.evaluation import accuracy_of
from netspace.space.prediction import predict
from prepkit.tasks.randomness import generator

if TYPE_CHECKING:
    from netspace.run.run import Run
    from netspace.space.network import NetSpace

NAME = "orbit"
ORDERS = 8  # of each instance's units
INPUTS = 256  # that outputs are compared on
SAME = 1e-5  # of the outputs' size: sums of float32 in another order
MOVED = 0.5  # of the distance between instances; an embedding that knows networks by their function does not move


def run(
    run: Run,
    zoo: prepkit.Zoo,
    task: Any,
    device: torch.device,
    folder: Path,
    *,
    seed: int = 0,
    orders: int = ORDERS,
    progress: Progress | None = None,
) -> Result:
    """Put the units of every test instance into several orders, encode each, and compare."""
    space = run.space(device=device)
    judged = judge(run, space, zoo)
    inputs = inputs_of(run, judged.view, task, limit=INPUTS)
    signals = run.recipe.setting == "sdf"
    found, orbits = {}, {}
    for name, rows in judged.groups().items():
        if progress is not None:
            progress(f"{orders} orders of the hidden units of {len(rows)} instances of {name}")
        orbit = orbit_of(judged, rows, space, inputs[rows] if signals else inputs, orders, seed)
        kept = accuracy_of_predictions(judged, rows, task), accuracy_of_predictions(judged, rows, task, orbit.predicted)
        found[name] = {"instances": len(rows), **orbit.measures(), "accuracy": kept[0], "accuracy_of_order": kept[1]}
        orbits[name] = orbit
    difference = max(one["output_difference"] for one in found.values())
    known = [one["embedding_moved"] for one in found.values() if math.isfinite(one["embedding_moved"])]
    moved = max(known, default=math.nan)
    return Result(
        name=NAME,
        title="Orbits: the same function, its hidden units in another order",
        text=_text(len(judged.view), orders, difference),
        numbers={"orders": orders, "output_difference": difference, "by_architecture": found},
        claims=[
            claim("Reordering hidden units changes outputs, of their size, by", difference, "<=", SAME, kind="check"),
            claim(
                "Reordering hidden units moves an embedding, of the distance between instances, by",
                moved,
                "<=",
                MOVED,
                kind="beyond",
            ),
        ],
        tables=(_table(found),),
        pictures=(Picture("Embeddings: distances within an orbit, and between instances", draw(orbits, folder)),),
    )


def _text(instances: int, orders: int, difference: float) -> str:
    return (
        f"The hidden units of each of {instances} test instances (neurons, channels of convolutions, also those that "
        f"shortcuts carry along) are put into {orders} random orders. Each network computes what it did before: on up "
        f"to {INPUTS} test inputs no output changes by more than {difference:.1e} of their size, as sums are taken in "
        "another order. But its PRep holds other values in nearly all places.\n\n"
        "The picture shows how far embeddings move, beside how far different instances of the architecture are apart. "
        "Moved by 0 of that distance means that the space knows a network by its function, by 1 that another order of "
        "units is another network to it. The PReps themselves are given for comparison. By chance the embedding of "
        "another order would be nearest to its own instance's once in as many times as there are instances."
    )


@dataclass(frozen=True)
class Orbit:
    """What other orders of units do to N instances of one architecture.

    moved:        `[N, K]` distances from an instance's embedding to that of each order
    apart:        `[N, N]` distances between the embeddings of the instances
    nearest:      `[N, K]`, whether an order's embedding is nearer to its own instance's than to any other's
    preps_moved:  `[N, K]` distances from the PRep of an instance to that of each order
    preps_apart:  `[N, N]` distances between the PReps of the instances
    within_share: variance of embeddings within orbits, of their whole variance
    difference:   largest change of an output, relative to the largest output of the instance
    predicted:    ClassIds and PReps `[N, H, W]` that the space writes for each instance's first order
    """

    moved: Tensor
    apart: Tensor
    nearest: Tensor
    preps_moved: Tensor
    preps_apart: Tensor
    within_share: float
    difference: float
    predicted: tuple[tuple[int, ...], Tensor]

    def measures(self) -> dict[str, float]:
        """Means, JSON-able; NaN where there is one instance alone."""
        apart, preps_apart = (mean_or_nan(off_diagonal(one)) for one in (self.apart, self.preps_apart))
        moved, preps_moved = mean_or_nan(self.moved), mean_or_nan(self.preps_moved)
        return {
            "output_difference": self.difference,
            "embedding_distance_moved": moved,
            "embedding_distance_apart": apart,
            "embedding_moved": moved / apart if apart else float("nan"),
            "prep_moved": preps_moved / preps_apart if preps_apart else float("nan"),
            "still_nearest": mean_or_nan(self.nearest),
            "variance_within_orbits": self.within_share,
        }


def orbit_of(judged: Judged, rows: list[int], space: NetSpace, inputs: Tensor, orders: int, seed: int) -> Orbit:
    """Measure `orders` orders of the units of these instances, all of one architecture.

    inputs: `[B, ...]` that all share, or `[N, B, ...]`
    raises NoPermutations if it is not known which of its units may be reordered
    """
    registry, class_ids = judged.predicted.registry, [judged.class_ids[row] for row in rows]
    architecture = registry.by_class_id(class_ids[0])
    preps_NHW, latent_NE = judged.preps[rows], judged.latents[rows].cpu().double()
    before_NB = outputs_of(registry, class_ids, preps_NHW, inputs).flatten(1)
    size_N = before_NB.abs().amax(1)
    latents, preps_moved, difference = [], [], 0.0
    written: list[tuple[tuple[int, ...], Tensor]] = []
    for number in range(orders):
        stream = generator("orders of units", seed, class_ids[0], number)
        places = [permutation(architecture, stream) for _ in rows]
        other_NHW = torch.cat([permute(preps_NHW[[row]], one_V) for row, one_V in enumerate(places)])
        after_NB = outputs_of(registry, class_ids, other_NHW, inputs).flatten(1)
        difference = max(difference, float(((after_NB - before_NB).abs().amax(1) / size_N).amax()))
        with torch.no_grad():
            other_NE = space.encode(other_NHW)
            if not written:
                first = predict(space, other_NE, registry)
                written.append((first.class_ids, first.preps))
        latents.append(other_NE.cpu().double())
        preps_moved.append((other_NHW - preps_NHW).flatten(1).cpu().double().norm(dim=1))
    latent_NKE = torch.stack(latents, dim=1)
    flat_NV = preps_NHW.flatten(1).cpu().double()
    to_all_NKN = distances(latent_NKE.flatten(0, 1), latent_NE).view(len(rows), orders, len(rows))
    own_NK = to_all_NKN[torch.arange(len(rows)), :, torch.arange(len(rows))]
    return Orbit(
        moved=own_NK,
        apart=distances(latent_NE, latent_NE),
        nearest=to_all_NKN.amin(2) == own_NK,
        preps_moved=torch.stack(preps_moved, dim=1),
        preps_apart=distances(flat_NV, flat_NV),
        within_share=_within_share(torch.cat([latent_NE[:, None], latent_NKE], dim=1)),
        difference=difference,
        predicted=written[0],
    )


def _within_share(latent_NKE: Tensor) -> float:
    """Variance around the mean of each orbit, of the variance around the mean of all."""
    within = (latent_NKE - latent_NKE.mean(1, keepdim=True)).square().sum()
    whole = (latent_NKE - latent_NKE.mean((0, 1))).square().sum()
    return float(within / whole) if whole > 0 else float("nan")


def accuracy_of_predictions(
    judged: Judged, rows: list[int], task: Any, written: tuple[tuple[int, ...], Tensor] | None = None
) -> float:
    """Mean accuracy on the test samples of what is predicted for these instances, or of what was `written` for them."""
    own = tuple(judged.predicted.class_ids[row] for row in rows), judged.predicted.preps[rows]
    class_ids, preps_NHW = own if written is None else written
    view = judged.view.select(rows)
    with torch.inference_mode():
        accuracies = accuracy_of(judged.predicted.registry, class_ids, preps_NHW, view, task, TEST)
    return sum(accuracies) / len(accuracies)


def draw(orbits: dict[str, Orbit], folder: Path) -> str:
    """Histograms of distances, one panel an architecture; the name of the file."""
    figure = new_figure(6.4 if len(orbits) == 1 else max(6.4, 3.0 * len(orbits)), 3.4)
    panels = figure.subplots(1, len(orbits), squeeze=False)[0]
    for axes, (name, orbit) in zip(panels, orbits.items(), strict=True):
        moved, apart = (values.flatten().numpy() for values in (orbit.moved, off_diagonal(orbit.apart)))
        end = max([*moved, *apart, 1e-12])
        bins = [end * edge / 24 for edge in range(25)]
        for values, colour, label in ((apart, "0.6", "between instances"), (moved, "#d62728", "within an orbit")):
            if len(values):
                shares = [1 / len(values)] * len(values)
                axes.hist(values, bins=bins, weights=shares, color=colour, alpha=0.65, label=label)
        axes.set_xlabel("distance of embeddings")
        axes.set_title(short(name), parse_math=False, fontsize="medium")
    panels[0].set_ylabel("share")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return save_figure(figure, folder, f"{NAME}.png")


def _table(found: dict[str, dict[str, Any]]) -> Table:
    rows = tuple(
        (
            name,
            one["instances"],
            f"{one['output_difference']:.1e}",
            *(round(one[key], 3) for key in ("embedding_moved", "prep_moved", "variance_within_orbits")),
            *(round(100 * one[key], 1) for key in ("still_nearest", "accuracy", "accuracy_of_order")),
        )
        for name, one in found.items()
    )
    columns = (
        *("architecture", "instances", "change of outputs", "embedding moved", "PRep moved"),
        *("variance of embeddings within orbits", "still nearest to its own, %"),
        *("accuracy of the prediction, %", "of that for another order, %"),
    )
    return Table("Another order of the hidden units", columns, rows)
