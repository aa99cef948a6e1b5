"""Image tasks: digits with and without augmentation, and the pixels of every batch against a plain loop over images."""

import hashlib

import numpy as np
import pytest
import torch
from contract import TaskContract
from sklearn.datasets import load_digits

from prepkit.errors import ZooError
from prepkit.tasks import _augmentation as augmentation
from prepkit.tasks import check_record, load_task, test_set
from prepkit.tasks._augmentation import Images, Normalisation, draw, normalised
from prepkit.tasks._image_record import Augmentation, split_indices
from prepkit.tasks._image_set import Part, fingerprint
from prepkit.tasks.images import Dealt, ImageTask
from prepkit.tasks.randomness import generator

DIGITS = {
    "kind": "images",
    "dataset": "digits",
    "mean": [0.3],
    "std": [0.4],
    "split": {"seed": 0, "test": 360, "validation": 180},
}


class TestDigits(TaskContract):
    @pytest.fixture
    def record(self):
        return DIGITS

    def plain_evaluation(self, task, k, outputs_of, split):
        digits = load_digits()
        chosen = split_indices(1797, 0, 360, 180)[split]
        hits, loss = 0, 0.0
        for index in chosen:
            pixels = torch.from_numpy((digits.images[index] / 16 - 0.3) / 0.4)[None, None]
            logits = outputs_of(pixels)[0].numpy()
            hits += logits.argmax() == digits.target[index]
            loss += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[digits.target[index]]
        return hits / len(chosen), loss / len(chosen)


class TestAugmentedDigits(TestDigits):
    @pytest.fixture
    def record(self):
        return {**DIGITS, "augmentation": {"crop_padding": 2, "horizontal_flip": True}}


class TestAugmentedDigitsKeptAsBytes(TestAugmentedDigits):
    @pytest.fixture(autouse=True)
    def no_room(self, monkeypatch):
        monkeypatch.setattr(augmentation, "MAX_NORMALISED_BYTES", 0)


# Pixels -------------------------------------------------------------------------------------------------------


def colour_task(count=23, padding=3, flip=True):
    """A task of random 5 x 7 colour images, not square so that axes cannot be mixed up."""
    numbers = np.random.default_rng(1)
    images = torch.from_numpy(numbers.integers(256, size=(count, 3, 5, 7), dtype=np.uint8))
    labels = torch.from_numpy(numbers.integers(4, size=count))
    part = Dealt(Part(images, labels))
    normalisation = Normalisation(255, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    splits = {"train": part, "validation": part, "test": part}
    task = ImageTask({}, splits, 4, normalisation, Augmentation(padding, flip))
    return task, images.numpy(), labels.numpy()


def plain_epoch(images, labels, seed, epoch, batch_size, padding, flip):
    """An epoch of one instance, image after image, in float64 numpy."""
    count, _, height, width = images.shape
    order = torch.randperm(count, generator=generator("order", seed, epoch)).tolist()
    corners = torch.randint(2 * padding + 1, (count, 2), generator=generator("crop", seed, epoch)).tolist()
    flips = torch.randint(2, (count,), generator=generator("flip", seed, epoch)).tolist()
    inputs, targets = [], []
    for position, index in enumerate(order):
        canvas = np.zeros((3, height + 2 * padding, width + 2 * padding))
        canvas[:, padding : padding + height, padding : padding + width] = images[index]
        top, left = corners[position]
        crop = canvas[:, top : top + height, left : left + width]
        crop = crop[:, :, ::-1] if flip and flips[position] else crop
        mean, std = (np.array(values)[:, None, None] for values in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
        inputs.append((crop / 255 - mean) / std)
        targets.append(labels[index])
    return [
        (np.stack(inputs[first : first + batch_size]), np.array(targets[first : first + batch_size]))
        for first in range(0, count, batch_size)
    ]


@pytest.mark.parametrize("kept_normalised", [True, False])
@pytest.mark.parametrize(("padding", "flip"), [(0, False), (0, True), (3, False), (3, True)])
def test_batches_are_those_of_a_plain_loop_over_images(monkeypatch, kept_normalised, padding, flip):
    if not kept_normalised:
        monkeypatch.setattr(augmentation, "MAX_NORMALISED_BYTES", 0)
    task, images, labels = colour_task(padding=padding, flip=flip)
    found = list(task.to("cpu", torch.float64).batches([5, 6], [0, 0], 2, 4))
    assert [batch.inputs.shape[1] for batch in found] == [4, 4, 4, 4, 4, 3]
    for k, seed in enumerate((5, 6)):
        for batch, (inputs, targets) in zip(found, plain_epoch(images, labels, seed, 2, 4, padding, flip), strict=True):
            np.testing.assert_allclose(batch.inputs[k].numpy(), inputs, rtol=1e-12, atol=1e-12)
            assert batch.targets[k].tolist() == targets.tolist()


def test_an_epoch_shows_every_image_once_and_no_augmentation_outside_training():
    task, images, labels = colour_task()
    plain, same_labels = task.to("cpu", torch.float64).normalised("train")
    mean, std = (np.array(values)[:, None, None] for values in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
    np.testing.assert_allclose(plain.numpy(), (images / 255 - mean) / std, rtol=1e-12, atol=1e-12)
    assert same_labels.tolist() == labels.tolist()
    draws = draw([1, 2], 0, 23, 3, True)
    assert [sorted(order) for order in draws.order.tolist()] == [list(range(23))] * 2
    corners = draw([1], 0, 5000, 3, True)
    assert sorted(set(corners.corners.flatten().tolist())) == list(range(7))
    assert 0.45 < corners.flips.double().mean() < 0.55


def test_a_stream_of_numbers_does_not_change_when_another_is_switched_off():
    all_of_it = draw([1], 0, 23, 3, True)
    assert torch.equal(draw([1], 0, 23, 0, False).order, all_of_it.order)
    assert torch.equal(draw([1], 0, 23, 3, False).corners, all_of_it.corners)
    assert torch.equal(draw([1], 0, 23, 0, True).flips, all_of_it.flips)


def test_large_sets_stay_bytes_and_small_ones_are_normalised_once():
    normalisation = Normalisation(255, [0.0], [1.0])
    images = torch.zeros(70, 1, 500, 500, dtype=torch.uint8)
    device = torch.device("meta")
    assert Images(images[:60].to(device), normalisation, 0, device, torch.float32).kept_normalised
    assert not Images(images.to(device), normalisation, 0, device, torch.float32).kept_normalised
    assert Images(images.to(device), normalisation, 0, device, torch.bfloat16).kept_normalised


def test_black_and_white_become_what_mean_and_std_say():
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    normalisation = Normalisation(255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    found = normalised(pixels, normalisation.constants(torch.float64, pixels.device), torch.float64)
    expected = [[-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]]
    torch.testing.assert_close(found[:, :, 0, 0], torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(pixels.flatten(), torch.tensor([0] * 3 + [255] * 3, dtype=torch.uint8))


def test_the_last_batch_is_small_and_a_batch_may_be_the_whole_epoch():
    task, _, _ = colour_task()
    assert [task.num_batches(size) for size in (1, 22, 23, 24, 100)] == [23, 2, 1, 1, 1]
    assert [batch.inputs.shape[:2] for batch in task.batches([1], [0], 0, 100)] == [(1, 23)]


def test_outputs_of_another_number_of_classes_are_an_error():
    task, _, _ = colour_task()
    with pytest.raises(ZooError, match=r"outputs are \[1, 23, 3\], not \[1, 23, 4\]"):
        task.evaluate(lambda inputs: inputs.new_zeros(1, len(inputs), 3), [0], "test")
    with pytest.raises(ZooError, match=r"not \[2, 23, 4\]"):
        task.evaluate(lambda inputs: inputs.new_zeros(1, len(inputs), 4), [0, 0], "test")


# Records ------------------------------------------------------------------------------------------------------


def test_loading_tells_what_the_digits_are():
    task = load_task(DIGITS)
    assert task.splits == {"train": 1257, "validation": 180, "test": 360}
    resolved = {key: task.record[key] for key in ("input_shape", "classes", "samples")}
    assert resolved == {"input_shape": [1, 8, 8], "classes": 10, "samples": dict(task.splits)}
    digits = load_digits()
    content = digits.images.astype(np.uint8).tobytes() + digits.target.astype("<i8").tobytes()
    assert task.record["sha256"] == hashlib.sha256(b"train:[1797, 1, 8, 8];" + content).hexdigest()
    assert {key: task.record[key] for key in DIGITS} == DIGITS
    inputs, labels = test_set(DIGITS)
    mine, same = task.normalised("test")
    assert torch.equal(inputs, mine)
    assert torch.equal(labels, same)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sha256": "0" * 64}, "task, sha256: the data of 'digits' at hand are not those of the record"),
        ({"samples": {"train": 1}}, "task, samples: the data"),
        ({"classes": 9}, "task, classes: the data"),
        ({"input_shape": [3, 8, 8]}, "task, input_shape: the data"),
    ],
)
def test_other_data_than_those_of_the_record_are_an_error(change, told):
    with pytest.raises(ZooError, match="task") as error:
        load_task({**load_task(DIGITS).record, **change})
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "image"}, "Did you mean 'images'?"),
        ({"kind": None}, "task, kind: expected one of images, shapes; found None."),
        ({"dataset": "cifar-10"}, "Did you mean 'cifar10'?"),
        (
            {"dataset": "a/b/c"},
            "task, dataset: expected 'digits', 'folder', 'mnist', 'fashion_mnist', 'cifar10', 'svhn' or an image set",
        ),
        ({"dataset": 3}, "such as 'uoft-cs/cifar10'; found 3."),
        ({"augmentaton": {}}, "task: unknown key 'augmentaton'"),
        ({"augmentaton": {}}, "Did you mean 'augmentation'?"),
        ({"revision": "main"}, "unknown key 'revision'"),
        ({"augmentation": {"crop": 4}}, "task, augmentation: unknown key 'crop'"),
        (
            {"augmentation": {"crop_padding": -1}},
            "task, augmentation.crop_padding: expected a whole number of at least 0; found -1",
        ),
        ({"augmentation": {"crop_padding": True}}, "found true"),
        ({"augmentation": {"horizontal_flip": 1}}, "task, augmentation.horizontal_flip: expected true or false"),
        ({"augmentation": 4}, "task, augmentation: expected a table of crop_padding, horizontal_flip; found 4"),
        ({"split": {"seed": 0, "tests": 1}}, "task, split: unknown key 'tests'"),
        ({"split": {"seed": "0", "test": 1}}, "task, split.seed: expected a whole number; found '0'"),
        ({"split": {"seed": True, "test": 1}}, "task, split.seed: expected a whole number; found true"),
        ({"split": {"test": 1}}, "task, split: 'seed' is missing; expected a whole number"),
        (
            {"split": {"seed": 0, "last": True, "test": 1}},
            "task, split.seed: expected no seed, as `last` draws nothing",
        ),
        ({"split": {"seed": 0, "test": -1}}, "task, split.test: expected a number of images or the name of a part"),
        ({"split": {"seed": 0, "test": 0}}, "task, split.test: expected at least one image; found 0"),
        ({"split": {"seed": 0}}, "task, split: 'test' is missing; expected a number of images or the name of a part"),
        ({"split": None}, "task: 'split' is missing; e.g. split = {seed = 0, test = 360, validation = 180}."),
        ({"split": {"seed": 0, "test": 1.5}}, "task, split.test: expected"),
        ({"split": {"seed": 0, "test": 1, "validation": None}}, "task, split.validation: expected"),
        ({"split": {"seed": 0, "test": "train"}}, "one part of the set stands twice"),
        ({"split": {"seed": 0, "test": "x", "validation": "x"}}, "one part of the set stands twice"),
        ({"mean": 0.3}, "task, mean: expected numbers"),
        ({"mean": []}, "task, mean: expected numbers"),
        ({"mean": [float("nan")]}, "task, mean[0]: expected a number; found nan"),
        ({"std": ["1"]}, "task, std[0]: expected a number above 0; found '1'"),
        ({"std": [-0.1]}, "task, std[0]: expected a number above 0; found -0.1"),
        ({"dataset": "a/b", "revision": 3}, "task, revision: expected a name; found 3"),
        ({"dataset": "a/b", "columns": {"image": 3}}, "task, columns.image: expected a name; found 3"),
        ({"dataset": "a/b", "columns": {"images": "x"}}, "task, columns: unknown key 'images'"),
    ],
)
def test_a_wrong_record_is_told_with_its_place_before_data_is_loaded(change, told):
    with pytest.raises(ZooError, match="task") as error:
        check_record({**DIGITS, **change})
    assert told in str(error.value)


@pytest.mark.parametrize("record", [None, [], "images"])
def test_what_is_no_record_is_an_error(record):
    with pytest.raises(ZooError, match="task"):
        check_record(record)


def test_what_only_the_data_can_tell_is_an_error_when_it_is_loaded(tmp_path):
    def error(change, data=None):
        with pytest.raises(ZooError) as caught:
            load_task({**DIGITS, **change}, data)
        return str(caught.value)

    assert "task, mean: expected 1 number, one a channel" in error({"mean": [0.1, 0.2, 0.3]})
    assert "are more than the 1797 of the data set" in error({"split": {"seed": 0, "test": 1700, "validation": 98}})
    assert 'the digits have one part, "train"' in error({"split": {"seed": 0, "test": "test"}})
    assert "leave out the path" in error({}, tmp_path)


def test_a_split_that_holds_no_images_cannot_be_judged_on():
    task = load_task({**DIGITS, "split": {"seed": 0, "test": 360}})
    assert task.splits["validation"] == 0
    with pytest.raises(ZooError, match="no images are set aside for validation"):
        task.normalised("validation")


def test_the_fingerprint_covers_every_part_its_name_images_and_labels():
    def part(pixel=0, label=0):
        images = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
        images[1, 0, 2, 2] = pixel
        return Part(images, torch.tensor([0, label]))

    sets = [
        {"a": part(), "b": part()},
        {"a": part(1), "b": part()},
        {"a": part(), "b": part(1)},
        {"a": part(label=1), "b": part()},
        {"a": part(), "b": part(label=1)},
        {"a": part(), "c": part()},
        {"a": part()},
    ]
    assert len({fingerprint(parts) for parts in sets}) == len(sets)
    assert fingerprint({"b": part(1), "a": part()}) == fingerprint({"a": part(), "b": part(1)})


def test_another_seed_draws_other_images():
    first, second = (split_indices(100, seed, 20, 10) for seed in (0, 1))
    assert first["test"].tolist() != second["test"].tolist()
    assert split_indices(100, 0, 20, 0)["test"].tolist() == first["test"].tolist()


def test_the_last_images_are_taken_without_a_draw():
    digits = load_digits()
    task = load_task({**DIGITS, "split": {"last": True, "test": 360, "validation": 180}})
    for split, rows in (("train", slice(0, 1257)), ("validation", slice(1257, 1437)), ("test", slice(1437, None))):
        images, labels = task.normalised(split)
        assert labels.tolist() == digits.target[rows].tolist()
        expected = (digits.images[rows] / 16 - DIGITS["mean"][0]) / DIGITS["std"][0]
        assert np.abs(images[:, 0].numpy() - expected).max() < 1e-6


def test_without_test_or_validation_all_images_are_for_training():
    assert split_indices(10, 0, 0, 0)["train"].tolist() == list(range(10))
