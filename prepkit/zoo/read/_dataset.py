"""ZooDataset: a zoo for torch's own DataLoader, safe with forked and spawned workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.utils.data import Dataset

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.zoo.read._rows import Rows

Item = tuple["Tensor", int, int]


class ZooDataset(Dataset[Item]):
    """Items (prep `[H, W]`, class_id, index) of a zoo or view.

    A forked worker shares the mapped files; a spawned worker opens them anew by their path.
    """

    def __init__(self, zoo: Rows) -> None:
        self.zoo = zoo

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
        preps, class_ids = self.zoo.preps(numbers), self.zoo.class_ids(numbers).tolist()
        return list(zip(preps, class_ids, numbers.tolist(), strict=True))
