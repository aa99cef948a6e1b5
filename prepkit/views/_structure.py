"""What the tensors of a network are: which belong to one layer, which axis its output channels run along.

A normalisation is known by its module, or by its part in the layout: several vectors of one length in one module. The
name of a tensor or module decides nothing but which tensors stand in one module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prepkit.fusion.norm import ChannelAffine, is_norm
from prepkit.prep.slot import Slot
from prepkit.support.text import Brief
from prepkit.views.source import Source

Kind = Literal["linear", "convolution", "embedding", "normalisation", "parameter"]

NORMALISATIONS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    ChannelAffine,
)


@dataclass(frozen=True, repr=False)
class Layer(Brief):
    """Tensors of one module that have the same output channels.

    name:   the module's name; that of the tensor where a module has several layers, or is the whole network
    module: the module's name, in which it is the only layer; None where there are several
    kind:  "linear", "convolution", "embedding" or "normalisation"; "parameter" for tensors of other modules
    slots: its tensors; the weight stands first, the bias after it
    cells: for each tensor, the places of its values in the flat PRep, `[channels, ...]` int64. Axis 0 is the output
           channel also where the tensor has it elsewhere, as transposed convolutions and embeddings do.
    """

    name: str
    module: str | None
    kind: Kind
    slots: tuple[Slot, ...]
    cells: tuple[np.ndarray, ...]

    @property
    def channels(self) -> int:
        """The number of output channels."""
        return len(self.cells[0])

    @property
    def has_bias(self) -> bool:
        """Whether it is a weight and a bias."""
        return self.kind != "normalisation" and len(self.slots) == 2


def layers_of(source: Source) -> tuple[Layer, ...]:
    """Return the layers of a network in the order of its layout. Each value belongs to exactly one layer."""
    by_module: dict[str, list[Slot]] = {}
    for slot in source.layout:
        if slot.size:
            by_module.setdefault(slot.name.rpartition(".")[0], []).append(slot)
    modules = {} if source.network is None else dict(source.network.named_modules())
    layers: list[Layer] = []
    for name, slots in by_module.items():
        kind = _kind_of(modules.get(name), slots)
        parts = _parted(kind, [(slot, _channels_first(slot, kind, modules.get(name))) for slot in slots])
        for part in parts:
            members = tuple(slot for slot, _ in part)
            has_weight = kind == "normalisation" or len(members[0].shape) > 1
            layers.append(
                Layer(
                    name if name and len(parts) == 1 else members[0].name,
                    name if len(parts) == 1 else None,
                    kind if has_weight else "parameter",
                    members,
                    tuple(cells for _, cells in part),
                )
            )
    return tuple(layers)


def _kind_of(module: nn.Module | None, slots: Sequence[Slot]) -> Kind:
    if isinstance(module, NORMALISATIONS) or (module is not None and is_norm(module)):
        return "normalisation"
    if isinstance(module, _ConvNd):
        return "convolution"
    if isinstance(module, nn.Linear | nn.MultiheadAttention | nn.RNNBase):
        return "linear"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if len(slots) > 1 and len({slot.shape for slot in slots}) == 1 and len(slots[0].shape) == 1:
        return "normalisation"
    if module is not None:
        return "parameter"
    return "convolution" if max(len(slot.shape) for slot in slots) > 2 else "linear"


def _channels_first(slot: Slot, kind: Kind, module: nn.Module | None) -> np.ndarray:
    """Return the places of a tensor's values in the flat PRep, `[channels, ...]`."""
    cells = np.arange(slot.start, slot.stop).reshape(slot.shape or (1,))
    if isinstance(module, _ConvTransposeNd) and cells.ndim > 1:  # [in, out / groups, ...]
        inputs, outputs = cells.shape[0] // module.groups, module.groups * cells.shape[1]
        grouped = cells.reshape(module.groups, inputs, *cells.shape[1:])
        return grouped.swapaxes(1, 2).reshape(outputs, inputs, *cells.shape[2:])
    if kind == "embedding":  # [entries, channels]
        return cells.T
    while kind == "parameter" and cells.ndim > 2 and len(cells) == 1:  # class tokens and embeddings of positions
        cells = cells[0]
    return cells


def _parted(kind: Kind, tensors: list[tuple[Slot, np.ndarray]]) -> list[list[tuple[Slot, np.ndarray]]]:
    """Part the tensors of a module into layers: each weight takes the first vector that is as long as its channels."""
    if kind == "normalisation" and len({slot.shape for slot, _ in tensors}) == 1:
        return [tensors]
    vectors = [tensor for tensor in tensors if tensor[1].ndim == 1]
    parts = []
    for tensor in tensors:
        if tensor[1].ndim > 1:
            fitting = [number for number, vector in enumerate(vectors) if len(vector[1]) == len(tensor[1])][:1]
            parts.append([tensor, *(vectors.pop(number) for number in fitting)])
    parts += [[vector] for vector in vectors]
    return sorted(parts, key=lambda part: part[0][0].start)
