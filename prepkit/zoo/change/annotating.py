"""annotate: give the instances of a finished zoo new columns, or other values in those that they have.

Only the table is written anew, beside the old one, so that whoever reads the zoo goes on reading it; the manifest then
names the new table in one step. A process that is killed leaves the zoo as it was or as it should be.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.errors import ZooError, listed, nearest
from prepkit.support.lock import changing
from prepkit.support.text import Brief
from prepkit.zoo.card.card import README, replace_card
from prepkit.zoo.change._given_columns import GivenColumns, given_columns, is_text
from prepkit.zoo.change._rows_of_keys import Match, matched
from prepkit.zoo.format.columns import OWN_COLUMNS, checked_name
from prepkit.zoo.format.common_type import common_type
from prepkit.zoo.format.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from prepkit.zoo.format.paths import inside
from prepkit.zoo.format.sizes import check_sizes
from prepkit.zoo.format.sources import PREFIX, VERSIONS
from prepkit.zoo.format.tables import read_table, write_table_beside

if TYPE_CHECKING:
    import pyarrow as pa

ANNOTATIONS = "annotations"  # key of the provenance, which lists each change
EXPORTED = (PREFIX, VERSIONS)  # columns that `zoo export` reads, so their names stay


@dataclass(frozen=True, repr=False)
class Annotation(Brief):
    """What changed in the table of a zoo.

    table:    path of the new table in the zoo
    added:    names of new columns
    replaced: names of columns that have other values now
    renamed:  former name -> name
    dropped:  names of columns that are gone
    matched:  number of instances that a row was found for
    notes:    sentences that the zoo's owner should read
    """

    table: str
    added: tuple[str, ...]
    replaced: tuple[str, ...]
    renamed: Mapping[str, str]
    dropped: tuple[str, ...]
    matched: int
    notes: tuple[str, ...] = ()


def annotate(
    path: str | os.PathLike[str],
    columns: Any = None,
    *,
    on: str | Sequence[str] | Mapping[str, str] | None = None,
    types: Mapping[str, str | type] | None = None,
    rename: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    card: bool = True,
) -> Annotation:
    """Change the user's columns of a zoo: drop some, rename some, then add those of a frame or a file.

    columns: a pandas, polars or pyarrow table, a mapping of names to values, or the path of a CSV, TSV, JSON or JSONL
             file. A column that the zoo has gets the new values where there is one; an instance without a row, or with
             a missing value in its row, keeps what it has.
    on:      column by which rows are found, or several, or zoo's column -> given column: {"epoch": "step"}. If missing,
             `id`, or else `file`, the path that the id was made of. A row counts for all instances of its key.
    types:   types of a text file's columns, such as {"code": "text"}; the narrowest that fits all cells if missing
    rename:  former name -> name
    drop:    names of columns
    card:    whether README.md is written anew
    raises ZooError for names or values that do not fit, or if no row is of any instance; ZooLocked; OutputError

    >>> annotate("my-zoo", {"id": ["run0"], "robustness": [0.42]}).added
    ('robustness',)
    """
    root = Path(path)
    read_manifest(root)  # before a lock is put into the folder
    rename = dict(rename or {})
    if columns is None and not rename and not drop:
        raise ZooError("there is nothing to change: give columns, or name some to rename or drop.")
    if columns is None and (on is not None or types):
        raise ZooError("`on` and types= go with columns that are given.")
    given = None if columns is None else given_columns(columns, types)
    with changing(root):
        manifest = read_manifest(root)
        check_sizes(root, manifest)
        old = read_table(inside(root, manifest.table.path, str(root / MANIFEST)), manifest.table)
        table = _renamed(_dropped(old, drop, manifest.name), rename, manifest.name)
        match = None if given is None else matched(table, given, on)
        added: list[str] = []
        replaced: list[str] = []
        if given is not None and match is not None:
            table, added, replaced = _with_values(table, given, match)
        notes = [] if given is None or match is None else [*given.notes, *match.notes]
        stored = manifest.table.path
        if added or replaced or rename or drop:
            record = _record(given, match, added, replaced, rename, drop)
            provenance = {**manifest.provenance, ANNOTATIONS: [*_earlier(manifest), record]}
            stored = _write(root, replace(manifest, provenance=provenance), table)
            if card and replace_card(root).readme is None:
                notes.append(
                    f"{root / README} is your own text, so it was left alone; see whether it tells of columns."
                )
    count = 0 if match is None else match.count
    return Annotation(stored, tuple(added), tuple(replaced), rename, tuple(drop), count, tuple(notes))


def _dropped(table: pa.Table, drop: Sequence[str], zoo: str) -> pa.Table:
    for name in drop:
        _check_users(name, table, zoo, "dropped")
        table = table.drop_columns([name])
    return table


def _renamed(table: pa.Table, rename: Mapping[str, str], zoo: str) -> pa.Table:
    names = list(table.column_names)
    for old, new in rename.items():
        _check_users(old, table, zoo, "renamed")
        names[table.column_names.index(old)] = checked_name(new, f"the new name of '{old}'")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ZooError(f"'{zoo}' would have two columns {listed(twice)}; drop or rename the other one too.")
    return table.rename_columns(names)


def _check_users(name: str, table: pa.Table, zoo: str, verb: str) -> None:
    """Raise ZooError unless a column is there and the user's own."""
    if name in OWN_COLUMNS or name in EXPORTED:
        raise ZooError(f"the column '{name}' is filled by the zoo itself, so it cannot be {verb}.")
    users = [column for column in table.column_names if column not in OWN_COLUMNS]
    if name not in users:
        raise ZooError(
            f"'{zoo}' has no column '{name}' to be {verb}; it has {listed(users, 20) or 'none'}.{nearest(name, users)}"
        )


def _with_values(table: pa.Table, given: GivenColumns, match: Match) -> tuple[pa.Table, list[str], list[str]]:
    """Return the table with the given values, and the names of its new columns and of those that changed."""
    added, replaced = [], []
    for name in given.table.column_names:
        if name in match.columns:
            continue
        if name in EXPORTED:
            raise ZooError(f"{given.name}: the column '{name}' is filled by the zoo itself; leave it out.")
        checked_name(name, given.name)
        if name not in table.column_names:
            table = table.append_column(name, _values_at(given.table[name], None, match.rows))
            added.append(name)
            continue
        new = given.as_text(name) if is_text(table[name].type) else given.table[name]
        column = _values_at(new, table[name], match.rows, f"{given.name}, column '{name}'")
        if not column.equals(table[name]):
            replaced.append(name)
        table = table.set_column(table.column_names.index(name), name, column)
    if not added and not replaced and given.table.num_columns == len(match.columns):
        raise ZooError(f"{given.name}: has no columns but those of its keys, {listed(match.columns)}.")
    return table, added, replaced


def _values_at(new: pa.ChunkedArray, old: pa.ChunkedArray | None, rows: np.ndarray, place: str = "") -> pa.ChunkedArray:
    """Return a column with the new value of each row, and the old one, or none, where there is no new one.

    rows: for each instance the row of `new`, -1 for none
    raises ZooError if old and new values have no common type
    """
    import pyarrow as pa

    kind = new.type if old is None else common_type(new.type, old.type)
    if kind is None:
        raise ZooError(
            f"{place}: holds {new.type}, but the zoo's column of this name holds "
            f"{'none' if old is None else old.type}; drop that one, or give the new one another name."
        )
    before = pa.nulls(len(rows), kind) if old is None else _exactly(old, kind, place).combine_chunks()
    values = pa.concat_arrays([_as_array(before), _as_array(_exactly(new, kind, place).combine_chunks())])
    is_missing = np.asarray(new.is_null().combine_chunks().to_numpy(zero_copy_only=False), dtype=bool)
    has_new = rows >= 0
    has_new[has_new] = ~is_missing[rows[has_new]]
    return pa.chunked_array([values.take(pa.array(np.where(has_new, len(rows) + rows, np.arange(len(rows)))))])


def _as_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa

    if not isinstance(column, pa.ChunkedArray):
        return column
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _exactly(column: pa.ChunkedArray, kind: pa.DataType, place: str) -> pa.ChunkedArray:
    import pyarrow as pa

    try:
        return column.cast(kind, safe=True)
    except pa.ArrowInvalid as error:
        raise ZooError(f"{place}: does not fit {kind}: {str(error).splitlines()[0]}.") from None


def _record(
    given: GivenColumns | None,
    match: Match | None,
    added: Sequence[str],
    replaced: Sequence[str],
    rename: Mapping[str, str],
    drop: Sequence[str],
) -> dict[str, Any]:
    """Return what the provenance keeps of a change: when it was, where the values came from, and what it did."""
    record: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="seconds")}
    if given is not None and match is not None:
        source = Path(given.name).name if given.sha256 else given.name
        record |= {"from": source, "instances": match.count, "added": list(added), "replaced": list(replaced)}
        record |= {} if given.sha256 is None else {"sha256": given.sha256}
    record |= {"renamed": dict(rename)} if rename else {}
    return record | ({"dropped": list(drop)} if drop else {})


def _earlier(manifest: Manifest) -> list[Any]:
    records = manifest.provenance.get(ANNOTATIONS)
    return records if isinstance(records, list) else []


def _write(root: Path, manifest: Manifest, table: pa.Table) -> str:
    """Write the table and the manifest that names it; return the table's path in the zoo."""
    stored = write_table_beside(table, root)
    write_manifest(replace(manifest, table=stored), root, overwrite=True)
    return stored.path
