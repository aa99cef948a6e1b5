"""Join the tables of zoos that are merged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, counted, listed
from prepkit.zoo.change._common_type import common_type
from prepkit.zoo.format.columns import OWN_COLUMNS
from prepkit.zoo.format.manifest import Manifest, StoredArchitecture
from prepkit.zoo.format.tables import read_table

if TYPE_CHECKING:
    import pyarrow as pa

RUN = "run"


@dataclass(frozen=True)
class SourceZoo:
    """A zoo to be merged: folder and manifest."""

    root: Path
    manifest: Manifest


def merged_table(
    zoos: list[SourceZoo], architectures: tuple[StoredArchitecture, ...], prefix: bool, notes: list[str]
) -> pa.Table:
    """Return the rows of all zoos with the new ClassIds and shard numbers.

    raises ZooError naming ids that are in two zoos, or a column that two zoos fill with different kinds of values
    """
    import pyarrow as pa

    tables = [read_table(zoo.root / zoo.manifest.table.path, zoo.manifest.table) for zoo in zoos]
    if prefix:
        tables = [_prefixed(table, zoo.manifest.name) for table, zoo in zip(tables, zoos, strict=True)]
    _check_ids(zoos, tables)
    _note_runs(zoos, tables, notes)
    class_ids = {stored.name: stored.class_id for stored in architectures}
    schema = pa.schema([*_own_fields(tables[0]), *_common_fields(zoos, tables)])
    first_shard, parts = 0, []
    for zoo, table in zip(zoos, tables, strict=True):
        parts.append(_fitted(_renumbered(table, class_ids, first_shard), schema, zoo))
        first_shard += len(zoo.manifest.shards)
    return pa.concat_tables(parts).combine_chunks()


def _prefixed(table: pa.Table, name: str) -> pa.Table:
    for column in ("id", RUN):
        if column in table.column_names:
            values = [None if value is None else f"{name}-{value}" for value in table[column].to_pylist()]
            table = _replaced(table, column, values, "string")
    return table


def _check_ids(zoos: list[SourceZoo], tables: list[pa.Table]) -> None:
    homes: dict[str, SourceZoo] = {}
    for zoo, table in zip(zoos, tables, strict=True):
        ids = table["id"].to_pylist()
        shared = [id for id in ids if id in homes]
        if shared:
            are = "is" if len(shared) == 1 else "are"
            raise ZooError(
                f"{counted(len(shared), 'id')} of '{zoo.root}' {are} in '{homes[shared[0]].root}' too: "
                f"{listed(shared, 3)}; ids are "
                "unique. With prefix=True the zoo's name is put before each."
            )
        homes.update(dict.fromkeys(ids, zoo))


def _note_runs(zoos: list[SourceZoo], tables: list[pa.Table], notes: list[str]) -> None:
    seen: set[Any] = set()
    for table in tables:
        runs = set(table[RUN].to_pylist()) - {None} if RUN in table.column_names else set()
        if runs & seen:
            shared = listed(sorted(runs & seen, key=str), 3)
            notes.append(f"run {shared} is in several zoos, so it counts as one run; prefix=True tells them apart.")
            return
        seen |= runs


def _own_fields(table: pa.Table) -> list[pa.Field]:
    return [table.schema.field(name).remove_metadata() for name in OWN_COLUMNS]


def _common_fields(zoos: list[SourceZoo], tables: list[pa.Table]) -> list[pa.Field]:
    import pyarrow as pa

    kinds: dict[str, tuple[pa.DataType, SourceZoo]] = {}
    for zoo, table in zip(zoos, tables, strict=True):
        for field in table.schema:
            if field.name in OWN_COLUMNS:
                continue
            known, home = kinds.get(field.name, (pa.null(), zoo))
            common = common_type(known, field.type)
            if common is None:
                raise ZooError(
                    f"the column '{field.name}' is {known} in '{home.root}' and {field.type} in '{zoo.root}'; "
                    "rename one where the zoo is made."
                )
            kinds[field.name] = (common, home if common == known else zoo)
    return [pa.field(name, kind) for name, (kind, _) in kinds.items()]


def _renumbered(table: pa.Table, class_ids: dict[str, int | None], first_shard: int) -> pa.Table:
    new = [class_ids[name] for name in table["architecture"].to_pylist()]
    shards = [first_shard + shard for shard in table["shard"].to_pylist()]
    return _replaced(_replaced(table, "class_id", new, "int32"), "shard", shards, "int32")


def _fitted(table: pa.Table, schema: pa.Schema, zoo: SourceZoo) -> pa.Table:
    """Return the table with all columns of the schema, in its order and types, without loss."""
    import pyarrow as pa

    columns = []
    for field in schema:
        try:
            column = table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type)
            columns.append(column.cast(field.type, safe=True))
        except pa.ArrowInvalid as error:
            reason = str(error).splitlines()[0]
            raise ZooError(f"'{zoo.root}': column '{field.name}' does not fit {field.type}: {reason}") from None
    return pa.table(columns, schema=schema)


def _replaced(table: pa.Table, name: str, values: list[Any], kind: str) -> pa.Table:
    import pyarrow as pa

    return table.set_column(table.column_names.index(name), name, pa.array(values, pa.type_for_alias(kind)))
