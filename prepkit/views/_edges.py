"""The edges of a graph: which weights stand on which, row after row.

Shapes: R edges of a group, k weights on each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prepkit.errors import LayoutMismatch
from prepkit.views._moving import Block
from prepkit.views._structure import Layer
from prepkit.views._wiring import Wiring

KERNEL_AXES = 3


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges of one kind.

    kind:     "weight", "normalisation", "sum" or "product"
    layer:    number of the layer, -1 for none
    source, target: nodes `[R]`
    cells:    places of the weights in the flat PRep `[R, k]`; None where the edges have no weights
    columns:  features `[k]` on which the weights stand
    position: `[R, 3]`
    """

    kind: str
    layer: int
    source: np.ndarray
    target: np.ndarray
    cells: np.ndarray | None
    columns: np.ndarray
    position: np.ndarray

    def blocks(self, start: int, width: int) -> list[Block]:
        """Return where the weights stand in a flat view in which the edges begin at `start`, `width` features each."""
        if self.cells is None:
            return []
        if width == 1:  # one long row moves faster than many short ones
            return [Block(self.cells.reshape(1, -1), start, self.cells.size, 0)]
        runs = np.split(np.arange(len(self.columns)), np.flatnonzero(np.diff(self.columns) != 1) + 1)
        return [Block(self.cells[:, run], start, width, int(self.columns[run[0]])) for run in runs]


def edges_of_weights(layer: Layer, number: int, wiring: Wiring, largest: tuple[int, ...] | None) -> list[Edges]:
    """Return the edges of a layer with a weight `[out, in / groups, ...]`.

    largest: size of the largest kernel of the network, in which kernels are centred; None for an edge for each weight
    """
    cells = layer.cells[0]
    outputs, inputs, kernel = cells.shape[0], cells.shape[1], cells.shape[2:]
    reads = wiring.inputs[str(layer.module)].numpy()
    groups = len(reads) // inputs
    if groups * inputs != len(reads) or outputs % groups or len(kernel) > KERNEL_AXES:
        raise LayoutMismatch(f"'{layer.name}' has a weight {list(cells.shape)}, but reads {len(reads)} channels.")
    of_group = reads.reshape(groups, inputs)
    sources = np.repeat(of_group, outputs // groups, axis=0)  # [out, in]
    targets = np.broadcast_to((wiring.first[str(layer.module)] + np.arange(outputs))[:, None], sources.shape)
    if largest is None:
        return [_apart(number, cells, sources, targets, kernel, _occurrences(of_group, outputs // groups))]
    if kernel:
        return [_joined(number, cells.reshape(outputs * inputs, -1), sources, targets, centred(kernel, largest))]
    return _maps_joined(number, cells, sources, targets, largest)


def centred(kernel: tuple[int, ...], largest: tuple[int, ...]) -> np.ndarray:
    """Return the places of a kernel's values in the middle of the largest kernel, which is laid out row-major."""
    if not largest:
        return np.zeros(1, dtype=np.int64)
    sizes = (*kernel, *[1] * (len(largest) - len(kernel)))
    grid = np.indices(sizes).reshape(len(sizes), -1)
    shift = np.array([(large - own) // 2 for large, own in zip(largest, sizes, strict=True)])
    places: np.ndarray = np.ravel_multi_index(tuple(grid + shift[:, None]), largest)
    return places


def _occurrences(of_group: np.ndarray, repeats: int) -> np.ndarray:
    """Return for each input `[out, in]` its number among those of the same node; -1 if all nodes differ."""
    found = np.full(of_group.shape, -1)
    for row, reads in zip(found, of_group, strict=True):
        nodes, places, counts = np.unique(reads, return_inverse=True, return_counts=True)
        if len(nodes) < len(reads):
            order = np.argsort(places, kind="stable")
            row[order] = np.arange(len(reads)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(found, repeats, axis=0)


def _apart(
    number: int,
    cells: np.ndarray,
    sources: np.ndarray,
    targets: np.ndarray,
    kernel: tuple[int, ...],
    occurrences: np.ndarray,
) -> Edges:
    size = int(np.prod(kernel))
    position = np.full((*sources.shape, size, KERNEL_AXES), -1)
    if kernel:
        position[..., : len(kernel)] = np.indices(kernel).reshape(len(kernel), -1).T
    else:
        position[..., 0] = occurrences[..., None]
    return Edges(
        "weight",
        number,
        np.repeat(sources.reshape(-1), size),
        np.repeat(targets.reshape(-1), size),
        cells.reshape(-1, 1),
        np.zeros(1, dtype=np.int64),
        position.reshape(-1, KERNEL_AXES),
    )


def _joined(number: int, cells: np.ndarray, sources: np.ndarray, targets: np.ndarray, columns: np.ndarray) -> Edges:
    nowhere = np.full((len(cells), KERNEL_AXES), -1)
    return Edges("weight", number, sources.reshape(-1), targets.reshape(-1), cells, columns, nowhere)


def _maps_joined(
    number: int, cells: np.ndarray, sources: np.ndarray, targets: np.ndarray, largest: tuple[int, ...]
) -> list[Edges]:
    """Join the weights that read the places of one channel's map, which was flattened before the layer."""
    nodes, counts = np.unique(sources[0], return_counts=True)
    order = np.argsort(sources[0], kind="stable")
    ordered, starts = cells[:, order], np.cumsum(counts) - counts
    groups = []
    for count in np.unique(counts).tolist():
        chosen = counts == count
        places = starts[chosen][:, None] + np.arange(count)  # [nodes, count]
        rows = ordered[:, places].reshape(-1, count)
        columns = centred((), largest) if count == 1 else np.arange(count)
        own = np.broadcast_to(nodes[chosen], (len(cells), int(chosen.sum())))
        groups.append(_joined(number, rows, own, targets[:, : own.shape[1]], columns))
    return groups


def edges_between(
    kind: str,
    layer: int,
    source: np.ndarray,
    target: np.ndarray,
    cells: np.ndarray | None,
    largest: tuple[int, ...] | None,
) -> Edges:
    """Return edges with one weight each, or none, which stands where that of a 1 x 1 kernel does."""
    position = np.full((len(source), KERNEL_AXES), -1)
    weights = None if cells is None else cells[:, None]
    return Edges(kind, layer, source, target, weights, np.array([middle_of(largest)]), position)


def middle_of(largest: tuple[int, ...] | None) -> int:
    """Return the feature on which the only weight of a 1 x 1 kernel stands."""
    return 0 if largest is None else int(centred((), largest)[0])


def most_weights(edges: Sequence[Edges], largest: tuple[int, ...] | None) -> int:
    """Return K, the number of features of an edge."""
    kernel = 1 if largest is None else int(np.prod(largest))
    return max(kernel, *(int(group.columns.max()) + 1 for group in edges))
