"""The sources of shapes' points: solids that are sampled on demand, or files that already hold points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from prepkit.errors import ZooError, counted
from prepkit.tasks import _shape_files as shape_files
from prepkit.tasks import chairs
from prepkit.tasks._sdf import Solid, sample
from prepkit.tasks._shape_record import CHAIRS, MESHES, SDF_FILES, ShapeRecord
from prepkit.tasks.randomness import generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.float32]


class PointSource(Protocol):
    """A source of the points of shapes.

    count: number of shapes; None if there is no end of them
    facts: keys that loading adds to the record
    """

    @property
    def count(self) -> int | None: ...  # see the class
    @property
    def facts(self) -> Mapping[str, Any]: ...

    def rows(self, item: int) -> dict[str, Rows]:
        """The points of each split, `[n, 4]` (x, y, z, signed distance): the first half inside, the second outside."""
        ...


class Solids:
    """Points that are drawn from solids on demand; each split of each shape has a random stream of its own."""

    def __init__(
        self, record: ShapeRecord, count: int | None, solid: Callable[[int], Solid], facts: Mapping[str, Any]
    ) -> None:
        self.count, self.facts = count, facts
        self._record, self._solid = record, solid

    def rows(self, item: int) -> dict[str, Rows]:
        """See PointSource."""
        record, solid, found = self._record, self._solid(item), {}
        for number, (split, size) in enumerate(record.sizes.items()):
            stream = generator("shape points", record.split.seed, item, number)
            try:
                points, distances = sample(solid, size, record.points.near_surface, record.points.sigma, stream)
            except ZooError as error:
                raise ZooError(f"shape {item}: {error}") from None
            found[split] = np.concatenate([points, distances[:, None]], 1)
        return found


class SampleFiles:
    """Points from DeepSDF's files, which a random stream of each shape deals to the splits."""

    def __init__(self, record: ShapeRecord, files: Sequence[Path], facts: Mapping[str, Any]) -> None:
        self.count, self.facts = len(files), facts
        self._record, self._files = record, files

    def rows(self, item: int) -> dict[str, Rows]:
        """See PointSource; raises ZooError if the file has fewer points than the splits need."""
        samples, sizes = shape_files.read_samples(self._files[item]), self._record.sizes
        halves = []
        for key, rows in (("neg", samples.neg), ("pos", samples.pos)):
            wanted = sum(sizes.values()) // 2
            if len(rows) < wanted:
                found = f"{counted(len(rows), 'point')}, but half of pool, validation and test are {wanted}"
                raise ZooError(f"{self._files[item]}, {key}: {found}; lower 'pool' in task, points.")
            order = torch.randperm(len(rows), generator=generator(f"file {key}", self._record.split.seed, item)).numpy()
            cuts = np.cumsum([size // 2 for size in sizes.values()])
            halves.append(np.split(rows[order[:wanted]], cuts[:-1]))
        return {split: np.concatenate(pair) for split, *pair in zip(sizes, *halves, strict=True)}


def _chairs(record: ShapeRecord, data: Path | None) -> PointSource:
    return Solids(record, record.count, lambda item: chairs.build(chairs.chair(item, record.seed)), {})


def _sample_files(record: ShapeRecord, data: Path | None) -> PointSource:
    files, facts = _files(record, data, shape_files.SDF_SUFFIXES)
    return SampleFiles(record, files, facts)


def _meshes(record: ShapeRecord, data: Path | None) -> PointSource:
    files, facts = _files(record, data, shape_files.MESH_SUFFIXES)
    return Solids(record, len(files), lambda item: shape_files.read_mesh(files[item]), facts)


def _files(
    record: ShapeRecord, data: Path | None, suffixes: Sequence[str]
) -> tuple[tuple[Path, ...], Mapping[str, Any]]:
    """The files, and the facts about them for the record; raises ZooError if the record has other facts."""
    folder, files = shape_files.find_files(data, suffixes, record.dataset)
    if record.count is not None and record.count != len(files):
        raise ZooError(
            f"task, count: {counted(record.count, 'shape')}, but {folder} holds {counted(len(files), 'file')}."
        )
    sha256 = shape_files.files_sha256(folder, files)
    if record.sha256 is not None and record.sha256 != sha256:
        found = f"but the files in {folder} have {sha256[:12]}...; name the folder that the zoo was made from."
        raise ZooError(f"task, sha256: {record.sha256[:12]}..., {found}")
    return files, {"count": len(files), "sha256": sha256}


SOURCES: dict[str, Callable[[ShapeRecord, Path | None], PointSource]] = {
    CHAIRS: _chairs,
    SDF_FILES: _sample_files,
    MESHES: _meshes,
}
