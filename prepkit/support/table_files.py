"""Tables of pyarrow as files for other programs: .parquet, .csv and .npz.

write_table(table, "embeddings.csv")
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import OutputError, listed
from prepkit.support.files import check_writable, replacing
from prepkit.support.json_values import json_value

if TYPE_CHECKING:
    import pyarrow as pa


def write_table(table: pa.Table, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a table whole or not at all; the suffix says the format.

    .parquet: the table as it is
    .csv:     lists of a fixed size become columns `embedding_0`, `embedding_1`, ..., other lists JSON
    .npz:     one array per column, `embedding` as `[N, E]`, lists of no fixed size as JSON; missing numbers become NaN,
              missing times NaT, and missing texts and lists empty
    raises OutputError for another suffix, an existing file without `overwrite`, or one that cannot be written
    """
    target = Path(path)
    check_table_path(target, overwrite=overwrite)
    with replacing(target, overwrite=overwrite) as temporary:
        WRITERS[target.suffix.lower()](table, temporary)


def check_table_path(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError if a table cannot be written there, before any work is done for it."""
    if path.suffix.lower() not in WRITERS:
        raise OutputError(f"'{path}': the suffix says the format of a table; use one of {listed(WRITERS)}.")
    check_writable(path, overwrite=overwrite)


def _write_parquet(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path)


def _write_csv(table: pa.Table, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import csv

    columns: dict[str, Any] = {}
    for name in table.column_names:
        if pa.types.is_fixed_size_list(table[name].type):
            values = _array(table[name])
            columns |= {f"{name}_{number}": pa.array(values[:, number]) for number in range(values.shape[1])}
        else:
            columns[name] = pa.array(_json(table[name])) if pa.types.is_list(table[name].type) else table[name]
    csv.write_csv(pa.table(columns), path)


def _write_npz(table: pa.Table, path: Path) -> None:
    import numpy as np

    # numpy's own savez takes names as keyword arguments, so that a column named `file` would be an error.
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name in table.column_names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, _array(table[name]), allow_pickle=False)


def _array(column: pa.ChunkedArray) -> Any:
    """Convert a column to a numpy array without Python objects."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_fixed_size_list(column.type):
        values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), column.type.list_size)
    if pa.types.is_string(column.type) or pa.types.is_list(column.type):
        texts = column.to_pylist() if pa.types.is_string(column.type) else _json(column)
        return np.array([text or "" for text in texts], dtype=np.str_)
    if column.null_count and not pa.types.is_temporal(column.type):
        return np.array([np.nan if value is None else float(value) for value in column.to_pylist()])
    return column.to_numpy()


def _json(column: pa.ChunkedArray) -> list[str | None]:
    """Return lists as JSON; NaN and infinities as `export --json` writes them."""
    return [None if value is None else json.dumps(json_value(value, not_finite=str)) for value in column.to_pylist()]


WRITERS = {".parquet": _write_parquet, ".csv": _write_csv, ".npz": _write_npz}
