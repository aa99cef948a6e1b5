"""The accuracy of a zoo's instances, against networks that are run one by one."""

import pytest
import torch

import prepkit
from prepkit.zoo.read import accuracy
from prepkit.zoo.read.accuracy import has_items, items_of, zoo_accuracies

pytestmark = pytest.mark.usefixtures("one_thread")
DIGITS = {"kind": "images", "dataset": "digits", "split": {"seed": 0, "test": 60, "validation": 40}}
CHAIRS = {
    "kind": "shapes",
    "dataset": "procedural_chairs",
    "count": 4,
    "seed": 0,
    "points": {"pool": 256, "near_surface": 0.5, "sigma": 0.05},
    "split": {"seed": 0, "test": 64, "validation": 64},
    "steps_per_epoch": 2,
}


@pytest.mark.parametrize("chunk", [64, 2])
def test_images_of_two_architectures(tmp_path, monkeypatch, chunk):
    torch.manual_seed(0)
    registry = prepkit.built_in_registry("digits")
    names = ("resnet8@digits", "lenet_like@digits", "resnet8@digits")
    with prepkit.ZooWriter(tmp_path / "zoo", width=128, task=DIGITS, registry=registry) as writer:
        for number, name in enumerate(names):
            writer.add(prepkit.architecture(name).build(), id=str(number), item=7)
    zoo, task = prepkit.open_zoo(tmp_path / "zoo"), prepkit.load_task(DIGITS)
    monkeypatch.setattr(accuracy.chunks, "__defaults__", (chunk,))
    images, labels = task.normalised("test")
    with torch.no_grad():
        expected = [float((zoo.network(row)(images).argmax(1) == labels).double().mean()) for row in range(3)]
    assert len(set(expected)) > 1  # or a mix-up would not show
    assert zoo_accuracies(zoo, task, "test") == pytest.approx(expected, abs=1e-9)
    assert not has_items(zoo)  # the column is the user's
    assert items_of(zoo) == [0, 0, 0]


def test_shapes_have_samples_of_their_own(tmp_path):
    torch.manual_seed(0)
    registry = prepkit.Registry([prepkit.architecture("sine_mlp@sdf_small")])
    with prepkit.ZooWriter(tmp_path / "zoo", width=64, task=CHAIRS, registry=registry) as writer:
        for item in (3, 1):
            writer.add(prepkit.architecture("sine_mlp@sdf_small").build(), id=str(item), item=item)
    zoo, task = prepkit.open_zoo(tmp_path / "zoo"), prepkit.load_task(CHAIRS)
    assert has_items(zoo)
    assert items_of(zoo) == [3, 1]
    expected = []
    for row, item in enumerate((3, 1)):
        points, distances = task.points(item, "test")
        with torch.no_grad():
            expected.append(float(((zoo.network(row)(points)[:, 0] - distances).abs() <= 1e-2).double().mean()))
    assert zoo_accuracies(zoo, task, "test") == pytest.approx(expected, abs=2 / 64)
