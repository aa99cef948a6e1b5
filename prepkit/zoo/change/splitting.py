"""split: choose which instances are for training, which for validation, which for testing.

Each instance, or each group of instances that share a value of a column (all epochs of one training run), goes to one
split as a whole. Groups are ordered by the sha256 of the seed and their least id, so the result depends neither on the
order of the rows nor on any generator. Architecture by architecture, each group goes to the split that lacks most
instances. What rounding leaves over is carried to the next architecture, so that the whole zoo has the right shares.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from prepkit.errors import ZooError, listed, nearest
from prepkit.files import output_error
from prepkit.zoo.card.card import write_card
from prepkit.zoo.format.manifest import MANIFEST, Manifest, StoredFile, read_manifest, write_manifest
from prepkit.zoo.format.paths import inside
from prepkit.zoo.format.tables import OWN_COLUMNS, ROWS_A_GROUP, publish_table, read_table

if TYPE_CHECKING:
    import pyarrow as pa

RUN = "run"
DEFAULT_FRACTIONS: Mapping[str, float] = MappingProxyType({"train": 0.8, "validation": 0.1, "test": 0.1})


@dataclass(frozen=True)
class ZooSplit:
    """The splits that a zoo was given.

    table:  path of the new table in the zoo
    counts: split -> architecture -> number of instances
    group:  column whose values were kept together, None if each instance stands for itself
    groups: number of groups
    notes:  sentences that the zoo's owner should read
    """

    table: str
    counts: Mapping[str, Mapping[str, int]]
    group: str | None
    groups: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RowGroup:
    """Rows of the table that stay together.

    stratum: names of their architectures
    """

    least_id: str
    stratum: tuple[str, ...]
    rows: tuple[int, ...]


def split(
    path: str | os.PathLike[str],
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    *,
    seed: int = 0,
    group: str | Literal[False] | None = None,
    card: bool = True,
) -> ZooSplit:
    """Give every instance of a zoo a split: write a new table, then a new manifest that names it.

    fractions: split -> share of the instances; they sum to 1
    seed:      another seed gives another split
    group:     column whose values are kept together; `run` if missing and there is one; False to let each instance
               stand for itself
    card:      whether README.md and card.png are written anew
    raises ZooError for wrong fractions or an unknown column, OutputError if it cannot be written

    >>> split("my-zoo", {"train": 0.9, "test": 0.1}).counts["test"]
    {'resnet8@cifar10': 5}
    """
    root = Path(path)
    exact = checked_fractions(fractions)
    manifest = read_manifest(root)
    old = inside(root, manifest.table.path, str(root / MANIFEST))
    table = read_table(old, manifest.table)
    column = None if group is False else group_column(table.column_names, group)
    groups = groups_of(table, column)
    splits = assigned(groups, exact, seed, len(table))
    stored = _write(root, manifest, table, splits)
    if stored.path != manifest.table.path:
        old.unlink(missing_ok=True)
    if card:
        write_card(root)
    counts = _counts(table["architecture"].to_pylist(), splits, exact)
    empty = [name for name, share in exact.items() if share and not counts[name] and len(table)]
    notes = [f"{listed(empty)}: no instance, {len(groups)} groups are too few for these fractions."] if empty else []
    return ZooSplit(stored.path, counts, column, len(groups), tuple(notes))


def checked_fractions(fractions: Mapping[str, float]) -> dict[str, Fraction]:
    """Return the fractions exactly as they were written in decimals.

    raises ZooError unless all are 0 .. 1 and sum to 1
    """
    given = listed(f"{name} {share}" for name, share in fractions.items())
    if not all(0 <= share <= 1 for share in fractions.values()):
        raise ZooError(f"each part of a split is between 0 and 1; given: {given}.")
    exact = {name: Fraction(str(share)) for name, share in fractions.items()}
    total = sum(exact.values(), Fraction())
    if abs(total - 1) > Fraction(1, 10**6):
        raise ZooError(f"the parts of a split sum to 1; given: {given}, which sum to {float(total):g}.")
    return {name: share / total for name, share in exact.items()}


def group_column(columns: list[str], asked: str | None) -> str | None:
    """Return the column to group by: the column asked for, else `run` if there is such a column, else None.

    raises ZooError if there is no such column
    """
    if asked is None:
        return RUN if RUN in columns else None
    users = [name for name in columns if name not in OWN_COLUMNS]
    if asked not in users:
        raise ZooError(
            f"there is no column '{asked}' to group by; there are {listed(users, 20)}.{nearest(asked, users)}"
        )
    return asked


def groups_of(table: pa.Table, column: str | None) -> list[RowGroup]:
    """RowGroup the rows by their value in a column; a row without a value is a group of its own."""
    ids, architectures = table["id"].to_pylist(), table["architecture"].to_pylist()
    values = table[column].to_pylist() if column is not None else [None] * len(ids)
    members: dict[tuple[bool, Any], list[int]] = {}
    for index, value in enumerate(values):
        key = (True, ids[index]) if value is None or value != value else (False, value)
        members.setdefault(key, []).append(index)
    return [
        RowGroup(min(ids[row] for row in rows), tuple(sorted({architectures[row] for row in rows})), tuple(rows))
        for rows in members.values()
    ]


def assigned(groups: list[RowGroup], fractions: Mapping[str, Fraction], seed: int, rows: int) -> list[str]:
    """Return the split of each row."""
    splits = [""] * rows
    lacking = dict.fromkeys(fractions, Fraction())
    strata: dict[tuple[str, ...], list[RowGroup]] = {}
    for group in groups:
        strata.setdefault(group.stratum, []).append(group)
    for _, members in sorted(strata.items()):
        size = sum(len(group.rows) for group in members)
        for name, share in fractions.items():
            lacking[name] += share * size
        for group in sorted(members, key=lambda group: _order_key(seed, group.least_id)):
            name = max(lacking, key=lambda name: lacking[name])
            lacking[name] -= len(group.rows)
            for row in group.rows:
                splits[row] = name
    return splits


def _order_key(seed: int, id: str) -> bytes:
    return hashlib.sha256(f"{seed}:{id}".encode()).digest()


def _write(root: Path, manifest: Manifest, table: pa.Table, splits: list[str]) -> StoredFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = table.column_names.index("split")
    table = table.set_column(place, "split", pa.array(splits, pa.string()))
    try:
        with TemporaryDirectory(prefix=".prepkit-", dir=root) as folder:
            part = Path(folder) / "models.part"
            pq.write_table(table, part, compression="zstd", row_group_size=ROWS_A_GROUP)
            stored = publish_table(part, root, len(table))
    except OSError as error:
        raise output_error(root, error) from error
    counts = dict(sorted(Counter(splits).items()))
    write_manifest(replace(manifest, table=stored, splits=counts), root, overwrite=True)
    return stored


def _counts(
    architectures: list[str], splits: list[str], fractions: Mapping[str, Fraction]
) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {name: {} for name in fractions}
    for (split, name), count in sorted(Counter(zip(splits, architectures, strict=True)).items()):
        counts[split][name] = count
    return counts
