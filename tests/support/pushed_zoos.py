"""Small zoos and checkpoints for tests of what goes to the Hub and comes from it."""

import torch

from prepkit.families.registry import architecture
from prepkit.zoo.write.writer import ZooWriter

NAMES = ("lenet_like@digits", "vanilla_cnn@digits")


def network(name, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return architecture(name).build().eval()


def write_zoo(root, count=6, *, seed=0, teacher=False, shard_bytes=40_000, license="mit", **settings):
    """Write a zoo of `count` instances, of two architectures in turn, with one or two instances in a shard."""
    with ZooWriter(root, license=license, shard_bytes=shard_bytes, **settings) as writer:
        if teacher:
            writer.set_teacher(network("resnet8@digits", 99))
        for number in range(count):
            split = ["train", "test"][number % 2]
            writer.add(network(NAMES[number % 2], seed + number), id=f"m{number}", split=split, accuracy=number / 10)
    return root


def path_of(zoo, index):
    """The path of the shard that holds an instance."""
    return zoo.manifest.shards[zoo.metadata(index)["shard"]].path


def shards_of(hub):
    """Paths of the shards whose bodies the server sent, in that order."""
    return [path for path, _ in hub.bodies if path.startswith("shards/")]
