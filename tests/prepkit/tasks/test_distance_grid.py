"""Signed distances on grids: volumes, surfaces and their files, checked with trimesh on balls and half spaces."""

import math

import numpy as np
import pytest
import torch
import trimesh

from prepkit.errors import OutputError
from prepkit.tasks import distance_grid


def ball(resolution, radius=0.5, centre=(0.1, -0.2, 0.3)):
    points = distance_grid.grid_points(resolution)
    return ((points - torch.tensor(centre)).norm(dim=1) - radius).view(resolution, resolution, resolution)


def test_volume_and_surface_of_a_ball():
    grid = ball(48)
    true = 4 / 3 * math.pi * 0.5**3
    assert distance_grid.volumes(grid[None]) == pytest.approx([true], rel=0.08)
    mesh = distance_grid.surface(grid)
    loaded = trimesh.Trimesh(mesh.vertices, mesh.faces)
    assert loaded.is_watertight
    assert loaded.volume == pytest.approx(mesh.volume)
    assert mesh.volume == pytest.approx(true, rel=0.02)  # positive: triangles face outwards
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices - [0.1, -0.2, 0.3], axis=1), 0.5, atol=0.01)


def test_a_surface_that_leaves_the_cube_is_closed():
    mesh = distance_grid.surface(distance_grid.grid_points(9)[:, 0].view(9, 9, 9) - 0.1)
    loaded = trimesh.Trimesh(mesh.vertices, mesh.faces)
    assert loaded.is_watertight
    assert mesh.volume == pytest.approx(2 * 2 * 1.1, rel=0.01)
    assert np.abs(mesh.vertices).max() == pytest.approx(1, abs=1e-3)


def test_no_surface():
    grids = torch.stack([torch.ones(4, 4, 4), -torch.ones(4, 4, 4), torch.full((4, 4, 4), math.nan), ball(4)])
    assert distance_grid.has_surface(grids) == [False, False, False, True]
    assert [distance_grid.surface(grid) is not None for grid in grids] == [False, False, False, True]
    with pytest.raises(OutputError, match="at least 2 points"):
        distance_grid.distances_on_grid(lambda points: points, 1)


@pytest.mark.parametrize("suffix", [".obj", ".ply"])
def test_mesh_files(tmp_path, suffix):
    mesh = distance_grid.surface(ball(12))
    path = tmp_path / f"ball{suffix}"
    distance_grid.write_mesh(mesh, path)
    loaded = trimesh.load_mesh(path, process=False)
    np.testing.assert_allclose(loaded.vertices, mesh.vertices, atol=1e-6)
    np.testing.assert_array_equal(loaded.faces, mesh.faces)
    with pytest.raises(OutputError, match="exists already"):
        distance_grid.write_mesh(mesh, path)
    with pytest.raises(OutputError, match=r"use .obj or .ply"):
        distance_grid.write_mesh(mesh, tmp_path / "ball.stl")


def test_scikit_image_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage.measure", None)
    with pytest.raises(distance_grid.MeshesMissing, match=r"prepkit\[train\]"):
        distance_grid.surface(ball(4))
