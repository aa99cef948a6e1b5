"""Splits as the Hub's dataset viewer and `datasets.load_dataset` read them: one parquet file each, named in the card.

The zoo's own table is one file, of which they would make one split, `train`. So a push writes the rows of each split
as `viewer/<split>-<hash>.parquet` beside it. A zoo all of whose rows are of one split needs no other file than its
table. The files are copies: prepkit does not read them, and they are not pulled.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prepkit.zoo.format.manifest import Manifest
from prepkit.zoo.format.paths import VIEWER
from prepkit.zoo.format.tables import ROWS_A_GROUP, rows_at, rows_with

if TYPE_CHECKING:
    import pyarrow as pa

FIRST = ("train", "validation", "test")  # in this order; other splits come after them
UNSPLIT = "unsplit"  # name of the rows without a split
NAME = re.compile(r"\w+(\.\w+)*")  # names of splits that `datasets` takes
RESERVED = frozenset(("all",))  # names that mean something else to `datasets`
MAX_NAME_LENGTH = 80
DATA_FILE = re.compile(rf"models-[0-9a-f]{{12}}\.parquet|{VIEWER}/\S+-[0-9a-f]{{12}}\.parquet")


@dataclass(frozen=True)
class ViewerSplit:
    """A split as the viewer shows it.

    split:   its name in the zoo, None for the rows without a split
    name:    its name in the viewer, which has letters, digits, _ and dots only
    path:    path of its file in the repository
    content: content of that file; None for the zoo's own table
    """

    split: str | None
    name: str
    path: str
    content: bytes | None = None


def only_split(manifest: Manifest) -> tuple[ViewerSplit, ...]:
    """Return the split that all rows of the zoo's table are in; nothing if there is no such split."""
    split = next((name for name, count in manifest.splits.items() if count and count == manifest.table.rows), None)
    return () if split is None else (ViewerSplit(split, _free_name(split, set(RESERVED)), manifest.table.path),)


def viewer_splits(manifest: Manifest, table: pa.Table) -> tuple[ViewerSplit, ...]:
    """Write the table of each split; nothing for a zoo without splits."""
    if not any(manifest.splits.values()) or (only := only_split(manifest)):
        return only if manifest.splits else ()
    return tuple(_written(manifest, table))


def _written(manifest: Manifest, table: pa.Table) -> Iterator[ViewerSplit]:
    known = {name for name, count in manifest.splits.items() if count}
    others = sorted(known.difference(FIRST), key=lambda name: (NAME.fullmatch(name) is None, name))
    taken = set(RESERVED)
    for split in (*(name for name in FIRST if name in known), *others, None):
        rows = rows_at(table, rows_with(table["split"], split))
        if not len(rows):
            continue
        name = _free_name(split or UNSPLIT, taken)
        content = _parquet(rows)
        digest = hashlib.sha256(content).hexdigest()[:12]
        yield ViewerSplit(split, name, f"{VIEWER}/{name}-{digest}.parquet", content)


def _free_name(split: str, taken: set[str]) -> str:
    """Return a name for the viewer that no other split has, and take it."""
    base = split if NAME.fullmatch(split) else re.sub(r"\W+", "_", split).strip("_") or "split"
    base = base[:MAX_NAME_LENGTH].rstrip(".")
    names = (base if number == 1 else f"{base}_{number}" for number in range(1, len(taken) + 2))
    name = next(name for name in names if name not in taken)
    taken.add(name)
    return name


def _parquet(rows: pa.Table) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", row_group_size=ROWS_A_GROUP)
    content: bytes = sink.getvalue().to_pybytes()
    return content
