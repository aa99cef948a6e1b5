"""Join the tables of zoos that become one: merged zoos, or a zoo and the instances that are appended to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, listed
from prepkit.zoo.format.columns import OWN_COLUMNS, Schema
from prepkit.zoo.format.common_type import common_type
from prepkit.zoo.format.manifest import MANIFEST, Manifest
from prepkit.zoo.format.paths import inside
from prepkit.zoo.format.tables import int64_array, read_table, whole_numbers

if TYPE_CHECKING:
    import pyarrow as pa

RUN = "run"


@dataclass(frozen=True)
class SourceZoo:
    """A zoo whose instances go into another one: folder and manifest."""

    root: Path
    manifest: Manifest

    def table(self) -> pa.Table:
        """Read its table.

        raises ZooError naming the file
        """
        path = self.manifest.table.path
        return read_table(inside(self.root, path, str(self.root / MANIFEST)), self.manifest.table)


def joined_table(
    zoos: Sequence[SourceZoo], tables: Sequence[pa.Table], class_ids: Mapping[str, int | None]
) -> pa.Table:
    """Return the rows of all tables, in their order, with new ClassIds and numbers of shards.

    tables:    one for each zoo
    class_ids: of each architecture
    raises ZooError naming a column that two zoos fill with different kinds of values
    """
    import pyarrow as pa

    # The own columns get the types that this version writes, as those of another tool may be too narrow for all rows.
    schema = pa.schema([*Schema().arrow(), *_common_fields(zoos, tables)])
    first_shard, parts = 0, []
    for zoo, table in zip(zoos, tables, strict=True):
        parts.append(_fitted(_renumbered(table, class_ids, first_shard), schema, zoo))
        first_shard += len(zoo.manifest.shards)
    return pa.concat_tables(parts).combine_chunks()


def shared_runs(tables: Sequence[pa.Table]) -> str | None:
    """Return the runs that stand in several tables, of which each counts as one run; None if there are none."""
    seen: set[Any] = set()
    for table in tables:
        runs = set(table[RUN].unique().to_pylist()) - {None} if RUN in table.column_names else set()
        if runs & seen:
            return listed(sorted(runs & seen, key=str), 3)
        seen |= runs
    return None


def _common_fields(zoos: Sequence[SourceZoo], tables: Sequence[pa.Table]) -> list[pa.Field]:
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


def _renumbered(table: pa.Table, class_ids: Mapping[str, int | None], first_shard: int) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    names = pc.dictionary_encode(table["architecture"].cast(pa.string()).combine_chunks())
    known = pa.array([class_ids[name] for name in names.dictionary.to_pylist()], pa.int32())
    shards = int64_array(whole_numbers(table["shard"]) + first_shard).cast(pa.int32())
    return _replaced(_replaced(table, "class_id", known.take(names.indices)), "shard", shards)


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


def _replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)
