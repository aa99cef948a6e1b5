"""Networks of signed distances as meshes: sampled on a grid of the cube -1 .. 1, their surface found by marching cubes.

    grids_NRRR = distance_grids(registry, class_ids, preps_NHW, resolution=64)
    mesh = surface(grids_NRRR[0])                 # None if there is no surface
    mesh.write("chair.obj")

Distances are negative inside. scikit-image is in the extra `[train]` and imported when a mesh is made.
Shapes: N instances, H x W the PRep, R grid points along an axis, V vertices, F triangles.
"""

# ruff: noqa: N803 - names of tensors end in their axes

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import prepkit
from netspace.space.evaluation import POINTS_AT_ONCE
from netspace.space.prediction import run_by_class_id
from prepkit.errors import OutputError
from prepkit.files import replacing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESOLUTION = 64
CUBE = 8.0  # volume of -1 .. 1
FAR = 1000.0


class MeshesMissing(prepkit.PrepkitError, ImportError):
    """scikit-image is not installed."""

    exit_code = 1


@dataclass(frozen=True)
class Mesh:
    """A closed surface.

    vertices:  `[V, 3]` float64
    triangles: `[F, 3]` int64, counter-clockwise seen from outside
    """

    vertices: NDArray[np.float64]
    triangles: NDArray[np.int64]

    @property
    def volume(self) -> float:
        """Enclosed, by the divergence theorem."""
        import numpy as np

        a, b, c = (self.vertices[self.triangles[:, corner]] for corner in range(3))
        return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the mesh whole or not at all; the suffix says the format: .obj or .ply.

        raises OutputError for another suffix, an existing file without `overwrite`, or one that cannot be written
        """
        target = Path(path)
        if target.suffix.lower() not in (".obj", ".ply"):
            raise OutputError(f"'{target}': the suffix says the format of a mesh; use .obj or .ply.")
        write = _write_obj if target.suffix.lower() == ".obj" else _write_ply
        with replacing(target, overwrite=overwrite) as temporary:
            write(self, temporary)


def grid_points(resolution: int, device: torch.device | str = "cpu") -> Tensor:
    """The points `[R R R, 3]` of a grid of the cube, ends included; x runs slowest."""
    axis = torch.linspace(-1, 1, resolution, device=device)
    return torch.cartesian_prod(axis, axis, axis)


def distance_grids(
    registry: prepkit.Registry, class_ids: Sequence[int], preps_NHW: Tensor, resolution: int = RESOLUTION
) -> Tensor:
    """The signed distances `[N, R, R, R]` that instances put out on a grid of the cube, on their device.

    raises OutputError for a resolution below 2
    """
    if resolution < 2:
        raise OutputError(f"resolution {resolution}: a grid has at least 2 points along an axis.")
    points = grid_points(resolution, preps_NHW.device)
    with torch.no_grad():
        parts = [
            run_by_class_id(registry, class_ids, preps_NHW, part)[..., 0]
            for part in torch.split(points, POINTS_AT_ONCE)
        ]
    return torch.cat(parts, dim=1).view(len(preps_NHW), resolution, resolution, resolution)


def volumes(grids_NRRR: Tensor) -> list[float]:
    """The volume inside of each: the share of the grid's points there times the cube's; NaN counts as outside."""
    found: list[float] = ((grids_NRRR < 0).flatten(1).double().mean(1) * CUBE).tolist()
    return found


def has_surface(grids_NRRR: Tensor) -> list[bool]:
    """Whether there are points inside and outside."""
    inside = (grids_NRRR < 0).flatten(1)
    found: list[bool] = (inside.any(1) & ~inside.all(1)).tolist()
    return found


def largest_parts(grids_NRRR: Tensor) -> list[float]:
    """The share of each inside that its largest connected part holds; 0 where nothing is inside.

    Grid points inside are connected where they are neighbours along an axis. scipy is in the extra `[train]`.
    """
    import numpy as np
    from scipy import ndimage

    found = []
    for inside in (grids_NRRR < 0).cpu().numpy():
        parts, _ = ndimage.label(inside)
        counts = np.bincount(parts[inside], minlength=1)
        found.append(float(counts.max() / max(1, counts.sum())))
    return found


def leave_cube(grids_NRRR: Tensor) -> list[bool]:
    """Whether the cube's boundary cuts each inside off: points of the grid's outer layer are in it."""
    inside = grids_NRRR < 0
    sides = [inside.select(axis, end).flatten(1).any(1) for axis in (1, 2, 3) for end in (0, -1)]
    found: list[bool] = torch.stack(sides).any(0).tolist()
    return found


def surface(grid_RRR: Tensor) -> Mesh | None:
    """The surface of signed distances on a grid; None if there is none. Where it leaves the cube, the cube's side is.

    raises MeshesMissing without scikit-image
    """
    import numpy as np

    if not has_surface(grid_RRR.unsqueeze(0))[0]:
        return None
    try:
        from skimage.measure import marching_cubes
    except ImportError:
        raise MeshesMissing("meshes need scikit-image; install it with pip install 'prepkit[train]'.") from None
    step = 2 / (len(grid_RRR) - 1)
    cells = grid_RRR.double().cpu().numpy()
    cells = np.where(np.isfinite(cells), cells, step)
    # Far outside, so that a surface which leaves the cube is closed at the cube's side and not a step beyond it.
    closed = np.pad(cells, 1, constant_values=FAR * max(step, float(np.abs(cells).max())))
    found = marching_cubes(closed, 0.0, spacing=(step,) * 3, gradient_direction="descent")  # type: ignore[no-untyped-call]
    vertices, triangles = found[:2]
    return Mesh(vertices.astype(np.float64) - 1 - step, triangles.astype(np.int64))


def _write_obj(mesh: Mesh, path: Path) -> None:
    with path.open("w", encoding="ascii") as file:
        file.writelines(f"v {x:.7g} {y:.7g} {z:.7g}\n" for x, y, z in mesh.vertices.tolist())
        file.writelines(f"f {a} {b} {c}\n" for a, b, c in (mesh.triangles + 1).tolist())


def _write_ply(mesh: Mesh, path: Path) -> None:
    import numpy as np

    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(mesh.vertices)}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"element face {len(mesh.triangles)}", "property list uchar int vertex_indices", "end_header", ""]
    faces = np.empty(len(mesh.triangles), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.triangles
    path.write_bytes("\n".join(lines).encode("ascii") + mesh.vertices.astype("<f4").tobytes() + faces.tobytes())
