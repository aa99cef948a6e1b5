"""Checks of what a writer is given beside the networks: ids, splits, settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, listed
from prepkit.prep.layout import Layout, canonical_json
from prepkit.tensors import BITS
from prepkit.zoo.format.tables import is_unicode

if TYPE_CHECKING:
    from torch import Tensor


def new_ids(ids: Sequence[str | None], known: Collection[str], place: str) -> list[str]:
    """The ids of new instances; where one is missing, its number in the zoo.

    raises ZooError if one is no text or is known already
    """
    names = [f"{len(known) + index:06d}" if name is None else name for index, name in enumerate(ids)]
    for name in names:
        if not isinstance(name, str) or not name or not is_unicode(name):
            raise ZooError(f"{place}: an id is text, not {name!r}.")
    twice = [name for name, count in Counter(names).items() if count > 1 or name in known]
    if twice:
        raise ZooError(f"{place}: the id {listed(map(repr, twice))} is in the zoo already; ids are unique.")
    return names


def check_splits(splits: Sequence[str | None], place: str) -> None:
    """Raise ZooError unless each split is a text or None."""
    named = [split for split in splits if split is not None]
    wrong = [split for split in named if not isinstance(split, str) or not split or not is_unicode(split)]
    if wrong:
        raise ZooError(f"{place}: a split is text such as 'train', not {wrong[0]!r}.")


def stack_size(layout: Layout, tensors: Mapping[str, Tensor], place: str) -> int:
    """N of tensors `[N, *shape]`.

    raises ZooError if the first one has no such axis
    """
    slot = layout.slots[0]
    shape = tuple(tensors[slot.name].shape)
    if len(shape) != len(slot.shape) + 1:
        raise ZooError(f"{place}: '{slot.name}' has shape {list(shape)}; in a stack it has {['N', *slot.shape]}.")
    return shape[0]


def check_counts(lists: Mapping[str, Sequence[Any]], count: int, place: str) -> None:
    """Raise ZooError naming the lists that have not one value for each of `count` instances."""
    wrong = [f"{name}: {len(values)}" for name, values in lists.items() if len(values) != count]
    if wrong:
        raise ZooError(f"{place}: there are {count} instances, but {listed(wrong)} values.")


def check_json(about: Mapping[str, Any]) -> None:
    """Raise ZooError naming the value that is not JSON."""
    for name, value in about.items():
        try:
            canonical_json(value)
        except (TypeError, ValueError) as error:
            raise ZooError(f"{name} is not JSON: {error}; give numbers, texts, lists and dicts of them.") from None


def checked_dtype(dtype: str | None) -> str | None:
    """The name of a zoo's dtype, or None."""
    if dtype is not None and dtype not in BITS:
        raise ZooError(f"a zoo's dtype is one of {listed(BITS)}, not {dtype!r}.")
    return dtype
