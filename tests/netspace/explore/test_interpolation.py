"""Lines between instances, checked against networks that are run one by one; pairs; sampling; meshes."""

import json
import math

import pyarrow as pa
import pytest
import torch
from small_zoos import DIGITS
from untrained import untrained_run

import prepkit
from netspace.explore.interpolation import Interpolation, interpolate
from netspace.explore.sampling import (
    PointError,
    Points,
    points_of,
    random_instances,
    random_pairs,
    sample,
    sample_class_id,
)
from prepkit.errors import ZooError
from prepkit.tasks.distance_grid import grid_points

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("lenet_like@digits", "vanilla_cnn@digits", "resnet8@digits", "resnet14@digits")


@pytest.fixture(scope="module")
def runs(small_zoo, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    made = {}

    def run(name, class_id=None):
        key = name, class_id
        if key not in made:
            made[key] = untrained_run(root / f"{name}-{class_id}", name, small_zoo(name), class_id)
        return made[key]

    return run


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Nine instances, of which two were trained, so that accuracies differ along the way."""
    root = tmp_path_factory.mktemp("single")
    task = prepkit.load_task(DIGITS)
    registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    with prepkit.ZooWriter(root / "zoo", width=128, registry=registry, task=DIGITS) as writer:
        for number, (split, count) in enumerate([("train", 5), ("validation", 2), ("test", 2)]):
            for place in range(count):
                torch.manual_seed(10 * number + place)
                network = prepkit.architecture("resnet8@digits").build()
                if (split, place) in (("test", 0), ("train", 2)):
                    trained(network, task)
                writer.add(network.eval(), id=f"resnet8@digits-{split}-{place}", split=split)
    run = untrained_run(root / "run", "digits_single", root / "zoo")
    return run, run.open_zoo()


def trained(network, task):
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for batch in task.batches([0], [0], 0, 64):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(batch.inputs[0]), batch.targets[0]).backward()
        optimiser.step()


@pytest.fixture(scope="module")
def multi(runs):
    run = runs("digits_multi", 2)
    return run, run.open_zoo()


def accuracy_of(network, zoo, split):
    """Of a plain module on the task's images."""
    images, labels = prepkit.load_task(zoo.task).normalised(split)
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).double().mean())


def network_of(name, tensors):
    network = prepkit.architecture(name).build_folded()
    network.load_state_dict(tensors, strict=False)
    return network.eval()


def rows_of(found, line):
    return [row for row in found.table.to_pylist() if row["line"] == line]


def assert_same_rows(found, expected):
    """The same but for an image whose logits are equal within rounding, which depends on the size of a batch."""
    accuracies = [[row.pop("accuracy") for row in rows] for rows in (found, expected)]
    assert found == expected
    assert accuracies[0] == pytest.approx(accuracies[1], abs=1 / 60 + 1e-9)


# Lines ----------------------------------------------------------------------------------------------------------


def test_the_line_through_the_embedding_space(single):
    run, zoo = single
    found = interpolate(run, zoo, "resnet8@digits-test-0", "resnet8@digits-train-2", 4, samples="validation")
    space = run.space()
    with torch.no_grad():
        a, b = (
            space.encoder(zoo.preps([zoo.index(id)]))[0] for id in ("resnet8@digits-test-0", "resnet8@digits-train-2")
        )
        expected = torch.stack([a, a * 2 / 3 + b / 3, a / 3 + b * 2 / 3, b])
        preps = space.decoder(expected)
    assert (a - b).abs().max() > 1e-3
    torch.testing.assert_close(found.latents[0], expected, rtol=1e-4, atol=1e-5)
    layout = prepkit.architecture("resnet8@digits").layout
    rows = rows_of(found, "embedding")
    assert [row["gamma"] for row in rows] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    for row, prep in zip(rows, preps, strict=True):
        network = network_of("resnet8@digits", layout.unpack(prep))
        assert row["accuracy"] == pytest.approx(accuracy_of(network, zoo, "validation"), abs=1 / 40 + 1e-9)
        assert (row["architecture"], row["class_id"]) == ("resnet8@digits", 0)


def test_the_line_from_weight_to_weight(single):
    run, zoo = single
    ids = "resnet8@digits-test-0", "resnet8@digits-train-2"
    found = interpolate(run, zoo, *ids, 5)
    a, b = (zoo.network(id).state_dict() for id in ids)
    rows = rows_of(found, "weights")
    assert [row["step"] for row in rows] == list(range(5))
    for row in rows:
        gamma = row["step"] / 4
        between = {name: (1 - gamma) * a[name] + gamma * b[name] for name in a}
        assert row["accuracy"] == pytest.approx(
            accuracy_of(network_of("resnet8@digits", between), zoo, "test"), abs=1e-9
        )
    accuracies = [row["accuracy"] for row in rows]
    assert min(accuracies[0], accuracies[-1]) > 0.5 > min(accuracies)  # as Fig. 3 b has it


def test_many_pairs_are_each_what_one_is(single, monkeypatch):
    run, zoo = single
    ids = zoo.table["id"].to_pylist()
    first, second = ids[:3], ids[3:6]
    told = []
    found = interpolate(run, zoo, first, second, 3, progress=told.append)
    assert sum(told) == 2 * 3 * 3
    for pair in range(3):
        alone = interpolate(run, zoo, first[pair], second[pair], 3)
        own = [{**row, "pair": 0} for row in found.table.to_pylist() if row["pair"] == pair]
        assert_same_rows(own, alone.table.to_pylist())
    monkeypatch.setattr("netspace.explore.interpolation.chunks", lambda n: iter([[k] for k in range(n)]))
    assert_same_rows(interpolate(run, zoo, first, second, 3).table.to_pylist(), found.table.to_pylist())


def test_architectures_that_differ_have_no_line_of_weights(multi):
    run, zoo = multi
    first = ["lenet_like@digits-test-0", "resnet14@digits-train-0", "lenet_like@digits-train-1"]
    second = ["resnet14@digits-test-0", "resnet14@digits-train-1", "resnet14@digits-test-0"]
    found = interpolate(run, zoo, first, second, 3)
    assert [row["pair"] for row in rows_of(found, "weights")] == [1, 1, 1]
    assert {row["architecture"] for row in rows_of(found, "weights")} == {"resnet14@digits"}
    assert found.notes == (
        "2 of 3 pairs have no line of weights: lenet_like@digits and resnet14@digits differ in their layers.",
    )
    assert found.class_ids().tolist() == [[2] * 3] * 3
    assert {row["architecture"] for row in rows_of(found, "embedding")} == {"resnet8@digits"}
    assert found.values("weights").shape == (1, 3)


def test_embeddings_as_ends(single):
    run, zoo = single
    space = run.space()
    latents = points_of(space, zoo, ["resnet8@digits-test-0", "resnet8@digits-test-1"]).latents
    given = interpolate(run, zoo, latents[0], latents[1:], 3, space=space)
    named = interpolate(run, zoo, "resnet8@digits-test-0", "resnet8@digits-test-1", 3, space=space)
    torch.testing.assert_close(given.latents, named.latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given.values(), named.values(), rtol=0, atol=1 / 60 + 1e-9)
    assert rows_of(given, "weights") == []
    assert "no weights of its own" in given.notes[0]
    assert given.table["first"].to_pylist() == ["embedding 0"] * 3


def test_an_instance_on_the_way_is_a_ready_network(multi):
    run, zoo = multi
    found = interpolate(run, zoo, "lenet_like@digits-test-0", "resnet14@digits-test-0", 3)
    network = found.predicted(0).network(1)
    row = rows_of(found, "embedding")[1]
    assert accuracy_of(network, zoo, "test") == pytest.approx(row["accuracy"], abs=1 / 60 + 1e-9)


@pytest.mark.parametrize(
    ("first", "second", "settings", "message"),
    [
        ("resnet8@digits-test-0", "resnet8@digits-test-1", {"steps": 1}, "1 step: a line has at least its 2 ends"),
        (["resnet8@digits-test-0"] * 2, "resnet8@digits-test-1", {}, "2 first and 1 second points are no pairs"),
        ([], "resnet8@digits-test-1", {}, "no instance was named"),
        (torch.zeros(2, 255), torch.zeros(2, 256), {}, r"embeddings of \[2, 255\] are no points .* \[N, 256\]"),
        (torch.zeros(256), torch.full((256,), math.nan), {}, "not finite"),
        (
            "resnet8@digits-test-0",
            "resnet8@digits-test-1",
            {"samples": "tets"},
            "no samples 'tets'.*Did you mean 'test'",
        ),
    ],
)
def test_what_is_no_line(single, first, second, settings, message):
    run, zoo = single
    with pytest.raises(PointError, match=message):
        interpolate(run, zoo, first, second, **{"steps": 3, **settings})


def test_an_unknown_instance_is_told_with_the_nearest(single):
    with pytest.raises(ZooError, match=r"no instance 'resnet8@digits-tets-0'. Did you mean 'resnet8@digits-test-0'"):
        interpolate(*single, "resnet8@digits-tets-0", "resnet8@digits-test-1")


def test_summary():
    gammas = (0.0, 0.5, 1.0)
    values = {"embedding": [[0.1, 0.5, 0.9], [0.3, 0.6, 0.5]], "weights": [[0.4, 0.1, 0.6]]}
    class_ids = [[0, 0, 3], [0, 3, 2]]
    rows = [
        {"line": line, "pair": pair, "step": step, "accuracy": value, "class_id": class_ids[pair][step]}
        for line, pairs in values.items()
        for pair, one in enumerate(pairs)
        for step, value in enumerate(one)
    ]
    ends = Points(("a", "b"), torch.zeros(2, 4), None)
    found = Interpolation(pa.Table.from_pylist(rows), torch.zeros(2, 3, 4), gammas, ends, ends, ("why",), None, None)
    summary = json.loads(json.dumps(found.summary()))
    embedding, weights = summary["lines"]["embedding"], summary["lines"]["weights"]
    assert embedding["mean"] == pytest.approx([0.2, 0.55, 0.7])
    assert embedding["deviation"] == pytest.approx([0.1 * math.sqrt(2), 0.05 * math.sqrt(2), 0.2 * math.sqrt(2)])
    assert embedding["largest_fall"] == pytest.approx((0 + 0.1) / 2)
    assert embedding["from_straight_line"] == pytest.approx((0 + 0 + 0 + 0 + 0.2 + 0) / 6)
    assert (weights["pairs"], weights["deviation"]) == (1, [None] * 3)
    assert weights["largest_fall"] == pytest.approx(0.3)
    assert summary["class_ids_in_order"] == 0.5
    assert (summary["pairs"], summary["value"], summary["notes"]) == (2, "accuracy", ["why"])


# Pairs and samples ----------------------------------------------------------------------------------------------


def test_random_pairs_of_one_architecture(single):
    run, zoo = single
    first, second = random_pairs(run, zoo, 36, seed=3)  # all pairs of 9 instances
    assert len({frozenset(pair) for pair in zip(first, second, strict=True)}) == 36
    accuracies = [float(row * 7 % 9) for row in range(9)]
    of = dict(zip(zoo.table["id"].to_pylist(), accuracies, strict=True))
    first, second = random_pairs(run, zoo, 36, accuracies=accuracies)
    assert all(of[a] < of[b] for a, b in zip(first, second, strict=True))
    assert len({frozenset(pair) for pair in zip(first, second, strict=True)}) == 36
    assert random_pairs(run, zoo, 4, seed=1) == random_pairs(run, zoo, 4, seed=1)
    assert random_pairs(run, zoo, 4, seed=1) != random_pairs(run, zoo, 4, seed=2)
    with pytest.raises(PointError, match=r"37 pairs were asked for; .* has 36"):
        random_pairs(run, zoo, 37)


def test_random_pairs_of_several_architectures_join_the_boundaries(multi):
    run, zoo = multi
    first, second = random_pairs(run, zoo.split("train"), 9)
    assert {id.split("-")[0] for id in first} == {NAMES[0]}
    assert {id.split("-")[0] for id in second} == {NAMES[3]}
    assert len(set(zip(first, second, strict=True))) == 9
    with pytest.raises(PointError, match=r"10 pairs of the boundary architectures were asked for; .* has 9"):
        random_pairs(run, zoo.split("train"), 10)


def test_random_instances(multi):
    _, zoo = multi
    found = random_instances(zoo.split("train"), 2, seed=1)
    assert [id.split("-")[0] for id in found] == [name for name in NAMES for _ in range(2)]
    assert len(set(found)) == 8
    assert len(random_instances(zoo.split("test"), 5)) == 4


def test_samples_stand_between_boundary_instances(multi):
    run, zoo = multi
    drawn = sample(run, zoo, pairs=2, seed=5)
    assert drawn.gammas == pytest.approx((1 / 3, 2 / 3))
    space = run.space()
    with torch.no_grad():
        expected = []
        for a, b in zip(drawn.first, drawn.second, strict=True):
            e_a, e_b = (space.encoder(zoo.preps([zoo.index(id)]))[0] for id in (a, b))
            expected += [(1 - gamma) * e_a + gamma * e_b for gamma in drawn.gammas]
    torch.testing.assert_close(drawn.latents, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert len(drawn.predicted) == 4
    assert zoo.table["split"].to_pylist()[zoo.index(drawn.first[0])] == "train"


def test_a_class_is_sampled_where_it_is_predicted(multi):
    run, zoo = multi
    drawn = sample_class_id(run, zoo, 2)
    assert drawn.gammas == pytest.approx((2 / 3,))
    assert drawn.predicted.class_ids == (2,)
    assert drawn.predicted.preps.shape[0] == len(drawn.latents) == len(drawn.first) == 1
    with torch.no_grad():
        torch.testing.assert_close(drawn.predicted.preps, run.space().decode(drawn.latents), rtol=1e-4, atol=1e-6)
    with pytest.raises(PointError, match=r"gamma 0.333333 of 9 lines .* never predicted, but resnet8@digits"):
        sample_class_id(run, zoo, 1)
    with pytest.raises(PointError, match=r"ClassId 4 cannot be sampled; .* has 0 lenet_like@digits, 1 vanilla"):
        sample_class_id(run, zoo, 4)


def test_what_cannot_be_sampled(single, multi):
    with pytest.raises(PointError, match=r"knows one architecture, resnet8@digits"):
        sample(*single)
    with pytest.raises(PointError, match=r"knows one architecture|has one architecture"):
        sample_class_id(*single, 0)
    with pytest.raises(PointError, match=r"gammas \[1.5\]: use one or more from 0 to 1"):
        sample(*multi, gammas=(1.5,))
    with pytest.raises(PointError, match="10 pairs of the boundary"):
        sample(*multi, pairs=10)


# Signals and meshes ---------------------------------------------------------------------------------------------


def test_lines_of_signals(runs):
    run = runs("chairs_mini")
    zoo = run.open_zoo()
    found = interpolate(run, zoo, "chair-0", "chair-3", 3, resolution=6)
    rows = rows_of(found, "weights")
    points = grid_points(6)
    for row, id in ((rows[0], "chair-0"), (rows[2], "chair-3")):
        with torch.no_grad():
            inside = zoo.network(id)(points)[:, 0] < 0
        assert row["volume"] == pytest.approx(8 * float(inside.double().mean()))
        assert row["has_surface"] == bool(inside.any() and not inside.all())
    task = prepkit.load_task(zoo.task)
    for name, item in (("accuracy_first", 0), ("accuracy_second", 3)):
        at, distances = task.points(item, "test")
        for row, id in ((rows[0], "chair-0"), (rows[2], "chair-3")):
            with torch.no_grad():
                close = (zoo.network(id)(at)[:, 0] - distances).abs() <= 1e-2
            assert row[name] == pytest.approx(float(close.double().mean()), abs=2 / 64)
    assert found.value == "volume"
    given = interpolate(run, zoo, found.latents[0, 0], found.latents[0, 2], 3, resolution=6)
    assert given.values().tolist() == found.values().tolist()
    assert given.table["accuracy_first"].to_pylist() == [None] * 3
