"""Small zoos of untrained networks, made in a second: what a NetSpace can be trained on for a few steps."""

from pathlib import Path

import torch

import prepkit

DIGITS = {"kind": "images", "dataset": "digits", "split": {"seed": 0, "test": 60, "validation": 40}}
CHAIRS = {
    "kind": "shapes",
    "dataset": "procedural_chairs",
    "count": 8,
    "seed": 0,
    "points": {"pool": 256, "near_surface": 0.5, "sigma": 0.05},
    "split": {"seed": 0, "test": 64, "validation": 64},
    "steps_per_epoch": 2,
}


def digits_zoo(path: Path, counts: dict[str, dict[str, int]], teacher: bool = True, **settings) -> Path:
    """A zoo with the digits registry: counts of each architecture and split."""
    torch.manual_seed(0)
    registry = prepkit.built_in_registry("digits")
    if settings.pop("single", False):
        registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    columns = settings.pop("columns", {})
    settings = {"width": 128, "task": DIGITS, "registry": registry, **settings}
    with prepkit.ZooWriter(path, **settings) as writer:
        for name, splits in counts.items():
            for split, count in splits.items():
                for number in range(count):
                    network = prepkit.architecture(name).build()
                    writer.add(network, id=f"{name}-{split}-{number}", split=split, accuracy=number / 10, **columns)
        if teacher:
            writer.set_teacher(prepkit.architecture("resnet20@digits").build())
    return path


def single_zoo(path: Path) -> Path:
    return digits_zoo(path, {"resnet8@digits": {"train": 5, "validation": 2, "test": 2}}, teacher=False, single=True)


def multi_zoo(path: Path) -> Path:
    each = {"train": 3, "validation": 1, "test": 1}
    names = ("lenet_like@digits", "vanilla_cnn@digits", "resnet8@digits", "resnet14@digits")
    return digits_zoo(path, dict.fromkeys(names, each), height=88)


def unseen_zoo(path: Path) -> Path:
    rest = {"validation": 1, "test": 1}
    counts = {"lenet_like@digits": {"train": 2, **rest}, "resnet14@digits": {"train": 4, **rest}}
    return digits_zoo(path, counts, height=88)


def sdf_zoo(path: Path, train: int = 5, test: int = 1) -> Path:
    torch.manual_seed(0)
    registry = prepkit.Registry([prepkit.architecture("sine_mlp@sdf_small")])
    with prepkit.ZooWriter(path, width=64, task=CHAIRS, registry=registry) as writer:
        for item in range(train + test):
            network = prepkit.architecture("sine_mlp@sdf_small").build()
            writer.add(network, id=f"chair-{item}", split="train" if item < train else "test", item=item)
    return path


MAKERS = {"digits_single": single_zoo, "digits_multi": multi_zoo, "digits_unseen": unseen_zoo, "chairs_mini": sdf_zoo}
# What makes a built-in recipe run in a second on such a zoo.
SMALL = {
    "digits_single": {"batch.instances": 2, "batch.samples": 16},
    "digits_multi": {"batch.samples": 16},
    "digits_unseen": {"batch.samples": 16},
    "chairs_mini": {"batch.instances": 2, "batch.samples": 32},
}
