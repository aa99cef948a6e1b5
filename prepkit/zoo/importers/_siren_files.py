"""Files of SIRENs (networks with sine activations that draw a picture): layouts on the disk, and conventions.

The layouts are those of DWSNets, nfn and Implicit-Zoo. A convention says what a file does not: what is added to the
output, which coordinate comes first, and how pixels were normalised. It does not follow from the layout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, counted, listed
from prepkit.families.architecture import Architecture
from prepkit.families.table import SIREN
from prepkit.prep.slot import natural_key
from prepkit.support.reading import is_number
from prepkit.zoo.format.function import PSNR

if TYPE_CHECKING:
    from torch import Tensor

OMEGA = 30.0
STORED_BEFORE = 1.0  # dB: Implicit-Zoo measured PSNR one step of the optimiser before it saved the weights
PSNR_FILE = re.compile(r"[0-9]+_[0-9]+\.json")


@dataclass(frozen=True)
class Layout:
    """How a zoo of SIRENs stands on the disk.

    pattern: path of a model below the zoo's folder
    picture: path of its picture below the folder of pictures
    rule:    which split of it was published; see `_siren_splits`
    """

    pattern: str
    picture: str
    rule: str | None = None


LAYOUTS = (
    Layout(
        "mnist_png_{split}_{label:int}_{index:int}/checkpoints/model_final.pth", "{split}/{label}/{index}.png", "drawn"
    ),  # DWSNets, MNIST
    Layout("{split}/model_{index:int}.pth", "{split}/{index}.png", "file"),  # DWSNets, Fashion-MNIST
    Layout("{prefix}_{label:int}s/net{index:int}.pth", "{index}.png", "nfn"),  # nfn
    Layout("ckpts/{label:int}/{index:int}_{seed:int}.ckpt", "{label}/{index}.png"),  # Implicit-Zoo
)


@dataclass(frozen=True)
class Convention:
    """How those who made a zoo of SIRENs run them.

    offset:    what is added to the outputs
    grid:      "xy" if a pixel's column is the first coordinate, "ij" if its row is
    mean, std: pixels of 0 to 1 are outputs * std + mean; numbers for each channel, or one for all
    """

    name: str
    offset: float
    grid: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def fits(self, outputs: int) -> bool:
        """Return whether networks with so many outputs can follow it."""
        return len(self.mean) in (1, outputs)

    def how_to_run(self, tolerance: float | None) -> dict[str, Any]:
        """Return the record with the keys of HowToRun."""
        return {
            "measure": PSNR,
            **({} if tolerance is None else {"tolerance": tolerance}),
            "convention": self.name,
            "activation": "sine",
            "order": "linear, then sin(w0 * x); after the last layer no sine, but output_offset is added",
            "w0": OMEGA,
            "output_offset": self.offset,
            "grid": self.grid,
            "mean": list(self.mean),
            "std": list(self.std),
        }


CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention("dws", 0.5, "xy", (0.0,), (1.0,)),
        Convention("nfn", 0.0, "ij", (0.5,), (0.5,)),
        Convention("implicit-zoo", 0.0, "xy", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )
}


@dataclass(frozen=True)
class SirenShape:
    """The layers of a SIREN, first to last: their names, and the sizes of the input and of each layer's output."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def architecture(self, convention: Convention) -> Architecture:
        """Return what builds the network with the names of its file."""
        return Architecture(
            f"siren_{'x'.join(map(str, self.sizes))}@{convention.name}",
            "siren",
            (self.sizes[0],),
            SIREN,
            {"sizes": list(self.sizes), "names": list(self.names), "omega": OMEGA, "offset": convention.offset},
        )


def shape_of(tensors: Mapping[str, Tensor], place: str) -> SirenShape:
    """Return the layers of a SIREN by the names and shapes of its tensors.

    raises ZooError for tensors that are no chain of linear layers from two coordinates
    """
    names = sorted({name.rpartition(".")[0] for name in tensors}, key=natural_key)
    expected = [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    if not all(names) or set(expected) != set(tensors):
        raise ZooError(f"{place}: no SIREN: its tensors are not weight and bias of layers: {listed(tensors)}.")
    sizes = [2]
    for name in names:
        weight, bias = (tuple(tensors[f"{name}.{kind}"].shape) for kind in ("weight", "bias"))
        if len(weight) != 2 or weight[1] != sizes[-1] or bias != weight[:1]:
            raise ZooError(
                f"{place}: no SIREN of two coordinates: {name} has weight {list(weight)} and bias {list(bias)}, but "
                f"{counted(sizes[-1], 'number')} would come in."
            )
        sizes.append(weight[0])
    return SirenShape(tuple(names), tuple(sizes))


def likely_convention(shape: SirenShape, key: str | None) -> Convention:
    """Return the convention of those whose files call their tensors so.

    key: key of the state dict in the file
    """
    if shape.names[0].startswith("net."):
        return CONVENTIONS["nfn"]
    return CONVENTIONS["implicit-zoo" if key == "params" and shape.sizes[-1] == 3 else "dws"]


def stored_psnr(folder: Path) -> dict[int, float]:
    """Return the PSNR of each picture's index that Implicit-Zoo keeps in files such as `0_50000.json`.

    raises ZooError naming a file that holds something else
    """
    found: dict[int, float] = {}
    for file in _psnr_files(folder):
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ZooError(f"{file}: cannot be read as JSON: {error}. Fetch it again, or take it away.") from None
        if not isinstance(data, dict) or not all(key.isdigit() and is_number(value) for key, value in data.items()):
            raise ZooError(f"{file}: holds no PSNR for each index of a picture; take it away if it is something else.")
        found |= {int(key): float(value) for key, value in data.items()}
    return found


def _psnr_files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.iterdir()) if PSNR_FILE.fullmatch(file.name) and file.is_file())
