"""What the table of a zoo says that cannot be, or does not say at all."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prepkit.auditing.findings import Finding
from prepkit.errors import counted
from prepkit.zoo.format.columns import OWN_COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa

    from prepkit.zoo.read.zoo import Zoo

ACCURACY = re.compile(r"(^|[_.\-/ ])acc(uracy)?$", re.IGNORECASE)  # accuracy, test_acc, val.accuracy
COUNTS = ("epoch", "step", "iteration", "training_iteration")  # columns that count from 0 or 1
SAME = 1e-3  # difference of the accuracies of equal networks that rounding and other machines may make
SHOWN = 20


def findings_of_columns(zoo: Zoo, equal: Sequence[Sequence[int]]) -> Iterator[Finding]:
    """Yield findings on the user's columns.

    equal: groups of rows whose networks have equal weights
    """
    import pyarrow as pa

    table = zoo.table
    users = [name for name in table.column_names if name not in OWN_COLUMNS]
    empty = [name for name in users if _is_empty(table[name])]
    constant = [name for name in users if name not in empty and len(zoo) > 1 and _is_constant(table[name])]
    yield from _named("is empty", "are empty", empty)
    yield from _named("has the same value in all rows", "have the same value in all rows", constant)
    for name in users:
        if pa.types.is_integer(table[name].type) or pa.types.is_floating(table[name].type):
            yield from _of_numbers(zoo, name)
            if ACCURACY.search(name):
                yield from _of_equal_networks(zoo, name, equal)
    yield from _same_moment(zoo)


def _named(one: str, several: str, names: list[str]) -> Iterator[Finding]:
    if names:
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
        sentence = f"Column {shown} {one}." if len(names) == 1 else f"{len(names):,} columns {several}: {shown}."
        yield Finding("columns", sentence, len(names))


def _is_empty(column: pa.ChunkedArray) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count == len(column):
        return len(column) > 0
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return not pc.any(pc.not_equal(column, "")).as_py()
    return False


def _is_constant(column: pa.ChunkedArray) -> bool:
    """Whether all rows have a value, and the same one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count:
        return False
    if pa.types.is_nested(column.type):
        first = column[0]
        return all(chunk[row] == first for chunk in column.chunks for row in range(len(chunk)))
    return len(pc.unique(column)) == 1


def _of_numbers(zoo: Zoo, name: str) -> Iterator[Finding]:
    """Yield what cannot be in a column of numbers."""
    cells, ids = zoo.table[name].to_pylist(), zoo.table["id"].to_pylist()
    known = [(id_, value) for id_, value in zip(ids, cells, strict=True) if value is not None]
    wrong = tuple((id_,) for id_, value in known if not math.isfinite(value))
    if wrong:
        yield _finding(f"Column {name} is NaN or infinite in {counted(len(wrong), 'row')}.", wrong)
    finite = [(id_, value) for id_, value in known if math.isfinite(value)]
    if ACCURACY.search(name):
        out = tuple((id_,) for id_, value in finite if not 0 <= value <= 1)
        if out:
            low, high = min(value for _, value in finite), max(value for _, value in finite)
            percent = low >= 0 and high <= 100 and 2 * len(out) > len(finite)
            remedy = (
                " An accuracy is a share from 0 to 1; these may be per cent."
                if percent
                else (" An accuracy is a share from 0 to 1.")
            )
            yield _finding(
                f"Column {name} is not between 0 and 1 in {counted(len(out), 'row')}; its values go from {low:g} to "
                f"{high:g}.{remedy}",
                out,
            )
    if name in COUNTS:
        below = tuple((id_,) for id_, value in finite if value < 0)
        if below:
            yield _finding(f"Column {name} is negative in {counted(len(below), 'row')}.", below)


def _of_equal_networks(zoo: Zoo, name: str, equal: Sequence[Sequence[int]]) -> Iterator[Finding]:
    """Yield networks of equal weights whose accuracies differ, where all of them have the same data."""
    if "item" in zoo.table.column_names or not equal:
        return
    cells, ids = zoo.table[name].to_pylist(), zoo.table["id"].to_pylist()
    groups = []
    for rows in equal:
        values = [cells[row] for row in rows if cells[row] is not None and math.isfinite(cells[row])]
        scale = max((1.0, *map(abs, values)))
        if values and max(values) - min(values) > SAME * scale:
            groups.append(tuple(ids[row] for row in rows))
    if groups:
        yield Finding(
            "columns",
            f"Column {name} differs among networks of equal weights, in {counted(len(groups), 'group')}.",
            sum(map(len, groups)),
            tuple(groups),
        )


def _same_moment(zoo: Zoo) -> Iterator[Finding]:
    """Yield instances of which a run has several at one moment, as far as the columns that count tell."""
    names = zoo.table.column_names
    moments = [name for name in COUNTS if name in names]
    if "run" not in names or not moments:
        return
    columns = [zoo.table[name].to_pylist() for name in ("architecture", "run", *moments)]
    ids = zoo.table["id"].to_pylist()
    of: dict[Any, list[str]] = {}
    for id_, *cells in zip(ids, *columns, strict=True):
        if cells[1] is not None and any(cell is not None for cell in cells[2:]):
            of.setdefault(repr(cells), []).append(id_)
    groups = tuple(tuple(own) for own in of.values() if len(own) > 1)
    if groups:
        yield Finding(
            "columns",
            f"{counted(sum(map(len, groups)), 'network')} have the same run and {' and '.join(moments)} as another: "
            "a run has one network at a time.",
            sum(map(len, groups)),
            groups,
        )


def _finding(sentence: str, groups: tuple[tuple[str, ...], ...]) -> Finding:
    return Finding("columns", sentence, len(groups), groups)
