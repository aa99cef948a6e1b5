"""Columns that are given for a zoo's table: a data frame, a mapping of columns, or a file; as Arrow columns.

Their types become those that a zoo's own writer would choose: int64, float64, bool, text, date32, timestamps to the
microsecond, and lists of numbers, texts or booleans.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, counted, listed
from prepkit.support.files import sha256_of_file
from prepkit.zoo.format.columns import Schema, plain
from prepkit.zoo.write.tables import read_table

if TYPE_CHECKING:
    import pyarrow as pa

FRAMES = "a pandas, polars or pyarrow table, a mapping of column names to values, or the path of a CSV or JSON file"


@dataclass(frozen=True)
class GivenColumns:
    """The columns of a frame or a file, and how its rows are called.

    table:     one row an instance, or one a group of instances
    name:      what errors and the provenance call it
    lines:     number of each row's line in its file, or of each row of a frame
    last_wins: whether a later row corrects an earlier one of the same key, as in JSONL
    texts:     the cells of each column as a text file has them; empty for all else
    described: what each column of a text file became
    sha256:    of the file
    """

    table: pa.Table
    name: str
    lines: Sequence[int]
    last_wins: bool = False
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    described: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sha256: str | None = None

    def as_text(self, name: str) -> pa.ChunkedArray:
        """Return a column with the cells of a text file as they stand there; others as they are."""
        import pyarrow as pa

        if name not in self.texts:
            return self.table[name]
        return pa.chunked_array([pa.array([cell or None for cell in self.texts[name]], pa.string())])

    def place(self, row: int) -> str:
        """Return where a row stands: `line 3` of a file, `row 1` of a frame."""
        return f"{'row' if self.sha256 is None else 'line'} {self.lines[row]}"


def given_columns(frame: Any, types: Mapping[str, str | type] | None = None) -> GivenColumns:
    """Read columns from a frame, a mapping, or a file.

    types: types of a text file's columns, as in `create_zoo`
    raises ZooError for another kind of object, a damaged file, or values that a zoo's table cannot hold
    """
    import pyarrow as pa

    if isinstance(frame, str | os.PathLike):
        return _of_file(Path(frame), types)
    if types:
        raise ZooError("types= is for tables of text; the columns of a frame have types.")
    if isinstance(frame, Mapping):
        columns = {str(name): _of_values(values, f"column '{name}'") for name, values in frame.items()}
        sizes = {name: len(column) for name, column in columns.items()}
        if len(set(sizes.values())) > 1:
            raise ZooError(
                f"columns have the same number of values; found {listed(f'{n} {s}' for n, s in sizes.items())}."
            )
        table = pa.table(columns)
    else:
        table = _of_frame(frame)
    return GivenColumns(table, f"the {type(frame).__name__}", range(len(table)))


def _of_file(path: Path, types: Mapping[str, str | type] | None) -> GivenColumns:
    import pyarrow as pa

    read = read_table(path, types)
    if not read.rows:
        raise ZooError(f"{path}: holds no rows.")
    columns = {
        name: _of_list([row.get(name) for row in read.rows], f"{path}, column '{name}'") for name in read.columns
    }
    notes = list(read.notes)
    if read.unkept:
        names = listed(f"{name} ({counted(count, 'row')})" for name, count in read.unkept.items())
        notes.append(f"Left in {path}, since a table has no place for it: {names}.")
    columns = {
        name: column for name, column in columns.items() if not (read.unkept[name] and pa.types.is_null(column.type))
    }
    return GivenColumns(
        pa.table(columns), str(path), read.numbers, read.last_wins, read.texts, read.types, tuple(notes),
        sha256_of_file(path),
    )  # fmt: skip


def _of_frame(frame: Any) -> pa.Table:
    """Return a data frame as an Arrow table without the index of pandas."""
    import pyarrow as pa

    if isinstance(frame, pa.Table | pa.RecordBatch):
        table = pa.table(frame)
    elif hasattr(frame, "to_arrow"):  # polars
        table = pa.table(frame.to_arrow())
    elif type(frame).__module__.partition(".")[0] == "pandas" and hasattr(frame, "columns"):
        table = pa.Table.from_pandas(frame.rename(columns=str), preserve_index=False)
    elif hasattr(frame, "__arrow_c_stream__"):
        table = pa.table(frame)
    elif hasattr(frame, "__dataframe__"):
        from pyarrow.interchange import from_dataframe

        table = from_dataframe(frame)
    else:
        raise ZooError(f"columns are {FRAMES}; found a {type(frame).__name__}.")
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise ZooError(f"the columns {listed(twice)} stand twice.")
    return pa.table({name: _plain_column(table[name], f"column '{name}'") for name in table.column_names})


def _of_values(values: Any, place: str) -> pa.ChunkedArray:
    """Return one column of a mapping: a list, an array of numpy, a tensor, or a column of a frame."""
    import pyarrow as pa

    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    if getattr(values, "ndim", 1) != 1:
        raise ZooError(f"{place}: a column has one value a row, [rows]; found the shape {list(values.shape)}.")
    if hasattr(values, "to_arrow") or hasattr(values, "__arrow_c_stream__") or isinstance(values, pa.Array):
        return _plain_column(pa.chunked_array([values] if isinstance(values, pa.Array) else values), place)
    kind = getattr(getattr(values, "dtype", None), "kind", "")
    if kind and kind in "biuf":
        return _plain_column(pa.chunked_array([pa.array(values)]), place)
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        raise ZooError(f"{place}: give a list of values, one a row; found a {type(values).__name__}.")
    return _of_list([plain(value, place) for value in values], place)


def _of_list(values: list[Any], place: str) -> pa.ChunkedArray:
    """Return plain values as a column of the type that holds them without loss."""
    import pyarrow as pa

    schema = Schema().extended(({"": value} for value in values), place).arrow()
    return pa.chunked_array([pa.array(values, schema.field("").type if "" in schema.names else pa.null())])


def _plain_column(column: pa.ChunkedArray, place: str) -> pa.ChunkedArray:
    """Return a column in one of the types that a zoo's table has.

    raises ZooError for a type that has no such counterpart, or values that it cannot hold
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    wanted = _type_for(column.type)
    if wanted is None:
        raise ZooError(
            f"{place}: has the type {column.type}; a zoo's table holds numbers, text, booleans, dates, timestamps, and "
            "lists of numbers, texts or booleans."
        )
    try:
        return column if column.type == wanted else column.cast(wanted, safe=True)
    except pa.ArrowInvalid as error:
        raise ZooError(f"{place}: does not fit {wanted}: {str(error).splitlines()[0]}.") from None


def _type_for(kind: pa.DataType) -> pa.DataType | None:
    import pyarrow as pa

    kinds: list[tuple[Callable[[pa.DataType], bool], pa.DataType]] = [
        (pa.types.is_null, pa.null()),
        (pa.types.is_boolean, pa.bool_()),
        (pa.types.is_integer, pa.int64()),
        (pa.types.is_floating, pa.float64()),
        (lambda kind: is_text(kind) or kind == pa.string_view(), pa.string()),
        (pa.types.is_date, pa.date32()),
    ]
    for fits, wanted in kinds:
        if fits(kind):
            return wanted
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", None if kind.tz is None else "UTC")
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        items = _type_for(kind.value_type)
        is_plain = items is not None and not pa.types.is_nested(items) and not pa.types.is_temporal(items)
        return pa.list_(items) if is_plain else None
    return None


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
