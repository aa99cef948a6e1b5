"""Fig. 4: shapes along lines of embeddings and of weights, and how close predicted signals come to their targets.

At each step of a line between two procedural chairs stands a true chair: that of the interpolated parameters. The line
of embeddings is compared with it, and with what needs no NetSpace: weights, the blend of both distance fields, and
staying at the first chair.
Shapes: P pairs, S steps, R grid points along an axis.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import prepkit
from netspace import meshes
from netspace.data import items_of
from netspace.evaluation import CLOSE, evaluate
from netspace.experiments.result import Picture, Progress, Result, Table, claim, new_figure, save_figure
from netspace.interpolation import Interpolation, interpolate, weights_between
from netspace.prediction import run_by_class_id
from prepkit.tasks.chairs import build, chair
from prepkit.tasks.randomness import generator

if TYPE_CHECKING:
    from netspace.checkpoint import Run

NAME = "chairs"
PAIRS, STEPS, RESOLUTION = 10, 7, 48
CLOSENESS, MIDPOINT, ABOVE_WEIGHTS = 0.8, 0.7, 0.5
WAYS = ("embeddings", "weights", "blended distances", "the first chair")
LIGHT = np.array([0.4, 0.8, 0.45])


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
    told("closeness of predicted signals")
    closeness = _closeness(run, space, zoo, task, seed)
    train = zoo.split("train")
    first, second = _pairs(train, pairs, seed)
    told(f"{pairs} pairs of chairs, {steps} steps each")
    line = interpolate(run, zoo, first, second, steps, space=space, task=task, resolution=8)
    grids = _grids(run, zoo, line, resolution, device)
    truth = _truth(task, zoo, line, resolution)
    overlap = {} if truth is None else {way: _iou(grids[way], truth).mean(0).tolist() for way in WAYS}
    middle = steps // 2
    surfaces = float(np.mean([flag for grid in grids["embeddings"] for flag in meshes.has_surface(grid)]))
    rising = _monotone_volumes(grids["embeddings"])
    closed, chamfer = _meshes_on_the_way(grids["embeddings"], truth)
    near = closeness["train"]["closeness_near"]
    claims = [
        claim("Near the surface, outputs of training instances within 1e-2 of the target's", near, ">=", CLOSENESS),
        claim("A surface at every step of every embedding line", surfaces, ">=", 1.0),
        claim("Of those surfaces, closed ones", closed, ">=", 1.0),
    ]
    tables = [_closeness_table(closeness)]
    if overlap:
        here, weights = overlap["embeddings"][middle], overlap["weights"][middle]
        claims += [
            claim("Overlap (IoU) with the true chair in the middle of the embedding line", here, ">=", MIDPOINT),
            claim("That much more than on the weight line", here - weights, ">=", ABOVE_WEIGHTS),
        ]
        rows = [(way, *(round(value, 3) for value in overlap[way])) for way in WAYS]
        columns = ("way", *(f"gamma {gamma:.2f}" for gamma in line.gammas))
        tables.append(Table("Mean overlap (IoU) with the chair of interpolated parameters", columns, tuple(rows)))
    picture = draw(line, grids, truth, folder)
    return Result(
        name=NAME,
        title="Shapes along a line (Fig. 4)",
        text=f"{pairs} pairs of training chairs, {steps} steps, grids of {resolution} points an axis. Closeness is the "
        "share of outputs within 1e-2 of the target's on points that training did not see; beside it that of another "
        "chair of the same split, drawn at random, which is what knowing nothing of the instance gives.",
        numbers={
            "closeness": closeness,
            "iou": overlap,
            "surfaces": surfaces,
            "closed": closed,
            "chamfer": chamfer,
            "volume_monotone": rising,
            "pairs": [first, second],
        },
        claims=claims,
        tables=tables,
        pictures=[Picture("One pair: the true chairs, along embeddings, along weights", picture)],
    )


# Closeness --------------------------------------------------------------------------------------------------------


def _closeness(run: Run, space: Any, zoo: prepkit.Zoo, task: Any, seed: int) -> dict[str, dict[str, float]]:
    """Of each split that has instances: closeness of its own predictions, and of a random other instance's."""
    found = {}
    for split in ("train", "test"):
        if not zoo.manifest.splits.get(split):
            continue
        view = zoo.split(split)
        summary = evaluate(space, run.registry, view, task, "test").summary()
        found[split] = {
            "closeness": summary["closeness"],
            "closeness_near": summary["closeness_near"],
            "another_instance": _another(run.registry, view, task, seed),
        }
    return found


def _another(registry: prepkit.Registry, zoo: prepkit.Zoo, task: Any, seed: int) -> float:
    """The share of an instance's outputs that those of another instance, drawn at random, come within 1e-2 of."""
    count = len(zoo)
    order = torch.randperm(count, generator=generator("another instance", seed)).tolist()
    preps_NHW = zoo.preps().to(task.device, torch.float32)
    shares = []
    for place, row in enumerate(order):
        points, _ = task.points(items_of(zoo)[row], "test")
        both = [row, order[(place + 1) % count]]
        outputs = run_by_class_id(registry, zoo.class_ids(both).tolist(), preps_NHW[both], points)
        shares.append(float(((outputs[0] - outputs[1]).abs() <= CLOSE).double().mean()))
    return float(np.mean(shares))


def _closeness_table(closeness: Mapping[str, Mapping[str, float]]) -> Table:
    rows = [
        (split, round(one["closeness"], 3), round(one["closeness_near"], 3), round(one["another_instance"], 3))
        for split, one in closeness.items()
    ]
    return Table("Closeness", ("split", "all points", "near the surface", "a random other chair"), tuple(rows))


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
            found[way].append(meshes.distance_grids(run.registry, ids, preps, resolution).cpu())
        ends = found["weights"][-1][[0, -1]]  # the targets themselves
        gamma_S111 = torch.tensor(line.gammas).view(-1, 1, 1, 1)
        found["blended distances"].append((1 - gamma_S111) * ends[0] + gamma_S111 * ends[1])
        found["the first chair"].append(ends[:1].expand(steps, -1, -1, -1))
    return found


def _truth(task: Any, zoo: prepkit.Zoo, line: Interpolation, resolution: int) -> list[Tensor] | None:
    """Distances to the chairs of interpolated parameters, `[S, R, R, R]` a pair; None where shapes are no chairs."""
    if task.record["dataset"] != "procedural_chairs":
        return None
    points = meshes.grid_points(resolution).double().numpy()
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
        volumes = torch.tensor(meshes.volumes(grid), dtype=torch.float64)
        moves = volumes.diff() * (1 if volumes[-1] >= volumes[0] else -1)
        monotone.append(bool((moves >= -0.02 * volumes.max()).all()))
    return float(np.mean(monotone))


def _meshes_on_the_way(grids: Sequence[Tensor], truth: Sequence[Tensor] | None) -> tuple[float, list[float] | None]:
    """The share of meshes that are closed, and the mean chamfer distance to the true surface at each step."""
    closed, distances = [], []
    for pair, grid in enumerate(grids):
        row = []
        for step, field in enumerate(grid):
            mesh = meshes.surface(field)
            if mesh is None:
                closed.append(False)
                row.append(float("nan"))
                continue
            closed.append(is_closed(mesh.triangles))
            true = None if truth is None else meshes.surface(truth[pair][step])
            row.append(float("nan") if true is None else chamfer(mesh.vertices, true.vertices))
        distances.append(row)
    return float(np.mean(closed)), None if truth is None else np.nanmean(distances, axis=0).tolist()


def is_closed(triangles: Any) -> bool:
    """Whether each edge belongs to as many triangles one way round as the other."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    forward, counts = np.unique(edges, axis=0, return_counts=True)
    backward, back_counts = np.unique(edges[:, ::-1], axis=0, return_counts=True)
    return bool(forward.shape == backward.shape and (forward == backward).all() and (counts == back_counts).all())


def chamfer(a: Any, b: Any) -> float:
    """The mean distance from each vertex to the nearest one of the other set, both ways, averaged."""
    from scipy.spatial import cKDTree

    return float((cKDTree(b).query(a)[0].mean() + cKDTree(a).query(b)[0].mean()) / 2)


# The picture ------------------------------------------------------------------------------------------------------


def draw(
    line: Interpolation, grids: Mapping[str, Sequence[Tensor]], truth: Sequence[Tensor] | None, folder: Path
) -> str:
    """The first pair's meshes, one way a row, one step a column; the name of the file."""
    rows = ([] if truth is None else [("true", truth[0])]) + [(way, grids[way][0]) for way in WAYS[:2]]
    figure = new_figure(1.5 * len(line.gammas), 1.7 * len(rows))
    for row, (way, grid) in enumerate(rows):
        for step, gamma in enumerate(line.gammas):
            plot = figure.add_subplot(len(rows), len(line.gammas), row * len(line.gammas) + step + 1, projection="3d")
            _draw_mesh(plot, meshes.surface(grid[step]))
            if step == 0:
                plot.text2D(-0.12, 0.5, way, transform=plot.transAxes, rotation=90, va="center", fontsize=8)
            if row == 0:
                plot.set_title(f"{gamma:.2f}", fontsize=8)
    return save_figure(figure, folder, f"{NAME}.png")


def _draw_mesh(plot: Any, mesh: meshes.Mesh | None) -> None:
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    plot.set(xlim=(-0.7, 0.7), ylim=(-0.7, 0.7), zlim=(-0.8, 0.8))
    plot.set_box_aspect((1.4, 1.4, 1.6), zoom=1.7)
    plot.set_axis_off()
    plot.view_init(elev=18, azim=-60)
    if mesh is None:
        plot.text2D(0.5, 0.5, "no surface", transform=plot.transAxes, ha="center", fontsize=7)
        return
    corners = mesh.vertices[mesh.triangles][:, :, [0, 2, 1]]  # matplotlib's z is up, ours is y
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    shade = 0.35 + 0.6 * np.abs(normals @ (LIGHT / np.linalg.norm(LIGHT)))
    plot.add_collection3d(Poly3DCollection(corners, facecolors=np.outer(shade, (0.45, 0.62, 0.85)).clip(0, 1)))
