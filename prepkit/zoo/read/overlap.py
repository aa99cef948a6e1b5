"""Contents of splits as sets that can be compared: nothing in a test split may be in another split.

contents_of_split(zoo, "train", "seed") & contents_of_split(zoo, "test", "seed")     # should be empty
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.tasks.images import ImageTask
    from prepkit.zoo.read.zoo import Zoo

VALUES = "values"


def contents_of_split(zoo: Zoo, split: str, kind: str) -> set[Hashable]:
    """Return the entries of a column, or digests of the PReps, of a split's instances.

    kind: a column such as `id`, `run`, `seed` or `item`, or "values" for the PReps
    returns an empty set if the zoo has no such split or column
    """
    if not zoo.manifest.splits.get(split):
        return set()
    view = zoo.split(split)
    if kind == VALUES:
        return {digest(prep) for prep in view.preps()}
    if kind not in view.table.column_names:
        return set()
    entries: Iterable[Hashable] = view.table[kind].to_pylist()
    if kind == "seed":  # the same seed starts different networks of two architectures
        rows = zip(view.table["architecture"].to_pylist(), entries, strict=True)
        entries = [(name, seed) for name, seed in rows if seed is not None]
    return {entry for entry in entries if entry is not None}


def image_digests(task: ImageTask, split: str) -> set[Hashable]:
    """Return digests of all images of a split of a task; empty if it has no such split."""
    return {digest(image) for image in task.normalised(split)[0]} if task.splits.get(split) else set()


def digest(values: Tensor) -> str:
    """Return the sha256 of a tensor's bytes."""
    return hashlib.sha256(values.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
