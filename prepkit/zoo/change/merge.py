"""merge: make one zoo of several.

Architectures of one name become one, and then all that is known of them must agree. ClassIds are given anew, ascending
in packed parameters. PReps are brought to the first zoo's width, which changes padding only. Task, dtype and licence
must agree, but another licence can be given. A teacher is kept if all zoos that have a teacher have the same, and left
out with a note otherwise. Ids are unique: `prefix` puts each zoo's name before its ids, and before `run`, because run
0 of one zoo is not run 0 of another.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, listed
from prepkit.support.progress import Advance
from prepkit.version import __version__
from prepkit.zoo.card.card import write_card
from prepkit.zoo.change._linking import check_linkable, whole_manifest
from prepkit.zoo.change._merged_table import merged_table
from prepkit.zoo.change.copying import check_target, check_whole, copy_file, copy_shards, verified_manifest
from prepkit.zoo.format.function import Function
from prepkit.zoo.format.manifest import Manifest, Shard, StoredArchitecture, Teacher, read_manifest, write_manifest
from prepkit.zoo.format.networks import differing_facts
from prepkit.zoo.format.origin import origin_of
from prepkit.zoo.format.shards import ShardFormat, shard_format
from prepkit.zoo.format.tables import write_table_at_once
from prepkit.zoo.write.building import building
from prepkit.zoo.write.joined_table import SourceZoo
from prepkit.zoo.write.linking import link_shards
from prepkit.zoo.write.written import WrittenZoo

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class MergePlan:
    """The zoo that is to be written.

    teacher:  the zoo whose teacher is kept
    manifest: the new zoo's, but for name, shards and table
    """

    zoos: list[SourceZoo]
    teacher: SourceZoo | None
    manifest: Manifest
    table: pa.Table
    notes: tuple[str, ...]


def merge(
    target: str | os.PathLike[str],
    sources: Iterable[str | os.PathLike[str]],
    *,
    name: str | None = None,
    format: str | None = None,
    license: str | None = None,
    prefix: bool = False,
    link: bool = False,
    card: bool = True,
    progress: Advance | None = None,
) -> WrittenZoo:
    """Write a new zoo that holds all instances of several, in their order.

    name:     name of the new zoo; its folder's if missing
    format:   format of the shards; the first zoo's if missing
    license:  licence of the new zoo; needed where the zoos' licences differ
    prefix:   put the zoo's name before ids and runs
    link:     give the shards of the zoos, as they are, a second name in the new zoo, or copy them where the disk has no
              hard links. Their content is not read, so `verify` is left to do, and the zoos have one width and format.
    card:     whether the new zoo gets README.md and card.png
    progress: called with a number of bytes each time that many more were written to shards, or linked
    raises ZooError naming what is in conflict, OutputError if the target exists; nothing is written then

    >>> merge("both", ["first-zoo", "second-zoo"], prefix=True).manifest.name
    'both'
    """
    roots = [Path(source) for source in sources]
    if len(roots) < 2:
        raise ZooError(
            f"merging takes two zoos or more, not {len(roots)}; the folder of the new zoo comes before them."
        )
    kind = None if format is None else shard_format(format)
    check_target(Path(target), roots)
    read = whole_manifest if link else verified_manifest
    plan = plan_merge([SourceZoo(root, read(root)) for root in roots], license, prefix)
    kind = kind or shard_format(plan.zoos[0].manifest.shard_format)
    if link:
        check_linkable(plan.zoos, kind)
    with building(target) as root:
        shards = _shards(plan, kind, root, link, progress)
        name = name or Path(target).resolve().name
        manifest = replace(plan.manifest, name=name, shard_format=kind.name, shards=tuple(shards))
        write_manifest(replace(manifest, table=write_table_at_once(plan.table, root)), root, overwrite=False)
        if not link:
            check_whole(root)
        if card:
            write_card(root)
    return WrittenZoo(Path(target), read_manifest(target), plan.notes)


def plan_merge(zoos: list[SourceZoo], license: str | None, prefix: bool) -> MergePlan:
    """Settle what the zoos become together, before anything is written.

    raises ZooError naming what is in conflict
    """
    first = zoos[0].manifest
    notes: list[str] = []
    _check_prefix(zoos, prefix)
    teacher = _teacher(zoos, notes)
    if any(zoo.manifest.preprocessing is not None for zoo in zoos):
        notes.append("what the zoos are normalised by was left out; `prepkit zoo normalise` computes it anew.")
    architectures = reconciled(zoos, first.width, teacher)
    manifest = replace(
        first,
        task=common_task(zoos),
        dtype=_common(zoos, "dtype", "a zoo has one dtype."),
        license=license or _common(zoos, "license", "choose the new zoo's with license=."),
        height=_height(zoos, architectures),
        architectures=architectures,
        teacher=None if teacher is None else teacher[1],
        provenance={"merged": [origin_of(zoo.manifest) for zoo in zoos]},
        created_by=f"prepkit {__version__}",
        function=_function(zoos, notes),
        preprocessing=None,
        unknown=_unknown(zoos, notes),
    )
    table = merged_table(zoos, architectures, prefix, notes)
    manifest = replace(manifest, splits=_split_counts(table))
    return MergePlan(zoos, None if teacher is None else teacher[0], manifest, table, tuple(notes))


def _shards(plan: MergePlan, kind: ShardFormat, root: Path, link: bool, progress: Advance | None) -> list[Shard]:
    """Write or link the shards of all zoos, and write the teacher."""
    numbers: dict[str, int] = {}
    shards: list[Shard] = []
    for zoo in plan.zoos:
        if link:
            shards += link_shards(zoo.root, zoo.manifest, kind, root, numbers, progress)
        else:
            shards += copy_shards(zoo.root, zoo.manifest, kind, plan.manifest.width, root, numbers, progress)
    if plan.teacher is not None and plan.manifest.teacher is not None:
        copy_file(plan.teacher.root, plan.manifest.teacher.path, root)
    return shards


# Registry, task, teacher --------------------------------------------------------------------------------------


def reconciled(
    zoos: list[SourceZoo], width: int, teacher: tuple[SourceZoo, Teacher] | None
) -> tuple[StoredArchitecture, ...]:
    """Return all architectures of the zoos at a width, with new ClassIds; then the teacher's, if it has no ClassId.

    raises ZooError naming an architecture that is not the same in two zoos, and how it differs
    """
    known: dict[str, tuple[StoredArchitecture, SourceZoo]] = {}
    numbered: set[str] = set()
    for zoo in zoos:
        for stored in zoo.manifest.architectures:
            before, where = known.setdefault(stored.name, (stored, zoo))
            differing = differing_facts(before, stored)
            if differing:
                raise ZooError(
                    f"'{stored.name}' is not the same in '{where.root}' and '{zoo.root}': {listed(differing)} differ. "
                    "Rename one where the zoo is made."
                )
            if stored.class_id is not None:
                numbered.add(stored.name)
    order = sorted(numbered, key=lambda name: (known[name][0].layout.num_parameters, name))
    others = [] if teacher is None or teacher[1].architecture in numbered else [teacher[1].architecture]
    class_ids = {name: class_id for class_id, name in enumerate(order)}
    return tuple(_at_width(known[name][0], width, class_ids.get(name)) for name in [*order, *others])


def common_task(zoos: list[SourceZoo]) -> Any:
    """Return the task that all zoos share.

    raises ZooError saying in which keys two tasks differ
    """
    first = zoos[0]
    for zoo in zoos[1:]:
        expected, task = first.manifest.task, zoo.manifest.task
        if expected == task:
            continue
        if expected is None or task is None:
            without = first if expected is None else zoo
            raise ZooError(f"'{without.root}' names no task, the others do; instances of one zoo share a task.")
        keys = [key for key in sorted(expected.keys() | task.keys()) if expected.get(key) != task.get(key)]
        values = listed((f"{key}: {expected.get(key)!r} and {task.get(key)!r}" for key in keys), 3)
        raise ZooError(f"the tasks of '{first.root}' and '{zoo.root}' differ in {values}; a zoo has one task.")
    return first.manifest.task


def _common(zoos: list[SourceZoo], fact: str, hint: str) -> Any:
    values = {str(zoo.root): getattr(zoo.manifest, fact) for zoo in zoos}
    if len(set(values.values())) > 1:
        raise ZooError(f"the zoos differ in {fact}: {listed(f'{root} has {v}' for root, v in values.items())}; {hint}")
    return getattr(zoos[0].manifest, fact)


def _teacher(zoos: list[SourceZoo], notes: list[str]) -> tuple[SourceZoo, Teacher] | None:
    teachers = [(zoo, zoo.manifest.teacher) for zoo in zoos if zoo.manifest.teacher is not None]
    if len({teacher.sha256 for _, teacher in teachers}) > 1:
        notes.append("the zoos have different teachers; the new zoo has none.")
        return None
    if teachers and len(teachers) < len(zoos):
        have = "has" if len(teachers) == 1 else "have"
        notes.append(f"only {len(teachers)} of {len(zoos)} zoos {have} a teacher; the new zoo has it.")
    return teachers[0] if teachers else None


def _at_width(stored: StoredArchitecture, width: int, class_id: int | None) -> StoredArchitecture:
    return replace(stored, class_id=class_id, height=stored.layout.shape(width).height)


def _height(zoos: list[SourceZoo], architectures: tuple[StoredArchitecture, ...]) -> int:
    """Return the common height: the tallest architecture's, or more where a zoo of this width had more."""
    width = zoos[0].manifest.width
    heights = [zoo.manifest.height for zoo in zoos if zoo.manifest.width == width]
    return max([4, *heights, *(stored.height for stored in architectures if stored.class_id is not None)])


def _unknown(zoos: list[SourceZoo], notes: list[str]) -> dict[str, Any]:
    """Return the manifests' keys that this version does not know and in which all zoos agree."""
    first = zoos[0].manifest.unknown
    kept = {key: value for key, value in first.items() if all(z.manifest.unknown.get(key) == value for z in zoos)}
    lost = sorted({key for zoo in zoos for key in zoo.manifest.unknown} - kept.keys())
    if lost:
        notes.append(f"the manifests' keys {listed(lost)} are unknown to this version and differ; they are left out.")
    return kept


def _function(zoos: list[SourceZoo], notes: list[str]) -> Function | None:
    """Return how the instances of all zoos are run; what was verified of one zoo is not of another."""
    functions = [zoo.manifest.function for zoo in zoos]
    if not any(functions):
        return None
    ways = [None if function is None else function.how_to_run for function in functions]
    if any(way != ways[0] for way in ways):
        notes.append("The zoos say differently how their instances are run, so the new one says nothing of it.")
        return Function()
    return Function(ways[0])


def _check_prefix(zoos: list[SourceZoo], prefix: bool) -> None:
    names = [zoo.manifest.name for zoo in zoos]
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if prefix and repeated:
        raise ZooError(
            f"two zoos are named {listed(map(repr, repeated))}, so their names cannot tell their ids apart. If the ids "
            "differ, merge them without prefix=True."
        )


def _split_counts(table: pa.Table) -> dict[str, int]:
    return dict(sorted(Counter(name for name in table["split"].to_pylist() if name is not None).items()))
