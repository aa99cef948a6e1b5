"""Fig. 4: shapes along lines of embeddings and of weights, and how close predicted signals come to their targets.

At each step of a line between two procedural chairs stands a true chair: that of the interpolated parameters. The line
of embeddings is compared with it, and with what needs no NetSpace: weights, a blend of both distance fields, and
the unchanged first chair.
Shapes: P pairs, S steps, R grid points along an axis.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import prepkit
from netspace.data import TEST, TRAIN, shares_starts, split_sizes
from netspace.experiments._closeness import closeness_claims, closeness_table, closeness_text, closeness_to_own
from netspace.experiments.result import Cell, Claim, Column, Result, Table, claim, table_of_measures
from netspace.explore.interpolation import Interpolation, interpolate, weights_between
from netspace.explore.sampling import PointError
from prepkit.errors import counted
from prepkit.figures import mesh_figure
from prepkit.running.groups import distance_grids
from prepkit.support.bootstrap import interval_of_mean
from prepkit.support.statistics import mean_or_nan
from prepkit.tasks.chairs import chair_between
from prepkit.tasks.distance_grid import grid_points, share_of_monotone_volumes, surface
from prepkit.tasks.randomness import generator
from prepkit.tasks.shape_measures import ONE_PART, SPECKS, ShapeMeasures, measure_shapes, overlaps, volume_ratios
from prepkit.zoo.read.accuracy import items_of

if TYPE_CHECKING:
    from trimesh import Trimesh

    from netspace.experiments._subject import Subject

PAIRS, STEPS, RESOLUTION = 10, 7, 48
MIDPOINT, ABOVE_WEIGHTS = 0.7, 0.5
SHARED = "the instances of this zoo share their starts, so their weights can be interpolated too"
EMBEDDINGS, WEIGHTS, BLEND, FIRST = "embeddings", "weights", "blended distances", "the first chair"
TURN = 0.02  # of the largest volume on a line: how far it may turn back and still count as monotone
DRAWN_PAIRS = 2
# Chairs stand in the unit sphere; the widest, deepest and highest ones reach this far from its centre.
REACH = (0.7, 0.7, 0.95)
COLUMNS = (
    Column("surface, %", "surface", 100, 1),
    Column("more than specks, %", "solid", 100, 1),
    Column("one part, %", "one_part", 100, 1),
    Column("not cut by the cube, %", "uncut", 100, 1),
    Column("valid, %", "valid", 100, 1),
    Column("pairs without a surface", "missing"),
    Column("chamfer distance of the others (the cube's side is 2)", "chamfer"),
    Column("overlap (IoU)", "overlap"),
)


def run(subject: Subject, *, pairs: int = PAIRS, steps: int = STEPS, resolution: int = RESOLUTION) -> Result:
    """Measure predicted signals, then walk between pairs of training chairs."""
    zoo, task = subject.zoo, subject.task
    closeness, sizes = {}, split_sizes(zoo)
    for split in (TRAIN, TEST):
        if split in sizes:
            subject.progress(f"closeness of predicted signals, split {split}")
            closeness[split] = closeness_to_own(subject, subject.predicted(split))
    first, second = _pairs(zoo.split(TRAIN), pairs, subject.seed)
    subject.progress(f"{counted(pairs, 'pair')} of chairs, {steps} steps each")
    line = interpolate(subject.run, zoo, first, second, steps, space=subject.space, task=task, resolution=8)
    grids = grids_along(subject, line, resolution)
    truth = true_chairs(subject, line, resolution)
    subject.progress("meshes along the lines")
    measured = {way: measures_along(grids[way], grids[FIRST], truth) for way in (EMBEDDINGS, WEIGHTS)}
    by_step = {way: means_by_step(measures, steps) for way, measures in measured.items()}
    valid_truth = None if truth is None else mean_or_nan(measures_along(truth, grids[FIRST], None).valid)
    overlap_PS = {} if truth is None else {way: overlaps_of_pairs(grid, truth) for way, grid in grids.items()}
    overlap = {way: values_PS.mean(0).tolist() for way, values_PS in overlap_PS.items()}
    middle_P = {way: values_PS[:, steps // 2] for way, values_PS in overlap_PS.items()}
    line_claims = _lines_claims(measured[EMBEDDINGS], middle_P, shares_starts(zoo), subject.seed)
    monotone = {way: share_of_monotone_volumes(grids[way], TURN) for way in (EMBEDDINGS, WEIGHTS)}
    rows = "along embeddings, along weights" if truth is None else "the true chairs, along embeddings, along weights"
    title = f"The first pairs by gamma; rows of each: {rows}"
    return Result(
        name="chairs",
        title="Shapes along a line (Fig. 4)",
        text="\n\n".join((closeness_text(closeness), _lines_text(line, resolution, valid_truth, monotone))),
        numbers={
            "closeness": closeness,
            "meshes": by_step,
            "valid_true_chairs": valid_truth,
            "iou": overlap,
            "volume_monotone": monotone,
            "pairs": [first, second],
        },
        claims=[*closeness_claims(closeness), *line_claims],
        tables=[
            closeness_table(closeness),
            _meshes_table(line.gammas, measured, by_step, overlap),
            *([_overlap_table(line.gammas, overlap)] if overlap else []),
        ],
        pictures=[subject.picture(title, "chairs.png", meshes_figure(line.gammas, grids, truth))],
    )


def _lines_claims(embeddings: ShapeMeasures, middle_P: Mapping[str, Tensor], shared: bool, seed: int) -> list[Claim]:
    """Return the claims about lines.

    middle_P: overlap with the true chair half-way along each way, `[P]`; empty where there is no true chair
    shared:   whether the instances share their starts
    """
    surfaces = "Chairs: a surface at every step of every embedding line"
    valid = "Chairs along embeddings: valid meshes (a surface, not only specks, one connected part, within the cube)"
    claims = [
        claim(surfaces, mean_or_nan(embeddings.surface), "==", 1, unit="%"),
        claim(valid, mean_or_nan(embeddings.valid), "==", 1, kind="beyond", unit="%"),
    ]
    if not middle_P:
        return claims
    here_P = middle_P[EMBEDDINGS]
    text = "Chairs half-way along embeddings: overlap (IoU) with the true chair"
    # Two chairs are drawn for each pair, and hardly any is drawn twice.
    asked = (
        (text, here_P, ">=", MIDPOINT, "", "the overlap of the half-way chair with the true one"),
        (f"{text}, minus that of blended distances", here_P - middle_P[BLEND], ">", 0.0, "", ""),
        (
            f"{text}, minus that along weights",
            here_P - middle_P[WEIGHTS],
            ">=",
            ABOVE_WEIGHTS,
            SHARED if shared else "",
            "",
        ),
    )
    return claims + [
        claim(
            words,
            mean_or_nan(values_P),
            relation,
            limit,
            unit="IoU",
            interval=interval_of_mean(values_P, range(len(values_P)), seed),
            untold=untold,
            short=short,
        )
        for words, values_P, relation, limit, untold, short in asked
    ]


# Shapes along the lines -------------------------------------------------------------------------------------------


def _pairs(zoo: prepkit.Zoo, pairs: int, seed: int) -> tuple[list[str], list[str]]:
    """Draw ids of both chairs of each pair; raises PointError if there are no two chairs."""
    ids = zoo.table["id"].to_pylist()
    if len(ids) < 2:
        raise PointError(f"'{zoo.name}' has {counted(len(ids), 'training chair')}; a line between two needs 2.")
    stream = generator("pairs of chairs", seed)
    drawn = [torch.randperm(len(ids), generator=stream)[:2].tolist() for _ in range(pairs)]
    return [ids[a] for a, _ in drawn], [ids[b] for _, b in drawn]


def grids_along(subject: Subject, line: Interpolation, resolution: int) -> dict[str, Tensor]:
    """Return distances on a grid `[P, S, R, R, R]` along each way from the first chair to the second."""
    steps = len(line.gammas)
    gamma_S111 = torch.tensor(line.gammas).view(-1, 1, 1, 1)
    registry = subject.run.registry
    grids: dict[str, list[Tensor]] = {way: [] for way in (EMBEDDINGS, WEIGHTS, BLEND, FIRST)}
    for pair in range(len(line.first)):
        predicted = line.predicted(pair)
        chosen = [(pair, step) for step in range(steps)]
        class_ids, weights = weights_between(
            subject.space, subject.zoo, line.first, line.second, chosen, line.gammas, subject.device
        )
        embedded_SRRR = distance_grids(registry, predicted.class_ids, predicted.preps, resolution).cpu()
        weights_SRRR = distance_grids(registry, class_ids, weights, resolution).cpu()
        start, end = weights_SRRR[[0, -1]]  # the targets themselves
        ways = embedded_SRRR, weights_SRRR, (1 - gamma_S111) * start + gamma_S111 * end, start.expand_as(weights_SRRR)
        for way, grid_SRRR in zip(grids, ways, strict=True):
            grids[way].append(grid_SRRR)
    return {way: torch.stack(pairs) for way, pairs in grids.items()}


def true_chairs(subject: Subject, line: Interpolation, resolution: int) -> Tensor | None:
    """Return distances `[P, S, R, R, R]` to the chairs of interpolated parameters; None if shapes are not chairs."""
    record = subject.task.record
    if record["dataset"] != "procedural_chairs":
        return None
    points = grid_points(resolution).double().numpy()
    grids = []
    for a, b in zip(line.first.rows or (), line.second.rows or (), strict=True):
        first, second = items_of(subject.zoo.select([a, b]))
        for gamma in line.gammas:
            grids.append(torch.from_numpy(chair_between(first, second, gamma, record["seed"]).distance(points)))
    return torch.stack(grids).view(-1, len(line.gammas), resolution, resolution, resolution)


def measures_along(grids_PSRRR: Tensor, first_PSRRR: Tensor, truth_PSRRR: Tensor | None) -> ShapeMeasures:
    """Measure the shapes of all steps of all pairs, `[P S]`; the first chairs decide what specks are."""
    true_NRRR = None if truth_PSRRR is None else truth_PSRRR.flatten(0, 1)
    return measure_shapes(grids_PSRRR.flatten(0, 1), first_PSRRR.flatten(0, 1), true_NRRR)


def means_by_step(measures: ShapeMeasures, steps: int) -> dict[str, list[float]]:
    """Return means over pairs, `[S]` each: shares, and the chamfer distance of the shapes that have one."""
    names = ("surface", "solid", "one_part", "uncut", "valid")
    shares = {name: getattr(measures, name).view(-1, steps).double().mean(0).tolist() for name in names}
    return {**shares, "chamfer": measures.chamfer.view(-1, steps).nanmean(0).tolist()}


def overlaps_of_pairs(grids_PSRRR: Tensor, truth_PSRRR: Tensor) -> Tensor:
    """Return the overlap (IoU) with the true chairs of each pair and step, `[P, S]`."""
    overlap_N = overlaps(grids_PSRRR.flatten(0, 1), truth_PSRRR.flatten(0, 1))
    return overlap_N.view(grids_PSRRR.shape[:2])


# Words and tables -------------------------------------------------------------------------------------------------


def _lines_text(line: Interpolation, resolution: int, valid_truth: float | None, monotone: Mapping[str, float]) -> str:
    text = (
        f"Lines go between {counted(len(line.first), 'pair')} of training chairs in {len(line.gammas)} steps. A mesh "
        f"is the surface on a grid of {resolution} points an axis. It is valid if there is a surface, if its volume is "
        f"at least {100 * SPECKS:g} % of the first chair's (less is only specks), if one connected part holds at least "
        f"{100 * ONE_PART:g} % of the grid points inside, and if the cube's boundary does not cut it. Marching cubes "
        "close every surface, so all meshes are watertight; this says nothing of the networks and is not counted. A "
        "step without a surface is not valid and has no chamfer distance."
    )
    truth = (
        " The chamfer distance is the mean distance from a vertex to the nearest one of the true chair's mesh and back,"
        " where the cube's side is 2. The true chair of a step is that of the interpolated parameters; "
        f"{100 * valid_truth:.0f} % of these chairs' own meshes on this grid are valid."
        if valid_truth is not None
        else ""
    )
    return (
        f"{text}{truth} The volume goes from one end's to the other's without turning back by over "
        f"{100 * TURN:g} % of its largest value on {100 * monotone[EMBEDDINGS]:.0f} % of the embedding lines and on "
        f"{100 * monotone[WEIGHTS]:.0f} % of the weight lines."
    )


def _meshes_table(
    gammas: Sequence[float],
    measured: Mapping[str, ShapeMeasures],
    by_step: Mapping[str, Mapping[str, Sequence[float]]],
    overlap: Mapping[str, Sequence[float]],
) -> Table:
    rows = {}
    for way, measures in measured.items():
        missing = (~measures.surface).view(-1, len(gammas)).sum(0).tolist()
        for step, gamma in enumerate(gammas):
            means = {name: values[step] for name, values in by_step[way].items()}
            extra = {"overlap": overlap[way][step]} if overlap else {}
            rows[way, round(gamma, 2)] = {**means, **extra, "missing": missing[step]}
    return table_of_measures("Meshes along the lines", ("way", "gamma"), rows, COLUMNS)


def _overlap_table(gammas: Sequence[float], overlap: Mapping[str, Sequence[float]]) -> Table:
    rows: list[tuple[Cell, ...]] = [(way, *(round(value, 3) for value in values)) for way, values in overlap.items()]
    columns = ("way", *(f"gamma {gamma:.2f}" for gamma in gammas))
    return Table("Mean overlap (IoU) with the chair of interpolated parameters", columns, tuple(rows))


# The picture ------------------------------------------------------------------------------------------------------


def meshes_figure(gammas: Sequence[float], grids: Mapping[str, Tensor], truth: Tensor | None) -> Any:
    """Draw the meshes of the first two pairs, one way a row, one step a column."""
    rows = [
        (way, [step_of_picture(*step) for step in zip(grids_SRRR, ratio_S.tolist(), strict=True)])
        for way, grids_SRRR, ratio_S in rows_of_picture(grids, truth)
    ]
    return mesh_figure(rows, [f"{gamma:.2f}" for gamma in gammas], REACH)


def rows_of_picture(grids: Mapping[str, Tensor], truth: Tensor | None) -> list[tuple[str, Tensor, Tensor]]:
    """Return for each row its name, distances `[S, R, R, R]`, and volumes `[S]` over the first chair's."""
    ways = {} if truth is None else {"true chairs": truth}
    ways |= {way: grids[way] for way in (EMBEDDINGS, WEIGHTS)}
    return [
        (way, grids_PSRRR[pair], volume_ratios(grids_PSRRR[pair], grids[FIRST][pair]))
        for pair in range(min(DRAWN_PAIRS, len(grids[FIRST])))
        for way, grids_PSRRR in ways.items()
    ]


def step_of_picture(grid_RRR: Tensor, ratio: float) -> tuple[Trimesh | None, str]:
    """Return a step's mesh, and words where there is none, or only specks.

    ratio: volume over the first chair's
    """
    mesh = surface(grid_RRR)
    return mesh, "no surface" if mesh is None else "only specks" if ratio < SPECKS else ""
