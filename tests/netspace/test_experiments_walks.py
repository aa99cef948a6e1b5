"""Lines, boundaries, chairs and optimisation: their numbers against the same computed by hand, on small zoos."""

import itertools

import numpy as np
import pytest
import torch
from mpl_toolkits.mplot3d import proj3d
from small_zoos import DIGITS, SMALL, sdf_zoo

import prepkit
from netspace import meshes
from netspace.checkpoint import Run, State
from netspace.config import load_recipe
from netspace.data import task_of
from netspace.evaluation import evaluate
from netspace.experiments import boundaries, chairs, closeness, consensus, lines, optimisation
from netspace.experiments.result import Result, new_figure
from netspace.prediction import predict
from prepkit.tasks.chairs import chair, chair_boxes
from prepkit.tasks.sdf import normalised

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def ready(tmp_path, small_zoo):
    """A run of an untrained space, its zoo and task, and an empty folder."""

    def made(name):
        recipe = load_recipe(name, SMALL[name])
        zoo = prepkit.open_zoo(small_zoo(name), width=recipe.network.width, height=recipe.network.height)
        run = Run.create(tmp_path / "run", recipe, zoo, small_zoo(name))
        space = run.new_space()
        with torch.no_grad():
            space.decoder.scale.mul_(30)
        run.save("best", State(1, space.state_dict(), {"scores": {}}))
        folder = tmp_path / "pictures"
        folder.mkdir()
        return run, zoo, task_of(zoo, torch.device("cpu")), torch.device("cpu"), folder

    return made


def complete(result, folder):
    """Its pictures are there, and it comes back as it was saved."""
    assert all((folder / picture.file).stat().st_size > 5000 for picture in result.pictures)
    assert Result.load(result.save(folder)) == result
    return result


def test_lines(ready):
    run, zoo, task, device, folder = ready("digits_single")
    found = complete(lines.run(run, zoo, task, device, folder, pairs=3, steps=5), folder)
    weak, strong = found.numbers["pairs_of"]
    assert set(weak) == {"resnet8@digits-test-0"}
    assert set(strong) == {"resnet8@digits-test-1"}
    mean = found.numbers["lines"]["embedding"]["mean"]
    fall = max(max(mean[: step + 1]) - value for step, value in enumerate(mean))
    assert found.claims[0].number == pytest.approx(fall)
    worst = min(found.numbers["lines"]["weights"]["mean"][1:-1])
    assert found.claims[1].number == pytest.approx(worst)
    assert len(found.tables[0].rows) == 5


def class_id_of(step):
    """The one ClassId that is named at a step."""
    (name,) = step["architectures"]
    return list(prepkit.built_in_registry("digits").class_ids).index(name)


def test_boundaries(ready):
    run, zoo, task, device, folder = ready("digits_multi")
    found = complete(boundaries.run(run, zoo, task, device, folder, pairs=2), folder)
    space, test = run.space(), zoo.split("test")
    ids = test.class_ids().tolist()
    with torch.no_grad():
        latents = space.encode(test.preps())
        first, last = latents[ids.index(0)], latents[ids.index(3)]
        for class_id, name in enumerate(run.registry.class_ids):
            latent = first + (last - first) * class_id / 3
            named = int(space.classify(latent[None]).argmax())
            assert found.numbers["at_gamma"][name]["right"] == float(named == class_id)
    steps = found.numbers["along_the_line"]
    assert len(steps) == 13
    assert all(sum(one["share"] for one in step["architectures"].values()) == pytest.approx(1) for step in steps)
    ids = [class_id_of(step) for step in steps]
    assert found.claims[0].number == found.numbers["class_ids_in_order"] == float(ids == sorted(ids))


def test_consensus(ready):
    run, zoo, task, device, folder = ready("digits_single")
    found = complete(consensus.run(run, zoo, task, device, folder), folder)
    space, test, train = run.space(), zoo.split("test"), zoo.split("train")
    images, labels = task.normalised("test")
    agreed, right = [], []
    with torch.no_grad():
        for row in range(len(test)):
            latent = space.encode(test.preps([row]))
            predicted = predict(space, latent, run.registry).network(0)(images).argmax(1)
            far = [float((space.encode(train.preps([other])) - latent).norm()) for other in range(len(train))]
            nearest = sorted(range(len(train)), key=far.__getitem__)[:3]
            answer = sum(train.network(other)(images) for other in nearest).argmax(1)
            agreed.append((answer == predicted).double().mean())
            right.append((answer == labels).double().mean())
    numbers = found.numbers["consensus of 3"]
    assert numbers["agrees_with_prediction"] == pytest.approx(float(sum(agreed) / len(agreed)))
    assert numbers["accuracy"] == pytest.approx(float(sum(right) / len(right)))
    assert found.numbers["predicted"]["agrees_with_prediction"] == 1.0
    assert consensus.MEAN_OF_EPOCHS not in found.numbers, "the zoo says nothing of epochs"


def test_consensus_of_the_same_epochs(ready, tmp_path):
    torch.manual_seed(1)
    epochs = {"train": (1, 2, 3, 4, 9, 20, 80), "test": (2, 40, 1), "validation": (5,)}
    registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    with prepkit.ZooWriter(tmp_path / "zoo", width=128, task=DIGITS, registry=registry) as writer:
        for split, numbers in epochs.items():
            for row, number in enumerate(numbers):
                network = prepkit.architecture("resnet8@digits").build()
                writer.add(network, id=f"{split}-{row}", split=split, epochs=number)
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    run, _, task, device, folder = ready("digits_single")
    found = complete(consensus.run(run, zoo, task, device, folder), folder)
    images, labels = task.normalised("test")
    train, test = zoo.split("train"), zoo.split("test")
    outputs = [train.network(row)(images).detach() for row in range(7)]
    accuracies = [float((one.argmax(1) == labels).double().mean()) for one in outputs]
    truth = [float((test.network(row)(images).argmax(1) == labels).double().mean()) for row in range(3)]
    nearest = [(0, 1, 2, 3, 4), (2, 3, 4, 5, 6), (0, 1, 2, 3, 4)]  # by the ratio of their epochs
    guesses = [sum(accuracies[row] for row in rows) / 5 for rows in nearest]
    answers = [sum(outputs[row] for row in rows).argmax(1) for rows in nearest]
    together = [float((one == labels).double().mean()) for one in answers]
    for kind, expected in ((consensus.MEAN_OF_EPOCHS, guesses), (consensus.CONSENSUS_OF_EPOCHS, together)):
        numbers = found.numbers[kind]
        assert numbers["accuracy"] == pytest.approx(sum(expected) / 3)
        apart = sum(abs(a - b) for a, b in zip(expected, truth, strict=True)) / 3
        assert numbers["accuracy_from_target"] == pytest.approx(apart)
    assert "agrees_with_prediction" not in found.numbers[consensus.MEAN_OF_EPOCHS]
    assert "epochs it was trained for" in found.text


def test_unseen_boundaries_have_a_claim_of_their_own(ready):
    run, zoo, task, device, folder = ready("digits_unseen")
    found = complete(boundaries.run(run, zoo, task, device, folder, pairs=1), folder)
    trained = found.numbers["evaluation"]["by_architecture"]
    between = [found.numbers["at_gamma"][name]["accuracy"] for name in ("vanilla_cnn@digits", "resnet8@digits")]
    expected = min(one["predicted_accuracy"] for one in trained.values()) - min(between)
    assert found.claims[-1].number == pytest.approx(expected)


def shares_by_hand(space, view, task, row):
    """Of all points and near the surface: own prediction, others' targets and predictions within 1e-2, on average."""
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
    run, *_, device, folder = ready("chairs_mini")
    path = sdf_zoo(tmp_path / "four", train=4, test=4)
    zoo = prepkit.open_zoo(path, width=run.recipe.network.width, height=run.recipe.network.height)
    task = task_of(zoo, device)
    found = complete(chairs.run(run, zoo, task, device, folder, pairs=2, steps=3, resolution=16), folder)
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
    assert set(found.numbers["iou"]) == set(chairs.WAYS)
    assert [one[:2] for one in found.tables[1].rows] == [
        (way, gamma) for way in ("embeddings", "weights") for gamma in (0.0, 0.5, 1.0)
    ]
    kinds = {claim.text.partition(":")[0]: (claim.kind, claim.unit) for claim in found.claims}
    assert kinds["Held-out chairs near the surface"] == ("beyond", "points")
    assert kinds["Training chairs"] == ("paper", "%")
    assert len(found.claims) == 6


def test_a_single_held_out_chair_has_no_others(ready):
    run, zoo, task, device, folder = ready("chairs_mini")
    found = chairs.run(run, zoo, task, device, folder, pairs=1, steps=3, resolution=8)
    assert found.numbers["closeness"]["test"]["others"] == 0
    assert found.numbers["closeness"]["test"][closeness.NEAR_SURFACE]["difference"] is None
    assert not found.claims[1].held
    assert "too few held-out chairs" in found.text


def test_others_are_different_and_asked_for_equally_often():
    few, many = closeness._others(4, seed=0), closeness._others(40, seed=0)
    assert [sorted(one) for one in few] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert all(len(set(one)) == closeness.OTHERS and row not in one for row, one in enumerate(many))
    assert {sum(one.count(row) for one in many) for row in range(40)} == {closeness.OTHERS}
    assert many != closeness._others(40, seed=1)
    assert closeness._others(1, seed=0) == [[]]


@pytest.mark.parametrize(
    ("difference", "error", "said"),
    [(0.03, 0.01, "are nearer to"), (-0.03, 0.01, "are farther"), (0.01, 0.01, "neither")],
)
def test_the_text_says_whether_predictions_are_their_own(difference, error, said):
    near = {"own": 0.1, "others_targets": 0.2, "others_predictions": 0.3}
    one = {
        "instances": 4,
        "others": 3,
        closeness.NEAR_SURFACE: near | {"difference": difference, "standard_error": error},
    }
    assert said in closeness.closeness_text({"train": one, "test": one})


def balls_of(*balls, points=41):
    """Distances `[N, R, R, R]` to unions of balls, each a centre's x and a radius."""
    axis = torch.linspace(-1, 1, points)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    one = [torch.stack([((x - at) ** 2 + y**2 + z**2).sqrt() - radius for at, radius in union]) for union in balls]
    return torch.stack([union.amin(0) for union in one])


def test_overlap_and_volumes():
    balls = balls_of([(0, 0.4)], [(0, 0.5)], [(0, 0.6)])
    same = chairs._iou([balls], [balls])
    assert torch.equal(same, torch.ones(1, 3, dtype=torch.float64))
    shrunk = chairs._iou([balls[:2]], [balls[1:]])
    assert shrunk[0, 0].item() == pytest.approx((0.4 / 0.5) ** 3, abs=0.02)
    assert chairs._monotone_volumes([balls, balls.flip(0)]) == 1.0
    assert chairs._monotone_volumes([balls[[0, 2, 1]]]) == 0.0


def test_validity_of_meshes():
    nothing = torch.full((1, 41, 41, 41), 1.0)
    whole, parted, cut, speck = balls_of([(0, 0.5)], [(-0.5, 0.3), (0.5, 0.4)], [(0.8, 0.5)], [(0, 0.15)]).split(1)
    grids = torch.cat([whole, parted, cut, speck, nothing])
    found = chairs.judge_meshes([grids], [whole.expand(5, -1, -1, -1)], [whole.expand(5, -1, -1, -1)])
    assert found.surface.tolist() == [[True, True, True, True, False]]
    assert found.one_part.tolist() == [[True, False, True, True, False]]
    assert found.uncut.tolist() == [[True, True, False, True, False]]
    assert found.solid.tolist() == [[True, True, True, False, False]]  # 0.3 ** 3 is below 5 %
    assert found.valid.tolist() == [[True, False, False, False, False]]
    assert found.chamfer[0, 0] == 0
    assert found.chamfer[0, 3].item() == pytest.approx(0.35, abs=0.01)  # between two spheres with one centre
    assert found.chamfer[0, 4].isnan()
    pairs = chairs.judge_meshes([whole, nothing], [whole, whole], [speck, speck])
    means = pairs.by_step()
    assert means["surface"] == means["valid"] == [0.5]
    assert means["chamfer"] == pytest.approx([0.35], abs=0.01)  # of the pair that has one
    row = chairs._meshes_table((0.5,), {"embeddings": pairs}, {"embeddings": [0.25]}).rows[0]
    assert row[:8] == ("embeddings", 0.5, 50.0, 50.0, 50.0, 50.0, 50.0, 1)
    assert row[9] == 0.25
    without_truth = chairs.judge_meshes([whole], [whole], None)
    assert without_truth.valid.all()
    assert without_truth.chamfer.isnan().all()


def test_parts_and_the_cube_boundary():
    two, one, none = balls_of([(-0.5, 0.3), (0.5, 0.4)], [(0, 0.4)], [(0, -1.0)])
    share = 0.4**3 / (0.3**3 + 0.4**3)
    assert meshes.largest_parts(torch.stack([two, one, none])) == pytest.approx([share, 1, 0], abs=0.02)
    for axis in range(3):
        for end in (0, 40):
            grid = torch.ones(41, 41, 41)
            place = [20, 20, 20]
            place[axis] = end
            grid[tuple(place)] = -1
            assert meshes.leave_cube(torch.stack([grid, one])) == [True, False]


def test_chamfer():
    triangles = np.zeros((0, 3), np.int64)
    first = meshes.Mesh(np.zeros((1, 3)), triangles)
    second = meshes.Mesh(np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]]), triangles)
    assert chairs.chamfer(first, second) == pytest.approx((1 + (5 + 1) / 2) / 2)
    assert np.isnan(chairs.chamfer(first, None))


def test_the_picture_has_two_pairs():
    ball_and_speck = balls_of([(0, 0.5)], [(0, 0.15)])
    grids = {way: [ball_and_speck] * 3 for way in chairs.WAYS}
    grids[chairs.FIRST] = [ball_and_speck[:1].expand(2, -1, -1, -1)] * 3
    rows = chairs._rows_of_picture(grids, grids["weights"])
    assert [way for way, _, _ in rows] == ["true chairs", "embeddings", "weights"] * 2
    assert rows[0][2].tolist() == pytest.approx([1, 0.3**3], abs=0.01)
    assert len(chairs._rows_of_picture(grids, None)) == 4
    figure = new_figure(2, 2)
    for mesh, ratio, said in (
        (None, 0.0, ["no surface"]),
        (meshes.surface(grids["weights"][0][1]), 0.01, ["only specks"]),
        (meshes.surface(grids["weights"][0][0]), 1.0, []),
    ):
        plot = figure.add_subplot(projection="3d")
        chairs._draw_mesh(plot, mesh, ratio)
        assert [text.get_text() for text in plot.texts] == said


def test_chairs_fit_into_the_picture():
    figure = new_figure(chairs.WIDE, chairs.HIGH)
    figure.set_layout_engine("none")
    plot = figure.add_axes((0, 0, 1, 1), projection="3d")
    chairs._draw_mesh(plot, meshes.surface(balls_of([(0, 0.5)])[0]), 1.0)
    figure.canvas.draw()
    for number in range(100):
        for box in normalised(chair_boxes(chair(number, 0))):
            side, up, front = np.array(list(itertools.product(*box.T))).T
            x, y, _ = proj3d.proj_transform(side, -front, up, plot.get_proj())
            assert all(plot.bbox.contains(*at) for at in plot.transData.transform(np.stack([x, y], axis=1))), number


def test_optimisation(ready):
    run, zoo, task, device, folder = ready("digits_multi")
    found = complete(optimisation.run(run, zoo, task, device, folder, starts=1, steps=3), folder)
    rows = found.tables[0].rows
    assert len(rows) == 8
    for name, kind, initial, best, gain, _, room in rows:
        means = found.numbers[kind][name]
        assert initial == pytest.approx(100 * means["initial_accuracy"], abs=0.006)
        assert gain == pytest.approx(best - initial, abs=0.011)
        assert (room == "yes") == (found.numbers["targets"][name] - means["initial_accuracy"] > 0.01)
