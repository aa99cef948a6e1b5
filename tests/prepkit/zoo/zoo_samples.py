"""Small zoos for tests that convert, merge, split or verify them."""

import torch

from prepkit.families.registry import Registry, architecture
from prepkit.zoo.write.writer import ZooWriter

NAMES = ("lenet_like@digits", "vanilla_cnn@digits", "resnet8@digits")
TASK = {"kind": "images", "dataset": "digits", "mean": [0.3], "std": [0.4], "split": {"seed": 0, "test": 360}}


def network(name, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return architecture(name).build().eval()


def write_zoo(root, count=7, names=NAMES[:2], *, seed=0, prefix="m", teacher=None, tensors=0, columns=None, **settings):
    """Write `count` instances in several shards, the architectures by turns, and `tensors` networks without a name."""
    settings = {"task": TASK, "license": "mit", "shard_bytes": 40_000, **settings}
    with ZooWriter(root, **settings) as writer:
        if teacher is not None:
            writer.set_teacher(network(teacher, 99))
        for number in range(count):
            row = {"accuracy": 0.5 + number / 100, "run": number // 2, "note": None if number % 3 else f"n{number}"}
            row |= {} if columns is None else columns(number)
            writer.add(
                network(names[number % len(names)], seed + number),
                id=f"{prefix}{number}",
                split=[None, "train", "test"][number % 3],
                **row,
            )
        for number in range(tensors):
            writer.add({"w": torch.full((3, 5), number + 0.5), "b": torch.zeros(3)}, id=f"{prefix}-nameless{number}")
    return root


def registry(*names):
    return Registry([architecture(name) for name in names], class_ids={name: i for i, name in enumerate(names)})
