"""What a writer's `close` makes of all that was added: the architectures in order, the table's rows, the teacher."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prepkit.prep_file import Origin, PRep, save_prep
from prepkit.registry import Registry
from prepkit.zoo.intake import Packable
from prepkit.zoo.journal import Entry
from prepkit.zoo.manifest import Shard, StoredArchitecture, Teacher
from prepkit.zoo.staging import sha256_of_file
from prepkit.zoo.tables import OWN_COLUMNS


def members(
    stored: Mapping[str, StoredArchitecture], registry: Registry | None, teacher: Packable | None, width: int
) -> list[StoredArchitecture]:
    """All architectures of a zoo in ClassId order, then the teacher's if no instance has it.

    stored:   of the instances
    registry: gives the ClassIds, and architectures without instances; else ascending in packed parameters
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
        numbered.append(teacher.stored(width))
    return numbered


def table_rows(
    entries: Iterable[Entry],
    architectures: Iterable[StoredArchitecture],
    shards: Iterable[Shard],
    rows_a_shard: Mapping[str, int],
) -> Iterator[dict[str, Any]]:
    """The table's rows, in the order of the journal.

    rows_a_shard: of a full shard, by architecture
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


def write_teacher(teacher: Packable | None, width: int, root: Path, folder: Path) -> Teacher | None:
    """Write teacher-<hash>.prep.safetensors in `root`, by way of `folder`, and describe it; None if there is none."""
    if teacher is None:
        return None
    values = teacher.layout.pack(teacher.tensors, teacher.layout.shape(width))
    part = folder / "teacher.part"
    save_prep(PRep(values, teacher.layout, Origin(teacher.name)), part, overwrite=True)
    sha256 = sha256_of_file(part)
    path = f"teacher-{sha256[:12]}.prep.safetensors"
    os.replace(part, root / path)
    return Teacher(path, teacher.name, sha256)
