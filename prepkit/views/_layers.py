"""The view `layers`: the weights and biases of each layer, as nfn's WeightSpaceFeatures takes them.

Shapes: N instances, C = 1 the channel axis of nfn.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prepkit.errors import LayoutMismatch, PrepkitError, counted, listed
from prepkit.prep.layout import PRepShape
from prepkit.views._moving import OnDevices, Reordered
from prepkit.views._structure import Layer, layers_of
from prepkit.views._view import View
from prepkit.views.source import Source

MissingBias = Literal["refuse", "zeros"]
Others = Literal["refuse", "beside"]


class WeightsAndBiases(NamedTuple):
    """The layers of N instances; `WeightSpaceFeatures(layers.weights, layers.biases)` makes nfn's features of them.

    weights: one for each layer, `[N, out, in]` or `[N, out, in, kh, kw]`; with the channel axis `[N, 1, out, in, ...]`
    biases:  as many, `[N, out]` or `[N, 1, out]`
    others:  the tensors of normalisations and parameters that are no layers, `[N, *shape]`, and `[N, 1, *shape]`
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    others: tuple[Tensor, ...] = ()


def layers(
    of: Any, *, channel: bool = False, missing_bias: MissingBias = "refuse", others: Others = "refuse"
) -> Layers:
    """Return the view of weights and biases, layer by layer in the order of the layout.

    of:           a zoo, an architecture, its name, a network or a layout
    channel:      whether there is an axis of channels after that of instances, as nfn has: `[N, 1, out, in, ...]`
    missing_bias: what becomes of layers without bias: "refuse" raises an error that names them, "zeros" gives them
                  biases of zeros, which `inverse` leaves out
    others:       what becomes of normalisations and of parameters outside of layers: "refuse" raises an error that
                  names them, "beside" gives them as they are in `others`
    raises LayoutMismatch for what is refused

    >>> prepkit.views.layers("lenet_like@digits", channel=True).shapes["weights.1"]
    (1, 8, 4, 3, 3)
    """
    return Layers(Source.of(of), channel, missing_bias, others)


class Layers(View):
    """Weights and biases as a WeightsAndBiases. They share the memory of the PReps wherever their axes allow it.

    names:        the names of the layers
    other_names:  the names of the tensors in `others`
    without_bias: the names of the layers whose biases are zeros that the view added
    """

    name = "layers"

    def __init__(self, source: Source, channel: bool, missing_bias: MissingBias, others: Others) -> None:
        super().__init__(source)
        _check_choice("missing_bias", missing_bias, ("refuse", "zeros"))
        _check_choice("others", others, ("refuse", "beside"))
        found = layers_of(source)
        self.channel = channel
        self._layers = [layer for layer in found if _is_layer(layer)]
        self._others = [layer for layer in found if not _is_layer(layer)]
        self.without_bias = tuple(layer.name for layer in self._layers if not layer.has_bias)
        self.other_names = tuple(slot.name for layer in self._others for slot in layer.slots)
        self._check(missing_bias, others)
        self.notes = (*source.note, *self._told())
        self._weights = [_Part(layer.cells[0]) for layer in self._layers]
        self._biases = [_Part(layer.cells[1]) if layer.has_bias else None for layer in self._layers]
        places = [np.arange(slot.start, slot.stop).reshape(slot.shape) for o in self._others for slot in o.slots]
        self._beside = [_Part(cells) for cells in places]
        given = [*self._weights, *(bias for bias in self._biases if bias is not None), *self._beside]
        self._order = sorted(range(len(given)), key=lambda number: given[number].start)
        self._reordered = Reordered(np.concatenate([given[number].cells.reshape(-1) for number in self._order]))

    def _check(self, missing_bias: MissingBias, others: Others) -> None:
        """Raise LayoutMismatch for what is refused."""
        of = self.source.name
        if not self._layers:
            raise LayoutMismatch(f"{of} has no layers with a weight; prepkit.views.flat gives its values.")
        if self._others and others == "refuse":
            names = [layer.name for layer in self._others]
            norms = sum(layer.kind == "normalisation" for layer in self._others)
            fold = " PReps with BatchNorm folded have none of them." if norms and not self.source.folded else ""
            raise LayoutMismatch(
                f"{of} has more than layers of a weight and a bias, {counted(norms, 'normalisation')} among "
                f"{counted(len(names), 'other part')}: {listed(names)}.{fold} others='beside' gives their tensors "
                "beside the layers; prepkit.views.tokens has a place for them."
            )
        if self.without_bias and missing_bias == "refuse":
            raise LayoutMismatch(
                f"{of} has {counted(len(self.without_bias), 'layer')} without bias: {listed(self.without_bias)}. "
                "missing_bias='zeros' gives them biases of zeros, which `inverse` leaves out."
            )

    def _told(self) -> list[str]:
        """Return sentences about what differs from plain layers."""
        told = []
        if self.without_bias:
            told.append(f"The biases of {listed(self.without_bias)} are zeros that the network does not have.")
        if self.other_names:
            told.append(f"These tensors stand in `others`: {listed(self.other_names)}.")
        turned = [layer.name for layer in self._layers if _is_turned(layer)]
        if turned:
            told.append(f"The weights of {listed(turned)} were turned so that their output channels come first.")
        return told

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the layers."""
        return tuple(layer.name for layer in self._layers)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, called `weights.0`, `biases.0` and so on."""
        axis = (1,) if self.channel else ()
        shapes: dict[str, tuple[int, ...]] = {}
        for number, part in enumerate(self._weights):
            shapes[f"weights.{number}"] = (*axis, *part.cells.shape)
            shapes[f"biases.{number}"] = (*axis, part.cells.shape[0])
        return shapes | {f"others.{n}": (*axis, *part.cells.shape) for n, part in enumerate(self._beside)}

    def forward(self, preps: Tensor) -> WeightsAndBiases:
        """Return the weights and biases of all layers."""
        flat = self._flat(preps)
        axis = (1,) if self.channel else ()

        def of(part: _Part) -> Tensor:
            return part.of(flat).view(len(flat), *axis, *part.cells.shape)

        biases = [
            flat.new_zeros(len(flat), *axis, weight.cells.shape[0]) if bias is None else of(bias)
            for weight, bias in zip(self._weights, self._biases, strict=True)
        ]
        return WeightsAndBiases(tuple(map(of, self._weights)), tuple(biases), tuple(map(of, self._beside)))

    def inverse(self, values: Any, shape: PRepShape | tuple[int, int] | None = None) -> Tensor:
        """Return the PReps `[N, H, W]` of weights, biases and others.

        values: a WeightsAndBiases, or a pair (weights, biases) where there are no others
        raises LayoutMismatch for other shapes, and for a bias that is not zero of a layer that has none
        """
        wanted = self._prep_shape(shape)
        parts = (*values, ()) if len(values) == 2 else tuple(values)
        if len(parts) != 3:
            raise LayoutMismatch(f"expected weights, biases and others; found {len(parts)} parts.")
        pieces: list[Tensor] = []
        biases: list[Tensor] = []
        shapes = self.shapes
        for kind, tensors in zip(("weights", "biases", "others"), parts, strict=True):
            expected = [name for name in shapes if name.startswith(f"{kind}.")]
            if len(tensors) != len(expected):
                raise LayoutMismatch(f"{self.source.name} has {len(expected)} {kind}; found {len(tensors)}.")
            checked = [self._expect(t, shapes[name], name) for t, name in zip(tensors, expected, strict=True)]
            if kind == "biases":
                biases = checked
                checked = [bias for bias, own in zip(biases, self._biases, strict=True) if own is not None]
            pieces += [tensor.reshape(len(tensor), math.prod(tensor.shape[1:])) for tensor in checked]
        self._check_added(biases)
        counts = sorted({len(piece) for piece in (*pieces, *biases)})
        if len(counts) > 1:
            raise LayoutMismatch(f"the tensors are of {listed(counts)} instances; give those of the same.")
        return self._reordered.inverse([pieces[number] for number in self._order], wanted)

    def _check_added(self, biases: list[Tensor]) -> None:
        added = [(layer.name, b) for layer, b in zip(self._layers, biases, strict=True) if not layer.has_bias]
        wrong = [name for name, bias in added if bool(bias.count_nonzero())]
        if wrong:
            raise LayoutMismatch(
                f"{listed(wrong)} of {self.source.name} have no bias, so their biases must be 0 to be left out; found "
                "other values."
            )


class _Part:
    """One tensor of the view.

    cells: the places of its values in the flat PRep
    start: the first of them
    """

    def __init__(self, cells: np.ndarray) -> None:
        self.cells = cells
        places = cells.reshape(-1)
        self.start = int(places[0])
        self._is_whole = bool((places == np.arange(self.start, self.start + len(places))).all())
        self._places = OnDevices(torch.from_numpy(places))

    def of(self, flat: Tensor) -> Tensor:
        """Return its values `[N, size]`; they share the memory of the PReps where they stand in order there."""
        if self._is_whole:
            return flat[:, self.start : self.start + self.cells.size]
        return flat.index_select(1, self._places.on(flat.device))


def _is_layer(layer: Layer) -> bool:
    """Whether a layer has a weight; matrices of unknown modules count as weights where a bias goes with them."""
    return layer.kind in ("linear", "convolution", "embedding") or (layer.kind == "parameter" and layer.has_bias)


def _is_turned(layer: Layer) -> bool:
    cells = layer.cells[0].reshape(-1)
    return bool((np.diff(cells) != 1).any())


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise PrepkitError(f"{name} is {' or '.join(map(repr, choices))}; found {value!r}.")
