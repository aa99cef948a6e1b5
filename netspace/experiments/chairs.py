"""Fig. 4: shapes along lines of embeddings and of weights, and how close predicted signals come to their targets.

At each step of a line between two procedural chairs stands a true chair: that of the interpolated parameters. The line
of embeddings is compared with it, and with what needs no NetSpace: weights, the blend of both distance fields, and
staying at the first chair.
Shapes: P pairs, S steps, R grid points along an axis.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import prepkit
from netspace.data import TEST, TRAIN, items_of
from netspace.experiments.closeness import closeness_claims, closeness_table, closeness_text, closeness_to_own
from netspace.experiments.judged import judge, mean_or_nan
from netspace.experiments.result import Cell, Claim, Picture, Progress, Result, Table, claim, new_figure, save_figure
from netspace.explore.interpolation import Interpolation, distance_grids, interpolate, weights_between
from prepkit.tasks import distance_grid
from prepkit.tasks.chairs import build, chair
from prepkit.tasks.randomness import generator

if TYPE_CHECKING:
    from trimesh import Trimesh

    from netspace.run.run import Run

NAME = "chairs"
PAIRS, STEPS, RESOLUTION = 10, 7, 48
MIDPOINT, ABOVE_WEIGHTS = 0.7, 0.5
EMBEDDINGS, WEIGHTS, FIRST, TRUE = "embeddings", "weights", "the first chair", "true chairs"
WAYS = (EMBEDDINGS, WEIGHTS, "blended distances", FIRST)
SPECKS = 0.05  # of the first chair's volume: an inside below it is only specks
ONE_PART = 0.99  # of the inside: a part that holds it is all but a few grid points
TURN = 0.02  # of the largest volume on a line: how far it may turn back and still count as monotone
DRAWN = 2  # pairs
WIDE, HIGH, MARGIN = 1.5, 1.7, 0.35  # inches of a mesh in the picture, and what names its rows and columns
LIGHT = np.array([0.4, -0.45, 0.8])
# Chairs stand in the unit sphere; the widest, deepest and highest ones reach this far from its centre.
REACH = (0.7, 0.7, 0.95)


def run(
    run: Run,
    zoo: prepkit.Zoo,
    task: Any,
    device: torch.device,
    folder: Path,
    *,
    seed: int = 0,
    pairs: int = PAIRS,
    steps: int = STEPS,
    resolution: int = RESOLUTION,
    progress: Progress | None = None,
) -> Result:
    """Judge predicted signals, then walk between pairs of training chairs."""
    told = progress or (lambda text: None)
    space = run.space(device=device)
    closeness = {}
    for split in (TRAIN, TEST):
        if zoo.manifest.splits.get(split):
            told(f"closeness of predicted signals, split {split}")
            closeness[split] = closeness_to_own(judge(run, space, zoo, split), task, seed)
    first, second = _pairs(zoo.split(TRAIN), pairs, seed)
    told(f"{pairs} pairs of chairs, {steps} steps each")
    line = interpolate(run, zoo, first, second, steps, space=space, task=task, resolution=8)
    grids = _grids(run, zoo, line, resolution, device)
    truth = _truth(task, zoo, line, resolution)
    told("meshes on the way")
    on_the_way = {way: judge_meshes(grids[way], grids[FIRST], truth) for way in (EMBEDDINGS, WEIGHTS)}
    valid_truth = None if truth is None else mean_or_nan(judge_meshes(truth, grids[FIRST], None).valid)
    overlap = {} if truth is None else {way: _iou(grids[way], truth).mean(0).tolist() for way in WAYS}
    monotone = {way: _monotone_volumes(grids[way]) for way in (EMBEDDINGS, WEIGHTS)}
    tables = [closeness_table(closeness), _meshes_table(line.gammas, on_the_way, overlap)]
    if overlap:
        tables.append(_overlap_table(line.gammas, overlap))
    return Result(
        name=NAME,
        title="Shapes along a line (Fig. 4)",
        text="\n\n".join((closeness_text(closeness), _lines_text(line, resolution, valid_truth, monotone))),
        numbers={
            "closeness": closeness,
            "meshes": {way: found.by_step() for way, found in on_the_way.items()},
            "valid_true_chairs": valid_truth,
            "iou": overlap,
            "volume_monotone": monotone,
            "pairs": [first, second],
        },
        claims=[*closeness_claims(closeness), *_lines_claims(on_the_way[EMBEDDINGS], overlap, steps // 2)],
        tables=tables,
        pictures=[Picture(_picture_title(truth is not None), draw(line, grids, truth, folder))],
    )


def _lines_claims(embeddings: OnTheWay, overlap: Mapping[str, Sequence[float]], middle: int) -> list[Claim]:
    claims = [
        claim(
            "Chairs: a surface at every step of every embedding line",
            mean_or_nan(embeddings.surface),
            ">=",
            1.0,
            unit="%",
        ),
        claim(
            "Chairs along embeddings: valid meshes (a surface, not only specks, one connected part, within the cube)",
            mean_or_nan(embeddings.valid),
            ">=",
            1.0,
            kind="beyond",
            unit="%",
        ),
    ]
    if overlap:
        here, weights = overlap[EMBEDDINGS][middle], overlap[WEIGHTS][middle]
        claims += [
            claim("Chairs half-way along the embedding line: overlap (IoU) with the true chair", here, ">=", MIDPOINT),
            claim(
                "Chairs half-way: IoU along embeddings above that along weights", here - weights, ">=", ABOVE_WEIGHTS
            ),
        ]
    return claims


# Lines ------------------------------------------------------------------------------------------------------------


def _pairs(zoo: prepkit.Zoo, pairs: int, seed: int) -> tuple[list[str], list[str]]:
    ids = zoo.table["id"].to_pylist()
    stream = generator("pairs of chairs", seed)
    drawn = [torch.randperm(len(ids), generator=stream)[:2].tolist() for _ in range(pairs)]
    return [ids[a] for a, _ in drawn], [ids[b] for _, b in drawn]


def _grids(
    run: Run, zoo: prepkit.Zoo, line: Interpolation, resolution: int, device: torch.device
) -> dict[str, list[Tensor]]:
    """Of each way: distances `[S, R, R, R]` for each pair."""
    steps = len(line.gammas)
    found: dict[str, list[Tensor]] = {way: [] for way in WAYS}
    for pair in range(len(line.first)):
        predicted = line.predicted(pair)
        chosen = [(pair, step) for step in range(steps)]
        class_ids, weights = weights_between(zoo, line.first, line.second, chosen, line.gammas, device)
        for way, ids, preps in (
            ("embeddings", predicted.class_ids, predicted.preps),
            ("weights", class_ids, weights),
        ):
            found[way].append(distance_grids(run.registry, ids, preps, resolution).cpu())
        ends = found["weights"][-1][[0, -1]]  # the targets themselves
        gamma_S111 = torch.tensor(line.gammas).view(-1, 1, 1, 1)
        found["blended distances"].append((1 - gamma_S111) * ends[0] + gamma_S111 * ends[1])
        found[FIRST].append(ends[:1].expand(steps, -1, -1, -1))
    return found


def _truth(task: Any, zoo: prepkit.Zoo, line: Interpolation, resolution: int) -> list[Tensor] | None:
    """Distances to the chairs of interpolated parameters, `[S, R, R, R]` a pair; None where shapes are no chairs."""
    if task.record["dataset"] != "procedural_chairs":
        return None
    points = distance_grid.grid_points(resolution).double().numpy()
    found = []
    for a, b in zip(line.first.rows or (), line.second.rows or (), strict=True):
        one, other = (chair(item, task.record["seed"]) for item in items_of(zoo.select([a, b])))
        fields = []
        for gamma in line.gammas:
            between = {name: (1 - gamma) * one[name] + gamma * other[name] for name in one}
            fields.append(torch.from_numpy(build(between).distance(points)).view((resolution,) * 3))
        found.append(torch.stack(fields))
    return found


def _iou(grids: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    """Of the insides, `[P, S]`; 0 where neither has one."""
    rows = []
    for found, true in zip(grids, truth, strict=True):
        inside, expected = (found < 0).flatten(1), (true < 0).flatten(1)
        both, either = (inside & expected).sum(1), (inside | expected).sum(1)
        rows.append(both.double() / either.clamp(min=1))
    return torch.stack(rows)


def _monotone_volumes(grids: Sequence[Tensor]) -> float:
    """The share of pairs whose volume goes from the first end's to the second's without turning back by over 2 %."""
    monotone = []
    for grid in grids:
        volumes = torch.tensor(distance_grid.volumes(grid), dtype=torch.float64)
        moves = volumes.diff() * (1 if volumes[-1] >= volumes[0] else -1)
        monotone.append(bool((moves >= -TURN * volumes.max()).all()))
    return float(np.mean(monotone))


def _lines_text(line: Interpolation, resolution: int, valid_truth: float | None, monotone: Mapping[str, float]) -> str:
    text = (
        f"Lines go between {len(line.first)} pairs of training chairs in {len(line.gammas)} steps; a mesh is the "
        f"surface on a grid of {resolution} points an axis. A mesh is valid if there is a surface; if it is not only "
        f"specks, with a volume of at least {100 * SPECKS:g} % of the first chair's; if it is one connected "
        f"part, which holds at least {100 * ONE_PART:g} % of the grid points inside; and if the cube's boundary does "
        "not cut it. Marching cubes close every surface, so that all meshes are watertight: this says nothing of the "
        "networks, and is not counted. A step without a surface fails in each of these, and has no chamfer distance"
    )
    truth = (
        ", the mean distance from a vertex to the nearest one of the true chair's mesh and back, where the cube's "
        "side is 2. A step's true chair is that of the interpolated parameters; of their own "
        f"meshes on this grid {100 * valid_truth:.0f} % are valid"
        if valid_truth is not None
        else ""
    )
    return (
        f"{text}{truth}. On the way the volume goes from one end's to the other's without turning back by over "
        f"{100 * TURN:g} % of its largest value on {100 * monotone[EMBEDDINGS]:.0f} % of the embedding lines and on "
        f"{100 * monotone[WEIGHTS]:.0f} % of the weight lines."
    )


# Meshes on the way ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnTheWay:
    """What the meshes on the lines of one way are like, all `[P, S]`.

    surface:  whether there are points inside and outside
    solid:    whether it is more than specks: the volume is at least 5 % of the first chair's
    one_part: whether the largest connected part holds at least 99 % of the grid points inside
    uncut:    whether it stays within the cube, whose boundary would cut it
    chamfer:  distance to the true chair, in units of half the cube's side; NaN without a surface or a true chair
    All but chamfer are false without a surface.
    """

    surface: Tensor
    solid: Tensor
    one_part: Tensor
    uncut: Tensor
    chamfer: Tensor

    @property
    def valid(self) -> Tensor:
        """Whether it has a surface, is more than specks, one part and uncut."""
        return self.surface & self.solid & self.one_part & self.uncut

    def by_step(self) -> dict[str, list[float]]:
        """Means over pairs of each, `[S]`: shares, and the chamfer distance of those that have one."""
        flags = ("surface", "solid", "one_part", "uncut", "valid")
        shares = {name: getattr(self, name).double().mean(0).tolist() for name in flags}
        return {**shares, "chamfer": self.chamfer.nanmean(0).tolist()}


def judge_meshes(grids: Sequence[Tensor], first: Sequence[Tensor], truth: Sequence[Tensor] | None) -> OnTheWay:
    """What the meshes are like; each argument holds distances on a grid, `[S, R, R, R]`, for each of P pairs.

    first: those of the first chair, whose volume says what specks are
    truth: those of the true chairs
    """
    surface = torch.tensor([distance_grid.has_surface(grid) for grid in grids])
    ratio = torch.stack([_ratio_of_volumes(grid, one) for grid, one in zip(grids, first, strict=True)])
    return OnTheWay(
        surface=surface,
        solid=surface & (ratio >= SPECKS),
        one_part=surface & (torch.tensor([distance_grid.largest_parts(grid) for grid in grids]) >= ONE_PART),
        uncut=surface & ~torch.tensor([distance_grid.leave_cube(grid) for grid in grids]),
        chamfer=torch.full(surface.shape, float("nan")) if truth is None else _chamfer(grids, truth),
    )


def _ratio_of_volumes(grids_SRRR: Tensor, first_SRRR: Tensor) -> Tensor:
    """Volumes `[S]` inside over those of the first chair; NaN or infinite where that has none."""
    return torch.tensor(distance_grid.volumes(grids_SRRR)) / torch.tensor(distance_grid.volumes(first_SRRR))


def _chamfer(grids: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    """Distances `[P, S]` of surfaces; NaN where either has none."""
    return torch.tensor(
        [
            [
                chamfer(distance_grid.surface(one), distance_grid.surface(true))
                for one, true in zip(found, expected, strict=True)
            ]
            for found, expected in zip(grids, truth, strict=True)
        ],
        dtype=torch.float64,
    )


def chamfer(first: Trimesh | None, second: Trimesh | None) -> float:
    """The mean distance from each vertex to the nearest one of the other mesh, both ways, averaged; NaN without one."""
    from scipy.spatial import cKDTree

    if first is None or second is None:
        return float("nan")
    a, b = first.vertices, second.vertices
    return float((cKDTree(b).query(a)[0].mean() + cKDTree(a).query(b)[0].mean()) / 2)


def _meshes_table(
    gammas: Sequence[float], on_the_way: Mapping[str, OnTheWay], overlap: Mapping[str, Sequence[float]]
) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for way, found in on_the_way.items():
        means = found.by_step()
        missing = (~found.surface).sum(0).tolist()
        ious = overlap.get(way, [None] * len(gammas))
        for step, gamma in enumerate(gammas):
            shares: list[Cell] = [round(100 * values[step], 1) for name, values in means.items() if name != "chamfer"]
            rows.append((way, round(gamma, 2), *shares, missing[step], means["chamfer"][step], ious[step]))
    kinds = ("surface, %", "more than specks, %", "one part, %", "not cut by the cube, %", "valid, %")
    columns = ("way", "gamma", *kinds, "pairs without a surface", "chamfer distance of the others", "overlap (IoU)")
    return Table("Meshes on the way", columns, tuple(rows))


def _overlap_table(gammas: Sequence[float], overlap: Mapping[str, Sequence[float]]) -> Table:
    rows: list[tuple[Cell, ...]] = [(way, *(round(value, 3) for value in overlap[way])) for way in WAYS]
    columns = ("way", *(f"gamma {gamma:.2f}" for gamma in gammas))
    return Table("Mean overlap (IoU) with the chair of interpolated parameters", columns, tuple(rows))


# The picture ------------------------------------------------------------------------------------------------------


def _picture_title(has_truth: bool) -> str:
    rows = "the true chairs, along embeddings, along weights" if has_truth else "along embeddings, along weights"
    return f"The first pairs by gamma, of each: {rows}"


def draw(
    line: Interpolation, grids: Mapping[str, Sequence[Tensor]], truth: Sequence[Tensor] | None, folder: Path
) -> str:
    """The meshes of the first two pairs, one way a row, one step a column; the name of the file."""
    rows = _rows_of_picture(grids, truth)
    columns = len(line.gammas)
    figure = new_figure(MARGIN + WIDE * columns, MARGIN + HIGH * len(rows))
    figure.set_layout_engine("none")  # constraints make room for the axes of a cube, which are not drawn
    width, height = figure.get_size_inches()
    for row, (way, grid, ratio) in enumerate(rows):
        bottom = HIGH * (len(rows) - 1 - row)
        figure.text(MARGIN / 2 / width, (bottom + HIGH / 2) / height, way, rotation=90, ha="center", va="center")
        for step in range(columns):
            left = MARGIN + WIDE * step
            place = (left / width, bottom / height, WIDE / width, HIGH / height)
            _draw_mesh(figure.add_axes(place, projection="3d"), distance_grid.surface(grid[step]), float(ratio[step]))
    for step, gamma in enumerate(line.gammas):
        figure.text((MARGIN + WIDE * (step + 0.5)) / width, 1 - MARGIN / 2 / height, f"{gamma:.2f}", ha="center")
    return save_figure(figure, folder, f"{NAME}.png")


def _rows_of_picture(
    grids: Mapping[str, Sequence[Tensor]], truth: Sequence[Tensor] | None
) -> list[tuple[str, Tensor, Tensor]]:
    """Of each row its name, distances `[S, R, R, R]`, and volumes `[S]` over the first chair's."""
    rows = []
    for pair in range(min(DRAWN, len(grids[EMBEDDINGS]))):
        ways = [] if truth is None else [(TRUE, truth[pair])]
        ways += [(way, grids[way][pair]) for way in (EMBEDDINGS, WEIGHTS)]
        rows += [(way, grid, _ratio_of_volumes(grid, grids[FIRST][pair])) for way, grid in ways]
    return rows


def _draw_mesh(plot: Any, mesh: Trimesh | None, ratio: float) -> None:
    """A mesh, turned so that its front and right side are seen.

    ratio: of its volume to the first chair's; below SPECKS it is said to be only specks
    """
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    plot.set(**{f"{axis}lim": (-reach, reach) for axis, reach in zip("xyz", REACH, strict=True)})
    plot.set_proj_type("ortho")
    plot.set_box_aspect(REACH, zoom=1.25)
    plot.set_axis_off()
    plot.view_init(elev=18, azim=-60)
    if mesh is None or ratio < SPECKS:
        said = "no surface" if mesh is None else "only specks"
        plot.text2D(0.5, 0.05, said, transform=plot.transAxes, ha="center", fontsize=7)
    if mesh is None:
        return
    x, y, z = mesh.vertices.T
    corners = np.stack([x, -z, y], axis=1)[mesh.faces]  # matplotlib's z is up, ours is y, and z is the front
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    shade = 0.35 + 0.6 * np.abs(normals @ (LIGHT / np.linalg.norm(LIGHT)))
    plot.add_collection3d(Poly3DCollection(corners, facecolors=np.outer(shade, (0.45, 0.62, 0.85)).clip(0, 1)))
