"""Order the architectures, publish all files, and make the rows of the table and the manifest, when a writer closes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prepkit.families.registry import Registry
from prepkit.version import __version__
from prepkit.zoo.format.columns import OWN_COLUMNS
from prepkit.zoo.format.manifest import Manifest, Shard, StoredArchitecture
from prepkit.zoo.format.tables import write_table
from prepkit.zoo.write._contents import Contents
from prepkit.zoo.write._instance_rows import Packable
from prepkit.zoo.write._journal import Entry
from prepkit.zoo.write._stages import Stages
from prepkit.zoo.write._teacher import publish_teacher
from prepkit.zoo.write.staging import SHARDS


def publish_files(
    contents: Contents, stages: Stages, entries: Iterable[Entry], registry: Registry | None, root: Path, folder: Path
) -> dict[str, Any]:
    """Publish the last shards, the table and the teacher, and return what the manifest says of them.

    folder: where they lie until they are finished
    """
    (root / SHARDS).mkdir(exist_ok=True)
    teacher = None if contents.teacher is None else contents.teacher.stored
    architectures = members(contents.architectures, registry, teacher, stages.width)
    shards = stages.publish(architectures)
    rows = table_rows(entries, architectures, shards, stages.rows_a_shard)
    table = write_table(rows, contents.schema.arrow(), root, folder)
    kept = publish_teacher(contents.teacher, root, folder)
    return {"architectures": architectures, "shards": tuple(shards), "table": table, "teacher": kept}


def members(
    stored: Mapping[str, StoredArchitecture], registry: Registry | None, teacher: StoredArchitecture | None, width: int
) -> list[StoredArchitecture]:
    """Return all architectures of a zoo in ClassId order, then the teacher's if no instance has it.

    stored:   architectures that have instances, by name
    registry: gives the ClassIds, and architectures without instances; if missing, ClassIds ascend in packed parameters
    """
    known = dict(stored)
    if registry is not None:
        order = [member.name for member in registry]
        for member in registry:
            known.setdefault(member.name, Packable({}, member.layout, member, fused=True).stored(width))
    else:
        order = sorted(known, key=lambda name: (known[name].layout.num_parameters, name))
    numbered = [replace(known[name], class_id=class_id) for class_id, name in enumerate(order)]
    if teacher is not None and teacher.name not in order:
        numbered.append(teacher)
    return numbered


def manifest_of(
    contents: Contents, architectures: Sequence[StoredArchitecture], *, height: int | None, **about: Any
) -> Manifest:
    """Return the manifest of a finished zoo.

    height: common height of the PReps; the tallest architecture's if missing
    about:  all else that a Manifest takes
    """
    tallest = max((stored.height for stored in architectures if stored.class_id is not None), default=4)
    return Manifest(
        architectures=tuple(architectures),
        height=height or tallest,
        dtype=contents.dtype or "float32",
        splits=dict(sorted(contents.splits.items())),
        created_by=f"prepkit {__version__}",
        **about,
    )


def table_rows(
    entries: Iterable[Entry],
    architectures: Iterable[StoredArchitecture],
    shards: Iterable[Shard],
    rows_a_shard: Mapping[str, int],
) -> Iterator[dict[str, Any]]:
    """Make the table's rows, in the order of the journal.

    rows_a_shard: number of rows in a full shard, by architecture
    """
    class_ids = {stored.name: stored.class_id for stored in architectures}
    first: dict[str, int] = {}
    for index, shard in enumerate(shards):
        first.setdefault(shard.architecture, index)
    counts = dict.fromkeys(class_ids, 0)
    for entry in entries:
        name = entry.architecture
        number, row = divmod(counts[name], rows_a_shard[name])
        counts[name] += 1
        own = (entry.id, name, class_ids[name], entry.split, first[name] + number, row)
        yield {**dict(zip(OWN_COLUMNS, own, strict=True)), **entry.columns}
