"""Chairs: shares, overlaps and volumes are computed a second time by hand, and pictures are looked at."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from experiment_samples import complete
from mpl_toolkits.mplot3d import proj3d
from small_zoos import sdf_zoo
from untrained import subject_of

import prepkit
from netspace.data import task_of
from netspace.experiments import _closeness as closeness
from netspace.experiments import chairs
from netspace.space.evaluation import evaluate
from netspace.space.prediction import predict
from prepkit.figures import MESH_HEIGHT, MESH_WIDTH, draw_mesh, new_figure
from prepkit.support import bootstrap
from prepkit.tasks import distance_grid
from prepkit.tasks._sdf import normalised
from prepkit.tasks.chairs import chair, chair_boxes

pytestmark = pytest.mark.usefixtures("one_thread")


def shares_by_hand(space, view, task, row):
    """Return shares within 1e-2, everywhere and near the surface: own prediction, others' targets and predictions."""
    points, _ = task.points(view.table["item"].to_pylist()[row], "test")
    networks = [view.network(one) for one in range(len(view))]
    with torch.no_grad():
        target = networks[row](points)[:, 0]
        predicted = [predict(space, space.encode(view.preps([one])), view.registry) for one in range(len(view))]
        close = [(one.network(0)(points)[:, 0] - target).abs() <= 1e-2 for one in predicted]
        targets = [(one(points)[:, 0] - target).abs() <= 1e-2 for one in networks]
    others = [one for one in range(len(view)) if one != row]
    return [
        [
            float(close[row][at].double().mean()),
            float(torch.stack([targets[one][at] for one in others]).double().mean()),
            float(torch.stack([close[one][at] for one in others]).double().mean()),
        ]
        for at in (target.abs() <= np.inf, target.abs() <= 0.1)
    ]


def test_chairs(ready, tmp_path):
    run = ready("chairs_mini").run
    path = sdf_zoo(tmp_path / "four", train=4, test=4)
    zoo = prepkit.open_zoo(path, width=run.recipe.network.width, height=run.recipe.network.height)
    task = task_of(zoo, torch.device("cpu"))
    subject = subject_of(run, tmp_path, zoo=zoo, task=task)
    found = complete(chairs.run(subject, pairs=2, steps=3, resolution=16), subject.folder)
    rows = iter(found.tables[0].rows)
    for split in ("train", "test"):
        view = zoo.split(split)
        by_hand = np.array([shares_by_hand(run.space(), view, task, row) for row in range(4)])
        for kind, points in enumerate((closeness.ALL_POINTS, closeness.NEAR_SURFACE)):
            own, targets, predictions = by_hand[:, kind].T
            numbers = found.numbers["closeness"][split][points]
            assert numbers["own"] == pytest.approx(own.mean(), abs=1e-3)
            assert numbers["others_targets"] == pytest.approx(targets.mean(), abs=1e-3)
            assert numbers["others_predictions"] == pytest.approx(predictions.mean(), abs=1e-3)
            assert numbers["difference"] == pytest.approx((own - predictions).mean(), abs=1e-3)
            assert numbers["standard_error"] == pytest.approx(np.std(own - predictions, ddof=1) / 2, abs=1e-3)
            assert next(rows)[:3] == (split, points, round(100 * numbers["own"], 1))
    summary = evaluate(run.space(), run.registry, zoo.split("test"), task, "test").summary()
    assert found.numbers["closeness"]["test"][closeness.NEAR_SURFACE]["own"] == pytest.approx(summary["closeness_near"])
    assert set(found.numbers["iou"]) == {"embeddings", "weights", "blended distances", "the first chair"}
    assert [one[:2] for one in found.tables[1].rows] == [
        (way, gamma) for way in ("embeddings", "weights") for gamma in (0.0, 0.5, 1.0)
    ]
    kinds = {claim.text.partition(":")[0]: (claim.kind, claim.unit) for claim in found.claims}
    assert kinds["Held-out chairs near the surface"] == ("beyond", "points")
    assert kinds["Training chairs"] == ("paper", "%")
    assert len(found.claims) == 7
    assert [claim.unit for claim in found.claims[4:]] == ["IoU"] * 3


def test_a_single_held_out_chair_has_no_others(ready):
    subject = ready("chairs_mini")
    found = chairs.run(subject, pairs=1, steps=3, resolution=8)
    assert found.numbers["closeness"]["test"]["others"] == 0
    assert found.numbers["closeness"]["test"][closeness.NEAR_SURFACE]["difference"] is None
    assert not found.claims[1].held
    assert "too few held-out chairs" in found.text


@pytest.mark.parametrize(
    ("difference", "error", "said"),
    [(0.03, 0.01, "are nearer to"), (-0.03, 0.01, "are farther from"), (0.01, 0.01, "neither")],
)
def test_the_text_says_whether_predictions_are_their_own(difference, error, said):
    near = {"own": 0.1, "others_targets": 0.2, "others_predictions": 0.3}
    one = {
        "instances": 4,
        "others": 3,
        closeness.NEAR_SURFACE: near
        | {"difference": difference, "difference_interval": (difference - 2 * error, difference + 2 * error)},
    }
    assert said in closeness.closeness_text({"train": one, "test": one})


def test_the_paired_difference():
    shares = torch.tensor([[0.5, 0.1, 0.2], [0.7, 0.3, 0.1], [0.3, 0.2, 0.3], [math.nan, math.nan, math.nan]])
    found = closeness._compared(shares.double(), ["a", "b", "c", "d"], 0)  # differences 0.3, 0.6 and 0
    draws = bootstrap.drawn(np.array(["a", "b", "c"]), 0) / 3
    for name, values in (("own", [0.5, 0.7, 0.3]), ("difference", [0.3, 0.6, 0.0])):
        assert found.pop(f"{name}_interval") == pytest.approx(np.quantile(draws @ values, [0.025, 0.975]))
    assert found == pytest.approx(
        {
            "own": 0.5,
            "others_targets": 0.2,
            "others_predictions": 0.2,
            "difference": 0.3,
            "standard_error": 0.3 / math.sqrt(3),
        }
    )


def balls_of(*balls, points=41):
    """Return distances `[N, R, R, R]` to balls of these radii around the centre."""
    axis = torch.linspace(-1, 1, points)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([(x**2 + y**2 + z**2).sqrt() - radius for radius in balls])


def test_overlap_and_volumes_along_lines():
    balls = balls_of(0.4, 0.5, 0.6)
    assert chairs.overlaps_of_pairs(balls[None], balls[None]).tolist() == [[1.0, 1.0, 1.0]]
    two = chairs.overlaps_of_pairs(balls[None, :2], balls[None, 1:])
    assert two.shape == (1, 2)
    assert float(two[0, 0]) == pytest.approx((0.4 / 0.5) ** 3, abs=0.02)
    assert distance_grid.share_of_monotone_volumes(torch.stack([balls, balls.flip(0)]), chairs.TURN) == 1.0
    assert distance_grid.share_of_monotone_volumes(balls[None, [0, 2, 1]], chairs.TURN) == 0.0


@pytest.mark.parametrize(("shared", "last"), [(False, "held"), (True, "not told")])
def test_the_half_way_chair_is_compared_with_blended_distances_too(shared, last):
    shapes = SimpleNamespace(surface=torch.ones(4), valid=torch.tensor([1.0, 1, 1, 0]))
    overlap = {"embeddings": [0.8, 0.7, 0.9, 0.8], "weights": [0.0, 0.1, 0.0, 0.1], "blended distances": [0.9] * 4}
    tensors = {way: torch.tensor(values, dtype=torch.float64) for way, values in overlap.items()}
    claims = chairs._lines_claims(shapes, tensors, shared, 0)
    assert [claim.number for claim in claims] == pytest.approx([1, 0.75, 0.8, -0.1, 0.75])
    assert [claim.verdict for claim in claims] == ["held", "not held", "held", "not held", last]
    assert claims[3].interval == pytest.approx((-0.175, -0.025), abs=0.026)
    assert chairs._lines_claims(shapes, {}, shared, 0) == claims[:2]


def test_shapes_along_lines():
    """At the second step one pair has no surface, and the other has only a speck."""
    ball, speck = balls_of(0.5, 0.15)
    nothing = torch.full_like(ball, 1.0)
    grids = torch.stack([torch.stack([ball, nothing]), torch.stack([ball, speck])])
    firsts = ball.expand(2, 2, *ball.shape)
    measured = chairs.measures_along(grids, firsts, firsts)
    means = chairs.means_by_step(measured, 2)
    assert (means["surface"], means["solid"], means["valid"]) == ([1.0, 0.5], [1.0, 0.0], [1.0, 0.0])
    assert means["chamfer"] == pytest.approx([0, 0.35], abs=0.01)  # of the pair that has one
    table = chairs._meshes_table(
        (0.0, 1.0), {"embeddings": measured}, {"embeddings": means}, {"embeddings": [1.0, 0.25]}
    )
    first, second = table.rows
    assert first[:8] == ("embeddings", 0.0, 100.0, 100.0, 100.0, 100.0, 100.0, 0)
    assert second[:3] == ("embeddings", 1.0, 50.0)
    assert second[7] == 1
    assert second[9] == 0.25
    without_truth = chairs._meshes_table((0.0, 1.0), {"embeddings": measured}, {"embeddings": means}, {})
    assert without_truth.rows[0][9] is None


def test_the_picture_has_two_pairs():
    ball_and_speck = balls_of(0.5, 0.15)
    pairs = ball_and_speck.expand(3, -1, -1, -1, -1)
    firsts = ball_and_speck[:1].expand(3, 2, -1, -1, -1)
    grids = {chairs.EMBEDDINGS: pairs, chairs.WEIGHTS: pairs, chairs.FIRST: firsts}
    rows = chairs.rows_of_picture(grids, pairs)
    assert [way for way, _, _ in rows] == ["true chairs", "embeddings", "weights"] * 2
    assert rows[0][2].tolist() == pytest.approx([1, 0.3**3], abs=0.01)
    assert len(chairs.rows_of_picture(grids, None)) == 4
    for grid, ratio, words in ((ball_and_speck[1], 0.01, "only specks"), (ball_and_speck[0], 1.0, "")):
        mesh, below = chairs.step_of_picture(grid, ratio)
        assert mesh.is_watertight
        assert below == words
    assert chairs.step_of_picture(torch.ones_like(ball_and_speck[0]), 0.0) == (None, "no surface")


def test_a_chair_is_seen_from_its_front(monkeypatch):
    plot = new_figure(2, 2).add_subplot(projection="3d")
    drawn = []
    monkeypatch.setattr(plot, "add_collection3d", drawn.append)
    monkeypatch.setattr("mpl_toolkits.mplot3d.art3d.Poly3DCollection", lambda corners, **colours: corners)
    corners = np.array([[0.1, 0.5, 0.3], [0.2, 0.5, 0.3], [0.1, 0.5, 0.4]])  # to the side, up, to the front
    draw_mesh(plot, trimesh.Trimesh(corners, np.array([[0, 1, 2]]), process=False), chairs.REACH)
    side, depth, up = drawn[0][0].T
    np.testing.assert_allclose([side, up], corners.T[:2])
    viewer = math.copysign(1, math.sin(math.radians(plot.azim)))  # which way along the depth the eye is
    np.testing.assert_allclose(depth * viewer, corners[:, 2])


def test_chairs_fit_into_the_picture():
    figure = new_figure(MESH_WIDTH, MESH_HEIGHT)
    figure.set_layout_engine("none")
    plot = figure.add_axes((0, 0, 1, 1), projection="3d")
    draw_mesh(plot, distance_grid.surface(balls_of(0.5)[0]), chairs.REACH)
    figure.canvas.draw()
    for number in range(100):
        for box in normalised(chair_boxes(chair(number, 0))):
            side, up, front = np.array(list(itertools.product(*box.T))).T
            x, y, _ = proj3d.proj_transform(side, -front, up, plot.get_proj())
            assert all(plot.bbox.contains(*at) for at in plot.transData.transform(np.stack([x, y], axis=1))), number
