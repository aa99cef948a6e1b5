"""Compare the rows that an interrupted import has kept with what its source gives now.

A resumed import reads only the models that are missing, so that another source or table would be mixed with the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError
from prepkit.zoo.format.columns import plain_columns
from prepkit.zoo.format.sources import PREFIX, SOURCE, SOURCE_SHA256, VERSIONS
from prepkit.zoo.write._instance_rows import packable

if TYPE_CHECKING:
    from prepkit.zoo.write._journal import Entry
    from prepkit.zoo.write.adding import Packing, Source
    from prepkit.zoo.write.writer import ZooWriter

FILES_COMPARED = 100  # of the models that are kept, spread evenly
OF_FILES = (SOURCE, SOURCE_SHA256, PREFIX, VERSIONS)  # columns that no table tells


def check_kept(writer: ZooWriter, source: Source, packing: Packing) -> None:
    """Compare the columns of all kept rows with the tables, and some of the models with what is kept of them.

    A model in a file of its own is compared by the file's sha256, one that stands beside others by its values. Of a
    model on the Hub its address, with the commit, says which it is.
    raises ZooError for the first that differs; nothing of the zoo is changed
    """
    if not len(writer) or not writer.written_ids.issubset(source.ids):  # the latter is for `add_models` to tell
        return
    indices = {id_: index for index, id_ in enumerate(source.ids)}
    last = len(writer) - 1
    count = min(FILES_COMPARED, len(writer))
    chosen = {number * last // max(1, count - 1) for number in range(count)}
    rows: Counter[str] = Counter()
    for number, entry in enumerate(writer.finished()):
        index = indices[entry.id]
        difference = next(_differences(writer, entry, source, index), None)
        if difference is None and number in chosen:
            difference = _other_file(entry, source, index)
        if (
            difference is None
            and number in chosen
            and not any(entry.columns.get(name) for name in (SOURCE, SOURCE_SHA256))
        ):
            difference = _other_values(writer, entry, rows[entry.architecture], source, index, packing)
        rows[entry.architecture] += 1
        if difference is None and number == 0:
            difference = _lost(entry, source, index)
        if difference is not None:
            raise ZooError(
                f"'{writer.root}' was begun with another `source` or table: model {source.name(index)} {difference}. "
                f"Give the same as before, or delete '{writer.root}' and begin anew."
            )


def _other_file(entry: Entry, source: Source, index: int) -> str | None:
    stored = entry.columns.get(SOURCE_SHA256)
    now = None if stored is None else source.sha256(index)
    if now is None or now == stored:
        return None
    return f"was read from a file of sha256 {str(stored)[:12]}..., and its file has {now[:12]}... now"


def _other_values(
    writer: ZooWriter, entry: Entry, row: int, source: Source, index: int, packing: Packing
) -> str | None:
    """Return what is said of a model whose values differ from those that are kept."""
    import torch

    model = source.read(index)
    item = packable(
        model.tensors,
        model.architecture or packing.architecture,
        source.name(index),
        packing.keep_unfoldable,
        keep_batch_norm=packing.keep_batch_norm,
        left_out=set(),
    )
    if item.name != entry.architecture:
        return f"is of architecture {entry.architecture} in the zoo, and of {item.name} now"
    kept = writer.values_of(entry.architecture, row)
    now = item.layout.pack(item.tensors, item.layout.shape(writer.width)).to(kept.dtype).flatten()
    return None if torch.equal(kept, now) else "has other values in the zoo than now"


def _lost(entry: Entry, source: Source, index: int) -> str | None:
    """Return what is said of a column that neither a table nor the model itself has any more."""
    names = entry.columns.keys() - source.told(index).columns.keys() - set(OF_FILES)
    names = {name for name in names if entry.columns[name] is not None}
    if names:
        model = source.read(index)
        names -= model.columns.keys() | model.said.keys() | {f"file.{name}" for name in model.said}
    return next((_change(name, entry.columns[name], None) for name in sorted(names)), None)


def _differences(writer: ZooWriter, entry: Entry, source: Source, index: int) -> Iterator[str]:
    told = source.told(index)
    if told.split != entry.split:
        yield f"has the split {entry.split!r} in the zoo, and {told.split!r} now"
    for name, given in told.columns.items():
        if name in OF_FILES:
            continue
        is_stored = name in entry.columns
        try:
            value = plain_columns({name: given}, "")[name]
        except ZooError:  # its model, when it was read, was told so
            continue
        stored = entry.columns.get(name)
        if not _is_same(stored, value) and (is_stored or writer.can_hold({name: value})):
            yield _change(name, stored, value)


def _is_same(first: Any, second: Any) -> bool:
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_is_same, first, second))
    return bool(first == second or (first != first and second != second))


def _change(name: str, stored: Any, now: Any) -> str:
    return f"has {_shown(name, stored)} in the zoo, and {_shown(name, now)} now"


def _shown(name: str, value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return f"'{name}' {text if len(text) <= 60 else text[:57] + '...'}"
