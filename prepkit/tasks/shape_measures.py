"""Measures of shapes whose signed distances are known on a grid: what makes them valid, and how near a true shape is.

    measures = measure_shapes(grids_NRRR, reference_NRRR, true_NRRR)
    measures.valid                                # [N]
    overlaps(grids_NRRR, true_NRRR)               # [N], intersection over union

Distances are negative inside. scipy and scikit-image are in the extra `[train]`.
Shapes: N shapes, R grid points along an axis.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prepkit.tasks.distance_grid import has_surface, largest_parts, leave_cube, surface, volumes

if TYPE_CHECKING:
    from trimesh import Trimesh

SPECKS = 0.05  # of the reference's volume: a smaller inside is only specks
ONE_PART = 0.99  # of the inside: the rest of it may be a few grid points


@dataclass(frozen=True)
class ShapeMeasures:
    """Measures of N shapes; all are false or NaN where there is no surface.

    surface:  `[N]`, whether there are points inside and outside
    solid:    `[N]`, whether the volume is at least SPECKS of the reference's
    one_part: `[N]`, whether the largest connected part holds at least ONE_PART of the grid points inside
    uncut:    `[N]`, whether the shape stays within the cube, whose boundary would cut it
    chamfer:  `[N]`, distance to the true shape where the cube's side is 2; NaN without a true one
    """

    surface: Tensor
    solid: Tensor
    one_part: Tensor
    uncut: Tensor
    chamfer: Tensor

    @property
    def valid(self) -> Tensor:
        """Whether a shape has a surface, is solid, one part and uncut, `[N]`."""
        return self.surface & self.solid & self.one_part & self.uncut


def measure_shapes(grids_NRRR: Tensor, reference_NRRR: Tensor, true_NRRR: Tensor | None = None) -> ShapeMeasures:
    """Measure shapes.

    reference_NRRR: shapes whose volumes decide what specks are
    true_NRRR:      shapes that chamfer distances are measured to
    """
    surface_N = torch.tensor(has_surface(grids_NRRR))
    true = [None] * len(grids_NRRR) if true_NRRR is None else [surface(grid) for grid in true_NRRR]
    distances = [
        float("nan") if mesh is None else chamfer_distance(surface(grid), mesh)
        for grid, mesh in zip(grids_NRRR, true, strict=True)
    ]
    return ShapeMeasures(
        surface=surface_N,
        solid=surface_N & (volume_ratios(grids_NRRR, reference_NRRR) >= SPECKS),
        one_part=surface_N & (torch.tensor(largest_parts(grids_NRRR)) >= ONE_PART),
        uncut=surface_N & ~torch.tensor(leave_cube(grids_NRRR)),
        chamfer=torch.tensor(distances, dtype=torch.float64),
    )


def volume_ratios(grids_NRRR: Tensor, reference_NRRR: Tensor) -> Tensor:
    """Return volumes `[N]` inside over those of the references; NaN or infinite where a reference has none."""
    return torch.tensor(volumes(grids_NRRR)) / torch.tensor(volumes(reference_NRRR))


def overlaps(grids_NRRR: Tensor, true_NRRR: Tensor) -> Tensor:
    """Return the intersection over union `[N]` of the insides; 0 where neither shape has one."""
    inside, expected = (grids_NRRR < 0).flatten(1), (true_NRRR < 0).flatten(1)
    both, either = (inside & expected).sum(1), (inside | expected).sum(1)
    return both.double() / either.clamp(min=1)


def chamfer_distance(first: Trimesh | None, second: Trimesh | None) -> float:
    """Return the mean distance from a vertex to the nearest one of the other mesh, both ways, averaged.

    returns NaN without a mesh
    """
    from scipy.spatial import cKDTree

    if first is None or second is None:
        return float("nan")
    a, b = first.vertices, second.vertices
    return float((cKDTree(b).query(a)[0].mean() + cKDTree(a).query(b)[0].mean()) / 2)
