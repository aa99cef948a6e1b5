"""What a checkpoint of the CNN Wild Park says of its network in `config`, checked, as an architecture.

n_layers 3, n_classes 10, channels [3, 8, 4, 8], kernel_size [3, 5, 3], stride [1, 1, 1], padding [1, 2, 1],
residual [-1, -1, 0], activation ["relu", "none", "gelu"]
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, listed, nearest
from prepkit.families.registry import Architecture
from prepkit.families.table import WILD_CNN
from prepkit.prep.layout import canonical_json

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 32  # height and width of CIFAR-10's pictures
LISTS = ("kernel_size", "stride", "padding", "residual", "activation")  # one entry for each convolution
LEAST = {"kernel_size": 1, "stride": 1, "padding": 0}


def arguments_of(said: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the arguments of WildCNN.

    said: what the file says, by dotted name such as "config.channels"
    raises ZooError naming the entry of the config that is missing or wrong
    """
    config: dict[str, Any] = {
        name: said.get(f"config.{name}") for name in ("n_layers", "n_classes", "channels", *LISTS)
    }
    missing = [name for name, value in config.items() if value is None]
    if missing:
        raise ZooError(f"{place}: its config says nothing of {listed(missing)}, so its network cannot be rebuilt.")
    count = config["n_layers"]
    for name, least in (("n_layers", 1), ("n_classes", 1)):
        _check(_is_whole(config[name], least), place, name, config[name], f"a whole number from {least} on")
    for name in ("channels", *LISTS):
        entries, length = config[name], count + (name == "channels")
        is_list = isinstance(entries, list) and len(entries) == length
        _check(is_list, place, name, entries, f"a list of {length}, as n_layers is {count}")
    for name, least in {"channels": 1, **LEAST}.items():
        right = all(_is_whole(entry, least) for entry in config[name])
        _check(right, place, name, config[name], f"whole numbers from {least} on")
    for layer, source in enumerate(config["residual"]):
        right = _is_whole(source, -(2**31)) and source < layer
        _check(right, place, f"residual[{layer}]", source, "the number of an earlier layer, or -1")
    _check_activations(config["activation"], place)
    _check_sizes(config, place)
    return {
        "channels": config["channels"],
        "kernels": config["kernel_size"],
        "strides": config["stride"],
        "paddings": config["padding"],
        "sources": [max(source, -1) for source in config["residual"]],
        "activations": config["activation"],
        "outputs": config["n_classes"],
    }


def architecture_of(arguments: Mapping[str, Any]) -> Architecture:
    """Return what builds a network, with a name that no other arguments have."""
    channels = arguments["channels"]
    digest = hashlib.sha256(canonical_json(arguments).encode()).hexdigest()[:12]
    return Architecture(f"wild_cnn_{digest}", "wild_cnn", (channels[0], SIZE, SIZE), WILD_CNN, arguments, {})


def check_shapes(tensors: Mapping[str, Tensor], arguments: Mapping[str, Any], place: str) -> None:
    """Raise ZooError for a tensor that is not as the config says."""
    expected: dict[str, tuple[int, ...]] = {}
    for layer, (inputs, width) in enumerate(pairwise(arguments["channels"])):
        kernel = arguments["kernels"][layer]
        expected[f"layers.{layer}.weight"] = (width, inputs, kernel, kernel)
        expected[f"layers.{layer}.bias"] = (width,)
    expected["fc.weight"] = (arguments["outputs"], arguments["channels"][-1])
    expected["fc.bias"] = expected["fc.weight"][:1]
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            says, holds = (
                "none" if shape is None else str(list(shape)) for shape in (expected.get(name), found.get(name))
            )
            raise ZooError(
                f"{place}: config and tensors disagree: {name} is {says} by the config, and {holds} in the file. Fetch "
                "it again, or leave it out."
            )


def _check_activations(activations: list[Any], place: str) -> None:
    from prepkit.families.wild_cnn import ACTIVATIONS

    for layer, name in enumerate(activations):
        near = nearest(str(name), ACTIVATIONS)
        _check(name in ACTIVATIONS, place, f"activation[{layer}]", name, f"one of {listed(ACTIVATIONS, 9)}{near}")


def _check_sizes(config: Mapping[str, Any], place: str) -> None:
    """Raise ZooError if a picture becomes smaller than a kernel, or outputs of other sizes would be added."""
    sizes: list[int] = []
    size = SIZE
    for layer, (kernel, stride, padding, source) in enumerate(
        zip(config["kernel_size"], config["stride"], config["padding"], config["residual"], strict=True)
    ):
        if size + 2 * padding < kernel:
            raise ZooError(f"{place}: config: layer {layer} has a kernel of {kernel}, which is more than its input.")
        size = (size + 2 * padding - kernel) // stride + 1
        if source >= 0 and sizes[source] != size:
            raise ZooError(
                f"{place}: config: residual[{layer}] adds layer {source}, whose output has {sizes[source]} x "
                f"{sizes[source]} pixels, to {size} x {size}."
            )
        sizes.append(size)


def _is_whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _check(is_right: bool, place: str, name: str, found: Any, expected: str) -> None:
    if not is_right:
        raise ZooError(f"{place}: config: {name} is {found!r}; expected {expected}.")
