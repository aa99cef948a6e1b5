"""Lines, boundaries, chairs and optimisation: their numbers are computed a second time by hand, on small zoos."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
import trimesh
from mpl_toolkits.mplot3d import proj3d
from small_zoos import DIGITS, SMALL, digits_zoo, sdf_zoo
from untrained import subject_of

import prepkit
from netspace.data import task_of
from netspace.experiments import _closeness as closeness
from netspace.experiments import boundaries, chairs, lines, optimisation
from netspace.experiments.beyond import consensus
from netspace.experiments.result import Result
from netspace.explore.optimization import Optimisation
from netspace.explore.sampling import PointError
from netspace.recipe import load_recipe
from netspace.run.run import Run, State
from netspace.space.evaluation import evaluate
from netspace.space.prediction import predict
from prepkit.figures import MESH_HEIGHT, MESH_WIDTH, draw_mesh, new_figure
from prepkit.support import bootstrap
from prepkit.tasks import distance_grid
from prepkit.tasks._sdf import normalised
from prepkit.tasks.chairs import chair, chair_boxes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def ready(tmp_path, small_zoo):
    """The subject of a run of an untrained space, with an empty folder for pictures.

    path:   of another zoo than the small one of the recipe's name
    change: is given the space, to change it, and the zoo
    """

    def made(name, path=None, change=lambda space, zoo: None):
        recipe = load_recipe(name, SMALL[name])
        path = small_zoo(name) if path is None else path
        zoo = prepkit.open_zoo(path, width=recipe.network.width, height=recipe.network.height)
        run = Run.create(tmp_path / "run", recipe, zoo, path)
        space = run.new_space()
        with torch.no_grad():
            space.decoder.scale.mul_(30)
            change(space, zoo)
        run.save("best", State(1, space.state_dict(), {"scores": {}}))
        folder = tmp_path / "pictures"
        folder.mkdir()
        return subject_of(run, folder)

    return made


def complete(result, folder):
    """Return a result after checking that its pictures exist and that it can be saved and loaded."""
    assert all((folder / picture.file).stat().st_size > 5000 for picture in result.pictures)
    assert Result.load(result.save(folder)) == result
    return result


def accuracy_by_hand(network, task):
    images, labels = task.normalised("test")
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).double().mean())


def test_lines(ready, tmp_path):
    counts = {"train": 2, "validation": 1, "test": 7}
    path = digits_zoo(tmp_path / "zoo", {"resnet8@digits": counts}, teacher=False, single=True)

    def spread(space, zoo):
        space.encoder.conv4.weight.mul_(100)
        space.decoder.conv1.weight.mul_(10)

    subject = ready("digits_single", path, spread)
    run, zoo, task = subject.run, subject.zoo, subject.task
    found = complete(lines.run(subject, steps=5), subject.folder)
    pairs = list(zip(*found.numbers["pairs_of"], strict=True))
    name = "resnet8@digits-test-{}".format  # its number is its accuracy, times 10
    assert sorted(pairs) == [(name(weak), name(strong)) for weak in (0, 1) for strong in (5, 6)]
    space, architecture = run.space(), prepkit.architecture("resnet8@digits")
    along = {"embedding": [], "weights": []}
    for ids in pairs:
        preps = torch.stack([zoo.preps([zoo.index(id)])[0] for id in ids])
        with torch.no_grad():
            latents = torch.cat([space.encode(one[None]) for one in preps])
        for line, (first, last) in (("embedding", latents), ("weights", preps)):
            values = []
            for step in range(5):
                point = first + (last - first) * step / 4
                with torch.no_grad():
                    prep = space.decode(point[None])[0] if line == "embedding" else point
                network = architecture.build_folded().eval()
                network.load_state_dict(architecture.layout.unpack(prep))
                values.append(accuracy_by_hand(network, task))
            along[line].append(values)
    falls = [max(values[a] - values[b] for a in range(5) for b in range(a, 5)) for values in along["embedding"]]
    assert len(set(falls)) > 1, "an example that shows something"
    shapes = found.numbers["shapes"]
    assert shapes["embedding"]["monotone"] == pytest.approx(sum(fall <= 0.02 for fall in falls) / 4)
    for line, values in along.items():
        mean = np.mean(values, axis=0)
        fall = max(mean[a] - mean[b] for a in range(5) for b in range(a, 5))
        assert shapes[line]["largest_fall_of_mean"] == pytest.approx(fall)
        assert shapes[line]["lowest"] == pytest.approx(min(mean[1:-1]))
        assert shapes[line]["middle"] == pytest.approx(mean[2])
        for key, ends in (("from_straight_line", values), ("from_line_between_targets", along["weights"])):
            apart = [
                abs(values[pair][step] - ends[pair][0] * (1 - step / 4) - ends[pair][-1] * step / 4)
                for pair in range(4)
                for step in range(5)
            ]
            assert shapes[line][key] == pytest.approx(np.mean(apart))
    embedding, weights = shapes["embedding"], shapes["weights"]
    assert [claim.number for claim in found.claims] == pytest.approx(
        [embedding["largest_fall_of_mean"], embedding["monotone"], embedding["from_straight_line"], weights["lowest"]]
        + [embedding["middle"] - weights["middle"]]
    )
    assert [claim.unit for claim in found.claims] == ["points", "%", "points", "%", "points"]
    # Weak and strong instances are drawn with replacement, two of each, and a pair as often as both of its ends.
    first, second = (bootstrap.drawn(np.array(ids), seed) for seed, ids in enumerate(zip(*pairs, strict=True)))
    slow = {key: [] for key in found.numbers["intervals"]}
    for times in (first * second).astype(int):
        rows = np.repeat(np.arange(4), times)
        if not len(rows):
            continue
        curve, weight_curve = (np.mean([along[line][row] for row in rows], axis=0) for line in along)
        slow["largest_fall_of_mean"].append(max(curve[a] - curve[b] for a in range(5) for b in range(a, 5)))
        slow["monotone"].append(np.mean([falls[row] <= 0.02 for row in rows]))
        ends = [along["embedding"][row] for row in rows]
        off = [abs(one[k] - one[0] * (1 - k / 4) - one[-1] * k / 4) for one in ends for k in range(5)]
        slow["from_straight_line"].append(np.mean(off))
        slow["lowest"].append(min(weight_curve[1:-1]))
        slow["above_weights"].append(curve[2] - weight_curve[2])
    for key, values in slow.items():
        assert found.numbers["intervals"][key] == pytest.approx(np.quantile(values, [0.025, 0.975])), key
    assert [claim.interval for claim in found.claims] == [tuple(one) for one in found.numbers["intervals"].values()]
    assert len(found.tables[1].rows) == 5


def test_the_shape_of_lines_by_hand():
    values = torch.tensor([[0.2, 0.5, 0.48, 0.6], [0.4, 0.9, 0.87, 0.8]], dtype=torch.float64)
    targets = torch.tensor([[0.3, 0.6], [0.0, 0.9]], dtype=torch.float64)
    found = lines.shape_of_lines(values, targets, (0.0, 1 / 3, 2 / 3, 1.0))
    assert found["monotone"] == 0.5  # the first falls by 2 points, which is 0.02 and a little in floats
    assert found["largest_fall_of_mean"] == pytest.approx(0.025)  # 0.3, 0.7, 0.675, 0.7
    assert found["lowest"] == pytest.approx(0.675)
    assert found["middle"] == pytest.approx((0.7 + 0.675) / 2)  # 4 steps have none half-way
    assert found["from_line_between_targets"] == pytest.approx((0.1 + 0.1 + 0.02 + 0.0 + 0.4 + 0.6 + 0.27 + 0.1) / 8)


@pytest.mark.parametrize(
    ("rise", "shared", "verdicts"),
    [
        (0.5, False, ["held"] * 5),
        (0.019, False, ["not told"] * 3 + ["held", "not told"]),
        (-0.3, True, ["not told"] * 5),
        (0.5, True, ["held"] * 3 + ["not told"] * 2),
    ],
)
def test_a_flat_line_and_weights_of_one_start_tell_nothing(rise, shared, verdicts):
    embedding = {"rise_of_mean": rise, "largest_fall_of_mean": 0.0, "monotone": 1.0, "from_straight_line": 0.01}
    shapes = {"embedding": embedding | {"middle": 0.8}, "weights": {"lowest": 0.1, "middle": 0.1}}
    names = ("largest_fall_of_mean", "monotone", "from_straight_line", "lowest", "above_weights")
    claims = lines._claims(shapes, dict.fromkeys(names), shared)
    assert [claim.verdict for claim in claims] == verdicts
    if rise < 0.02:
        assert f"rises by {100 * rise:.1f} points from end to end" in claims[0].reason
    if shared:
        assert "share their starts" in claims[3].reason


def test_pairs_of_weak_and_strong_are_different_and_drawn(tmp_path):
    path = digits_zoo(tmp_path / "zoo", {"resnet8@digits": {"test": 9}}, teacher=False, single=True)
    zoo = prepkit.open_zoo(path)
    every = set(zip(*lines.weak_and_strong(zoo, 25, 0), strict=True))
    numbers = {tuple(int(id.rpartition("-")[2]) for id in pair) for pair in every}
    assert numbers == {(weak, strong) for weak in (0, 1, 2) for strong in (6, 7, 8)}
    some = list(zip(*lines.weak_and_strong(zoo, 3, 0), strict=True))
    assert len(set(some)) == len(some) == 3
    assert set(some) < every
    assert list(zip(*lines.weak_and_strong(zoo, 3, 1), strict=True)) != some
    with pytest.raises(PointError, match="has 1 test instance; a line between a weak and a strong one needs 2"):
        lines.weak_and_strong(zoo.select([0]), 3, 0)


def class_id_of(step):
    """Return the only ClassId that is predicted at a step."""
    (name,) = step["architectures"]
    return list(prepkit.built_in_registry("digits").class_ids).index(name)


def test_boundaries(ready):
    subject = ready("digits_multi")
    run, zoo = subject.run, subject.zoo
    found = complete(boundaries.run(subject, pairs=2), subject.folder)
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
    subject = ready("digits_single")
    run, zoo, task = subject.run, subject.zoo, subject.task
    found = complete(consensus.run(subject), subject.folder)
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
    subject = replace(ready("digits_single"), zoo=zoo)
    task = subject.task
    found = complete(consensus.run(subject), subject.folder)
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


def in_order(space, zoo):
    """Make a space name ClassId i at gamma i / 3 between the two test instances."""
    space.encoder.conv4.weight.mul_(100)
    space.decoder.conv1.weight.mul_(10)
    test = zoo.split("test")
    first, last = space.encode(test.preps())[[test.class_ids().tolist().index(end) for end in (0, 3)]]
    points = torch.stack([first + (last - first) * step / 12 for step in range(13)])
    classifier = space.classifier
    features = torch.nn.functional.leaky_relu(classifier.conv(classifier.image.view(points)), 0.01).flatten(1)
    nearest = [[-((step / 12 - class_id / 3) ** 2) for class_id in range(4)] for step in range(13)]
    classifier.linear.weight.copy_((torch.linalg.pinv(features.double()) @ torch.tensor(nearest).double()).T)
    classifier.linear.bias.zero_()


def test_unseen_architectures_are_held_against_the_mean_of_the_trained(ready):
    subject = ready("digits_unseen", change=in_order)
    run, zoo, task = subject.run, subject.zoo, subject.task
    found = complete(boundaries.run(subject, pairs=8), subject.folder)
    assert found.numbers["pairs"] == 1, "there is one test instance of each boundary"
    space, test = run.space(), zoo.split("test")
    accuracies = []
    with torch.no_grad():
        first, last = space.encode(test.preps())[[test.class_ids().tolist().index(end) for end in (0, 3)]]
        for class_id in range(4):
            prep = space.decode((first + (last - first) * class_id / 3)[None])[0]
            architecture = run.registry.by_class_id(class_id)
            network = architecture.build_folded().eval()
            network.load_state_dict(architecture.layout.unpack(prep))
            accuracies.append(accuracy_by_hand(network, task))
    assert [one["accuracy"] for one in found.numbers["at_gamma"].values()] == pytest.approx(accuracies)
    assert [one["named"] for one in found.numbers["at_gamma"].values()] == [1, 1, 1, 1]
    mean, worst = (accuracies[0] + accuracies[3]) / 2, min(accuracies[0], accuracies[3])
    assert mean != worst, "an example that shows something"
    unseen = found.numbers["unseen"]
    assert list(unseen) == ["vanilla_cnn@digits", "resnet8@digits"]
    for one, accuracy in zip(unseen.values(), accuracies[1:3], strict=True):
        assert one == {"from_mean": pytest.approx(accuracy - mean), "from_worst": pytest.approx(accuracy - worst)}
    assert [claim.number for claim in found.claims] == pytest.approx([1, 1, mean - min(accuracies[1:3])])
    assert found.claims[-1].unit == "points"
    assert "vanilla_cnn on 1 of 1, resnet8 on 1 of 1" in found.text
    assert f"resnet8 {100 * (accuracies[2] - mean):+.1f} from the mean of the trained" in found.text


def line_of(class_ids, accuracies):
    """Return an Interpolation of these ClassIds and accuracies, both `[P, S]`."""
    names = dict.fromkeys(("one", "two", "three"))
    gammas = tuple(step / (len(class_ids[0]) - 1) for step in range(len(class_ids[0])))
    tensors = torch.tensor(accuracies, dtype=torch.float64), torch.tensor(class_ids)
    registry = SimpleNamespace(class_ids=names)
    return SimpleNamespace(gammas=gammas, registry=registry, values=lambda: tensors[0], class_ids=lambda: tensors[1])


def test_accuracy_counts_only_where_the_architecture_is_named():
    class_ids = [[0, 0, 1, 2, 2], [0, 1, 0, 1, 1], [0, 1, 1, 2, 1]]
    accuracies = [[0.5, 0.1, 0.8, 0.2, 0.9], [0.6, 0.3, 0.1, 0.4, 0.2], [0.7, 0.5, 0.6, 0.6, 0.3]]
    found = boundaries.at_gammas(line_of(class_ids, accuracies))
    assert [one["named"] for one in found.values()] == [3, 2, 1]
    assert [one["pairs"] for one in found.values()] == [3, 3, 3]
    assert [one["right"] for one in found.values()] == pytest.approx([1, 2 / 3, 1 / 3])
    assert [one["accuracy"] for one in found.values()] == pytest.approx([0.6, 0.7, 0.9])
    beside = boundaries.compared_with_trained(found, {"one": 0.7, "three": 0.8})
    assert beside == {"two": {"from_mean": pytest.approx(-0.05), "from_worst": pytest.approx(0.0)}}
    assert boundaries.claims_of(1.0, found, beside)[-1].number == pytest.approx(0.05)
    at_own = boundaries.accuracies_at_gammas(line_of(class_ids, accuracies), ["two", "three"])
    assert at_own["two"] == pytest.approx([0.8, math.nan, 0.6], nan_ok=True)
    assert at_own["three"] == pytest.approx([0.9, math.nan, math.nan], nan_ok=True)


def test_the_interval_of_the_largest_shortfall():
    unseen = {"two": [0.8, math.nan, 0.6], "three": [0.9, 0.5, 0.7]}
    trained = [([0.9, 0.95], ["a", "b"]), ([0.8, 0.7, 0.75], ["c", "d", "e"])]
    found = boundaries.shortfall_interval(unseen, trained, 0)
    groups = [([0.8, 0.6], range(2)), (unseen["three"], range(3)), *trained]
    draws = [bootstrap.drawn(np.array(runs), seed) for seed, (_, runs) in enumerate(groups)]
    slow = []
    for times in zip(*draws, strict=True):
        two, three, first, second = (
            np.average(values, weights=own) for (values, _), own in zip(groups, times, strict=True)
        )
        slow.append(max((first + second) / 2 - two, (first + second) / 2 - three))
    assert found == pytest.approx(np.quantile(slow, [0.025, 0.975]))


def test_a_line_that_names_one_class_throughout_has_no_order():
    accuracies = [[0.5] * 5] * 2
    one, other = line_of([[1] * 5, [2] * 5], accuracies), line_of([[1] * 5, [1, 1, 1, 2, 2]], accuracies)
    assert boundaries.names_one_class(one)
    assert not boundaries.names_one_class(other)
    claims = boundaries.claims_of(1.0, boundaries.at_gammas(one), None, None, boundaries.names_one_class(one))
    assert [claim.verdict for claim in claims] == ["not told", "not held"]
    assert claims[0].reason == "each line names one class throughout, so there is no order to keep"
    assert boundaries.claims_of(1.0, boundaries.at_gammas(other), None)[0].held


def test_an_unseen_architecture_that_is_never_named_does_not_hold():
    found = boundaries.at_gammas(line_of([[0, 0, 2]], [[0.5, 0.9, 0.5]]))
    assert math.isnan(found["two"]["accuracy"])
    unseen = {"other": {"from_mean": 0.0, "from_worst": 0.0}}
    unseen |= boundaries.compared_with_trained(found, {"one": 0.5, "three": 0.5})
    for order in (list(unseen), list(unseen)[::-1]):
        claims = boundaries.claims_of(1.0, found, {name: unseen[name] for name in order})
        assert [claim.held for claim in claims] == [True, False, False]
        assert claims[-1].reason == "two is never predicted at its own gamma"
    assert Result("b", "", "", tables=[boundaries.table_of({}, found, unseen)]).tables[0].rows[1][4:] == (
        None,
        "0 of 1",
        None,
        None,
    )


def test_no_instance_is_in_two_pairs_of_boundaries(tmp_path):
    names = ("lenet_like@digits", "vanilla_cnn@digits", "resnet14@digits")
    counts = {name: {"test": count} for name, count in zip(names, (4, 2, 3), strict=True)}
    zoo = prepkit.open_zoo(digits_zoo(tmp_path / "zoo", counts, teacher=False, height=88))
    for pairs, expected in ((2, 2), (8, 3)):
        first, second = boundaries.boundary_ids(zoo, 4, pairs, 0)
        assert len(set(first)) == len(set(second)) == len(first) == len(second) == expected
        assert all("lenet_like" in one and "resnet14" in other for one, other in zip(first, second, strict=True))


def test_steps_are_ends_gammas_of_the_loss_or_between():
    assert [boundaries.kind_of(step, 13)[0] for step in (0, 1, 4, 11, 12)] == ["e", "b", "g", "b", "e"]


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


def test_optimisation(ready):
    """The untrained space predicts resnet8 for nearly all, so the other architectures have no accuracy to gain."""
    subject = ready("digits_multi", change=lambda space, zoo: space.classifier.linear.bias.fill_(0)[2].fill_(1e3))
    result = optimisation.run(subject, starts=2, steps=10)
    complete(result, subject.folder)
    test = subject.zoo.split("test").table.to_pylist()
    inputs = {row["id"]: row["accuracy"] for row in test}
    assert len(result.tables[0].rows) == 8
    points = {}
    for start, kind, at_first, in_the_end, *numbers in result.tables[1].rows:
        assert at_first == in_the_end == "resnet8@digits"
        assert numbers[0] == pytest.approx(100 * inputs[start], abs=0.006)
        name = next(row["architecture"] for row in test if row["id"] == start)
        points.setdefault((name, kind), []).append((start, *numbers))
    for name, kind, input_accuracy, initial, best, gain, over, _, improved, reached, room in result.tables[0].rows:
        own = points[name, kind]
        assert input_accuracy == pytest.approx(np.mean([row[1] for row in own]), abs=0.011)
        if name != "resnet8@digits":
            assert (initial, best, gain, over) == (None,) * 4
            assert (improved, reached, room) == ("0 of 0", 0, "of another class at first")
            continue
        assert initial == pytest.approx(np.mean([row[2] for row in own]), abs=0.011)
        assert best == pytest.approx(np.mean([row[3] for row in own]), abs=0.011)
        assert gain == pytest.approx(best - initial, abs=0.021)
        assert over == pytest.approx(best - input_accuracy, abs=0.021)
        assert improved == f"{sum(row[3] > row[2] for row in own)} of {len(own)}"
        assert room == ("yes" if result.numbers["ceilings"][name] - initial / 100 > 0.01 else "at its ceiling")
    assert [claim.bound for claim in result.claims] == ["> 0"] * 3
    for claim, kind in zip(result.claims, optimisation.WORDS, strict=False):
        (row,) = [row for row in result.tables[0].rows if row[:2] == ("resnet8@digits", kind)]
        if row[-1] == "yes":
            assert 100 * claim.number == pytest.approx(row[5], abs=0.006)
        else:
            assert (claim.verdict, claim.reason) == ("not told", optimisation.OTHER_CLASS)
    assert "had not stopped when the steps ended" in result.text


def walk_of(rows):
    """An Optimisation with these rows: start, asked ClassId, ClassId at first, in the end, accuracies."""
    keys = ("start", "asked_class_id", "initial_class_id", "class_id", "initial_accuracy", "accuracy")
    more = {"initial_validation_accuracy": 0.0, "validation_accuracy": 0.0, "stopped": True, "last_step": 1}
    table = pa.Table.from_pylist(
        [dict(zip(keys, row, strict=True)) | more | {"asked_architecture": f"a{row[1]}"} for row in rows]
    )
    return Optimisation(table, None, None, None, None)


def test_gains_by_hand():
    ids = "abcdefg"
    inputs, runs = dict.fromkeys(ids, 0.5) | {"f": 0.9}, {id: id for id in ids}
    moved = walk_of(
        [
            ("a", 0, 0, 0, 0.5, 0.7),  # gains 0.2
            ("b", 0, 0, 0, 0.6, 0.7),  # gains 0.1
            ("c", 0, 1, 0, 0.02, 0.95),  # comes to its class, and 0.93 are no gain
            ("d", 1, 1, 1, 0.3, 0.31),  # gains 0.01
            ("e", 1, 1, 1, 0.3, 0.35),  # gains 0.05
            ("g", 1, 0, 1, 0.0, 0.93),  # comes to its class too, and is no gain either
            ("f", 2, 2, 2, 0.9, 0.9),  # is at its ceiling
        ]
    )
    ceilings = {"a0": 0.9, "a1": 0.9, "a2": 0.905}
    measured = optimisation.measures(moved, inputs, ceilings)
    assert [measured[name]["gain"] for name in ceilings] == pytest.approx([0.15, 0.03, 0])
    assert [measured[name]["reached"] for name in ceilings] == [1, 1, 0]
    assert measured["a0"]["gain_over_input"] == pytest.approx((0.2 + 0.2 + 0.45) / 3)
    assert [measured[name]["room"] for name in ceilings] == ["yes", "yes", "at its ceiling"]
    walks = dict.fromkeys(optimisation.WORDS, moved)
    claims = optimisation._claims(walks, dict.fromkeys(walks, measured), inputs, runs, 0)
    assert [claim.number for claim in claims] == pytest.approx([0.03, 0.03, 0.03])
    assert claims[0].interval == pytest.approx((0.01, 0.05))
    assert [claim.verdict for claim in claims] == ["held", "held", "undecided"]
    # Nothing but a change of class: 93 points are no gain.
    only = walk_of([("c", 0, 1, 0, 0.02, 0.95), ("b", 0, 1, 0, 0.02, 0.95)])
    walks = dict.fromkeys(optimisation.WORDS, only)
    measured = optimisation.measures(only, inputs, ceilings)
    claims = optimisation._claims(walks, dict.fromkeys(walks, measured), inputs, runs, 0)
    assert [(claim.verdict, claim.reason) for claim in claims[:2]] == [("not told", optimisation.OTHER_CLASS)] * 2
    assert claims[2].number == pytest.approx(0.45)  # but the instances are better than the input


def test_start_points_are_weak_and_strong_and_their_ceiling_is_the_better_half(tmp_path):
    registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    accuracies = {"a": 0.9, "b": 0.2, "c": 0.5, "d": 0.8, "e": 0.6}
    with prepkit.ZooWriter(tmp_path / "zoo", width=128, registry=registry) as writer:
        for id, accuracy in accuracies.items():
            writer.add(prepkit.architecture("resnet8@digits").build(), id=id, split="test", accuracy=accuracy)
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    assert optimisation.start_points(zoo, 3) == (
        ["b", "e", "a"],
        {"resnet8@digits": pytest.approx((0.6 + 0.8 + 0.9) / 3)},
    )
    assert optimisation.start_points(zoo, None)[0] == ["b", "c", "e", "d", "a"]  # 6 are wanted
    assert optimisation.start_points(zoo, 1)[0] == ["b"]
