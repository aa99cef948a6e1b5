"""Procedural chairs: the same for ever, whole, and looking like chairs."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest
import trimesh
from skimage.measure import marching_cubes

from prepkit.tasks.chairs import ARMS_FROM, OPEN_FROM, RANGES, build, chair, chair_boxes

USUAL = {
    "seat_width": 1.0,
    "seat_depth": 1.0,
    "seat_thickness": 0.1,
    "leg_height": 0.8,
    "leg_thickness": 0.1,
    "leg_inset": 0.05,
    "back_height": 1.0,
    "back_thickness": 0.1,
    "back_opening": 0.0,
    "arm_height": 0.0,
}
SEVERAL = range(60)


def test_parameters_are_those_of_sha256():
    found = chair(3, 7)
    assert len(found) == 10
    for name, (low, high) in RANGES.items():
        digest = hashlib.sha256(f"chair:7:3:{name}".encode()).hexdigest()
        share = Fraction(int(digest, 16) >> (256 - 53), 2**53)
        assert found[name] == pytest.approx(float(Fraction(low) + (Fraction(high) - Fraction(low)) * share), rel=1e-15)


def test_a_chair_is_the_same_for_ever():
    assert chair(3, 0)["seat_width"] == 0.9045760126198685
    assert chair(3, 0)["arm_height"] == 0.23753504411554838


def test_parameters_fill_their_ranges_evenly():
    draws = np.array([list(chair(number, 0).values()) for number in range(400)])
    low, high = np.array(list(RANGES.values())).T
    shares = (draws - low) / (high - low)
    assert (shares >= 0).all()
    assert (shares < 1).all()
    np.testing.assert_allclose(shares.mean(0), 0.5, atol=0.06)
    np.testing.assert_allclose(shares.std(0), 12**-0.5, atol=0.03)
    assert np.abs(np.corrcoef(shares.T) - np.eye(10)).max() < 0.2


def test_every_number_and_seed_is_another_chair():
    chairs = [tuple(chair(number, seed).values()) for number in range(50) for seed in range(3)]
    assert len(set(chairs)) == 150


def test_arms_and_an_open_back_are_optional():
    plain = chair_boxes(USUAL)
    with_arms = chair_boxes({**USUAL, "arm_height": ARMS_FROM})
    open_back = chair_boxes({**USUAL, "back_opening": OPEN_FROM})
    assert (len(plain), len(with_arms), len(open_back)) == (6, 10, 6)
    assert len(chair_boxes({**USUAL, "arm_height": ARMS_FROM - 1e-9})) == 6
    # an open back's panel starts higher, and the hind legs carry it
    height = plain[:, 1, 1].max()
    assert (plain[:, 1, 1] == height).sum() == 1
    assert (open_back[:, 1, 1] == height).sum() == 3
    assert (plain[1, 0, 1], open_back[1, 0, 1]) == pytest.approx((0.9, 0.9 + OPEN_FROM))  # the seat's top is at 0.9
    # each rest lies on its support, and that on the seat
    rests, supports = with_arms[[6, 8]], with_arms[[7, 9]]
    np.testing.assert_allclose(rests[:, :, 1], [[0.9 + ARMS_FROM - 0.1, 0.9 + ARMS_FROM]] * 2)
    np.testing.assert_allclose(supports[:, :, 1], [[0.9, 0.9 + ARMS_FROM - 0.1]] * 2)
    kinds = {(len(chair_boxes(chair(n, 0))), chair(n, 0)["back_opening"] >= OPEN_FROM) for n in SEVERAL}
    assert kinds == {(6, False), (6, True), (10, False), (10, True)}


def test_the_usual_chair_measures_what_it_should():
    boxes = chair_boxes(USUAL)
    np.testing.assert_allclose(boxes.reshape(-1, 3).min(0), [-0.5, 0.0, 0.0])
    np.testing.assert_allclose(boxes.reshape(-1, 3).max(0), [0.5, 1.9, 1.0])
    legs = boxes[boxes[:, 0, 1] == 0]
    np.testing.assert_allclose(legs[:, 1] - legs[:, 0], np.tile([0.1, 0.8, 0.1], (4, 1)))
    np.testing.assert_allclose(sorted(legs[:, 0, 0]), [-0.45, -0.45, 0.35, 0.35])
    np.testing.assert_allclose(sorted(legs[:, 0, 2]), [0.0, 0.0, 0.85, 0.85])


@pytest.mark.parametrize("number", SEVERAL)
def test_a_chair_is_one_piece_that_stands_on_four_legs(number):
    boxes = chair_boxes(chair(number, 0))
    assert (boxes[:, 1] > boxes[:, 0]).all()
    assert (boxes[:, 0, 1] == 0).sum() == 4
    # mirrored at x = 0
    mirrored = np.stack([boxes[:, 1], boxes[:, 0]], 1) * [-1, 1, 1]
    mirrored[..., 1:] = boxes[..., 1:]
    assert sorted(map(str, np.round(mirrored, 9) + 0.0)) == sorted(map(str, np.round(boxes, 9) + 0.0))
    # boxes that share more than an edge hold together
    overlap = np.minimum(boxes[:, None, 1], boxes[:, 1]) - np.maximum(boxes[:, None, 0], boxes[:, 0])
    joined = (overlap >= 0).all(2) & ((overlap > 0.01).sum(2) >= 2)
    reached = np.linalg.matrix_power(joined.astype(int), len(boxes)) > 0
    assert reached.all()


@pytest.mark.parametrize("number", range(0, 60, 10))
def test_a_chair_fills_the_unit_sphere_as_in_deepsdf(number):
    solid = build(chair(number, 0))
    corners = np.concatenate([solid.low, solid.high])
    np.testing.assert_allclose(corners.min(0), -corners.max(0), atol=1e-12)
    assert np.linalg.norm(corners, axis=1).max() == pytest.approx(1 / 1.03, rel=1e-12)


@pytest.mark.parametrize("number", [0, 4, 5])
def test_the_surface_that_is_marched_out_of_the_distance_is_the_chair(number):
    solid = build(chair(number, 0))
    count = 80
    axis = np.linspace(-1, 1, count)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    field = solid.distance(grid).reshape(count, count, count)
    vertices, faces, _, _ = marching_cubes(field, 0.0)
    mesh = trimesh.Trimesh(vertices * 2 / (count - 1) - 1, faces)
    assert mesh.is_watertight
    assert mesh.body_count == 1
    assert abs(mesh.volume) == pytest.approx((solid.cells[:, 1] - solid.cells[:, 0]).prod(1).sum(), rel=0.05)
    # a distance changes by no more than the step, and almost everywhere by just as much
    step = axis[1] - axis[0]
    assert max(np.abs(np.diff(field, axis=k)).max() for k in range(3)) <= step + 1e-12
    slope = np.linalg.norm(np.gradient(field, step), axis=0)
    assert (np.abs(slope - 1) < 0.02).mean() > 0.8
