"""The exact signed distance of a watertight triangle mesh.

The distance is that to the nearest triangle, among those that a k-d tree over pieces of the surface cannot rule out.
The sign comes from the angle-weighted pseudonormal at the nearest point (Baerentzen and Aanaes, Signed Distance
Computation Using the Angle Weighted Pseudonormal, 2005), which is right at edges and vertices too, where a triangle's
own normal is not. The nearest point of a triangle follows Ericson, Real-Time Collision Detection (2005), section
5.1.5.

Shapes: N points, V vertices, T triangles, P pieces of them, M pairs of a point and a triangle. float64.
"""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.tasks._sdf import uniform

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Generator

    Array = NDArray[np.float64]
    Indices = NDArray[np.int64]

PIECE = 0.05  # longest edge of the pieces in the tree, in units of the cube -1 .. 1
CHUNK_POINTS = 4096  # So many points are computed at a time, which bounds the memory.
CELLS = 20  # number of cells along each axis of the bounding box, to find where there may be an inside
# Places on a triangle are numbered: corners 0, 1, 2; sides 3 (corner 0 to 1), 4 (1 to 2), 5 (2 to 0); the face 6.
FACE = 6


class Mesh:
    """A closed triangle mesh whose triangles turn counter-clockwise seen from outside: a Solid of prepkit.tasks._sdf.

    vertices: `[V, 3]`; faces: `[T, 3]` numbers of vertices
    Where parts of a mesh cross each other, the surface of each inside the other counts as surface.
    """

    def __init__(self, vertices: Array, faces: Indices) -> None:
        self.triangles = vertices[faces]  # [T, 3 corners, 3]
        self.pseudonormals = _pseudonormals(self.triangles, faces, len(vertices))

    def distance(self, points: Array) -> Array:
        """Signed distance `[N]` to the surface, exact, negative inside."""
        chunks = range(0, len(points), CHUNK_POINTS)
        return np.concatenate([np.empty(0), *(self._distance(points[at : at + CHUNK_POINTS]) for at in chunks)])

    def contains(self, points: Array) -> NDArray[np.bool_]:
        """Whether points lie inside, `[N]`."""
        return self.distance(points) <= 0

    def surface(self, count: int, generator: Generator) -> Array:
        """Points `[count, 3]` on the surface, uniform by area."""
        limits = np.cumsum(np.linalg.norm(_normals(self.triangles), axis=1))
        draws = uniform((count, 3), generator)
        picks = np.searchsorted(limits, draws[:, 0] * limits[-1], side="right").clip(max=len(limits) - 1)
        corner, second, third = self.triangles[picks].swapaxes(0, 1)
        u, v = np.where(draws[:, 1:].sum(1, keepdims=True) > 1, 1 - draws[:, 1:], draws[:, 1:]).T[..., None]
        return np.asarray(corner + u * (second - corner) + v * (third - corner))

    def interior(self, count: int, generator: Generator) -> Array:
        """Points `[count, 3]` uniform in a region that covers the inside, so that those inside are uniform there."""
        corners, side = self._covering_cells
        draws = uniform((count, 4), generator)
        picks = (draws[:, 3] * len(corners)).astype(np.int64)
        return np.asarray(corners[picks] + draws[:, :3] * side)

    def _distance(self, points: Array) -> Array:
        owner, triangle = self._pairs(points)
        nearest, where = _nearest(points[owner], self.triangles[triangle])
        offset = points[owner] - nearest
        squared = np.einsum("md,md->m", offset, offset)
        order = np.lexsort((squared, owner))
        best = order[np.searchsorted(owner[order], np.arange(len(points)))]
        outward = np.einsum("nd,nd->n", offset[best], self.pseudonormals[triangle[best], where[best]])
        return np.asarray(np.sqrt(squared[best]) * np.where(outward > 0, 1.0, -1.0))

    def _pairs(self, points: Array) -> tuple[Indices, Indices]:
        """All pairs of a point and a triangle that may be its nearest: points `[M]` ascending, triangles `[M]`.

        The centres of pieces are on the surface, so a piece that is farther away than the nearest centre is ruled out.
        """
        tree, centres, radii, source = self._pieces
        limit = tree.query(points)[0] * (1 + 1e-9) + 1e-12  # slightly more, for rounding
        found = tree.query_ball_point(points, limit + radii.max(), return_sorted=False)
        counts = [len(pieces) for pieces in found]
        owner = np.repeat(np.arange(len(points)), counts)
        pieces = np.fromiter(chain.from_iterable(found), np.int64, sum(counts))
        kept = np.linalg.norm(points[owner] - centres[pieces], axis=1) - radii[pieces] <= limit[owner]
        pairs = np.unique(owner[kept] * len(self.triangles) + source[pieces[kept]])
        return pairs // len(self.triangles), pairs % len(self.triangles)

    @cached_property
    def _pieces(self) -> tuple[Any, Array, Array, Indices]:
        """A k-d tree over the centres of pieces, the centres `[P, 3]`, radii `[P]`, and triangles `[P]` they are of."""
        from scipy.spatial import cKDTree

        pieces, source = _split(self.triangles, PIECE)
        centres = pieces.mean(1)
        return cKDTree(centres), centres, np.linalg.norm(pieces - centres[:, None], axis=2).max(1), source

    @cached_property
    def _covering_cells(self) -> tuple[Array, Array]:
        """Low corners `[C, 3]` and sides `[3]` of equal cells that cover the inside, and little else."""
        low, high = self.triangles.min((0, 1)), self.triangles.max((0, 1))
        side = (high - low) / CELLS
        corners = low + np.stack(np.meshgrid(*[np.arange(CELLS)] * 3, indexing="ij"), -1).reshape(-1, 3) * side
        reach = np.linalg.norm(side) / 2 * (1 + 1e-9)
        return corners[self.distance(corners + side / 2) <= reach], side


def _split(triangles: Array, longest: float) -> tuple[Array, Indices]:
    """Divide triangles into pieces `[P, 3, 3]` with edges of at most `longest`; also the triangle of each, `[P]`."""
    source = np.arange(len(triangles))
    small, sources = [], []
    while len(triangles):
        edges = np.linalg.norm(triangles - np.roll(triangles, -1, axis=1), axis=2)
        done = edges.max(1) <= longest
        small.append(triangles[done])
        sources.append(source[done])
        triangles, source, edges = triangles[~done], source[~done], edges[~done]
        # Each piece that is too long is divided at the middle of its longest edge.
        first = edges.argmax(1)[:, None] + np.arange(3)
        a, b, c = np.take_along_axis(triangles, (first % 3)[..., None], axis=1).swapaxes(0, 1)
        middle = (a + b) / 2
        triangles = np.concatenate([np.stack([a, middle, c], 1), np.stack([middle, b, c], 1)])
        source = np.concatenate([source, source])
    return np.concatenate(small), np.concatenate(sources)


def _normals(triangles: Array) -> Array:
    """Normals `[T, 3]`, whose length is twice the triangle's area."""
    return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])


def _pseudonormals(triangles: Array, faces: Indices, num_vertices: int) -> Array:
    """Pseudonormals `[T, 7, 3]` of each triangle's three corners, three sides and face; their lengths mean nothing."""
    normals = _normals(triangles)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    ahead, back = np.roll(triangles, -1, axis=1) - triangles, np.roll(triangles, 1, axis=1) - triangles
    sine = np.linalg.norm(np.cross(ahead, back), axis=2)
    angles = np.arctan2(sine, (ahead * back).sum(2))
    at_vertices = np.zeros((num_vertices, 3))
    np.add.at(at_vertices, faces, angles[..., None] * normals[:, None])
    ends = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], 2), axis=2)
    keys, sides = np.unique(ends[..., 0] * num_vertices + ends[..., 1], return_inverse=True)
    at_sides = np.zeros((len(keys), 3))
    np.add.at(at_sides, sides.reshape(faces.shape), np.broadcast_to(normals[:, None], (*faces.shape, 3)))
    return np.concatenate([at_vertices[faces], at_sides[sides.reshape(faces.shape)], normals[:, None]], 1)


def _nearest(points: Array, triangles: Array) -> tuple[Array, Indices]:
    """The nearest point `[M, 3]` of each triangle to its point, and where on the triangle it lies `[M]`.

    With a, b, c the corners, d1 .. d6 are Ericson's projections of the point on ab and ac, seen from each corner.
    """
    a, b, c = triangles.swapaxes(0, 1)
    ab, ac = b - a, c - a
    (d1, d2), (d3, d4), (d5, d6) = (
        (np.einsum("md,md->m", ab, points - corner), np.einsum("md,md->m", ac, points - corner)) for corner in (a, b, c)
    )
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
    tests = (
        ((d1 <= 0) & (d2 <= 0), 0),
        ((d3 >= 0) & (d4 <= d3), 1),
        ((d6 >= 0) & (d5 <= d6), 2),
        ((vc <= 0) & (d1 >= 0) & (d3 <= 0), 3),
        ((va <= 0) & (d4 >= d3) & (d5 >= d6), 4),
        ((vb <= 0) & (d2 >= 0) & (d6 <= 0), 5),
    )
    where = np.select([test for test, _ in tests], [place for _, place in tests], FACE)
    with np.errstate(divide="ignore", invalid="ignore"):  # The divisions are sound in the branch that is selected.
        along = np.select(
            [where == 3, where == 4, where == 5], [d1 / (d1 - d3), (d4 - d3) / (d4 - d3 + d5 - d6), d2 / (d2 - d6)]
        )
        v, w = vb / (va + vb + vc), vc / (va + vb + vc)
    t = along[:, None]
    nearest = np.select(
        [(where == place)[:, None] for place in range(6)],
        [a, b, c, a + t * ab, b + t * (c - b), a + t * ac],
        a + v[:, None] * ab + w[:, None] * ac,
    )
    return nearest, where
