"""A zoo as a table of embeddings, and the file formats of such a table.

    table = embed(run, zoo, split="test")
    table["embedding"]                         # fixed-size list [E] of float32
    write_table(table, "embeddings.parquet")

Shapes: N instances, H x W the PRep, E embedding values.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import prepkit
from netspace.data import ZooMismatch
from netspace.space.evaluation import PREPS_AT_ONCE, chunks
from netspace.space.network import NetSpace
from prepkit.errors import OutputError, listed
from prepkit.files import check_writable, replacing
from prepkit.progress import Advance

if TYPE_CHECKING:
    import pyarrow as pa

    from netspace.run.run import Run

STORAGE = ("shard", "row")  # columns that say where an instance lies, not what it is
EMBEDDING = "embedding"
PREDICTED = ("predicted_architecture", "predicted_class_id", EMBEDDING)


def encode(
    space: NetSpace, zoo: prepkit.Zoo, rows: Sequence[int] | None = None, progress: Advance | None = None
) -> Tensor:
    """Embeddings `[N, E]` of a zoo's instances on the space's device, without gradient.

    rows:     of the zoo or view; all if missing
    progress: told the number of instances that are finished
    """
    device = next(space.parameters()).device
    chosen = zoo if rows is None else zoo.select(rows)
    parts = [torch.empty(0, space.embedding_size, device=device)]
    with torch.no_grad():
        for places in chunks(len(chosen)):
            preps_NHW = chosen.preps(places).to(device, torch.float32)
            parts.extend(space.encode(few) for few in torch.split(preps_NHW, PREPS_AT_ONCE))
            if progress is not None:
                progress(len(places))
    return torch.cat(parts)


def embed(
    run: Run,
    zoo: prepkit.Zoo,
    split: str | None = None,
    *,
    space: NetSpace | None = None,
    progress: Advance | None = None,
) -> pa.Table:
    """Where a zoo's instances stand in a run's space, one row an instance.

    zoo:   the one that the run was trained on or another one; PReps may be of another size than the predicted ones
    split: of the zoo; all instances if missing
    space: the run's NetSpace, if it was loaded before; else that of its best validation, on the CPU
    returns the zoo's table (id, architecture, class_id, split and the user's columns) with `predicted_architecture`,
            `predicted_class_id` and `embedding`, a fixed-size list `[E]` of float32
    raises ZooMismatch if there is no instance, ZooError for an unknown split
    """
    import pyarrow as pa

    chosen = zoo if split is None else zoo.split(split)
    if not len(chosen):
        raise ZooMismatch(f"zoo '{zoo.name}': no instances to embed.")
    space = run.space() if space is None else space
    latent_NE = encode(space, chosen, progress=progress)
    class_ids = [0] * len(latent_NE)
    if space.num_architectures is not None:
        with torch.no_grad():
            class_ids = space.classify(latent_NE).argmax(1).tolist()
    table = chosen.table.drop_columns([*STORAGE, *(name for name in PREDICTED if name in chosen.table.column_names)])
    names = [run.registry.by_class_id(class_id).name for class_id in class_ids]
    values = pa.array(latent_NE.cpu().flatten().numpy(), pa.float32())
    table = table.append_column("predicted_architecture", pa.array(names))
    table = table.append_column("predicted_class_id", pa.array(class_ids, pa.int64()))
    return table.append_column(EMBEDDING, pa.FixedSizeListArray.from_arrays(values, space.embedding_size))


def embeddings(table: pa.Table) -> Tensor:
    """The column `embedding` of a table as `[N, E]` float32."""
    column = table[EMBEDDING].combine_chunks()
    flat = torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy())
    return flat.view(len(table), -1) if len(table) else flat.view(0, column.type.list_size)


# Files ----------------------------------------------------------------------------------------------------------


def write_table(table: pa.Table, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a table whole or not at all; the suffix says the format.

    .parquet: as it is
    .csv:     lists of numbers as columns `embedding_0`, `embedding_1`, ...
    .npz:     an array a column, `embedding` `[N, E]`; missing numbers are NaN, missing texts empty
    raises OutputError for another suffix, an existing file without `overwrite`, or one that cannot be written
    """
    target = Path(path)
    check_table_path(target, overwrite=overwrite)
    with replacing(target, overwrite=overwrite) as temporary:
        WRITERS[target.suffix.lower()](table, temporary)


def check_table_path(path: Path, *, overwrite: bool) -> None:
    """raises OutputError if a table could not be written there, before any work is done for it."""
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
            values = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
            columns |= {f"{name}_{number}": pa.array(values[:, number]) for number in range(values.shape[1])}
        else:
            columns[name] = table[name]
    csv.write_csv(pa.table(columns), path)


def _write_npz(table: pa.Table, path: Path) -> None:
    import numpy as np

    # numpy's own savez takes names as keyword arguments, so that a column named `file` would be an error.
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name in table.column_names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, _array(table[name]), allow_pickle=False)


def _array(column: pa.ChunkedArray) -> Any:
    """A column as a numpy array without Python objects."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_fixed_size_list(column.type):
        values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), column.type.list_size)
    if pa.types.is_string(column.type):
        return np.array([value or "" for value in column.to_pylist()], dtype=np.str_)
    if column.null_count:
        return np.array([np.nan if value is None else float(value) for value in column.to_pylist()])
    return column.to_numpy()


WRITERS = {".parquet": _write_parquet, ".csv": _write_csv, ".npz": _write_npz}
