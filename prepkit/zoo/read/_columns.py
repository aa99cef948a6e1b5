"""Columns of a zoo's table as tensors, such as the targets of a learner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from prepkit.errors import ZooError, counted, listed, nearest

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


def column_tensors(table: pa.Table, names: Sequence[str], zoo: str) -> Mapping[str, Tensor]:
    """Return columns as tensors `[N]` in the dtypes that learners work with, by name.

    Whole numbers become int64, booleans bool, and other numbers float32, the dtype of networks; the table, which keeps
    float64, has the exact ones. A NaN that stands in the table stays one.
    zoo: the zoo's name, for errors
    raises ZooError for a column that is unknown, holds no numbers, has missing values, or numbers beyond float32
    """
    if isinstance(names, str):
        raise ZooError(f"columns is a list of names; for one column give columns=[{names!r}].")
    if len(set(names)) < len(names):
        raise ZooError(f"columns names a column twice: {listed(names)}.")
    return {name: _column(table, name, zoo) for name in names}


def _column(table: pa.Table, name: str, zoo: str) -> Tensor:
    import pyarrow.types as kinds
    import torch

    known = table.column_names
    if name not in known:
        raise ZooError(f"'{zoo}' has no column '{name}'; it has {listed(known, 20)}.{nearest(name, known)}")
    column, place = table[name], f"'{zoo}', column '{name}'"
    kind = column.type
    is_whole, is_float = kinds.is_integer(kind), kinds.is_floating(kind)
    if not (is_whole or is_float or kinds.is_boolean(kind) or kinds.is_null(kind)):
        raise ZooError(
            f"{place}: it holds {kind}, of which no tensor is made; zoo.table['{name}'].to_pylist() has its values. "
            f"Make numbers of them, which zoo.with_columns adds as a column."
        )
    if column.null_count:
        raise ZooError(
            f"{place}: {counted(column.null_count, 'instance')} of {len(column):,} have no value, and a batch has one "
            f'for each; leave them out by zoo.where("`{name}` is not None").'
        )
    values: np.ndarray = column.to_numpy()
    if not is_float:
        return torch.from_numpy(values.astype(np.int64 if is_whole else np.bool_))
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    beyond = int((np.isinf(numbers) & np.isfinite(values)).sum())
    if beyond:
        raise ZooError(
            f"{place}: {counted(beyond, 'value')} cannot be written as float32, as the largest is {abs(values).max():g}"
            "; add a scaled column by zoo.with_columns, such as the logarithm."
        )
    return torch.from_numpy(numbers)
