"""ZooDataset: a zoo for torch's own DataLoader, safe with forked and spawned workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from prepkit.zoo.read._columns import column_tensors

if TYPE_CHECKING:
    from prepkit.zoo.read._rows import Change, Rows

Item = tuple[Any, ...]  # (PRep or what a view made of it, class_id, index), and values of columns where there are any


class ZooDataset(Dataset[Item]):
    """Items (prep `[H, W]`, class_id, index) of a zoo or view.

    change:  makes what stands in place of the PReps, of a batch of them and their ClassIds; an item gets its row of it
    columns: columns of the table, of which items hold a tensor `[]` by name as a fourth; see prepkit.zoo.read._columns
    A forked worker shares the mapped files; a spawned worker opens them anew by their path.
    """

    def __init__(self, zoo: Rows, change: Change | None = None, columns: Sequence[str] | None = None) -> None:
        self.zoo = zoo
        self.change = change
        self.columns = None if columns is None else column_tensors(zoo.table, columns, zoo.name)

    def __repr__(self) -> str:
        return f"<ZooDataset of {self.zoo!r}>"

    def __len__(self) -> int:
        return len(self.zoo)

    def __getitem__(self, index: int) -> Item:
        """Return one item."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Return several items, gathered at once."""
        numbers = self.zoo.numbers(list(indices))
        values, class_ids = self.values(numbers), self.zoo.class_ids(numbers)
        parts: list[Sequence[Any]] = [rows_of(values, len(numbers)), class_ids.tolist(), numbers.tolist()]
        if self.columns is not None:
            parts.append([{name: column[row] for name, column in self.columns.items()} for row in numbers.tolist()])
        return list(zip(*parts, strict=True))

    def values(self, numbers: np.ndarray) -> Any:
        """Return the PReps `[B, H, W]` of these instances, or the view of them."""
        preps = self.zoo.preps(numbers)
        return preps if self.change is None else self.change(preps, self.zoo.class_ids(numbers))


def rows_of(values: Any, count: int) -> list[Any]:
    """Return the rows of a tensor `[B, ...]`, or of all tensors of a view, in the view's own form."""
    from torch.utils import _pytree as pytree

    return [pytree.tree_map(lambda tensor, row=row: tensor[row], values) for row in range(count)]
