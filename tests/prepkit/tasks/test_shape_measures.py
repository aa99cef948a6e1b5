"""Validity, overlap and chamfer distance of shapes, on unions of balls whose measures are known."""

import math

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from prepkit.tasks.distance_grid import largest_parts, leave_cube
from prepkit.tasks.shape_measures import chamfer_distance, measure_shapes, overlaps

Ball = tuple[float, float]  # x of the centre, and radius


def unions_of(*balls: list[Ball], points: int = 41) -> Tensor:
    """Distances `[N, R, R, R]` to unions of balls."""
    axis = torch.linspace(-1, 1, points)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    grids = [torch.stack([((x - at) ** 2 + y**2 + z**2).sqrt() - radius for at, radius in union]) for union in balls]
    return torch.stack([union.amin(0) for union in grids])


def test_overlaps() -> None:
    balls = unions_of([(0, 0.4)], [(0, 0.5)], [(0, -1.0)])
    assert overlaps(balls[[0, 1, 2]], balls[[0, 1, 2]]).tolist() == [1, 1, 0]  # nothing is in two empty shapes
    assert overlaps(balls[:1], balls[1:2]).item() == pytest.approx((0.4 / 0.5) ** 3, abs=0.02)


def test_what_makes_shapes_valid() -> None:
    nothing = torch.full((1, 41, 41, 41), 1.0)
    ball, parted, cut, speck = unions_of([(0, 0.5)], [(-0.5, 0.3), (0.5, 0.4)], [(0.8, 0.5)], [(0, 0.15)]).split(1)
    grids, balls = torch.cat([ball, parted, cut, speck, nothing]), ball.expand(5, -1, -1, -1)
    measures = measure_shapes(grids, balls, balls)
    assert measures.surface.tolist() == [True, True, True, True, False]
    assert measures.one_part.tolist() == [True, False, True, True, False]
    assert measures.uncut.tolist() == [True, True, False, True, False]
    assert measures.solid.tolist() == [True, True, True, False, False]  # 0.3 ** 3 is below 5 %
    assert measures.valid.tolist() == [True, False, False, False, False]
    assert measures.chamfer[0] == 0
    assert measures.chamfer[3].item() == pytest.approx(0.35, abs=0.01)  # between two spheres with one centre
    assert measures.chamfer[4].isnan()
    without_truth = measure_shapes(ball, ball)
    assert without_truth.valid.all()
    assert without_truth.chamfer.isnan().all()


def test_parts_and_the_cube_boundary() -> None:
    two, one, none = unions_of([(-0.5, 0.3), (0.5, 0.4)], [(0, 0.4)], [(0, -1.0)])
    share = 0.4**3 / (0.3**3 + 0.4**3)
    assert largest_parts(torch.stack([two, one, none])) == pytest.approx([share, 1, 0], abs=0.02)
    for axis in range(3):
        for end in (0, 40):
            grid = torch.ones(41, 41, 41)
            place = [20, 20, 20]
            place[axis] = end
            grid[tuple(place)] = -1
            assert leave_cube(torch.stack([grid, one])) == [True, False]


def test_chamfer_distance() -> None:
    triangles = np.zeros((0, 3), np.int64)
    first = trimesh.Trimesh(np.zeros((1, 3)), triangles, process=False)
    second = trimesh.Trimesh(np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]]), triangles, process=False)
    assert chamfer_distance(first, second) == pytest.approx((1 + (5 + 1) / 2) / 2)
    assert math.isnan(chamfer_distance(first, None))
