"""Zoos with planted faults."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prepkit.families.registry import architecture
from prepkit.zoo.write.writer import ZooWriter

NAME = "lenet_like@digits"
TASK = {"kind": "images", "dataset": "digits", "mean": [0.3], "std": [0.4], "split": {"seed": 0, "test": 360}}


def drawn(seed: int, name: str = NAME) -> dict[str, Tensor]:
    """The tensors of a network without BatchNorm."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(architecture(name).build_folded().state_dict())


def reordered(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The same LeNet with its channels and neurons in another order, without prepkit's symmetries."""
    generator = torch.Generator().manual_seed(seed)
    new = {name: tensor.clone() for name, tensor in tensors.items()}
    names = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    for layer, following in pairwise(names):
        units = len(new[f"{layer}.bias"])
        order = torch.randperm(units, generator=generator)
        new[f"{layer}.weight"] = new[f"{layer}.weight"][order]
        new[f"{layer}.bias"] = new[f"{layer}.bias"][order]
        read = new[f"{following}.weight"]  # maps are flattened channel by channel
        new[f"{following}.weight"] = read.unflatten(1, (units, -1))[:, order].flatten(1, 2).view_as(read)
    return new


def nudged(tensors: dict[str, Tensor], share: float, seed: int = 0) -> dict[str, Tensor]:
    """The same network, moved by a share of its norm in a random direction."""
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
    scale = share * norm(tensors) / norm(noise)
    return {name: tensor + scale * noise[name] for name, tensor in tensors.items()}


def norm(tensors: dict[str, Tensor]) -> float:
    return float(torch.cat([tensor.double().flatten() for tensor in tensors.values()]).norm())


def zoo_of(root: Path, networks: dict[str, Any], columns: Any = None, *, seeds: bool = True, **settings: Any) -> Path:
    """Write a zoo of tensors by id; an instance is in the split that its columns name."""
    settings = {"task": TASK, "license": "mit", "provenance": {"spec": "planted"}, **settings}
    with ZooWriter(root, **settings) as writer:
        for number, (id_, tensors) in enumerate(networks.items()):
            row = {"split": "train", "run": id_, "seed": number, "accuracy": 0.5 + number / 100}
            row |= (columns or {}).get(id_, {})
            if not seeds:
                del row["seed"]
            writer.add(tensors, id=id_, **row)
    return root
