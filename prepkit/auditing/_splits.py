"""Leaks: runs, seeds and copies that stand in several splits of a zoo, or in another zoo too."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prepkit.auditing._copies import FORM, ORDER, Copies, Pair
from prepkit.auditing.findings import Finding
from prepkit.errors import counted, listed

if TYPE_CHECKING:
    from prepkit.zoo.read.zoo import Zoo

DIFFERENCES = {ORDER: "another order", FORM: "other signs or scales"}


def runs_in_several_splits(zoo: Zoo) -> Iterator[Finding]:
    """Yield a finding if instances of one run stand in several splits."""
    shared = _shared(zoo, _cells(zoo, "run"))
    if shared:
        yield Finding(
            "leaks",
            f"{counted(len(shared), 'run')} {_stand(shared)} in several splits: instances of one run are alike.",
            len(shared),
            shared,
        )


def seeds_in_several_splits(zoo: Zoo) -> Iterator[Finding]:
    """Yield a finding if one seed of one architecture stands in several splits, but for instances of one run."""
    seeds = _cells(zoo, "seed")
    if seeds is None:
        return
    names = zoo.table["architecture"].to_pylist()
    shared = _shared(zoo, [None if seed is None else (name, seed) for name, seed in zip(names, seeds, strict=True)])
    if shared:
        yield Finding(
            "seeds",
            f"{counted(len(shared), 'seed')} {_stand(shared)} in several splits: networks of one architecture and seed "
            "begin with the same weights if nothing but other settings differs.",
            len(shared),
            shared,
        )


def copies_in_several_splits(zoo: Zoo, copies: Copies) -> Iterator[Finding]:
    """Yield findings for copies whose splits differ."""
    splits, ids = zoo.table["split"].to_pylist(), zoo.table["id"].to_pylist()
    equal = [rows for rows in copies.equal if len(_splits_of(splits, rows)) > 1]
    if equal:
        yield Finding(
            "leaks",
            f"{counted(len(equal), 'group')} of networks with equal weights {_stand(equal)} in several splits.",
            sum(map(len, equal)),
            _ids(ids, equal),
        )
    near = [rows for rows in copies.groups() if len(_splits_of(splits, rows)) > 1]
    if near:
        yield Finding(
            "leaks",
            f"{counted(len(near), 'group')} of networks with nearly equal weights {_stand(near)} in several splits.",
            sum(map(len, near)),
            _ids(ids, near),
        )


def copies_in_other_zoo(zoo: Zoo, other: Zoo, pairs: Sequence[Pair]) -> Iterator[Finding]:
    """Yield findings for networks of which the other zoo has a copy."""
    ids, theirs = zoo.table["id"].to_pylist(), other.table["id"].to_pylist()
    splits = zoo.table["split"].to_pylist()
    for near in (False, True):
        own = [pair for pair in pairs if bool(pair.share > 0 or pair.how) == near]
        if not own:
            continue
        counts: dict[Any, int] = {}
        for pair in own:
            counts[splits[pair.first]] = counts.get(splits[pair.first], 0) + 1
        where = ", ".join(f"{count:,} of {name or 'no split'}" for name, count in counts.items())
        alike = "nearly equal" if near else "equal"
        yield Finding(
            "leaks",
            f"{counted(len(own), 'network')} ({where}) {_have(own)} {alike} weights to one of '{other.name}'.",
            len(own),
            tuple((ids[pair.first], theirs[pair.second]) for pair in own),
        )


def equal_and_near(zoo: Zoo, copies: Copies) -> Iterator[Finding]:
    """Yield findings for copies wherever they stand."""
    ids, runs = zoo.table["id"].to_pylist(), _cells(zoo, "run")
    if copies.equal:
        yield Finding(
            "duplicates",
            f"{counted(sum(map(len, copies.equal)), 'network')} in {counted(len(copies.equal), 'group')} have equal "
            "weights, byte by byte.",
            sum(map(len, copies.equal)),
            _ids(ids, copies.equal),
        )
    of_pair: dict[int, list[Pair]] = {}
    groups = copies.groups()
    group_of = {row: number for number, rows in enumerate(groups) for row in rows}
    for pair in copies.near:
        of_pair.setdefault(group_of[pair.first], []).append(pair)
    for one_run in (False, True):
        numbers = [n for n, rows in enumerate(groups) if _is_one_run(runs, rows) == one_run]
        if not numbers:
            continue
        pairs = [pair for number in numbers for pair in of_pair[number]]
        own = [groups[number] for number in numbers]
        order = ""
        for how, words in DIFFERENCES.items():
            count = sum(any(pair.how == how for pair in of_pair[number]) for number in numbers)
            order += f"; in {counted(count, 'group')} the hidden units have {words}" if count else ""
        of = " of one run" if one_run else ""
        yield Finding(
            "same-run" if one_run else "near-duplicates",
            f"{counted(sum(map(len, own)), 'network')} in {counted(len(own), 'group')}{of} have nearly equal weights: "
            f"the distance to the nearest is at most {max(pair.share for pair in pairs):.2g} of the norm{order}.",
            sum(map(len, own)),
            _ids(ids, own),
        )


def _is_one_run(runs: Sequence[Hashable] | None, rows: Iterable[int]) -> bool:
    found = {None if runs is None else runs[row] for row in rows}
    return len(found) == 1 and None not in found


def _cells(zoo: Zoo, column: str) -> list[Any] | None:
    """Return a column of plain values; None if there is none or it holds lists."""
    import pyarrow as pa

    if column not in zoo.table.column_names or pa.types.is_nested(zoo.table[column].type):
        return None
    cells: list[Any] = zoo.table[column].to_pylist()
    return cells


def _shared(zoo: Zoo, entries: Sequence[Hashable] | None) -> tuple[tuple[str, ...], ...]:
    """Return the ids of instances of each entry that stands in several splits."""
    if entries is None:
        return ()
    rows_of: dict[Hashable, list[int]] = {}
    for row, entry in enumerate(entries):
        if entry is not None and entry != "":
            rows_of.setdefault(entry, []).append(row)
    splits, ids = zoo.table["split"].to_pylist(), zoo.table["id"].to_pylist()
    return _ids(ids, [rows for rows in rows_of.values() if len(_splits_of(splits, rows)) > 1])


def _splits_of(splits: Sequence[str | None], rows: Iterable[int]) -> set[str]:
    return {name for row in rows if (name := splits[row]) is not None}


def _ids(ids: Sequence[str], groups: Iterable[Iterable[int]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(ids[row] for row in rows) for rows in groups)


def _stand(found: Sequence[object]) -> str:
    return "stands" if len(found) == 1 else "stand"


def _have(found: Sequence[object]) -> str:
    return "has" if len(found) == 1 else "have"


def split_note(zoo: Zoo) -> str | None:
    """Return why no leaks between splits could be found, None if they could."""
    names = [name for name, count in zoo.manifest.splits.items() if count]
    if len(names) > 1:
        return None
    has = f"only the split {listed(names)}" if names else "no splits"
    return f"The zoo has {has}, so there are no leaks between splits to find."
