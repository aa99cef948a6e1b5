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

from prepkit.errors import ZooError, counted, listed
from prepkit.progress import Advance
from prepkit.version import __version__
from prepkit.zoo.card.card import write_card
from prepkit.zoo.change.copying import check_target, check_whole, copy_file, copy_shards, verified_manifest
from prepkit.zoo.format.manifest import Manifest, Shard, StoredArchitecture, Teacher, read_manifest, write_manifest
from prepkit.zoo.format.shards import ShardFormat, shard_format
from prepkit.zoo.format.tables import OWN_COLUMNS, read_table, write_table_at_once
from prepkit.zoo.write.building import building
from prepkit.zoo.write.written import WrittenZoo

if TYPE_CHECKING:
    import pyarrow as pa

RUN = "run"
# These attributes must agree where two zoos have an architecture of one name.
FACTS = ("layout", "fused", "family", "input_shape", "num_trainable", "config")


@dataclass(frozen=True)
class SourceZoo:
    """A zoo to be merged: folder and manifest."""

    root: Path
    manifest: Manifest


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
    card: bool = True,
    progress: Advance | None = None,
) -> WrittenZoo:
    """Write a new zoo that holds all instances of several, in their order.

    name:     of the new zoo; the folder's if missing
    format:   of the shards; the first zoo's if missing
    license:  of the new zoo; needed where the zoos' licences differ
    prefix:   put the zoo's name before ids and runs
    card:     whether the new zoo gets README.md and card.png
    progress: called with a number of bytes each time that many more were written to shards
    raises ZooError naming what is in conflict, OutputError if the target exists; nothing is written then

    >>> merge("both", ["first-zoo", "second-zoo"], prefix=True).manifest.name
    'both'
    """
    roots = [Path(source) for source in sources]
    if len(roots) < 2:
        raise ZooError(f"merging takes two zoos or more, not {len(roots)}.")
    kind = None if format is None else shard_format(format)
    check_target(Path(target), roots)
    plan = plan_merge([SourceZoo(root, verified_manifest(root)) for root in roots], license, prefix)
    kind = kind or shard_format(plan.zoos[0].manifest.shard_format)
    with building(target) as root:
        shards = _copied(plan, kind, root, progress)
        name = name or Path(target).resolve().name
        manifest = replace(plan.manifest, name=name, shard_format=kind.name, shards=tuple(shards))
        write_manifest(replace(manifest, table=write_table_at_once(plan.table, root)), root, overwrite=False)
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
    architectures = reconciled(zoos, first.width, teacher)
    manifest = replace(
        first,
        task=common_task(zoos),
        dtype=_common(zoos, "dtype", "a zoo has one dtype."),
        license=license or _common(zoos, "license", "choose the new zoo's with license=."),
        height=_height(zoos, architectures),
        architectures=architectures,
        teacher=None if teacher is None else teacher[1],
        provenance={"merged": [_origin(zoo) for zoo in zoos]},
        created_by=f"prepkit {__version__}",
        unknown=_unknown(zoos, notes),
    )
    table = merged_table(zoos, architectures, prefix, notes)
    manifest = replace(manifest, splits=_split_counts(table))
    return MergePlan(zoos, None if teacher is None else teacher[0], manifest, table, tuple(notes))


def _copied(plan: MergePlan, kind: ShardFormat, root: Path, progress: Advance | None) -> list[Shard]:
    """Write the shards of all zoos, and the teacher."""
    numbers: dict[str, int] = {}
    shards: list[Shard] = []
    for zoo in plan.zoos:
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
            differing = [fact for fact in FACTS if getattr(before, fact) != getattr(stored, fact)]
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
        one, other = first.manifest.task, zoo.manifest.task
        if one == other:
            continue
        if one is None or other is None:
            without = first if one is None else zoo
            raise ZooError(f"'{without.root}' names no task, the others do; instances of one zoo share a task.")
        keys = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
        values = listed((f"{key}: {one.get(key)!r} and {other.get(key)!r}" for key in keys), 3)
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


def _origin(zoo: SourceZoo) -> dict[str, Any]:
    manifest = zoo.manifest
    return {
        "name": manifest.name,
        "sha256": manifest.to_dict()["sha256"],
        "instances": manifest.table.rows,
        "license": manifest.license,
        "provenance": dict(manifest.provenance),
    }


# Table --------------------------------------------------------------------------------------------------------


def merged_table(
    zoos: list[SourceZoo], architectures: tuple[StoredArchitecture, ...], prefix: bool, notes: list[str]
) -> pa.Table:
    """Return the rows of all zoos with the new ClassIds and shard numbers.

    raises ZooError naming ids that are in two zoos, or a column that two zoos fill with different kinds of values
    """
    import pyarrow as pa

    tables = [read_table(zoo.root / zoo.manifest.table.path, zoo.manifest.table) for zoo in zoos]
    if prefix:
        tables = [_prefixed(table, zoo.manifest.name) for table, zoo in zip(tables, zoos, strict=True)]
    _check_ids(zoos, tables)
    _note_runs(zoos, tables, notes)
    class_ids = {stored.name: stored.class_id for stored in architectures}
    schema = pa.schema([*_own_fields(tables[0]), *_common_fields(zoos, tables)])
    first_shard, parts = 0, []
    for zoo, table in zip(zoos, tables, strict=True):
        parts.append(_fitted(_renumbered(table, class_ids, first_shard), schema, zoo))
        first_shard += len(zoo.manifest.shards)
    return pa.concat_tables(parts).combine_chunks()


def _check_prefix(zoos: list[SourceZoo], prefix: bool) -> None:
    names = [zoo.manifest.name for zoo in zoos]
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if prefix and repeated:
        raise ZooError(f"two zoos are named {listed(map(repr, repeated))}, so their names cannot tell their ids apart.")


def _prefixed(table: pa.Table, name: str) -> pa.Table:
    for column in ("id", RUN):
        if column in table.column_names:
            values = [None if value is None else f"{name}-{value}" for value in table[column].to_pylist()]
            table = _replaced(table, column, values, "string")
    return table


def _check_ids(zoos: list[SourceZoo], tables: list[pa.Table]) -> None:
    homes: dict[str, SourceZoo] = {}
    for zoo, table in zip(zoos, tables, strict=True):
        ids = table["id"].to_pylist()
        shared = [id for id in ids if id in homes]
        if shared:
            are = "is" if len(shared) == 1 else "are"
            raise ZooError(
                f"{counted(len(shared), 'id')} of '{zoo.root}' {are} in '{homes[shared[0]].root}' too: "
                f"{listed(shared, 3)}; ids are "
                "unique. With prefix=True the zoo's name is put before each."
            )
        homes.update(dict.fromkeys(ids, zoo))


def _note_runs(zoos: list[SourceZoo], tables: list[pa.Table], notes: list[str]) -> None:
    seen: set[Any] = set()
    for table in tables:
        runs = set(table[RUN].to_pylist()) - {None} if RUN in table.column_names else set()
        if runs & seen:
            shared = listed(sorted(runs & seen, key=str), 3)
            notes.append(f"run {shared} is in several zoos, so it counts as one run; prefix=True tells them apart.")
            return
        seen |= runs


def _own_fields(table: pa.Table) -> list[pa.Field]:
    return [table.schema.field(name).remove_metadata() for name in OWN_COLUMNS]


def _common_fields(zoos: list[SourceZoo], tables: list[pa.Table]) -> list[pa.Field]:
    import pyarrow as pa

    kinds: dict[str, tuple[pa.DataType, SourceZoo]] = {}
    for zoo, table in zip(zoos, tables, strict=True):
        for field in table.schema:
            if field.name in OWN_COLUMNS:
                continue
            known, home = kinds.get(field.name, (pa.null(), zoo))
            common = _common_type(known, field.type)
            if common is None:
                raise ZooError(
                    f"the column '{field.name}' is {known} in '{home.root}' and {field.type} in '{zoo.root}'; "
                    "rename one where the zoo is made."
                )
            kinds[field.name] = (common, home if common == known else zoo)
    return [pa.field(name, kind) for name, (kind, _) in kinds.items()]


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type that holds both, or None if there is none."""
    from pyarrow import float64, types

    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    numbers = all(types.is_integer(kind) or types.is_floating(kind) for kind in (one, other))
    return float64() if numbers else None


def _renumbered(table: pa.Table, class_ids: dict[str, int | None], first_shard: int) -> pa.Table:
    new = [class_ids[name] for name in table["architecture"].to_pylist()]
    shards = [first_shard + shard for shard in table["shard"].to_pylist()]
    return _replaced(_replaced(table, "class_id", new, "int32"), "shard", shards, "int32")


def _fitted(table: pa.Table, schema: pa.Schema, zoo: SourceZoo) -> pa.Table:
    """Return the table with all columns of the schema, in its order and types, without loss."""
    import pyarrow as pa

    columns = []
    for field in schema:
        try:
            column = table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type)
            columns.append(column.cast(field.type, safe=True))
        except pa.ArrowInvalid as error:
            reason = str(error).splitlines()[0]
            raise ZooError(f"'{zoo.root}': column '{field.name}' does not fit {field.type}: {reason}") from None
    return pa.table(columns, schema=schema)


def _replaced(table: pa.Table, name: str, values: list[Any], kind: str) -> pa.Table:
    import pyarrow as pa

    return table.set_column(table.column_names.index(name), name, pa.array(values, pa.type_for_alias(kind)))


def _split_counts(table: pa.Table) -> dict[str, int]:
    return dict(sorted(Counter(name for name in table["split"].to_pylist() if name is not None).items()))
