"""A project that depends on prepkit alone, as mypy --strict and pyright must accept it; nothing of it is ever run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import prepkit


def pack_all(models: list[Path], folder: Path) -> list[prepkit.PRep]:
    packed: list[prepkit.PRep] = []
    for model in models:
        try:
            result = prepkit.pack_checkpoint(model, width=512, dtype="float16")
        except prepkit.PrepkitError as error:
            print(f"{model}: {error}")
            continue
        prepkit.save_prep(result.prep, folder / f"{model.stem}.prep.safetensors", overwrite=True)
        packed.append(result.prep)
    return packed


def round_trip(network: nn.Module) -> dict[str, Tensor]:
    layout = prepkit.Layout.of(network)
    prep: Tensor = layout.pack(network.state_dict(), layout.shape(width=512))
    return dict(layout.unpack(prep))


def write_zoo(folder: Path, networks: list[nn.Module]) -> None:
    with prepkit.ZooWriter(folder, width=512, license="mit") as writer:
        for number, network in enumerate(networks):
            writer.add(network, split="train", accuracy=0.5, run=number)


def mean_distance(folder: Path) -> float:
    zoo: prepkit.Zoo = prepkit.open_zoo(folder)
    good = zoo.split("train").where("accuracy > 0.8")
    prep, metadata = good[0]
    reference: Tensor = prep.values
    name: str = str(metadata["id"])
    total = torch.zeros(())
    for batch in good.loader(32, seed=0):
        preps: Tensor = batch.preps
        total += (preps - reference).abs().mean(dim=(1, 2)).sum()
    network: nn.Module = good.network(name)
    network.eval()
    return float(total) / len(good)


def learn(folder: Path) -> Tensor:
    zoo = prepkit.open_zoo(folder)
    view = prepkit.views.statistics(zoo)
    features: Tensor = view(zoo.preps([0, 1, 2]))
    result = prepkit.bench(folder, "accuracy")
    print(result.rows["statistics + ridge"].measures["tau"])
    return features


def train(folder: Path) -> int:
    trained = prepkit.train_zoo("digits_single", folder, instances=1)
    checked = prepkit.verify(folder)
    assert checked.ok
    return trained.instances
