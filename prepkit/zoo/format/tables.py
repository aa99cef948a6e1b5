"""The table models-<hash>.parquet, which has one row an instance; it is written row by row, in constant memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from prepkit.errors import ZooError, counted, listed
from prepkit.support.files import flush, publish, sha256_of_file, system_errors_as_output
from prepkit.zoo.format.columns import OWN_COLUMNS
from prepkit.zoo.format.manifest import StoredFile

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

Item = TypeVar("Item")
TEXT_COLUMNS = ("id", "architecture", "split")
REQUIRED_COLUMNS = ("id", "architecture", "shard", "row")  # no value of these may be missing
ROWS_A_GROUP = 50_000
ROWS_AT_ONCE = 1_000  # that are in memory as Python's dicts, which take twenty times as much as the table


def write_table(rows: Iterable[dict[str, Any]], schema: pa.Schema, root: Path, folder: Path) -> StoredFile:
    """Write rows as models-<hash>.parquet in `root`, and return its description.

    folder: where the table lies until it is finished
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = folder / "models.part"
    count = 0
    with pq.ParquetWriter(part, schema, compression="zstd") as writer:
        pieces = (pa.Table.from_pylist(batch, schema=schema) for batch in _batches(rows, ROWS_AT_ONCE))
        for group in _batches(pieces, ROWS_A_GROUP // ROWS_AT_ONCE):
            table = pa.concat_tables(group).combine_chunks()
            count += len(table)
            writer.write_table(table, row_group_size=ROWS_A_GROUP)
    return publish_table(part, root, count)


def write_table_at_once(table: pa.Table, root: Path, folder: Path | None = None) -> StoredFile:
    """Write a table as models-<hash>.parquet in `root`, and return its description.

    folder: where the table lies until it is finished; `root` if missing
    """
    import pyarrow.parquet as pq

    part = (folder or root) / "models.part"
    pq.write_table(table, part, compression="zstd", row_group_size=ROWS_A_GROUP)
    return publish_table(part, root, len(table))


def write_table_beside(table: pa.Table, root: Path) -> StoredFile:
    """Write another table into a finished zoo, beside the one that it has, and return its description.

    raises OutputError, and leaves nothing, if it cannot be written
    """
    with system_errors_as_output(root), TemporaryDirectory(prefix=".prepkit-", dir=root) as folder:
        return write_table_at_once(table, root, Path(folder))


def publish_table(part: Path, root: Path, rows: int) -> StoredFile:
    """Give a finished table the name with its hash, and return its description."""
    sha256 = sha256_of_file(part)
    stored = StoredFile(f"models-{sha256[:12]}.parquet", rows, part.stat().st_size, sha256)
    flush(part)
    publish(part, root / stored.path)
    return stored


def read_table(file: Path, stored: StoredFile) -> pa.Table:
    """Read the table, and check its sha256, the zoo's own columns and the number of rows.

    raises ZooError naming the file and what is wrong
    """
    import pyarrow as pa

    with _explained(file):
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != stored.sha256:
            raise ZooError(f"{file}: damaged, its content does not match the sha256 in the manifest. Fetch it again.")
        return _checked(_opened(pa.BufferReader(content), file, stored).read(use_threads=False), file)


def table_in_parts(file: Path, stored: StoredFile) -> Iterator[pa.Table]:
    """Read the table a few rows at a time, and check all but its sha256.

    raises ZooError naming the file and what is wrong
    """
    import pyarrow as pa

    with _explained(file), open(file, "rb") as opened:
        for batch in _opened(opened, file, stored).iter_batches(ROWS_A_GROUP, use_threads=False):
            yield _checked(pa.Table.from_batches([batch]), file)


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn what reading a table raises into a ZooError that names the file."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise ZooError(f"{file}: missing; the zoo is not whole. Fetch it again.") from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise ZooError(f"{file}: cannot be read: {error.strerror}.") from None
        raise ZooError(f"{file}: it is no parquet table ({str(error)[:80]}).") from None


def _opened(source: Any, file: Path, stored: StoredFile) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    # Arrow reads ahead in a thread, and about one process in a hundred that ended meanwhile ended as "Aborted".
    opened = pq.ParquetFile(source, pre_buffer=False)
    _check_schema(opened.schema_arrow, file)
    if opened.metadata.num_rows != stored.rows:
        found = counted(opened.metadata.num_rows, "row")
        raise ZooError(f"{file}: it has {found}, the manifest says {stored.rows:,}.")
    return opened


def _checked(table: pa.Table, file: Path) -> pa.Table:
    """Return the table, all of whose values are sound."""
    for name in table.column_names:
        _check_values(table[name], f"{file}, column '{name}'", is_required=name in REQUIRED_COLUMNS)
    return table


def _check_schema(schema: pa.Schema, file: Path) -> None:
    """Raise ZooError unless each column stands once, and the zoo's own columns are there with their types."""
    import pyarrow.types as kinds

    missing = [name for name in OWN_COLUMNS if name not in schema.names]
    if missing:
        raise ZooError(f"{file}: the columns {listed(missing)} are missing.")
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise ZooError(f"{file}: the columns {listed(twice)} stand twice.")
    for name in OWN_COLUMNS:
        kind = schema.field(name).type
        is_text = kinds.is_string(kind) or kinds.is_large_string(kind)
        fits = is_text if name in TEXT_COLUMNS else kinds.is_integer(kind)
        if not fits and not (kinds.is_null(kind) and name not in REQUIRED_COLUMNS):
            wanted = "text" if name in TEXT_COLUMNS else "whole numbers"
            raise ZooError(f"{file}, column '{name}': it has type {kind}, not {wanted}.")


def _check_values(column: pa.ChunkedArray, place: str, *, is_required: bool) -> None:
    """Raise ZooError unless the values of a column are sound: text is UTF-8, and none is missing that must be there."""
    import pyarrow as pa

    if is_required and column.null_count:
        raise ZooError(f"{place}: it has missing values.")
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ZooError(f"{place}: damaged values ({str(error)[:80]}).") from None


def whole_numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Copy a column of whole numbers, none of them missing, to an int64 array.

    DLPack is used because pyarrow's to_numpy imports pandas where it is installed: slow, and it swallows a Ctrl-C.
    """
    import numpy as np

    return np.array(np.from_dlpack(column.combine_chunks()), dtype=np.int64)


def row_of(table: pa.Table, number: int) -> dict[str, Any]:
    """Return one row as Python values; a time that Python cannot hold exactly, as text."""
    row = table.slice(number, 1)
    for index, field in enumerate(row.schema):
        if str(field.type).startswith(("timestamp", "time64", "date64")):
            row = row.set_column(index, field.name, _times(row[field.name]))
    values: dict[str, Any] = row.to_pylist()[0]
    return values


def _times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return times to the microsecond if that loses nothing and Python has them, else their text."""
    import pyarrow as pa

    kind = column.type
    zone = getattr(kind, "tz", None)
    plain = pa.time64("us") if pa.types.is_time(kind) else pa.timestamp("us", zone)
    try:
        exact = column.cast(plain)
        exact.to_pylist()
    except (ValueError, OverflowError):  # Arrow's errors are ValueErrors, too
        return column.cast(pa.string())
    return exact


def rows_at(table: pa.Table, numbers: np.ndarray) -> pa.Table:
    """Return these rows in this order."""
    return table.take(int64_array(numbers))


def int64_array(numbers: np.ndarray) -> pa.Array:
    """Return whole numbers as an array of Arrow, without pandas, which pyarrow would import for an array of numpy."""
    import numpy as np
    import pyarrow as pa

    values = np.ascontiguousarray(numbers, dtype=np.int64)
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def rows_with(column: pa.ChunkedArray, text: str | None) -> np.ndarray:
    """Return the numbers of the rows that hold this text, or that are empty if it is None.

    It works without pandas, which comparing in pyarrow would import.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    codes = pc.dictionary_encode(column.cast(pa.string()).combine_chunks(), null_encoding="encode")
    texts = codes.dictionary.to_pylist()
    code = texts.index(text) if text in texts else -1
    return np.flatnonzero(np.from_dlpack(codes.indices) == code)


def _batches(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, count)):
        yield batch
