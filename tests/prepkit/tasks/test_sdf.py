"""Signed distances of unions of boxes, against closed forms and against dense samples of the true surface."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from prepkit.errors import ZooError
from prepkit.tasks._sdf import FARTHEST, BoxUnion, normalised, sample
from prepkit.tasks.chairs import build, chair
from prepkit.tasks.randomness import generator

# A T of two touching boxes, an L of two overlapping ones, a ring with a hole, a hollow box, and two apart.
UNIONS = {
    "touching": [((-0.5, 0.0, -0.2), (0.5, 0.3, 0.2)), ((-0.2, -0.6, -0.2), (0.2, 0.0, 0.2))],
    "overlapping": [((-0.5, -0.5, -0.5), (0.0, 0.5, 0.0)), ((-0.3, -0.5, -0.2), (0.5, 0.0, 0.4))],
    "ring": [
        ((-0.5, -0.1, -0.5), (0.5, 0.1, -0.3)),
        ((-0.5, -0.1, 0.3), (0.5, 0.1, 0.5)),
        ((-0.5, -0.1, -0.3), (-0.3, 0.1, 0.3)),
        ((0.3, -0.1, -0.3), (0.5, 0.1, 0.3)),
    ],
    "hollow": [
        ((-0.6, -0.6, -0.6), (0.6, 0.6, -0.3)),
        ((-0.6, -0.6, 0.3), (0.6, 0.6, 0.6)),
        ((-0.6, -0.6, -0.3), (0.6, -0.3, 0.3)),
        ((-0.6, 0.3, -0.3), (0.6, 0.6, 0.3)),
        ((-0.6, -0.3, -0.3), (-0.3, 0.3, 0.3)),
        ((0.3, -0.3, -0.3), (0.6, 0.3, 0.3)),
    ],
    "apart": [((-0.6, -0.6, -0.6), (-0.2, -0.2, -0.2)), ((0.1, 0.1, 0.1), (0.6, 0.5, 0.4))],
}
SPACING = 0.01
SLACK = 2**0.5 * SPACING


def union(name):
    if name.startswith("chair"):
        return build(chair(int(name[5:]), 0))
    corners = np.array(UNIONS[name])
    return BoxUnion(corners[:, 0], corners[:, 1])


def in_any(solid, points):
    found = ((points[:, None] >= solid.low) & (points[:, None] <= solid.high)).all(2)
    return found.any(1)


def true_surface(solid):
    """A dense grid on every side of every box, without what has material on both sides of it.

    Every box's edges are lines of the grid, so a point of the surface has one of the grid within SLACK.
    """
    kept = []
    edges = [np.unique([solid.low[:, axis], solid.high[:, axis]]) for axis in range(3)]
    fine = [np.union1d(lines, np.arange(lines[0], lines[-1], SPACING)) for lines in edges]
    for low, high in zip(solid.low, solid.high, strict=True):
        for axis in range(3):
            others = [other for other in range(3) if other != axis]
            grids = [fine[other][(fine[other] >= low[other]) & (fine[other] <= high[other])] for other in others]
            plane = np.empty((len(grids[0]) * len(grids[1]), 3))
            plane[:, others] = np.stack(np.meshgrid(*grids, indexing="ij"), -1).reshape(-1, 2)
            for side, step in ((low[axis], -1e-7), (high[axis], 1e-7)):
                plane[:, axis] = side
                beyond = plane + step * np.eye(3)[axis]
                kept.append(plane[~in_any(solid, beyond)])
    return np.concatenate(kept)


def test_points(solid):
    """Uniform ones, and pairs inside and around the corners of every box, where the seams are."""
    draws = np.random.default_rng(0)
    corners = np.concatenate([solid.low, solid.high])
    near = np.repeat(corners, 8, 0) + draws.normal(0, 0.06, (8 * len(corners), 3))
    inside = solid.interior(150, generator("test", 1))
    return np.concatenate([draws.uniform(-1, 1, (100, 3)), near, inside])


test_points.__test__ = False


@pytest.mark.parametrize("name", [*UNIONS, "chair0", "chair4", "chair5", "chair6"])
def test_the_distance_is_that_to_the_true_surface(name):
    solid = union(name)
    points = test_points(solid)
    distance, nearest = solid.distance(points), cKDTree(true_surface(solid)).query(points)[0]
    np.testing.assert_array_equal(distance < 0, in_any(solid, points))
    assert (np.abs(distance) <= nearest + 1e-12).all()
    assert (nearest <= np.abs(distance) + SLACK).all()


@pytest.mark.parametrize("name", ["touching", "overlapping", "ring", "hollow", "chair5"])
def test_the_least_of_the_boxes_distances_is_wrong_there(name):
    """The test above would find it, outside of its slack."""
    solid = union(name)
    points = test_points(solid)
    middle, half = (solid.low + solid.high) / 2, (solid.high - solid.low) / 2
    each = np.abs(points[:, None] - middle) - half
    plain = (np.linalg.norm(each.clip(min=0), axis=2) + each.max(2).clip(max=0)).min(1)
    distance = solid.distance(points)
    outside = distance > 0
    np.testing.assert_allclose(distance[outside], plain[outside], atol=1e-12)
    assert (distance[~outside] <= plain[~outside] + 1e-12).all()
    assert (plain[~outside] - distance[~outside]).max() > 1.5 * SLACK


def one_box(points, low, high):
    each = np.abs(points - (low + high) / 2) - (high - low) / 2
    return np.linalg.norm(each.clip(min=0), axis=1) + each.max(1).clip(max=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.sampled_from([0.0, 0.1]))
def test_a_box_cut_into_touching_or_overlapping_pieces_is_the_box(seed, cuts, overlap):
    draws = np.random.default_rng(seed)
    whole = np.array([draws.uniform(-0.9, -0.2, 3), draws.uniform(0.2, 0.9, 3)])
    pieces = [whole]
    for _ in range(cuts):
        piece = pieces.pop(0)
        axis, share = draws.integers(3), draws.uniform(0.2, 0.8)
        at = piece[0, axis] + share * (piece[1, axis] - piece[0, axis])
        lower, upper = piece.copy(), piece.copy()
        lower[1, axis] = min(at + overlap, piece[1, axis])
        upper[0, axis] = at
        pieces += [lower, upper]
    corners = np.array(pieces)
    points = draws.uniform(-1, 1, (300, 3))
    found = BoxUnion(corners[:, 0], corners[:, 1]).distance(points)
    np.testing.assert_allclose(found, one_box(points, *whole), atol=1e-12)


def test_the_surface_between_two_touching_boxes_is_none():
    solid = union("touching")
    on_the_seam = np.array([[0.0, 0.0, 0.0]])
    assert solid.contains(on_the_seam)
    # the nearest surface is the narrow sides, 0.2 away
    np.testing.assert_allclose(solid.distance(on_the_seam), [-0.2])


def test_a_slit_that_rounding_made_is_none():
    low = np.array([[-0.5, -0.5, -0.5], [1e-15, -0.5, -0.5]])
    high = np.array([[-1e-15, 0.5, 0.5], [0.5, 0.5, 0.5]])
    solid = BoxUnion(low, high)
    assert len(solid.faces) == 6
    np.testing.assert_allclose(solid.distance(np.zeros((1, 3))), [-0.5])


def test_more_points_than_a_chunk_keep_their_places():
    solid = union("overlapping")
    points = np.random.default_rng(0).uniform(-1, 1, (40_000, 3))
    some = np.array([0, 16_383, 16_384, 39_999])
    np.testing.assert_array_equal(solid.distance(points)[some], solid.distance(points[some]))
    assert solid.distance(points[:0]).shape == (0,)


@pytest.mark.parametrize("name", [*UNIONS, "chair3"])
def test_faces_and_cells_are_disjoint_and_whole(name):
    solid = union(name)
    sides = solid.cells[:, 1] - solid.cells[:, 0]
    draws = np.random.default_rng(0).uniform(-1, 1, (100_000, 3))
    share = in_any(solid, draws).mean()
    assert sides.prod(1).sum() == pytest.approx(8 * share, abs=8 * 4 * (share / 100_000) ** 0.5)
    # the divergence theorem: volume from faces, with outward normals found by probing
    volume = 0.0
    for low, high in solid.faces:
        axis = int(np.flatnonzero(high == low)[0])
        area = np.delete(high - low, axis).prod()
        probe = (low + high)[None] / 2
        outward = -1 if in_any(solid, probe + 1e-7 * np.eye(3)[axis]) else 1
        volume += outward * area * low[axis]
    assert volume / 3 == pytest.approx(sides.prod(1).sum(), rel=1e-9)


def test_corners_out_of_order_are_an_error():
    with pytest.raises(ValueError, match="high above low"):
        BoxUnion(np.zeros((1, 3)), np.array([[1.0, 0.0, 1.0]]))


def test_normalised_corners_are_centred_and_reach_as_far_as_in_deepsdf():
    corners = np.random.default_rng(0).uniform(3, 7, (20, 2, 3)) * [1, 2, 3]
    found = normalised(corners).reshape(-1, 3)
    np.testing.assert_allclose(found.min(0), -found.max(0), atol=1e-12)
    assert np.linalg.norm(found, axis=1).max() == pytest.approx(1 / 1.03)
    assert pytest.approx(1 / 1.03) == FARTHEST
    # only moved and scaled, the same along each axis
    ratio = np.ptp(corners.reshape(-1, 3), axis=0) / np.ptp(found, axis=0)
    np.testing.assert_allclose(ratio, ratio[0])


# Points -----------------------------------------------------------------------------------------------------------


def drawn(name, count=4000, near=0.5, sigma=0.05):
    return sample(union(name), count, near, sigma, generator("test", 0))


@pytest.mark.parametrize("near", [0.0, 0.3, 1.0])
def test_half_of_the_points_are_inside_and_half_outside(near):
    points, distances = drawn("chair2", near=near)
    assert (points.shape, distances.shape) == ((4000, 3), (4000,))
    assert (points.dtype, distances.dtype) == (np.float32, np.float32)
    assert (distances[:2000] <= 0).all()
    assert (distances[2000:] > 0).all()
    exact = union("chair2").distance(points.astype(np.float64))
    np.testing.assert_array_equal(distances, exact.astype(np.float32))


def test_the_same_stream_gives_the_same_points():
    first, second = drawn("chair2"), drawn("chair2")
    np.testing.assert_array_equal(first[0], second[0])
    other = sample(union("chair2"), 4000, 0.5, 0.05, generator("test", 1))
    assert not (other[0] == first[0]).all(1).any()


def test_points_near_the_surface_are_as_near_as_sigma_says():
    _, distances = drawn("apart", near=1.0, sigma=0.01)
    assert np.abs(distances).max() < 0.06
    # |N(0, sigma)| has the mean 0.8 sigma, a little less where corners are round
    assert np.abs(distances).mean() == pytest.approx(0.008, rel=0.15)


def test_the_share_near_the_surface_is_as_asked():
    _, distances = drawn("apart", near=0.25, sigma=0.001)
    near = np.abs(distances) < 0.004
    assert near[2000:].mean() == pytest.approx(0.25, abs=0.02)
    # any stretch is a fair draw: it holds both kinds
    assert near[2000:2200].mean() == pytest.approx(0.25, abs=0.1)


def test_points_without_the_surface_are_uniform():
    points, _ = drawn("overlapping", count=20_000, near=0.0)
    inside, outside = points[:10_000], points[10_000:]
    solid = union("overlapping")
    (first_low, second_low), (first_high, second_high) = solid.low, solid.high
    both = (np.minimum(first_high, second_high) - np.maximum(first_low, second_low)).prod()
    volume = (solid.high - solid.low).prod(1).sum() - both
    in_both = ((inside >= second_low) & (inside <= np.minimum(first_high, second_high))).all(1)
    in_both &= (inside >= first_low).all(1)
    assert in_both.mean() == pytest.approx(both / volume, abs=0.015)
    assert np.abs(outside).max() <= 1
    corner = (outside > 0.6).all(1)  # nothing of the solid is there
    assert corner.mean() == pytest.approx(0.2**3 * 8 * 0.4**3 / 0.2**3 / (8 * (8 - volume)), abs=0.005)


def test_surface_points_are_uniform_by_area():
    solid = union("touching")
    points = solid.surface(20_000, generator("test", 0))
    np.testing.assert_allclose(solid.distance(points), 0, atol=1e-12)
    area = 2 * (1.0 * 0.3 + 1.0 * 0.4 + 0.3 * 0.4) + 2 * (
        0.6 * 0.4 + 0.6 * 0.4
    )  # what the seam hides above, it opens below
    assert (points[:, 1] == 0.3).mean() == pytest.approx(0.4 / area, abs=0.012)
    assert (points[:, 1] < -1e-9).mean() == pytest.approx((4 * 0.6 * 0.4 + 0.16) / area, abs=0.012)


class Nothing:
    """A solid without an inside."""

    def contains(self, points):
        return np.zeros(len(points), dtype=bool)

    def surface(self, count, generator):
        return np.zeros((count, 3))

    interior = surface


def test_a_solid_without_inside_is_an_error():
    with pytest.raises(ZooError, match=r"0 of 5 points inside were found among [\d,]+ drawn: the shape's volume"):
        sample(Nothing(), 20, 0.5, 0.05, generator("test", 0))
