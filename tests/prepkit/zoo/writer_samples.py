"""Small networks and zoos for the tests of writing and reading."""

import os
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prepkit
from prepkit.zoo.write.writer import ZooWriter

ARCHITECTURES = ("lenet_like@digits", "resnet8@digits", "vanilla_cnn@digits")
SHARD_BYTES = 50_000  # two or three instances of digits a shard


def tensors_of(seed: int, sizes: tuple[int, ...] = (3, 5, 2), dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return the state dict of a small perceptron whose biases equal its seed."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for index, (size_in, size_out) in enumerate(pairwise(sizes)):
        tensors[f"{index}.weight"] = torch.randn(size_out, size_in, generator=generator).to(dtype)
        tensors[f"{index}.bias"] = torch.full((size_out,), float(seed)).to(dtype)
    return tensors


@cache
def trained(name: str, seed: int) -> nn.Module:
    """Return a built-in network with random weights, and random statistics if it has BatchNorm."""
    torch.manual_seed(seed)
    network = prepkit.architecture(name).build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
    return network.eval()


def write_digits(root: Path, rounds: int = 4, **options: object) -> Path:
    """Write a zoo of three architectures in several shards, with splits and columns."""
    options = {"shard_bytes": SHARD_BYTES, "name": "digits", **options}
    with ZooWriter(root, **options) as writer:
        for seed in range(rounds):
            for name in ARCHITECTURES:
                writer.add(
                    trained(name, seed),
                    id=f"{name.partition('_')[0].partition('@')[0]}-{seed}",
                    split="train" if seed % 4 else "test",
                    accuracy=seed / 10,
                    run=seed,
                    note="first" if seed == 0 else None,
                )
    return root


def interrupt(writer: ZooWriter) -> None:
    """End a writer as an exception inside its `with` does."""
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


def killed_close(writer: ZooWriter) -> None:
    """Close a writer, and interrupt it right before zoo.json gets its place."""
    replace = os.replace

    def dying(source, target):
        if Path(target).name == "zoo.json":
            raise KeyboardInterrupt
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            writer.close()
