"""Instances by architecture, and the statistics of their layers."""

from pathlib import Path

import numpy as np
import pytest

import prepkit
from prepkit.zoo.read.groups import layer_statistics, rows_by_architecture


@pytest.fixture
def zoo(tmp_path: Path) -> prepkit.Zoo:
    """A zoo whose instances do not stand in the order of their ClassIds."""
    registry = prepkit.built_in_registry("digits")
    with prepkit.ZooWriter(tmp_path, width=128, registry=registry) as writer:
        for number, name in enumerate(
            ("resnet14@digits", "lenet_like@digits", "vanilla_cnn@digits", "lenet_like@digits")
        ):
            writer.add(prepkit.architecture(name).build(), id=f"{number}")
    return prepkit.open_zoo(tmp_path)


def test_rows_by_architecture(zoo: prepkit.Zoo) -> None:
    rows = rows_by_architecture(zoo)
    assert list(rows.items()) == [("lenet_like@digits", [1, 3]), ("vanilla_cnn@digits", [2]), ("resnet14@digits", [0])]
    assert rows_by_architecture(zoo.select([3, 0])) == {"lenet_like@digits": [0], "resnet14@digits": [1]}


def test_layer_statistics(zoo: prepkit.Zoo) -> None:
    rows = layer_statistics(zoo)
    most = 7 * max(len(architecture.layout.slots) for architecture in zoo.registry)
    assert rows.shape == (len(zoo), most + 4)
    for row in range(len(zoo)):
        expected = []
        for tensor in zoo.network(row).state_dict().values():
            values = tensor.double().numpy().ravel()
            expected += [
                values.mean(),
                ((values - values.mean()) ** 2).mean(),
                *np.percentile(values, [0, 25, 50, 75, 100]),
            ]
        assert rows[row, : len(expected)] == pytest.approx(np.array(expected))
        assert not rows[row, len(expected) : most].any()
        assert rows[row, most:].tolist() == [float(class_id == zoo.class_ids()[row]) for class_id in range(4)]
