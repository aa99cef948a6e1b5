"""Join the tables of zoos that are merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prepkit.errors import ZooError, counted, listed
from prepkit.zoo.format.manifest import StoredArchitecture
from prepkit.zoo.write.joined_table import RUN, SourceZoo, joined_table, shared_runs

if TYPE_CHECKING:
    import pyarrow as pa


def merged_table(
    zoos: list[SourceZoo], architectures: tuple[StoredArchitecture, ...], prefix: bool, notes: list[str]
) -> pa.Table:
    """Return the rows of all zoos with the new ClassIds and shard numbers.

    raises ZooError naming ids that are in two zoos, or a column that two zoos fill with different kinds of values
    """
    tables = [zoo.table() for zoo in zoos]
    if prefix:
        tables = [_prefixed(table, zoo.manifest.name) for table, zoo in zip(tables, zoos, strict=True)]
    _check_ids(zoos, tables)
    runs = shared_runs(tables)
    if runs is not None:
        notes.append(f"run {runs} is in several zoos, so it counts as one run; prefix=True tells them apart.")
    return joined_table(zoos, tables, {stored.name: stored.class_id for stored in architectures})


def _prefixed(table: pa.Table, name: str) -> pa.Table:
    import pyarrow as pa

    for column in ("id", RUN):
        if column in table.column_names:
            values = [None if value is None else f"{name}-{value}" for value in table[column].to_pylist()]
            table = table.set_column(table.column_names.index(column), column, pa.array(values, pa.string()))
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
