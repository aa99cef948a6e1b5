"""Signed distances of solids, and points at which a network learns them.

    solid = BoxUnion(low, high)
    solid.distance(points)                                       # [N], negative inside
    points, distances = sample(solid, 65_536, 0.5, 0.05, generator("points", 0))

Shapes: N points, n boxes, R faces, C cells. All coordinates are float64 until points are sampled, which are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from prepkit.errors import ZooError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Generator

    Array = NDArray[np.float64]

TOUCHING = 1e-9  # Coordinates closer than this are made equal, as rounding may leave a slit between two boxes.
FARTHEST = 1 / 1.03  # distance of a normalised shape's farthest corner from the origin, as in DeepSDF
CHUNK_POINTS = 16_384  # The intermediate results of so many points stay in a core's own cache.
RAREST = 200  # A side that fewer than 1 in 200 points hit counts as empty.
LEAST_DRAWN, MOST_DRAWN = 256, 1 << 17  # limits of the points drawn in one round


class Solid(Protocol):
    """A solid in the cube -1 .. 1, as `sample` needs it."""

    def distance(self, points: Array) -> Array:
        """Signed distance to the surface `[N]` of points `[N, 3]`, negative inside."""
        ...

    def contains(self, points: Array) -> NDArray[np.bool_]:
        """Whether points `[N, 3]` lie inside, `[N]`."""
        ...

    def surface(self, count: int, generator: Generator) -> Array:
        """Points `[count, 3]` on the surface, uniform by area."""
        ...

    def interior(self, count: int, generator: Generator) -> Array:
        """Points `[count, 3]`, of which those inside are uniform by volume; the caller drops the others."""
        ...


class BoxUnion:
    """The union of axis-aligned boxes, which may touch and overlap.

    low, high: corners of the boxes, `[n, 3]` each, high above low
    faces:     `[R, 2, 3]` disjoint rectangles (flat boxes) that make up the surface of the union
    cells:     `[C, 2, 3]` disjoint boxes that make up the union

    The planes of all sides divide space into a grid of filled and empty cells, and the surface is what lies between a
    filled and an empty one. The sides of single boxes would not do: where boxes touch or overlap they are no surface,
    and the least of the boxes' own signed distances is too close to 0.
    """

    def __init__(self, low: Array, high: Array) -> None:
        if not (low.shape == high.shape and low.ndim == 2 and low.shape[1] == 3 and len(low) and (high > low).all()):
            raise ValueError("boxes need corners low and high of shape [n, 3], each with high above low.")
        self.low, self.high = _snapped(low, high)
        edges = [np.unique(np.concatenate([self.low[:, axis], self.high[:, axis]])) for axis in range(3)]
        filled = np.zeros([len(values) - 1 for values in edges], dtype=bool)
        for corners in zip(self.low, self.high, strict=True):
            start, stop = ([int(np.searchsorted(edges[axis], corner[axis])) for axis in range(3)] for corner in corners)
            filled[tuple(slice(*ends) for ends in zip(start, stop, strict=True))] = True
        self.faces = np.array([face for axis in range(3) for face in _faces(filled, edges, axis)])
        where = np.argwhere(filled)
        self.cells = np.stack(
            [np.stack([edges[axis][where[:, axis] + end] for axis in range(3)], 1) for end in (0, 1)], 1
        )

    def distance(self, points: Array) -> Array:
        """Signed distance to the union's surface `[N]`, exact, negative inside."""
        outside = _least_distance(points, np.stack([self.low, self.high], 1))
        inside = np.flatnonzero(outside == 0)
        outside[inside] = -_least_distance(points[inside], self.faces)
        return outside

    def contains(self, points: Array) -> NDArray[np.bool_]:
        """Whether points `[N, 3]` lie in one of the boxes, sides included."""
        found = np.zeros(len(points), dtype=bool)
        for low, high in zip(self.low, self.high, strict=True):
            found |= ((points >= low) & (points <= high)).all(1)
        return found

    def surface(self, count: int, generator: Generator) -> Array:
        """Points `[count, 3]` on the surface, uniform by area."""
        sides = self.faces[:, 1] - self.faces[:, 0]
        # One side of each flat box is 0, so one product is its area and the other two are 0.
        areas = sides[:, 0] * sides[:, 1] + sides[:, 1] * sides[:, 2] + sides[:, 2] * sides[:, 0]
        return _in_boxes(self.faces, areas, count, generator)

    def interior(self, count: int, generator: Generator) -> Array:
        """Points `[count, 3]` inside, uniform by volume."""
        return _in_boxes(self.cells, (self.cells[:, 1] - self.cells[:, 0]).prod(1), count, generator)


def normalised(corners: Array) -> Array:
    """Move and scale corners `[..., 3]` as DeepSDF does.

    The bounding box is centred on the origin, and the farthest corner is FARTHEST away from it.
    """
    flat = corners.reshape(-1, 3)
    centred = corners - (flat.min(0) + flat.max(0)) / 2
    return np.asarray(centred * (FARTHEST / np.linalg.norm(centred, axis=-1).max()))


def sample(
    solid: Solid, count: int, near_surface: float, sigma: float, generator: Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Points `[count, 3]` and their signed distances `[count]`: the first half inside, the second half outside.

    near_surface: share of each half that is drawn on the surface, uniform by area, and moved by N(0, sigma) along each
                  axis; the rest is uniform in the solid, or in the cube -1 .. 1 around it
    Distances are those of the rounded points. Each half is in random order, so any section of it is a fair sample.
    raises ZooError if the solid is too small to hit its inside
    """
    half = count // 2
    near = round(near_surface * half)

    def moved(wanted: int) -> Array:
        return (
            solid.surface(wanted, generator)
            + sigma * torch.randn(wanted, 3, dtype=torch.float64, generator=generator).numpy()
        )

    def in_cube(wanted: int) -> Array:
        return 2 * uniform((wanted, 3), generator) - 1

    halves = []
    for inside, spread in ((True, lambda wanted: solid.interior(wanted, generator)), (False, in_cube)):
        parts = [_drawn(solid, near, moved, inside), _drawn(solid, half - near, spread, inside)]
        order = torch.randperm(half, generator=generator).numpy()
        halves.append(np.concatenate(parts)[order])
    points = np.concatenate(halves)
    return points, solid.distance(points.astype(np.float64)).astype(np.float32)


def uniform(shape: tuple[int, ...], generator: Generator) -> Array:
    """Uniform numbers in 0 .. 1, float64."""
    return np.asarray(torch.rand(shape, dtype=torch.float64, generator=generator).numpy())


def _drawn(solid: Solid, count: int, draw: Callable[[int], Array], inside: bool) -> NDArray[np.float32]:
    """Draw points until `count` of them lie inside, or outside; these as float32."""
    kept: list[NDArray[np.float32]] = []
    missing, drawn = count, 0
    while missing and drawn < RAREST * count + LEAST_DRAWN:
        # Draw as many as are needed if the share of kept ones stays as it was so far.
        expected = drawn * missing // max(count - missing, 1) if drawn else missing
        points = draw(min(max(expected, LEAST_DRAWN), MOST_DRAWN)).astype(np.float32)
        drawn += len(points)
        kept.append(points[solid.contains(points.astype(np.float64)) == inside][:missing])
        missing -= len(kept[-1])
    if missing:
        where = "inside" if inside else "outside"
        why = "the shape's volume is too small, or sigma too large for it."
        raise ZooError(f"{count - missing} of {count} points {where} were found among {drawn:,} drawn: {why}")
    return np.concatenate(kept) if kept else np.empty((0, 3), np.float32)


def _snapped(low: Array, high: Array) -> tuple[Array, Array]:
    """The same corners, but coordinates that are TOUCHING are made equal."""
    low, high = low.copy(), high.copy()
    for axis in range(3):
        values = np.unique(np.concatenate([low[:, axis], high[:, axis]]))
        groups = np.cumsum(np.diff(values, prepend=values[0]) > TOUCHING)
        first = values[np.searchsorted(groups, groups)]
        for corner in (low, high):
            corner[:, axis] = first[np.searchsorted(values, corner[:, axis])]
    return low, high


def _faces(filled: NDArray[np.bool_], edges: list[Array], axis: int) -> Iterator[Array]:
    """Rectangles `[2, 3]` between filled and empty cells, on the planes across an axis."""
    layers = np.moveaxis(np.pad(filled, [(1, 1) if other == axis else (0, 0) for other in range(3)]), axis, 0)
    first, second = (other for other in range(3) if other != axis)
    for plane, mask in enumerate(layers[1:] != layers[:-1]):
        for rows, columns in _rectangles(mask):
            face = np.empty((2, 3))
            face[:, axis] = edges[axis][plane]
            face[:, first] = edges[first][list(rows)]
            face[:, second] = edges[second][list(columns)]
            yield face


def _rectangles(mask: NDArray[np.bool_]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Disjoint rectangles (rows, columns; half open) that cover a mask; equal runs in successive rows are joined."""
    open_since: dict[tuple[int, int], int] = {}
    for row in range(len(mask) + 1):
        runs = set(_runs(mask[row])) if row < len(mask) else set()
        for columns in [run for run in open_since if run not in runs]:
            yield (open_since.pop(columns), row), columns
        for columns in sorted(runs):
            open_since.setdefault(columns, row)


def _runs(row: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The start and stop of each run of True."""
    changes = np.flatnonzero(np.diff(row, prepend=False, append=False))
    return [(int(start), int(stop)) for start, stop in changes.reshape(-1, 2)]


def _least_distance(points: Array, boxes: Array) -> Array:
    """Distance `[N]` to the nearest of boxes `[n, 2, 3]`, 0 inside them. Flat boxes are rectangles."""
    found = np.empty(len(points))
    for start in range(0, len(points), CHUNK_POINTS):
        axes = np.ascontiguousarray(points[start : start + CHUNK_POINTS].T)
        least = np.full(axes.shape[1], np.inf)
        total, below, above = np.empty((3, axes.shape[1]))
        for low, high in boxes:
            total.fill(0)
            for axis, values in enumerate(axes):
                np.subtract(low[axis], values, out=below)
                np.subtract(values, high[axis], out=above)
                np.maximum(below, above, out=below)
                np.maximum(below, 0, out=below)
                np.multiply(below, below, out=below)
                total += below
            np.minimum(least, total, out=least)
        found[start : start + CHUNK_POINTS] = np.sqrt(least)
    return found


def _in_boxes(boxes: Array, weights: Array, count: int, generator: Generator) -> Array:
    """Points `[count, 3]`, each uniform in one of disjoint boxes, which is drawn by the weights."""
    limits = np.cumsum(weights)
    picks = np.searchsorted(limits, uniform((count,), generator) * limits[-1], side="right").clip(max=len(boxes) - 1)
    low, high = boxes[picks, 0], boxes[picks, 1]
    return np.asarray(low + uniform((count, 3), generator) * (high - low))
