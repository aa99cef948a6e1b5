"""What `Zoo.to_pandas` and `Zoo.to_hf_dataset` return: the table as pandas and datasets have it.

Both libraries are optional.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import pyarrow as pa
    import torch

    from prepkit.zoo.read._dataset import ZooDataset

INSTANCE = "instance"


def data_frame(table: pa.Table) -> pd.DataFrame:
    """Return a table as a DataFrame whose types depend on those of the table alone, never on its values.

    raises ZooError if pandas is missing
    """
    try:
        import pandas as pd
    except ImportError:
        raise ZooError("to_pandas needs pandas, which is missing; pip install 'prepkit[pandas]'.") from None
    frame: pd.DataFrame = table.to_pandas(types_mapper=partial(_pandas_type, pd), ignore_metadata=True)
    return frame


def _pandas_type(pd: Any, kind: pa.DataType) -> Any:
    """Return pandas' type for a type of Arrow; None where pandas' usual one holds all values."""
    import pyarrow.types as kinds

    if kinds.is_integer(kind):
        return pd.api.types.pandas_dtype(f"{'U' if kinds.is_unsigned_integer(kind) else ''}Int{kind.bit_width}")
    if kinds.is_boolean(kind):
        return pd.BooleanDtype()
    if kinds.is_string(kind) or kinds.is_large_string(kind):
        return pd.StringDtype()
    return pd.ArrowDtype(kind) if kinds.is_date(kind) or kinds.is_time(kind) or kinds.is_nested(kind) else None


def hf_dataset(table: pa.Table, rows: ZooDataset, column: str) -> datasets.Dataset:
    """Return a table as a datasets.Dataset with one column more, whose values are read when rows are accessed.

    rows:   the instances of the table in its order, and what is read of each
    column: name of the column
    raises ZooError if datasets is missing, or the table has a column of this name
    """
    import pyarrow as pa

    try:
        import datasets
    except ImportError:
        raise ZooError("to_hf_dataset needs datasets, which is missing; pip install 'prepkit[datasets]'.") from None
    if column in table.column_names:
        raise ZooError(
            f"'{rows.zoo.name}' has a column '{column}' already; name the lazy one otherwise: "
            f"zoo.to_hf_dataset(column='{column}_values')."
        )
    # An id stays right however rows are chosen and shuffled; as {"instance": id} it is told from any other column.
    ids = pa.chunked_array([pa.StructArray.from_arrays([ids], [INSTANCE]) for ids in table["id"].chunks])
    table = table.append_column(column, ids).replace_schema_metadata(None)
    return datasets.Dataset(table).with_transform(Reading(rows), columns=[column], output_all_columns=True)


class Reading:
    """Reads PReps, or a view of them, in place of {"instance": id} in a batch, for datasets' `with_transform`."""

    def __init__(self, rows: ZooDataset) -> None:
        self.rows = rows

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Return a batch with a tensor `[B, ...]` where ids stood; of a view of several tensors one item an instance.

        datasets also sends other columns through here, as for `filter(..., input_columns=...)`; they stay as they are.
        """
        return {name: self._values(items) if _are_instances(items) else items for name, items in batch.items()}

    def _values(self, items: Sequence[Mapping[str, str]]) -> torch.Tensor | list[Any]:
        import torch

        from prepkit.zoo.read._dataset import rows_of

        values = self.rows.values(self.rows.zoo.numbers([item[INSTANCE] for item in items]))
        return values if isinstance(values, torch.Tensor) else rows_of(values, len(items))


def _are_instances(items: Sequence[Any]) -> bool:
    return bool(items) and isinstance(items[0], Mapping) and items[0].keys() == {INSTANCE}
