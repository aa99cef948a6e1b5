"""Lines of the lists of NetSpace's reference code, the networks that they name, and what these call their tensors.

    lenetlike;d0;scifar10;models/ckpts/cifar10/multi/lenet/0.pt           class; ClassId, data set; path
    resnet_fusedbn;d2;d8;scifar10;models/ckpts/cifar10/multi/resnet8/0.pt class; ClassId, depth, data set; path

The first letter of an argument is its type: d a whole number, f a number, s a text, l a list such as [d1*d2].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, listed, nearest
from prepkit.families.architecture import Architecture
from prepkit.families.registry import architecture, built_in

if TYPE_CHECKING:
    from torch import Tensor

DATASETS = {"cifar10": "cifar10", "tiny-imagenet-200": "tiny_imagenet"}  # data set of the lists: that of architectures
ARGUMENTS = {  # class: types of its arguments and what they are
    "lenetlike": (("d", "ClassId"), ("s", "data set")),
    "vanilla_cnn": (("d", "ClassId"), ("s", "data set")),
    "resnet_fusedbn": (("d", "ClassId"), ("d", "depth"), ("s", "data set")),
}
READERS: dict[str, Callable[[str], Any]] = {"d": int, "f": float, "s": str, "l": lambda text: _items(text)}
# What the reference code calls the modules of each class, and what the networks here call them. ResNets are saved with
# their BatchNorms, under the names of torchvision.
RENAMED = {
    "lenetlike": (
        (r"^conv(\d+)\.", lambda match: f"convs.{int(match[1]) - 1}."),
        (r"^fc([12])\.", lambda match: f"hidden.{int(match[1]) - 1}."),
        (r"^fc3\.", "linear."),
    ),
    "vanilla_cnn": ((r"^layers\.5\.", "linear."), (r"^layers\.", "convs.")),
    "resnet_fusedbn": (
        (r"^(conv|bn)1\.", r"\1."),
        (r"^layer([123])\.", lambda match: f"stages.{int(match[1]) - 1}."),
        (r"\.downsample\.", ".shortcut."),
        (r"^fc\.", "linear."),
    ),
}


@dataclass(frozen=True)
class ListedNet:
    """A network that a line names.

    place: list and line, for errors
    kind:  the class, such as "resnet_fusedbn"
    path:  path of its file, as the line has it
    """

    place: str
    kind: str
    class_id: int
    dataset: str
    architecture: Architecture
    path: str

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of its file under the names of the architecture's network."""
        return {own_name(self.kind, name): tensor for name, tensor in tensors.items()}


def own_name(kind: str, name: str) -> str:
    """Return what the networks here call a tensor of a class."""
    for pattern, replacement in RENAMED[kind]:
        name = re.sub(pattern, replacement, name)
    return name


def read_list(file: Path) -> list[ListedNet]:
    """Read the networks of a list, one a line; empty lines are none.

    raises ZooError naming the line that is wrong
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ZooError(f"{file}: cannot be read: {reason}.") from None
    nets = [read_line(line.strip(), f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not nets:
        raise ZooError(f"{file}: holds no line such as lenetlike;d0;scifar10;models/ckpts/cifar10/multi/lenet/0.pt.")
    return nets


def read_line(line: str, place: str) -> ListedNet:
    """Read one line.

    place: its list and number, for errors
    raises ZooError
    """
    kind, *texts = line.split(";")
    if kind not in ARGUMENTS:
        raise ZooError(
            f"{place}: there is no class {kind[:40]!r}; lists have {listed(ARGUMENTS)}.{nearest(kind, ARGUMENTS)}"
        )
    expected = ARGUMENTS[kind]
    *arguments, path = texts or [""]
    found = [argument for argument in arguments if argument]
    if [argument[0] for argument in found] != [letter for letter, _ in expected]:
        form = ";".join(f"{letter}<{what}>" for letter, what in expected)
        raise ZooError(f"{place}: has {';'.join(arguments)[:80] or 'no arguments'}; a line is {kind};{form};<path>.")
    values = [_value(argument, place) for argument in found]
    if not path:
        raise ZooError(f"{place}: names no file, so it stands for random weights; name one, or leave the line out.")
    dataset = values[-1]
    if dataset not in DATASETS:
        raise ZooError(f"{place}: there is no data set {dataset!r}; lists have {listed(DATASETS)}.")
    return ListedNet(place, kind, values[0], dataset, _architecture(kind, values, place), path.replace("\\", "/"))


def _value(argument: str, place: str) -> Any:
    try:
        return READERS[argument[0]](argument[1:])
    except (KeyError, ValueError):
        raise ZooError(
            f"{place}: {argument[:40]!r} is no argument; d8 is a whole number, f0.5 a number, scifar10 a text and "
            "l[d1*d2] a list."
        ) from None


def _items(text: str) -> list[Any]:
    """Read what stands in the brackets of a list."""
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError(text)
    return [READERS[item[0]](item[1:]) for item in re.split(r"[*,]", text[1:-1]) if item]


def _architecture(kind: str, values: list[Any], place: str) -> Architecture:
    """Return the built-in network of a class, or a ResNet of another depth."""
    dataset = DATASETS[values[-1]]
    if kind != "resnet_fusedbn":
        return architecture({"lenetlike": "lenet_like", "vanilla_cnn": "vanilla_cnn"}[kind] + f"@{dataset}")
    depth, like = values[1], architecture(f"resnet8@{dataset}")
    name = f"resnet{depth}@{dataset}"
    if name in built_in():
        return built_in()[name]
    if depth < 8 or (depth - 2) % 6 or depth > 1202:
        raise ZooError(f"{place}: no ResNet has depth {depth}; it is 6n + 2: 8, 14, 20, up to 1,202.")
    arguments = {**like.arguments, "depth": depth}
    return Architecture(name, like.family, like.input_shape, like.builder, arguments, like.folded_arguments)


def check_class_ids(nets: list[ListedNet]) -> dict[str, int]:
    """Return the ClassId of each architecture's name.

    raises ZooError naming two lines, if two architectures have one, or an architecture has two
    """
    first: dict[object, ListedNet] = {}
    for net in nets:
        name = net.architecture.name
        for key in (name, net.class_id):
            other = first.setdefault(key, net)
            if (other.class_id, other.architecture.name) != (net.class_id, name):
                raise ZooError(
                    f"{net.place}: {name} has ClassId {net.class_id}, but {other.architecture.name} has "
                    f"{other.class_id} in {other.place}. An architecture has one ClassId of its own; mend the lists."
                )
    return {str(key): net.class_id for key, net in first.items() if isinstance(key, str)}


def in_split(name: str) -> str:
    """Return the split of a list by its name: `val` is the zoo's `validation`."""
    return {"val": "validation", "valid": "validation"}.get(name, name)


def check_no_copies(nets: list[ListedNet], splits: list[str]) -> tuple[list[int], int]:
    """Return the numbers of the lines to take, which name each file once, and how many name one again.

    raises ZooError for a file that stands in two splits
    """
    first: dict[str, int] = {}
    taken = []
    for number, net in enumerate(nets):
        other = first.setdefault(net.path, number)
        if other == number:
            taken.append(number)
        elif splits[other] != splits[number] or nets[other].architecture.name != net.architecture.name:
            raise ZooError(
                f"{net.place}: '{net.path}' stands in {nets[other].place} too. A network is of one split and one "
                "class; leave it out of one."
            )
    return taken, len(nets) - len(taken)
