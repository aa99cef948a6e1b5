"""The teacher of a zoo that is being written: a PRep file in the working folder until `close` gives it its name.

The file is named by its content and written before its line in the journal, so the journal never names a teacher that
is not whole. `close` moves it; a writer that resumes after a kill in `close` moves it back.
"""

from __future__ import annotations

import os
from pathlib import Path

from prepkit.errors import ZooError
from prepkit.prep.file import Origin, PRep, save_prep
from prepkit.support.files import sha256_of_file
from prepkit.zoo.format.manifest import Teacher
from prepkit.zoo.write._instance_rows import Packable
from prepkit.zoo.write._journal import TeacherEntry

PATTERN = "teacher-*.prep.safetensors"


def keep_teacher(teacher: Packable, width: int, folder: Path) -> TeacherEntry:
    """Write the teacher's PRep file in the working folder, whole or not at all, and return its journal entry.

    raises OutputError
    """
    values = teacher.layout.pack(teacher.tensors, teacher.layout.shape(width))
    part = folder / "teacher.part"
    save_prep(PRep(values, teacher.layout, Origin(teacher.name)), part, overwrite=True)
    entry = TeacherEntry(teacher.stored(width), sha256_of_file(part))
    os.replace(part, folder / file_name(entry))
    return entry


def drop_others(entry: TeacherEntry | None, folder: Path) -> None:
    """Remove all teachers from a folder but the one of this entry."""
    for file in folder.glob(PATTERN):
        if entry is None or file.name != file_name(entry):
            file.unlink()


def take_back(entry: TeacherEntry | None, root: Path, folder: Path) -> None:
    """Move the teacher that the journal names back to the working folder if a killed `close` had published it.

    raises ZooError if its file is gone or damaged
    """
    if entry is not None:
        name = file_name(entry)
        if (root / name).exists():
            os.replace(root / name, folder / name)
        if not (folder / name).exists():
            raise ZooError(
                f"{folder / name}: the teacher's file is gone, so this zoo cannot be resumed. Delete '{root}' and "
                "write it again."
            )
        if sha256_of_file(folder / name) != entry.sha256:
            raise ZooError(
                f"{folder / name}: the teacher's file is damaged, so this zoo cannot be resumed. Delete '{root}' and "
                "write it again."
            )
    drop_others(None, root)
    drop_others(entry, folder)


def publish_teacher(entry: TeacherEntry | None, root: Path, folder: Path) -> Teacher | None:
    """Give the teacher's file its place in the zoo, and describe it; None if there is none."""
    if entry is None:
        return None
    path = file_name(entry)
    os.replace(folder / path, root / path)
    return Teacher(path, entry.stored.name, entry.sha256)


def file_name(entry: TeacherEntry) -> str:
    """Return `teacher-<hash>.prep.safetensors`."""
    return PATTERN.replace("*", entry.sha256[:12])
