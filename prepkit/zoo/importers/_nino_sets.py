"""The sets of trajectories that NiNo was trained on: their sizes, the order of their parameters, their networks.

A set that is none of these is described by a layout file, JSON such as

    {"states": 124, "runs": 200, "metrics": ["train_loss"], "tensors": {"fc.0.weight": [16, 1, 3, 3], ...}}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from prepkit.errors import ZooError, listed
from prepkit.families.architecture import Architecture
from prepkit.families.table import LAYER_CHAIN
from prepkit.support.reading import LINE, Reader, list_of, read, whole
from prepkit.zoo.format.columns import OWN_COLUMNS
from prepkit.zoo.importers._image_tasks import image_task
from prepkit.zoo.importers._tensor_shapes import TensorShapes, read_json, tensor_shapes

RUN, STATE, ACCURACY = "run", "state", "accuracy"
ACCURACIES = ("test_acc", "test_accuracy")  # metrics that are the accuracy on the test data
VISION_METRICS = ("test_loss", "test_acc", "train_loss", "train_acc")
# The metrics are float16, which is 0.03 per cent near 90, and were measured before the weights were rounded to float16.
TOLERANCE = 0.005


@dataclass(frozen=True)
class TrajectorySet:
    """What the files of a set do not say.

    runs:         number of trajectories; None if the files' sizes tell it
    parts:        number of files that they are split into, each with as many runs; None if any number will do
    metrics:      names of the metrics of each state
    architecture: the network, if prepkit has its family
    task:         record of the task that all were trained on, if it is one of images
    """

    states: int
    tensors: TensorShapes
    metrics: tuple[str, ...]
    runs: int | None = None
    parts: int | None = None
    architecture: Architecture | None = None
    how_to_run: Mapping[str, Any] | None = None
    task: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _LayoutFile:
    """The layout of a set of trajectories."""

    states: Annotated[int, whole(1), "states of each trajectory"]
    tensors: Annotated[TensorShapes, Reader("names and shapes", tensor_shapes, '{"fc.bias": [10]}'), "in their order"]
    runs: Annotated[int | None, whole(1), "trajectories; if missing, the size of the files tells it"] = None
    metrics: Annotated[tuple[str, ...], list_of(LINE, "a list of names"), "metrics of each state"] = ()


def read_set(file: Path) -> TrajectorySet:
    """Read a layout file.

    raises ZooError with the place of what is wrong
    """
    data, place = read_json(file)
    layout = read(_LayoutFile, data, place)
    taken = [name for name in layout.metrics if name in (RUN, STATE, ACCURACY, *OWN_COLUMNS)]
    if taken or len(set(layout.metrics)) < len(layout.metrics):
        wrong = f"{listed(taken)} is filled otherwise" if taken else "a name stands twice"
        raise ZooError(f"{place['metrics']}: {wrong}; give each metric a name of its own.")
    return TrajectorySet(layout.states, layout.tensors, layout.metrics, layout.runs)


def _convnet(name: str, size: int, channels: int, mean: list[float], std: list[float], states: int) -> TrajectorySet:
    """Return a set of convnets: three convolutions, the mean over the picture, a linear layer."""
    convs = [(channels, 16, 2, 0), (16, 32, 1, 1), (32, 32, 1, 1)]  # inputs, outputs, stride, padding
    keys = ("in_channels", "out_channels", "stride", "padding")
    layers: list[Any] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for place, conv in enumerate(convs):
        layer = f"fc.{2 * place}"
        layers += [["conv", layer, {**dict(zip(keys, conv, strict=True)), "kernel_size": 3}], "relu"]
        shapes |= {f"{layer}.weight": (conv[1], conv[0], 3, 3), f"{layer}.bias": (conv[1],)}
    layers += ["mean", ["linear", "fc.8", {"in_features": 32, "out_features": 10}]]
    shapes |= {"fc.8.weight": (10, 32), "fc.8.bias": (10,)}
    how = {
        "measure": "accuracy",
        "tolerance": TOLERANCE,
        "activation": "relu",
        "order": "convolution and activation, three times; the mean over height and width; a linear layer",
        "stride": "2, 1, 1",
        "padding": "0, 1, 1",
        "mean": mean,
        "std": std,
    }
    network = Architecture(name, "layer_chain", (channels, size, size), LAYER_CHAIN, {"layers": layers}, {})
    task = image_task(name.partition("@")[2], mean, std)
    return TrajectorySet(states, TensorShapes(shapes), VISION_METRICS, 300, 1, network, how, task)


def _language(depth: int, width: int) -> TrajectorySet:
    """Return a set of GPT-2 networks of another depth and width, whose word embedding is the output layer too."""
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (50257, width), "wpe.weight": (1024, width)}
    for layer in range(depth):
        block = {
            "ln_1": (width,),
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "ln_2": (width,),
            "mlp.c_fc": (width, 4 * width),
            "mlp.c_proj": (4 * width, width),
        }
        for name, shape in block.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[-1:]}
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    named = {f"transformer.{name}": shape for name, shape in shapes.items()}
    return TrajectorySet(124, TensorShapes(named), ("train_loss",), 200, 2)


SETS = {
    "fm-16": _convnet("nino_fm-16@fashion_mnist", 28, 1, [0.1307], [0.3081], 2688),
    "c10-16": _convnet(
        "nino_c10-16@cifar10",
        32,
        3,
        [0.49139968, 0.48215827, 0.44653124],
        [0.24703233, 0.24348505, 0.26158768],
        2513,
    ),
    "lm1b-3-24": _language(3, 24),
    "lm1b-2-32": _language(2, 32),
}
