"""Signed distances on a grid of the cube -1 .. 1: volume and parts of the inside, and the surface as a mesh.

    grids_NRRR = distances_on_grid(network_outputs, resolution=64)     # network_outputs: [P, 3] -> [N, P, 1]
    volumes(grids_NRRR)
    mesh = surface(grids_NRRR[0])                                      # None if there is no surface
    write_mesh(mesh, "chair.obj")

Distances are negative inside; NaN counts as outside.
Shapes: N instances, P points or lines, S steps of a line, R grid points along an axis.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prepkit.errors import OutputError, PrepkitError
from prepkit.support.files import replacing

if TYPE_CHECKING:
    from trimesh import Trimesh

POINTS_AT_ONCE = 4096
CUBE_VOLUME = 8.0
FAR = 1000.0  # times the largest distance on the grid
MESH_SUFFIXES = (".obj", ".ply")


class MeshesMissing(PrepkitError, ImportError):
    """scikit-image or trimesh is not installed."""

    exit_code = 1


def grid_points(resolution: int, device: torch.device | str = "cpu") -> Tensor:
    """The points `[R R R, 3]` of a grid of the cube, ends included; x runs slowest."""
    axis = torch.linspace(-1, 1, resolution, device=device)
    return torch.cartesian_prod(axis, axis, axis)


def distances_on_grid(
    distances: Callable[[Tensor], Tensor], resolution: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Evaluate signed distances on a grid of the cube, without gradients: `[N, R, R, R]`.

    distances: points `[P, 3]` -> `[N, P, 1]`
    raises OutputError for a resolution below 2
    """
    if resolution < 2:
        raise OutputError(f"resolution {resolution}: a grid has at least 2 points along an axis.")
    with torch.no_grad():
        parts = [distances(part)[..., 0] for part in torch.split(grid_points(resolution, device), POINTS_AT_ONCE)]
    return torch.cat(parts, dim=1).view(-1, resolution, resolution, resolution)


def volumes(grids_NRRR: Tensor) -> list[float]:
    """The volume inside each surface: the share of grid points inside times the volume of the cube."""
    inside: list[float] = ((grids_NRRR < 0).flatten(1).double().mean(1) * CUBE_VOLUME).tolist()
    return inside


def share_of_monotone_volumes(grids_PSRRR: Tensor, turn: float) -> float:
    """Return the share of lines of shapes whose volume goes from one end's to the other's.

    turn: how far it may turn back, as a share of the largest volume on the line
    """
    monotone = []
    for grids_SRRR in grids_PSRRR:
        volume_S = torch.tensor(volumes(grids_SRRR), dtype=torch.float64)
        moves = volume_S.diff() * (1 if volume_S[-1] >= volume_S[0] else -1)
        monotone.append(bool((moves >= -turn * volume_S.max()).all()))
    return sum(monotone) / len(monotone)


def has_surface(grids_NRRR: Tensor) -> list[bool]:
    """Whether each grid has points inside and points outside."""
    inside = (grids_NRRR < 0).flatten(1)
    both: list[bool] = (inside.any(1) & ~inside.all(1)).tolist()
    return both


def largest_parts(grids_NRRR: Tensor) -> list[float]:
    """The share of each inside that its largest connected part holds; 0 where nothing is inside.

    Grid points inside are connected where they are neighbours along an axis. scipy is in the extra `[train]`.
    """
    import numpy as np
    from scipy import ndimage

    shares = []
    for inside in (grids_NRRR < 0).cpu().numpy():
        parts, _ = ndimage.label(inside)
        counts = np.bincount(parts[inside], minlength=1)
        shares.append(float(counts.max() / max(1, counts.sum())))
    return shares


def leave_cube(grids_NRRR: Tensor) -> list[bool]:
    """Whether each inside reaches the cube's boundary: some point of the grid's outer layer is inside."""
    inside = grids_NRRR < 0
    sides = [inside.select(axis, end).flatten(1).any(1) for axis in (1, 2, 3) for end in (0, -1)]
    cut: list[bool] = torch.stack(sides).any(0).tolist()
    return cut


def surface(grid_RRR: Tensor) -> Trimesh | None:
    """The surface by marching cubes; None if there is none. Where it leaves the cube, the cube's side closes it.

    raises MeshesMissing without scikit-image or trimesh
    """
    import numpy as np

    if not has_surface(grid_RRR.unsqueeze(0))[0]:
        return None
    try:
        from skimage.measure import marching_cubes
        from trimesh import Trimesh
    except ImportError:
        raise MeshesMissing(
            "meshes need scikit-image and trimesh; install them with pip install 'prepkit[train]'."
        ) from None
    step = 2 / (len(grid_RRR) - 1)
    cells = grid_RRR.double().cpu().numpy()
    cells = np.where(np.isfinite(cells), cells, step)
    # Far outside, so that a surface which leaves the cube is closed at the cube's side and not a step beyond it.
    closed = np.pad(cells, 1, constant_values=FAR * max(step, float(np.abs(cells).max())))
    vertices, faces, *_ = marching_cubes(closed, 0.0, spacing=(step,) * 3, gradient_direction="descent")  # type: ignore[no-untyped-call]
    return Trimesh(vertices.astype(np.float64) - 1 - step, faces.astype(np.int64), process=False)


def write_mesh(mesh: Trimesh, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a mesh whole or not at all, as .obj or .ply by the suffix.

    raises OutputError for another suffix, an existing file without `overwrite`, or one that cannot be written
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise OutputError(f"'{target}': the suffix says the format of a mesh; use {' or '.join(MESH_SUFFIXES)}.")
    with replacing(target, overwrite=overwrite) as temporary:
        mesh.export(temporary, file_type=suffix[1:])
