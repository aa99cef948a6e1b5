"""Which instances and samples a step sees: drawn from seed and step alone, and as METHOD deals them."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from small_zoos import CHAIRS, DIGITS, SMALL, digits_zoo

import prepkit
from netspace.data import AtRandom, Data, InTurn, Pairs, ZooMismatch, check_zoo, line_order_of, order_of
from netspace.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def opened(path, recipe):
    return prepkit.open_zoo(path, width=recipe.network.width, height=recipe.network.height)


def data_of(name, small_zoo, **changes):
    recipe = load_recipe(name, {**SMALL[name], **changes})
    return Data(recipe, opened(small_zoo(name), recipe), CPU)


def taken(iterator, count):
    return [next(iterator) for _ in range(count)]


# Instances ------------------------------------------------------------------------------------------------------


def test_in_turn_shows_every_instance_once_before_any_twice():
    order = InTurn(count=10, size=4, seed=0)
    seen = [index for number in range(25) for index in order.indices(number)]
    for epoch in range(10):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]
    assert InTurn(10, 4, seed=1).indices(0) != order.indices(0)


def test_at_random_holds_boundary_pairs_as_often_as_asked():
    class_ids = [0] * 5 + [1] * 5 + [2] * 5
    order = AtRandom(15, 2, 0, tuple(range(5)), tuple(range(10, 15)), boundary_share=0.5)
    batches = [order.indices(number) for number in range(2000)]
    assert all(len(set(batch)) == 2 for batch in batches)
    pairs = sum({class_ids[a], class_ids[b]} == {0, 2} for a, b in batches)
    # Half are made so, and of the others as many as chance gives: 2 x 5 x 5 of 15 x 14.
    expected = 0.5 + 0.5 * 50 / 210
    assert pairs / 2000 == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 2000) ** 0.5)
    counts = Counter(index for batch in batches for index in batch)
    assert set(counts) == set(range(15))


def test_at_random_without_pairs_is_uniform():
    order = AtRandom(6, 2, 0, (0,), (5,), boundary_share=0.0)
    counts = Counter(index for number in range(3000) for index in order.indices(number))
    assert all(counts[index] == pytest.approx(1000, abs=4 * 1000**0.5) for index in range(6))


def test_the_line_loss_takes_as_many_of_each_architecture_in_turn():
    recipe = load_recipe("digits_multi", {"loss.line": 1.0, "batch.line_instances": 2})
    class_ids = [3, 0, 1, 0, 2, 3, 0, 1, 1, 2, 3]  # three, three, two and three of them
    order = line_order_of(recipe, class_ids)
    batches = [order.indices(number) for number in range(9)]
    assert all([class_ids[row] for row in batch] == [0, 0, 1, 1, 2, 2, 3, 3] for batch in batches)
    counts = Counter(row for batch in batches for row in batch)
    assert counts == {row: {0: 6, 1: 6, 2: 9, 3: 6}[class_ids[row]] for row in range(11)}
    assert order.indices(5) == batches[5]
    with pytest.raises(ZooMismatch, match=r"no training instance of resnet8@digits, so loss.line.*use loss.line=0"):
        line_order_of(recipe, [0, 1, 3])


def test_batches_hold_the_instances_of_the_line(small_zoo):
    changes = {"batch.line_instances": 2, "batch.accumulate": 2, "training.steps": 5, "loss.line_from": 0.5}
    data = data_of("digits_multi", small_zoo, **{"loss.line": 1.0, **changes})
    batches = taken(data.batches(0), 10)
    assert [batch.line is None for batch in batches] == [True] * 6 + [False] * 4  # half of five steps end in the third
    for number, batch in enumerate(batches[6:], 6):
        assert torch.equal(batch.line, data.preps_NHW[data.line_order.indices(number)])
        (again,) = taken(data.batches(number), 1)
        assert torch.equal(again.line, batch.line)
    (plain,) = taken(data_of("digits_multi", small_zoo).batches(0), 1)
    assert plain.line is None


def test_pairs_are_dealt_as_in_the_paper():
    first, last = tuple(range(40)), tuple(range(40, 120))
    order = Pairs(2, 0, first, last)
    for epoch in range(3):
        batches = [order.indices(60 * epoch + number) for number in range(60)]
        assert sorted(index for batch in batches for index in batch) == list(range(120))
        kinds = Counter(tuple(index >= 40 for index in batch) for batch in batches)
        assert kinds == {(False, True): 40, (True, True): 20}
    assert order.indices(0) != order.indices(60)


def test_fixed_pairs_are_those_of_the_zoo_in_another_order_at_each_pass():
    """As the reference pairs its lists: line by line, then the longer list with itself."""
    first, last = tuple(range(10, 14)), (0, 1, 2, 3, 20, 21, 22, 23)
    order = Pairs(2, 0, first, last, fixed=True)
    expected = {(10, 0), (11, 1), (12, 2), (13, 3), (20, 21), (22, 23)}
    passes = [[tuple(order.indices(6 * turn + number)) for number in range(6)] for turn in range(3)]
    for pairs in passes:
        assert len(pairs) == len(expected)
        assert set(pairs) == expected
    assert passes[0] != passes[1]
    anew = Pairs(2, 0, first, last)
    assert {tuple(anew.indices(number)) for number in range(6)} != expected


def test_orders_of_the_settings():
    multi, unseen, single = (load_recipe(name) for name in ("digits_multi", "digits_unseen", "digits_single"))
    assert isinstance(order_of(single, [0] * 8), InTurn)
    assert isinstance(order_of(multi, [0, 3]), AtRandom)
    assert order_of(unseen, [0, 3]) == Pairs(2, 0, (0,), (1,))
    fixed = load_recipe("digits_unseen", {"batch.fixed_pairs": True})
    assert order_of(fixed, [0, 3]) == Pairs(2, 0, (0,), (1,), fixed=True)
    in_turn = load_recipe("digits_multi", {"batch.boundary_share": 0.0})
    assert order_of(in_turn, [0, 3, 1]) == InTurn(3, 2, 0)  # as the paper's recipes, which make no pairs
    with pytest.raises(ZooMismatch, match=r"batches of 8 instances; the zoo has 7"):
        order_of(single, [0] * 7)
    with pytest.raises(ZooMismatch, match=r"no training instance of the boundary architecture resnet14@digits"):
        order_of(multi, [0, 1, 2])
    with pytest.raises(ZooMismatch, match=r"also has training instances of resnet8@digits"):
        order_of(unseen, [0, 2, 3])


# Batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_single", "digits_multi", "chairs_mini"])
def test_going_on_sees_what_would_have_been_seen(name, small_zoo):
    data = data_of(name, small_zoo, **{"batch.samples": 700} if name != "chairs_mini" else {})
    whole = taken(data.batches(0), 7)  # two batches an epoch of 1,697 images: 700, 700, 297
    for first in (1, 3, 5):
        for expected, found in zip(whole[first:], data.batches(first), strict=False):
            assert found.indices == expected.indices
            assert found.class_ids == expected.class_ids
            assert torch.equal(found.inputs, expected.inputs)
            assert torch.equal(found.preps, expected.preps)
            assert expected.labels is None or torch.equal(found.labels, expected.labels)


def test_batches_hold_the_zoo_s_own_preps_and_images(small_zoo):
    data = data_of("digits_multi", small_zoo)
    train = opened(small_zoo("digits_multi"), data.recipe).split("train")
    images, labels = prepkit.load_task(DIGITS).normalised("train")
    rows = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    for batch in taken(data.batches(0), 5):
        assert torch.equal(batch.preps, train.preps(list(batch.indices)))
        assert list(batch.class_ids) == train.class_ids(list(batch.indices)).tolist()
        assert [rows[image.numpy().tobytes()] for image in batch.inputs] == batch.labels.tolist()


def test_points_are_each_instance_s_own_shape(small_zoo):
    data = data_of("chairs_mini", small_zoo)
    zoo = prepkit.open_zoo(small_zoo("chairs_mini")).split("train")
    batch = next(data.batches(0))
    assert batch.inputs.shape == (2, 32, 3)
    for index, points in zip(batch.indices, batch.inputs, strict=True):
        pool, _ = data.task.points(zoo.metadata(index)["item"], "train")
        rows = {row.numpy().tobytes() for row in pool}
        assert all(point.numpy().tobytes() in rows for point in points)


# Zoos that do not fit -------------------------------------------------------------------------------------------


def test_a_zoo_that_does_not_fit_is_refused(tmp_path, small_zoo):
    multi, single = load_recipe("digits_multi"), load_recipe("digits_single")

    def at40(path):
        return opened(path, single)

    with pytest.raises(ZooMismatch, match=r"is for lenet_like@digits.*has resnet8@digits.*zoo train digits_multi"):
        check_zoo(multi, opened(small_zoo("digits_single"), multi))
    with pytest.raises(ZooMismatch, match=r"PReps of 88 x 128; zoo 'digits_multi' is read at 44 x 256"):
        check_zoo(multi, prepkit.open_zoo(small_zoo("digits_multi"), width=256))
    counts = {"resnet8@digits": {"train": 1}}
    with pytest.raises(ZooMismatch, match=r"no instances in the split 'validation'; it has train"):
        check_zoo(single, at40(digits_zoo(tmp_path / "a", counts, single=True)))
    counts = {"resnet8@digits": {"train": 1, "validation": 1}}
    with pytest.raises(ZooMismatch, match="does not record its task"):
        check_zoo(single, at40(digits_zoo(tmp_path / "b", counts, single=True, task=None)))
    counts = {"lenet_like@digits": {"train": 1, "validation": 1}}
    with pytest.raises(ZooMismatch, match=r"has no teacher, which Eq\. 3 needs"):
        check_zoo(multi, prepkit.open_zoo(digits_zoo(tmp_path / "c", counts, teacher=False, height=88)))


def test_a_task_of_another_kind_than_the_setting_needs_is_refused(small_zoo):
    chairs, single = load_recipe("chairs_mini"), load_recipe("digits_single")
    loss, latent = replace(single.loss, alpha=0.9), replace(single.latent, alpha=None)
    with pytest.raises(ZooMismatch, match=r"setting 'sdf', which needs a task of shapes; that of zoo .* is of images"):
        check_zoo(replace(single, setting="sdf", loss=loss, latent=latent), opened(small_zoo("digits_single"), single))
    with pytest.raises(ZooMismatch, match=r"setting 'single', which needs a task of images; that of zoo .* of shapes"):
        check_zoo(replace(chairs, setting="single"), opened(small_zoo("chairs_mini"), chairs))


@pytest.mark.parametrize("columns", [({}, {}), ({"item": 3}, {}), ({}, {"item": 4})])
def test_signals_without_the_number_of_their_shape_are_refused(tmp_path, columns):
    """An instance whose shape is not known would be judged by the points of shape 0."""
    chairs, sine = load_recipe("chairs_mini"), prepkit.architecture("sine_mlp@sdf_small")
    with prepkit.ZooWriter(tmp_path / "zoo", width=64, task=CHAIRS, registry=prepkit.Registry([sine])) as writer:
        for split, column in zip(("train", "test"), columns, strict=True):
            writer.add(sine.build(), id=split, split=split, **column)
    with pytest.raises(ZooMismatch, match="does not say of each instance which shape it is of; `prepkit zoo annotate`"):
        check_zoo(chairs, opened(tmp_path / "zoo", chairs))
