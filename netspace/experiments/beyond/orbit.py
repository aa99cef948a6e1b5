"""How far an embedding moves when the hidden units of its network are put into another order.

The function stays the same, which is checked on outputs; an encoder that knew networks by their function would not move
their embeddings.
Shapes: N instances, R draws of the bootstrap, K orders, E embedding values, V values of a PRep, B inputs.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import prepkit
from netspace.data import TEST
from netspace.experiments._subject import runs_of
from netspace.experiments.result import Column, Result, claim, table_of_measures
from netspace.explore import colours
from netspace.space.prediction import Prediction, predict
from prepkit.errors import counted
from prepkit.figures import panels, short_name
from prepkit.running.groups import outputs_by_class_id
from prepkit.support.bootstrap import drawn, middle
from prepkit.support.statistics import distances, mean_or_nan, off_diagonal, variance_within
from prepkit.symmetry.aligning import Aligner
from prepkit.tasks.randomness import generator
from prepkit.zoo.read.accuracy import accuracies_of

if TYPE_CHECKING:
    from netspace.experiments._subject import PredictedSplit, Subject

ORDERS = 8  # of each instance's units
INPUTS = 256  # that outputs are compared on
SAME = 1e-5  # of the outputs' size: sums of float32 in another order differ by so much
MOVED_BY_ALIGNED = 0.01  # the same for a run that aligns PReps before it encodes them
MOVED = 0.5  # of the distance between instances; an embedding that knows networks by their function does not move
COLUMNS = (
    Column("instances", "instances"),
    Column("change of outputs, of their size", "output_change"),
    Column("embedding moved, % of the distance between instances", "embedding_moved", 100, 1),
    Column("PRep moved, % of that distance", "prep_moved", 100, 1),
    Column("variance of embeddings within orbits, %", "variance_within_orbits", 100, 1),
    Column("still nearest to its own, %", "still_nearest", 100, 1),
    Column("accuracy of the prediction, %", "accuracy", 100, 1),
    Column("accuracy of that for another order, %", "accuracy_of_order", 100, 1),
)


def run(subject: Subject, *, orders: int = ORDERS) -> Result:
    """Put the units of every test instance into several orders, encode each, and compare."""
    test, aligned = subject.predicted(), subject.run.recipe.align
    inputs = subject.inputs(test.view, limit=INPUTS)
    measured, orbits = {}, {}
    for name, rows in test.groups().items():
        subject.progress(
            f"{counted(orders, 'order')} of the hidden units of {counted(len(rows), 'instance')} of {name}"
        )
        orbit = orbit_of(subject, test, rows, inputs[rows] if subject.signals else inputs, orders)
        class_ids = [test.predictions.class_ids[row] for row in rows]
        measured[name] = {
            "instances": len(rows),
            **orbit.measures,
            "accuracy": _accuracy(subject, test, rows, class_ids, test.predictions.preps[rows]),
            "accuracy_of_order": _accuracy(subject, test, rows, orbit.predictions.class_ids, orbit.predictions.preps),
        }
        orbits[name] = orbit
    difference = max(values["output_difference"] for values in measured.values())
    known = [values["embedding_moved"] for values in measured.values() if math.isfinite(values["embedding_moved"])]
    runs = runs_of(test.view)
    by_rows = zip(orbits.values(), test.groups().values(), strict=True)
    interval = moved_interval([(orbit, [runs[row] for row in rows]) for orbit, rows in by_rows], subject.seed)
    limit = MOVED_BY_ALIGNED if aligned else MOVED
    same = "Change of outputs by reordering hidden units, relative to the outputs' size"
    moved = "Distance that reordering hidden units moves an embedding, relative to that between instances"
    rows_of_table = {
        name: {**values, "output_change": f"{values['output_difference']:.1e}"} for name, values in measured.items()
    }
    title = "Embeddings: distances within an orbit, and between instances"
    return Result(
        name="orbit",
        title="Orbits: the same function, its hidden units in another order",
        text=_text(len(test.view), orders, difference, aligned),
        numbers={"orders": orders, "output_difference": difference, "by_architecture": measured},
        claims=[
            claim(same, difference, "<=", SAME, kind="check"),
            claim(moved, max(known, default=math.nan), "<=", limit, kind="beyond", interval=interval),
        ],
        tables=(table_of_measures("Another order of the hidden units", ("architecture",), rows_of_table, COLUMNS),),
        pictures=(subject.picture(title, "orbit.png", orbits_figure(orbits)),),
    )


def moved_interval(orbits: Sequence[tuple[Orbit, Sequence[str]]], seed: int) -> tuple[float, float]:
    """Return the interval of the largest distance moved, of those between instances; NaN and NaN for a single run.

    orbits: of each architecture, with the training run of each instance
    """
    ratios = []
    for number, (orbit, runs) in enumerate(orbits):
        if len(set(runs)) < 2:
            continue  # as in the number itself
        drawn_RN = torch.from_numpy(drawn(np.asarray(runs), seed + number))
        moved_R = drawn_RN @ orbit.moved.mean(1) / drawn_RN.sum(1)
        # Two draws of one instance are no pair of different instances.
        other_NN = ~torch.eye(len(runs), dtype=torch.bool)
        apart_R, pairs_R = (
            ((drawn_RN @ values_NN) * drawn_RN).sum(1) for values_NN in (orbit.apart * other_NN, other_NN.double())
        )
        ratios.append((moved_R * pairs_R / apart_R).numpy())
    return middle(np.maximum.reduce(ratios)) if ratios else (math.nan, math.nan)


def _text(instances: int, orders: int, difference: float, aligned: bool) -> str:
    more = (
        " This run puts hidden units into the order of its references before it encodes a PRep, so embeddings should "
        "stay where they are."
        if aligned
        else ""
    )
    return (
        f"The hidden units of each of {counted(instances, 'test instance')} (neurons, channels of convolutions, also "
        f"those that shortcuts carry along) are put into {counted(orders, 'random order')}. Each network computes what "
        f"it did before: on up to {INPUTS} test inputs no output changes by more than {difference:.1e} of their size, "
        f"which comes from sums in another order. But its PRep holds other values in nearly all places.{more}\n\n"
        "The picture compares how far embeddings move with how far different instances of the architecture are apart. "
        "Moved by 0 of that distance means that the space knows a network by its function; moved by 1 means that "
        "another order of units is another network to it. The PReps themselves are given for comparison. By chance the "
        "embedding of another order would be nearest to its own instance's once in as many times as there are "
        "instances."
    )


@dataclass(frozen=True)
class Orbit:
    """What K other orders of units do to N instances of one architecture.

    moved:       `[N, K]` distances from an instance's embedding to that of each order
    apart:       `[N, N]` distances between the embeddings of the instances
    predictions: instances that the space predicts for each instance's first order
    measures:    all measures, JSON-able; NaN where there is only one instance
    """

    moved: Tensor
    apart: Tensor
    predictions: Prediction
    measures: dict[str, float]


def orbit_of(subject: Subject, split: PredictedSplit, rows: Sequence[int], inputs: Tensor, orders: int) -> Orbit:
    """Measure `orders` orders of the units of these rows, all of one architecture.

    inputs: `[B, ...]` that all share, or `[N, B, ...]`
    raises SymmetryError if it cannot be derived which of its units may be reordered
    """
    registry, class_ids = subject.run.registry, [split.class_ids[row] for row in rows]
    architecture = registry.by_class_id(class_ids[0])
    aligner = Aligner(prepkit.symmetries(architecture), architecture.layout)
    preps_NHW, latent_NE = split.preps[rows], split.latents[rows].cpu().double()
    before_NB = outputs_by_class_id(registry, class_ids, preps_NHW, inputs).flatten(1)
    size_N = before_NB.abs().amax(1)
    latents, preps_moved, differences, predictions = [], [], [], list[Prediction]()
    for number in range(orders):
        stream = generator("orders of units", subject.seed, class_ids[0], number)
        other_NHW = aligner.scrambled(preps_NHW, stream, ("permute",))
        after_NB = outputs_by_class_id(registry, class_ids, other_NHW, inputs).flatten(1)
        differences.append(float(((after_NB - before_NB).abs().amax(1) / size_N).amax()))
        with torch.no_grad():
            other_NE = subject.space.encode(other_NHW, architecture.name)
            if not predictions:
                predictions.append(predict(subject.space, other_NE, registry))
        latents.append(other_NE.cpu().double())
        preps_moved.append((other_NHW - preps_NHW).flatten(1).cpu().double().norm(dim=1))
    latent_NKE, flat_NV = torch.stack(latents, dim=1), preps_NHW.flatten(1).cpu().double()
    to_all_NKN = distances(latent_NKE.flatten(0, 1), latent_NE).view(len(rows), orders, len(rows))
    moved_NK = to_all_NKN[torch.arange(len(rows)), :, torch.arange(len(rows))]
    apart_NN = distances(latent_NE, latent_NE)
    moved, prep_moved = mean_or_nan(moved_NK), mean_or_nan(torch.stack(preps_moved, dim=1))
    apart, prep_apart = (mean_or_nan(off_diagonal(values_NN)) for values_NN in (apart_NN, distances(flat_NV, flat_NV)))
    measures = {
        "output_difference": max(0.0, *differences),  # relative to the largest output of an instance
        "embedding_distance_moved": moved,
        "embedding_distance_apart": apart,
        "embedding_moved": moved / apart if apart else float("nan"),
        "prep_moved": prep_moved / prep_apart if prep_apart else float("nan"),
        "still_nearest": mean_or_nan(to_all_NKN.amin(2) == moved_NK),
        "variance_within_orbits": variance_within(torch.cat([latent_NE[:, None], latent_NKE], dim=1)),
    }
    return Orbit(moved_NK, apart_NN, predictions[0], measures)


def _accuracy(
    subject: Subject, split: PredictedSplit, rows: Sequence[int], class_ids: Sequence[int], preps_NHW: Tensor
) -> float:
    """Return the mean accuracy on the test samples of what is predicted for these rows."""
    view = split.view.select(list(rows))
    with torch.inference_mode():
        accuracies = accuracies_of(subject.run.registry, class_ids, preps_NHW, view, subject.task, TEST)
    return sum(accuracies) / len(accuracies)


def orbits_figure(orbits: Mapping[str, Orbit]) -> Any:
    """Draw histograms of distances, one panel an architecture."""
    figure, plots = panels(len(orbits), 3.0, 3.4, least_width=6.4)
    for axes, (name, orbit) in zip(plots, orbits.items(), strict=True):
        moved, apart = (values.flatten().numpy() for values in (orbit.moved, off_diagonal(orbit.apart)))
        end = max([*moved, *apart, 1e-12])
        bins = [end * edge / 24 for edge in range(25)]
        for values, colour, label in (
            (apart, colours.NEUTRAL, "between instances"),
            (moved, colours.PREDICTED, "within an orbit"),
        ):
            if len(values):
                shares = [100 / len(values)] * len(values)
                axes.hist(values, bins=bins, weights=shares, color=colour, alpha=0.65, label=label)
        axes.set_xlabel("distance of embeddings")
        axes.set_title(short_name(name), parse_math=False, fontsize="medium")
    plots[0].set_ylabel("share of distances, %")
    handles, labels = plots[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure
