"""The view `tokens`: one token for each output channel, as SANE and other transformers read networks.

Shapes: N instances, T tokens, S the size of a token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from prepkit.errors import InvalidShape
from prepkit.prep.layout import PRepShape
from prepkit.views._moving import Block, Moved
from prepkit.views._structure import layers_of
from prepkit.views._view import View
from prepkit.views.source import Source


def tokens(of: Any, size: int | None = None) -> Tokens:
    """Return the view of tokens `[N, T, S]`: the weights of one output channel and its bias, padded with zeros.

    of:   a zoo, an architecture, its name, a network or a layout
    size: S; the longest channel of all layers if missing. A channel that is longer takes several tokens.
    raises InvalidShape for a size below 1

    A layer without bias has tokens without one. A normalisation has one token for each channel too: its weight, bias,
    running mean and running variance, as many of them as there are. Normalisations are known by their modules.

    >>> view = prepkit.views.tokens("lenet_like@digits")
    >>> view
    <Tokens of lenet_like@digits: tokens [N, 58, 73]>
    >>> view.mask.shape, view.position[5].tolist()     # token 5 is channel 1 of layer 1
    (torch.Size([58, 73]), [5, 1, 1])
    """
    return Tokens(Source.of(of), size)


class Tokens(View):
    """Tokens `[N, T, S]`, in the order of layers, channels and parts of long channels.

    mask:     `[T, S]` bool, True where a token holds a value and False where it is padded
    position: `[T, 3]` int64: the number of the token, of its layer and of its channel in the layer. Parts of one
              channel have the same layer and channel.
    names:    the names of the layers
    """

    name = "tokens"

    def __init__(self, source: Source, size: int | None = None) -> None:
        super().__init__(source)
        if size is not None and (type(size) is not int or size < 1):
            raise InvalidShape(f"a token has a whole number of values, at least 1; found size={size!r}.")
        layers = layers_of(source)
        widths = [sum(cells.size for cells in layer.cells) // layer.channels for layer in layers]
        self.size = size or max(widths)
        self.notes = tuple(source.note)
        self._names = tuple(layer.name for layer in layers)
        blocks, positions, first = [], [], 0
        for number, (layer, width) in enumerate(zip(layers, widths, strict=True)):
            each = -(-width // self.size)  # tokens of a channel
            offset = 0
            for cells in layer.cells:
                rows = cells.reshape(layer.channels, -1)
                blocks.append(Block(rows, first * self.size, each * self.size, offset))
                offset += rows.shape[1]
            first += layer.channels * each
            channels = np.repeat(np.arange(layer.channels), each)
            positions.append(np.stack([np.full_like(channels, number), channels], axis=1))
        self._moved = Moved(blocks, (first, self.size))
        self.mask = self._moved.mask
        self.position = torch.from_numpy(np.column_stack([np.arange(first), np.concatenate(positions)]))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the layers, by their numbers in `position`."""
        return self._names

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The number and size of tokens."""
        return {"tokens": (self._moved.shape[0], self.size)}

    def forward(self, preps: Tensor) -> Tensor:
        """Return tokens `[N, T, S]`, 0 where they are padded."""
        return self._moved.forward(self._flat(preps))

    def inverse(self, values: Tensor, shape: PRepShape | tuple[int, int] | None = None) -> Tensor:
        """Return the PReps `[N, H, W]` of tokens `[N, T, S]`; what stands where they are padded does not matter."""
        wanted = self._prep_shape(shape)
        return self._moved.inverse(self._expect(values, self.shapes["tokens"], "tokens"), wanted)
