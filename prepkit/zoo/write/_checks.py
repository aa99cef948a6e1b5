"""Checks of what a writer is given beside the networks: ids, splits, columns, settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, counted, listed
from prepkit.prep.layout import canonical_json
from prepkit.support.text import is_unicode
from prepkit.tensors import BITS
from prepkit.zoo.format.columns import Schema, plain_columns
from prepkit.zoo.format.numbered_ids import numbered_id
from prepkit.zoo.write._journal import Entry

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.families.registry import Registry
    from prepkit.prep.layout import Layout
    from prepkit.zoo.write._contents import Contents
    from prepkit.zoo.write._instance_rows import Packable


def new_entries(
    architecture: str,
    ids: Sequence[str | None],
    splits: Sequence[str | None],
    columns: Sequence[Mapping[str, Any]],
    contents: Contents,
    place: str,
) -> tuple[list[Entry], Schema]:
    """Return the journal's entries of new instances, and the schema that holds their columns too.

    raises ZooError for ids, splits or columns that the zoo's table cannot hold
    """
    names = new_ids(ids, contents, place)
    check_splits(splits, place)
    plain = [plain_columns(row, f"{place} ({name})") for name, row in zip(names, columns, strict=True)]
    schema = contents.extended(plain, place)
    entries = [Entry(name, architecture, split, row) for name, split, row in zip(names, splits, plain, strict=True)]
    return entries, schema


def new_ids(ids: Sequence[str | None], contents: Contents, place: str) -> list[str]:
    """Return the ids of new instances; a missing id becomes the instance's number in the zoo, or the next free one.

    Where instances are appended, numbers go on above all that an instance has or had, also one that was dropped.
    raises ZooError if an id is no text or is in the zoo already
    """
    known, earlier = contents.ids, contents.earlier
    numbered = map(numbered_id, count(len(known) + (0 if earlier is None else earlier.first_number)))
    free = (name for name in numbered if not contents.has_id(name))
    names = [next(free) if name is None else name for name in ids]
    for name in names:
        if not isinstance(name, str) or not name or not is_unicode(name):
            raise ZooError(f"{place}: an id is text, not {name!r}.")
    repeated = [name for name, times in Counter(names).items() if times > 1 or name in known]
    if repeated:
        raise ZooError(f"{place}: the id {listed(map(repr, repeated))} is in the zoo already; ids are unique.")
    if earlier is not None:
        earlier.check_ids(names, place)
    return names


def check_splits(splits: Sequence[str | None], place: str) -> None:
    """Raise ZooError unless each split is a text or None."""
    named = [split for split in splits if split is not None]
    wrong = [split for split in named if not isinstance(split, str) or not split or not is_unicode(split)]
    if wrong:
        raise ZooError(f"{place}: a split is text such as 'train', not {wrong[0]!r}.")


def stack_size(layout: Layout, tensors: Mapping[str, Tensor], place: str) -> int:
    """Return N of tensors `[N, *shape]`.

    raises ZooError if the first tensor has no such axis
    """
    slot = layout.slots[0]
    shape = tuple(tensors[slot.name].shape)
    if len(shape) != len(slot.shape) + 1:
        raise ZooError(f"{place}: '{slot.name}' has shape {list(shape)}; in a stack it has {['N', *slot.shape]}.")
    return shape[0]


def rows_of_stack(
    ids: Sequence[str] | None,
    split: str | Sequence[str | None] | None,
    columns: Mapping[str, Sequence[Any]],
    number: int,
    place: str,
) -> tuple[list[str | None], list[str | None], list[dict[str, Any]]]:
    """Return the id, the split and the columns of each of `number` instances.

    raises ZooError naming the lists that do not have one value for each
    """
    splits = [split] * number if split is None or isinstance(split, str) else list(split)
    names: list[str | None] = [None] * number if ids is None else list(ids)
    lists = {"ids": names, "split": splits, **columns}
    wrong = [f"{name}: {len(values)}" for name, values in lists.items() if len(values) != number]
    if wrong:
        raise ZooError(f"{place}: there are {counted(number, 'instance')}, but {listed(wrong)} values.")
    return names, splits, [{name: values[at] for name, values in columns.items()} for at in range(number)]


def check_member(item: Packable, width: int, contents: Contents, registry: Registry | None, place: str) -> None:
    """Raise ZooError if a zoo with these contents and this registry has no place for an instance."""
    architecture, layout = item.name, item.layout
    stored = contents.architectures.get(architecture)
    if stored is None and contents.earlier is not None:
        contents.earlier.check_architecture(item.stored(width), place)
    if stored is not None and stored.layout != layout:
        raise ZooError(
            f"{place}: other instances of {architecture} have another layout (dtypes or tied tensors differ)."
        )
    if registry is not None and architecture not in {member.name for member in registry}:
        raise ZooError(
            f"{place}: {architecture} is not in the zoo's registry: {listed(member.name for member in registry)}."
        )


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
