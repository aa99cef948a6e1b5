"""Cut a zoo: make a smaller zoo of some of its instances.

ClassIds, architectures, shape, task and teacher stay as they are, so an instance is the same in both zoos. A shard
keeps its content if all its rows stay; otherwise the rows that stay are copied. The new zoo's provenance names the zoo
that it was cut from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.errors import ZooError
from prepkit.version import __version__
from prepkit.zoo.change.copying import ShardRows, check_values, copy_shard, rows_of_shard
from prepkit.zoo.format.manifest import Manifest, Shard, StoredFile
from prepkit.zoo.format.origin import origin_of
from prepkit.zoo.format.shards import offset_of_values, shard_format
from prepkit.zoo.format.tables import int64_array, whole_numbers, write_table_at_once

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Cut:
    """The instances of a zoo that stay.

    table: their rows, as they are in the zoo
    rows:  number of a shard -> its rows that stay, ascending
    """

    manifest: Manifest
    table: pa.Table
    rows: Mapping[int, np.ndarray]

    def is_whole(self, number: int) -> bool:
        """Return whether all rows of a shard stay."""
        return len(self.rows[number]) == self.manifest.shards[number].rows


def planned_cut(manifest: Manifest, table: pa.Table, place: str) -> Cut:
    """Find the rows of each shard that a cut takes.

    table: the rows of the zoo's table that stay
    raises ZooError if a row names no row of a shard
    """
    shards, rows = (whole_numbers(table[name]) for name in ("shard", "row"))
    chosen_rows: dict[int, np.ndarray] = {}
    for number, places in _places_of(shards):
        chosen = _ascending(rows[places])
        if not 0 <= number < len(manifest.shards) or chosen[0] < 0 or chosen[-1] >= manifest.shards[number].rows:
            raise ZooError(f"{place}: the table names rows of shard {number} that are not there.")
        chosen_rows[number] = chosen
    return Cut(manifest, table, chosen_rows)


def _ascending(numbers: np.ndarray) -> np.ndarray:
    """Return each of the numbers once, ascending; numpy.unique takes ten times as long for many that ascend already."""
    ordered = np.sort(numbers, kind="stable")
    once: np.ndarray = ordered[np.insert(ordered[1:] != ordered[:-1], 0, values=True)]
    return once


def _places_of(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each number that there is, ascending, with the places where it stands."""
    order = np.argsort(numbers, kind="stable")
    values, starts = np.unique(numbers[order], return_index=True)
    yield from zip(values.tolist(), np.split(order, starts[1:]), strict=True)


def cut_shard(cut: Cut, number: int, source: Path, root: Path) -> Shard:
    """Write the rows of a shard that stay into `root`, read them back, and return the new shard's description.

    source: the folder in which the whole shard lies under its path
    """
    manifest, shard = cut.manifest, cut.manifest.shards[number]
    all_rows, kind = rows_of_shard(source, manifest, shard), shard_format(manifest.shard_format)
    chosen = cut.rows[number]
    picked = PickedRows(all_rows.file, all_rows.offset, replace(all_rows.extent, rows=len(chosen)), chosen)
    copied = copy_shard(picked, picked.extent, shard.architecture, number, kind, root, None)
    file = root / copied.path
    check_values(picked, ShardRows(file, offset_of_values(file, kind, picked.extent), picked.extent))
    return copied


def cut_table(cut: Cut, root: Path) -> StoredFile:
    """Write the table of the rows that stay, with the numbers that their shards and rows have in the new zoo."""
    old_shards, old_rows = (whole_numbers(cut.table[name]) for name in ("shard", "row"))
    new_shards, new_rows = np.zeros(len(old_shards), np.int64), np.zeros(len(old_rows), np.int64)
    for new, (number, here) in enumerate(_places_of(old_shards)):
        new_shards[here] = new
        new_rows[here] = np.searchsorted(cut.rows[number], old_rows[here])
    table = cut.table
    for name, numbers in (("shard", new_shards), ("row", new_rows)):
        place = table.column_names.index(name)
        field = table.schema.field(place)
        table = table.set_column(place, field, int64_array(numbers).cast(field.type))
    return write_table_at_once(table, root)


def cut_manifest(cut: Cut, shards: Mapping[int, Shard], table: StoredFile, origin: Mapping[str, Any]) -> Manifest:
    """Return the manifest of the new zoo.

    shards: number of a shard in the old zoo -> the new shard
    origin: where the old zoo was, and how the instances were chosen
    """
    old = cut.manifest
    splits = Counter(name for name in cut.table["split"].to_pylist() if name is not None)
    about = {**origin, **origin_of(old)}
    return replace(
        old,
        shards=tuple(shards[number] for number in sorted(cut.rows)),
        table=table,
        splits=dict(sorted(splits.items())),
        provenance={"cut": about},
        created_by=f"prepkit {__version__}",
    )


@dataclass(frozen=True)
class PickedRows(ShardRows):
    """Some rows of a shard.

    extent: the array of the rows that are picked
    """

    picked: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def pieces(self, rows_a_piece: int) -> Iterator[np.ndarray]:
        """Read the picked rows in order, as bytes `[rows, row_bytes]`."""
        size = self.extent.row_bytes
        with open(self.file, "rb") as opened:
            for start in range(0, len(self.picked), rows_a_piece):
                some = self.picked[start : start + rows_a_piece]
                piece = np.empty((len(some), size), dtype=np.uint8)
                borders = [0, *(np.flatnonzero(np.diff(some) != 1) + 1).tolist(), len(some)]
                for first, last in pairwise(borders):  # rows that follow each other are read at once
                    values = piece[first:last]
                    opened.seek(self.offset + int(some[first]) * size)
                    if opened.readinto(values.data) != values.nbytes:
                        raise ZooError(f"{self.file}: truncated while it was read.")
                yield piece
