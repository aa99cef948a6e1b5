"""The type of a table's column that holds the values of two columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Return the type that holds both, or None if there is none."""
    from pyarrow import float64, list_, types

    if first == second or types.is_null(second):
        return first
    if types.is_null(first):
        return second
    if types.is_list(first) and types.is_list(second):
        items = common_type(first.value_type, second.value_type)
        return None if items is None else list_(items)
    numbers = all(types.is_integer(kind) or types.is_floating(kind) for kind in (first, second))
    return float64() if numbers else None
