"""The files of a whole zoo, opened: manifest and table at once, shards mapped when they are first touched.

Opening checks the manifest, the table, and that every shard is there with its size; mapping a shard checks its header.
Contents are compared with their sha256 by `prepkit zoo verify`. A mapping is private (copy on write): writing into a
tensor that was read changes nothing on the disk. Files are kept by path, so a store can be pickled and forked.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.errors import ZooError
from prepkit.tensors import torch_dtype
from prepkit.zoo.format.manifest import MANIFEST, Manifest, StoredArchitecture, read_manifest
from prepkit.zoo.format.paths import inside
from prepkit.zoo.format.shards import Extent, offset_of_values, shard_format
from prepkit.zoo.format.tables import read_table, whole_numbers

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14: map the pages now, all at once


class Store:
    """An open zoo. Instance `i` is row `i` of the table."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.manifest: Manifest = read_manifest(self.root)
        self.table: pa.Table = self._table()
        self.kind = shard_format(self.manifest.shard_format)
        self._check_files()
        self.shard_of: np.ndarray = _integers(self.table, "shard")
        self.row_of: np.ndarray = _integers(self.table, "row")
        self._check_rows()
        self._stored = {stored.name: stored for stored in self.manifest.architectures}
        self._values: dict[int, Tensor] = {}
        self._populated: set[int] = set()
        self._mappings: dict[int, mmap.mmap] = {}

    def architecture_of_shard(self, number: int) -> StoredArchitecture:
        """The architecture whose instances a shard holds."""
        return self._stored[self.manifest.shards[number].architecture]

    def values(self, number: int) -> Tensor:
        """The values of a shard, mapped: `[rows, height * width]` in the zoo's dtype.

        raises ZooError if the file is not the shard that the manifest describes
        """
        if number not in self._values:
            self._values[number] = self._map(number)
        return self._values[number]

    def need(self, numbers: Collection[int]) -> None:
        """Say that the values of these shards are asked for next: what is elsewhere can be fetched all at once."""

    def ahead(self, numbers: Iterable[int]) -> AbstractContextManager[None]:
        """While inside, shards that are elsewhere are fetched in this order by threads that stay ahead."""
        return nullcontext()

    def populate(self, number: int) -> None:
        """Map all pages of a shard now: a shuffled pass would pay for each of them when it touches it."""
        self.values(number)
        if number in self._populated:
            return
        self._populated.add(number)
        with suppress(OSError, KeyError):  # an older kernel: pages are mapped when touched; or it was let go meanwhile
            self._mappings[number].madvise(POPULATE_READ)

    def file(self, path: str) -> Path:
        """The file that the manifest names so."""
        return inside(self.root, path, str(self.root / MANIFEST))

    def extent(self, number: int) -> Extent:
        """The array that a shard holds."""
        height = self.architecture_of_shard(number).height
        return Extent(self.manifest.shards[number].rows, height, self.manifest.width, self.manifest.dtype)

    def _map(self, number: int) -> Tensor:
        import torch

        file, extent = self.file(self.manifest.shards[number].path), self.extent(number)
        offset = offset_of_values(file, self.kind, extent)
        mapping = self._mappings[number] = self._mapping_of(file)
        cells = extent.height * extent.width
        flat = torch.frombuffer(mapping, dtype=torch_dtype(extent.dtype), count=extent.rows * cells, offset=offset)
        return flat.view(extent.rows, cells)

    def _mapping_of(self, file: Path) -> mmap.mmap:
        with open(file, "rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)

    def _table(self) -> pa.Table:
        stored = self.manifest.table
        return read_table(self.file(stored.path), stored)

    def _check_files(self) -> None:
        for shard in self.manifest.shards:
            file = self.file(shard.path)
            try:
                size = file.stat().st_size
            except OSError:
                raise ZooError(f"{file}: missing; the zoo is not whole. Fetch it again.") from None
            if size != shard.bytes:
                raise ZooError(f"{file}: it has {size:,} bytes, the manifest says {shard.bytes:,}; fetch it again.")

    def _check_rows(self) -> None:
        rows = np.array([shard.rows for shard in self.manifest.shards], dtype=np.int64)
        place = self.root / self.manifest.table.path
        known = (self.shard_of >= 0) & (self.shard_of < len(rows))
        if not known.all():
            raise ZooError(
                f"{place}, row {int(np.argmin(known))}: there is no shard {self.shard_of[np.argmin(known)]}."
            )
        held = (self.row_of >= 0) & (self.row_of < rows[self.shard_of]) if len(rows) else known
        if not held.all():
            raise ZooError(f"{place}, row {int(np.argmin(held))}: its shard has no row {self.row_of[np.argmin(held)]}.")

    def __getstate__(self) -> dict[str, Any]:
        """For another process: which zoo; it is opened there."""
        return {"root": self.root.absolute(), "sha256": self.manifest.to_dict()["sha256"]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"])  # type: ignore[misc]
        if self.manifest.to_dict()["sha256"] != state["sha256"]:
            raise ZooError(f"'{self.root}' was replaced while this process was started; open it anew.")


def _integers(table: pa.Table, name: str) -> np.ndarray:
    import pyarrow as pa

    column = table[name]
    if column.null_count:
        raise ZooError(f"the zoo's table: the column '{name}' has missing values.")
    if not pa.types.is_integer(column.type):
        raise ZooError(f"the zoo's table: the column '{name}' has type {column.type}, not whole numbers.")
    return whole_numbers(column)
