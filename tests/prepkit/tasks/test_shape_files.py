"""Shapes in folders: DeepSDF's points; meshes, their distances compared with closed forms and winding numbers."""

import sys

import numpy as np
import pytest
import trimesh
from skimage.measure import marching_cubes

from prepkit.errors import ZooError
from prepkit.tasks._mesh import Mesh
from prepkit.tasks._sdf import BoxUnion, sample
from prepkit.tasks._shape_files import MESH_SUFFIXES, SDF_SUFFIXES, files_sha256, find_files, read_mesh, read_samples
from prepkit.tasks.chairs import build, chair
from prepkit.tasks.randomness import generator
from prepkit.tasks.task import DataMissing


def write(path, pos, neg, **others):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, pos=np.asarray(pos, np.float32), neg=np.asarray(neg, np.float32), **others)
    return path


# Finding ----------------------------------------------------------------------------------------------------------


def test_files_come_in_natural_order_from_all_folders(tmp_path):
    for name in ("10.npz", "2.npz", "b/1.npz", "b/a.NPZ", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folder, files = find_files(tmp_path, SDF_SUFFIXES, "sdf_files")
    assert folder == tmp_path
    assert [path.relative_to(tmp_path).as_posix() for path in files] == ["2.npz", "10.npz", "b/1.npz", "b/a.NPZ"]


def test_a_missing_folder_names_what_to_do(tmp_path):
    for folder, found in ((None, "none was named"), (tmp_path / "nowhere", "nowhere is not there")):
        with pytest.raises(DataMissing, match=rf"\(meshes\) are .obj, .ply, .stl, .off files.*{found}: data=FOLDER$"):
            find_files(folder, MESH_SUFFIXES, "meshes")


def test_a_folder_without_such_files_is_an_error(tmp_path):
    with pytest.raises(ZooError, match=r"holds no \.npz file"):
        find_files(tmp_path, SDF_SUFFIXES, "sdf_files")


def test_the_sha256_follows_names_and_contents(tmp_path):
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    seen = set()
    for contents in ((b"x", b"y"), (b"y", b"x"), (b"xy", b"")):
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        seen.add(files_sha256(tmp_path, paths))
    assert files_sha256(tmp_path, paths) in seen
    paths[1] = paths[1].rename(tmp_path / "c.npz")
    seen.add(files_sha256(tmp_path, paths))
    assert len(seen) == 4


# DeepSDF's files --------------------------------------------------------------------------------------------------


def test_points_are_read_as_they_are_without_rows_of_nan(tmp_path):
    pos = [[0.1, 0.2, 0.3, 0.5], [1, 2, 3, np.nan], [4, 5, 6, 7]]
    neg = [[0, 0, 0, -1], [np.nan, 0, 0, -1], [0, np.inf, 0, -2]]
    found = read_samples(write(tmp_path / "a.npz", pos, neg, units="mm"))
    np.testing.assert_array_equal(found.pos, np.array([pos[0], pos[2]], np.float32))
    np.testing.assert_array_equal(found.neg, np.array([neg[0]], np.float32))
    assert found.dropped == 3
    assert found.pos.dtype == np.float32


def test_damaged_and_foreign_files_are_errors_with_file_and_key(tmp_path):
    good = np.zeros((3, 4), np.float32)
    np.savez(tmp_path / "no_neg.npz", pos=good, rest=good)
    np.savez(tmp_path / "narrow.npz", pos=good, neg=good[:, :3])
    np.savez(tmp_path / "whole.npz", pos=good.astype(int), neg=good)
    np.savez(tmp_path / "objects.npz", pos=np.array([None, {}]), neg=good)
    (tmp_path / "text.npz").write_text("no archive")
    write(tmp_path / "cut.npz", good, good)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:200])
    for name, message in (
        ("no_neg", r"no_neg\.npz, neg: missing; the file holds pos, rest"),
        ("narrow", r"narrow\.npz, neg: expected floating point \[n, 4\].*found \[3, 3\] float32"),
        ("whole", r"whole\.npz, pos: expected .* found \[3, 4\] int64"),
        ("objects", r"objects\.npz: is no \.npz file of arrays \(ValueError: .*allow_pickle=False"),
        ("text", r"text\.npz: is no \.npz file of arrays"),
        ("cut", r"cut\.npz: is no \.npz file of arrays"),
        ("nowhere", r"nowhere\.npz: is no \.npz file of arrays \(FileNotFoundError"),
    ):
        with pytest.raises(ZooError, match=message):
            read_samples(tmp_path / f"{name}.npz")


# Meshes -----------------------------------------------------------------------------------------------------------


def as_mesh(found):
    return Mesh(np.asarray(found.vertices, np.float64), np.asarray(found.faces, np.int64))


def marched_chair(count=40):
    solid = build(chair(5, 0))
    axis = np.linspace(-1, 1, count)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    vertices, faces, _, _ = marching_cubes(solid.distance(grid).reshape(count, count, count), 0.0)
    found = trimesh.Trimesh(vertices * 2 / (count - 1) - 1, faces)
    if found.volume < 0:
        found.invert()
    return found


def spike():
    """A sharp pyramid: beside its tip, triangles that are nearest face away from points outside."""
    vertices = np.array([[0, 0, 0.9], [-0.1, -0.1, -0.5], [0.3, -0.1, -0.5], [0.25, 0.05, -0.5], [-0.1, 0.1, -0.5]])
    faces = [[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 1], [1, 4, 3], [1, 3, 2]]
    return trimesh.Trimesh(vertices, faces)


def fan():
    """A tip where twelve slivers of one side outvote the other sides, if they count by number and not by angle."""
    edge = np.linspace([0.3, -0.1, -0.5], [-0.1, -0.1, -0.5], 13)
    vertices = np.array([[0, 0, 0.1], [-0.1, 0.3, -0.5], *edge])
    first, last = 2, 14
    faces = [[0, k + 1, k] for k in range(first, last)] + [[1, k, k + 1] for k in range(first, last)]
    return trimesh.Trimesh(vertices, [*faces, [0, first, 1], [0, 1, last]])


def winding_number(points, found):
    """Solid angle of all triangles seen from each point over 4 pi (Van Oosterom and Strackee, 1983): 1 inside."""
    total = np.zeros(len(points))
    for triangle in found.triangles:
        a, b, c = (triangle[corner] - points for corner in range(3))
        la, lb, lc = (np.linalg.norm(side, axis=1) for side in (a, b, c))
        above = (a * np.cross(b, c)).sum(1)
        below = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
        total += 2 * np.arctan2(above, below)
    return total / (4 * np.pi)


def segment_distance(points, start, end):
    share = (((points - start) @ (end - start)) / ((end - start) @ (end - start))).clip(0, 1)
    return np.linalg.norm(points - start - share[:, None] * (end - start), axis=1)


def triangle_distance(points, triangle):
    """By cases: above the triangle its plane, elsewhere the nearest of its sides."""
    normal = np.cross(triangle[1] - triangle[0], triangle[2] - triangle[0])
    normal /= np.linalg.norm(normal)
    beside = np.stack([np.cross(triangle[k - 2] - triangle[k], points - triangle[k]) @ normal for k in range(3)])
    sides = np.min([segment_distance(points, triangle[k], triangle[k - 2]) for k in range(3)], axis=0)
    return np.where((beside >= 0).all(0), np.abs((points - triangle[0]) @ normal), sides)


MESHES = {
    "chair": marched_chair,
    "spike": spike,
    "fan": fan,
    "ring": lambda: trimesh.creation.annulus(0.3, 0.6, 0.4),
    "cone": lambda: trimesh.creation.cone(0.3, 0.9, sections=7),
}


@pytest.mark.parametrize("name", MESHES)
def test_the_distance_of_a_mesh_is_that_of_all_its_triangles_with_the_sign_of_its_winding_number(name):
    found = MESHES[name]()
    draws = np.random.default_rng(0)
    around = found.vertices[draws.integers(len(found.vertices), size=150)]
    points = np.concatenate([draws.uniform(-1, 1, (100, 3)), around + draws.normal(0, 0.03, around.shape)])
    distance = as_mesh(found).distance(points)
    nearest = np.min([triangle_distance(points, triangle) for triangle in found.triangles], axis=0)
    np.testing.assert_allclose(np.abs(distance), nearest, atol=1e-12)
    np.testing.assert_array_equal(distance < 0, winding_number(points, found) > 0.5)
    assert 5 < (distance < 0).sum() < 200


def test_a_box_as_a_mesh_and_as_a_box_agree():
    found = trimesh.creation.box((1.0, 0.6, 0.8))
    points = np.random.default_rng(0).uniform(-1, 1, (6000, 3))  # more than a chunk
    solid = BoxUnion(np.array([[-0.5, -0.3, -0.4]]), np.array([[0.5, 0.3, 0.4]]))
    np.testing.assert_allclose(as_mesh(found).distance(points), solid.distance(points), atol=1e-12)
    np.testing.assert_array_equal(as_mesh(found).contains(points), solid.contains(points))
    assert as_mesh(found).distance(points[:0]).shape == (0,)


def test_points_of_a_mesh_are_uniform():
    solid = as_mesh(trimesh.creation.box((1.0, 0.6, 0.8)))
    on = solid.surface(20_000, generator("test", 0))
    np.testing.assert_allclose(solid.distance(on), 0, atol=1e-12)
    area = 2 * (1.0 * 0.6 + 1.0 * 0.8 + 0.6 * 0.8)
    for axis, side in enumerate((0.5, 0.3, 0.4)):
        at = np.isclose(on[:, axis], side)
        others = np.delete([1.0, 0.6, 0.8], axis)
        assert at.mean() == pytest.approx(others.prod() / area, abs=0.012)
        np.testing.assert_allclose(np.delete(on[at], axis, 1).mean(0), 0, atol=0.03)
        np.testing.assert_allclose(np.delete(on[at], axis, 1).std(0), others * 12**-0.5, rtol=0.05)
    points, distances = sample(solid, 8000, 0.0, 0.05, generator("test", 1))
    inside = points[:4000]
    assert (distances[:4000] <= 0).all()
    assert (distances[4000:] > 0).all()
    np.testing.assert_allclose(inside.std(0), np.array([1.0, 0.6, 0.8]) * 12**-0.5, rtol=0.04)


def test_the_room_of_a_mesh_leaves_nothing_of_the_inside_out():
    found = marched_chair()
    solid = as_mesh(found)
    points, _ = sample(solid, 4000, 0.0, 0.05, generator("test", 0))
    low, high = found.bounds
    plain = np.random.default_rng(0).uniform(low, high, (20_000, 3))
    plain = plain[solid.contains(plain)]
    np.testing.assert_allclose(points[:2000].mean(0), plain.mean(0), atol=0.03)
    np.testing.assert_allclose(points[:2000].std(0), plain.std(0), atol=0.03)
    shallow = [(solid.distance(some.astype(np.float64)) > -0.01).mean() for some in (points[:2000], plain)]
    assert shallow[0] == pytest.approx(shallow[1], abs=0.03)


@pytest.mark.parametrize("suffix", MESH_SUFFIXES)
def test_each_kind_of_file_is_read_and_normalised(suffix, tmp_path):
    found = trimesh.creation.box((2.0, 4.0, 4.0))
    found.apply_translation((5.0, 6.0, 7.0))
    path = tmp_path / f"a{suffix}"
    found.export(path)
    solid = read_mesh(path)
    scale = 1 / 1.03 / 3  # half of the diagonal is 3
    half = np.array([[1.0, 2.0, 2.0]]) * scale
    points = np.random.default_rng(0).uniform(-1, 1, (200, 3))
    np.testing.assert_allclose(solid.distance(points), BoxUnion(-half, half).distance(points), atol=1e-6)


def test_a_mesh_turned_inside_out_is_turned_back(tmp_path):
    found = trimesh.creation.box()
    found.invert()
    found.export(tmp_path / "a.ply")
    assert read_mesh(tmp_path / "a.ply").distance(np.zeros((1, 3)))[0] < 0


def test_seams_of_textures_are_none_of_the_surface(tmp_path):
    """A box whose sides have corners of their own, as files with a normal or a texture point a corner do."""
    found = trimesh.creation.box()
    lines = [f"v {x} {y} {z}" for x, y, z in found.vertices]
    lines += [f"vn {x} {y} {z}" for x, y, z in found.face_normals]
    lines += ["vt 0 0", "vt 0 1", "vt 1 0"]
    for number, corners in enumerate(found.faces + 1):
        lines.append("f " + " ".join(f"{corner}/{k + 1}/{number + 1}" for k, corner in enumerate(corners)))
    (tmp_path / "a.obj").write_text("\n".join(lines))
    assert read_mesh(tmp_path / "a.obj").distance(np.zeros((1, 3)))[0] == pytest.approx(-1 / 1.03 / 3**0.5)


def test_a_mesh_with_a_hole_is_an_error(tmp_path):
    found = trimesh.creation.box()
    found.update_faces(np.arange(12) != 3)
    found.export(tmp_path / "open.off")
    with pytest.raises(ZooError, match=r"open\.off: is not watertight, so it has no inside: .*Repair it first"):
        read_mesh(tmp_path / "open.off")


@pytest.mark.parametrize("content", ["", "no mesh", "OFF\n3 1 0\n0 0 0\n"])
@pytest.mark.parametrize("suffix", MESH_SUFFIXES)
def test_a_damaged_mesh_is_an_error(suffix, content, tmp_path):
    path = tmp_path / f"bad{suffix}"
    path.write_text(content)
    with pytest.raises(ZooError, match=rf"bad\{suffix}: (cannot be read as a mesh|is not watertight)"):
        read_mesh(path)


def test_without_trimesh_the_error_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(DataMissing, match=r"which is missing; pip install 'prepkit\[train\]'\.$"):
        read_mesh(tmp_path / "a.obj")
