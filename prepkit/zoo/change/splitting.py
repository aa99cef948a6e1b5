"""split: choose which instances are for training, which for validation, which for testing.

Each instance, or each group of instances that share a value of a column (all epochs of one training run), goes to one
split as a whole. Groups are ordered by the sha256 of the seed and their least id, so the result depends neither on the
order of the rows nor on any generator. Architecture by architecture, each group goes to the split that lacks most
instances. What rounding leaves over is carried to the next architecture, so that the whole zoo has the right shares.

The new table stands beside the old one, so that whoever reads the zoo goes on reading it; `clean` removes old tables.
A split that is replaced is kept as a column, and the manifest's provenance tells how the new one was drawn.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from itertools import count as naturals
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from prepkit.errors import ZooError, listed, nearest
from prepkit.support.lock import changing
from prepkit.support.text import Brief
from prepkit.zoo.card.card import README, replace_card
from prepkit.zoo.format.columns import OWN_COLUMNS, checked_name
from prepkit.zoo.format.drawn_split import DRAWN_SPLIT, EARLIER_SPLIT, drawn_split, split_record
from prepkit.zoo.format.manifest import MANIFEST, Manifest, StoredFile, read_manifest, write_manifest
from prepkit.zoo.format.paths import inside
from prepkit.zoo.format.sizes import check_sizes
from prepkit.zoo.format.tables import read_table, write_table_beside

if TYPE_CHECKING:
    import pyarrow as pa

RUN = "run"
DEFAULT_FRACTIONS: Mapping[str, float] = MappingProxyType({"train": 0.8, "validation": 0.1, "test": 0.1})


@dataclass(frozen=True, repr=False)
class ZooSplit(Brief):
    """The splits that a zoo was given.

    table:  path of the new table in the zoo
    counts: split -> architecture -> number of instances
    group:  column whose values were kept together, None if each instance stands for itself
    groups: number of groups
    notes:  sentences that the zoo's owner should read
    kept:   column that holds the split that was replaced, None if there was none or it was the same
    """

    table: str
    counts: Mapping[str, Mapping[str, int]]
    group: str | None
    groups: int
    notes: tuple[str, ...]
    kept: str | None = None


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
    force: bool = False,
    keep_as: str | None = None,
) -> ZooSplit:
    """Give every instance of a zoo a split: write a new table, then a new manifest that names it.

    fractions: split -> share of the instances; they sum to 1
    seed:      another seed gives another split
    group:     column whose values are kept together; `run` if missing and there is one; False to let each instance
               stand for itself
    card:      whether README.md and card.png are written anew
    force:     replace a split that is there; it is kept as the column `split.<name>`
    keep_as:   that name; if missing, `original`, or `seed0` for a split that was drawn here with seed 0
    raises ZooError for wrong fractions, an unknown column, or a split that is there
    raises OutputError if it cannot be written, ZooLocked if another process changes the zoo

    >>> split("my-zoo", {"train": 0.9, "test": 0.1}).counts["test"]
    {'resnet8@cifar10': 5}
    """
    import pyarrow as pa

    root = Path(path)
    exact = checked_fractions(fractions)
    read_manifest(root)  # before a lock is put into the folder
    with changing(root):
        manifest = read_manifest(root)
        _check_unsplit(manifest, root, force)
        check_sizes(root, manifest)
        table = read_table(inside(root, manifest.table.path, str(root / MANIFEST)), manifest.table)
        column = None if group is False else group_column(table.column_names, group)
        if column is not None and pa.types.is_nested(table.schema.field(column).type):
            raise ZooError(f"the column '{column}' holds lists, which name no groups; choose another column.")
        groups = groups_of(table, column)
        splits = assigned(groups, exact, seed, len(table))
        changed, kept = _with_splits(manifest, table, splits, keep_as)
        record = split_record(seed, fractions, column, kept)
        outdated = manifest.preprocessing is not None and changed is not table
        described = replace(manifest, provenance=_provenance(manifest, record))
        described = replace(described, preprocessing=None) if outdated else described
        stored = _write(root, described, changed)
        written = replace_card(root) if card else None
    counts = _counts(table["architecture"].to_pylist(), splits, exact)
    empty = [name for name, share in exact.items() if share and not counts[name] and len(table)]
    notes = [f"{listed(empty)}: no instance, {len(groups)} groups are too few for these fractions."] if empty else []
    if outdated:
        notes.append("what the zoo was normalised by was of the old split, and is gone; run `prepkit zoo normalise`.")
    if written is not None and written.readme is None:
        notes.append(f"{root / README} is your own text, so it was left alone; see whether it tells the old split.")
    return ZooSplit(stored.path, counts, column, len(groups), tuple(notes), kept)


def _check_unsplit(manifest: Manifest, root: Path, force: bool) -> None:
    if manifest.splits and not force:
        sizes = ", ".join(f"{name} {count:,}" for name, count in manifest.splits.items())
        raise ZooError(
            f"'{root}' has a split already ({sizes}); force=True draws another, and keeps this one as a column."
        )


def _with_splits(
    manifest: Manifest, table: pa.Table, splits: list[str], keep_as: str | None
) -> tuple[pa.Table, str | None]:
    """Return the table with new splits, and the name of the column that keeps the splits that they replace.

    raises ZooError if a name was asked for and cannot be used
    """
    import pyarrow as pa

    if keep_as is not None:
        checked_name(EARLIER_SPLIT + keep_as if keep_as else "", f"keep_as={keep_as!r}")
    old = table["split"].to_pylist()
    draw = drawn_split(manifest)
    if old == splits:
        return table, draw["kept"] if draw else None
    place = table.column_names.index("split")
    changed = table.set_column(place, "split", pa.array(splits, pa.string()))
    if not manifest.splits:
        return changed, None
    name = EARLIER_SPLIT + (keep_as or ("original" if draw is None else f"seed{draw['seed']}"))
    names = [name] if keep_as else chain([name], (f"{name}_{number}" for number in naturals(2)))
    for name in names:
        if name not in table.column_names:
            return changed.append_column(name, table["split"]), name
        if table[name].to_pylist() == old:
            return changed, name
    raise ZooError(f"there is a column '{name}' already, with another split; choose another name with keep_as=.")


def _provenance(manifest: Manifest, record: dict[str, Any]) -> dict[str, Any]:
    """Return the provenance with the record of a new draw; the record before it takes the name of the kept column."""
    before, kept = drawn_split(manifest), record["kept"]
    is_replaced = before is not None and kept is not None and before["kept"] != kept
    return {**manifest.provenance, **({kept: before} if is_replaced else {}), DRAWN_SPLIT: record}


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


def _write(root: Path, manifest: Manifest, table: pa.Table) -> StoredFile:
    stored = write_table_beside(table, root)
    counts = dict(sorted(Counter(table["split"].to_pylist()).items()))
    write_manifest(replace(manifest, table=stored, splits=counts), root, overwrite=True)
    return stored


def _counts(
    architectures: list[str], splits: list[str], fractions: Mapping[str, Fraction]
) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {name: {} for name in fractions}
    for (split, name), count in sorted(Counter(zip(splits, architectures, strict=True)).items()):
        counts[split][name] = count
    return counts
