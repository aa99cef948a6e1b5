"""make_zoo: what every importer and `create_zoo` end in. It writes the models of a Source as a zoo with its card.

A new importer needs a module here with

    def found(folder: Path, *, option: int = 0) -> Source: ...

and a line in `kinds.KINDS`. Its Source reads one model at a time, so memory does not grow with their number; a zoo
whose writing was interrupted goes on with the ids that are missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sized
from pathlib import Path
from typing import Any

from prepkit.errors import PrepkitError, ZooError, counted, listed
from prepkit.support.files import is_zoo
from prepkit.support.progress import Advance
from prepkit.zoo.card import card
from prepkit.zoo.format.function import Function
from prepkit.zoo.format.manifest import read_manifest
from prepkit.zoo.format.paths import APPENDING
from prepkit.zoo.importers._appended import check_new, notes_on_appended, task_to_append
from prepkit.zoo.read.zoo import local_zoo
from prepkit.zoo.write.adding import Packing, Source, add_models
from prepkit.zoo.write.kept_rows import check_kept
from prepkit.zoo.write.model_files import provenance_of_models
from prepkit.zoo.write.writer import ZooWriter
from prepkit.zoo.write.written import WrittenZoo

IMPORT = "zoo import "  # commands that begin so take what others trained, whose function running has to prove
NOT_COUNTED = (
    "The zoo had all models, and lacked only its card. What was counted while they were read, such as values that a "
    "table has no place for, is not known any more."
)
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def make_zoo(
    path: str | os.PathLike[str],
    source: Source,
    packing: Packing,
    *,
    command: str,
    resume: bool,
    append: bool = False,
    keep_going: bool = False,
    drop_nan: bool = False,
    progress: Advance | None = None,
    how_to_go_on: str = "go on with resume=True",
    **about: Any,
) -> WrittenZoo:
    """Write the models of a source as a zoo, and its card.

    command:      what made the zoo, such as "zoo import tree"; the provenance and the card's columns go by it
    resume:       go on with an unfinished zoo
    append:       add the models to a finished zoo, whose card is written anew if it has one
    keep_going:   add the other models too before an error is raised whose notes tell of each that failed
    drop_nan:     leave out models that hold NaN or infinity
    progress:     is called with a number of models each time that many more were added
    how_to_go_on: what the note of an error advises
    about:        width, format, dtype, name, license, task, as ZooWriter takes them; the source's task if there is none
    raises what `ZooWriter.add` and the source raise. Models that were added before an error are kept.
    """
    _check_ids(source)
    root = Path(path)
    if resume and is_zoo(root) and not append:
        _check_missing(root, source, drop_nan or source.leaves_out_copies, command)
        card.write_card(root)  # the command was interrupted between the zoo and its card
        return WrittenZoo(root, read_manifest(root), (*source.notes(), NOT_COUNTED), source.types)
    written, all_added = root / APPENDING if append else root, False
    was_finished = append and is_zoo(written)  # it lacked only the last step, which opening it makes up for
    is_import = command.startswith(IMPORT)
    if about.get("task") is None:
        about["task"] = task_to_append(root, source) if append else source.task
    lacking = tuple(notes_on_appended(root, source)) if append else ()
    begun_with = {"command": command, "options": dict(source.options)} if source.options else {}
    try:
        with ZooWriter(path, resume=resume, append=append, provenance=begun_with, **about) as writer:
            if was_finished and _holds_all(writer, source, drop_nan or source.leaves_out_copies):
                return WrittenZoo(root, read_manifest(root), (*source.notes(), *writer.notes), source.types)
            if append:
                check_new(writer, root, source, is_import=is_import)
            check_kept(writer, source, packing)
            if not append:
                _keep_teacher(writer, source)
            notes = add_models(
                writer,
                source,
                packing,
                progress,
                keep_going=keep_going,
                drop_nan=drop_nan,
                how_to_go_on=how_to_go_on,
            )
            all_added = True
            # It is not given at the start, as an interrupted zoo may be resumed with more models, or after an update.
            if is_import:
                writer.function = Function(source.how_to_run)
            writer.provenance = {**begun_with, **provenance_of_models(command, len(writer)), **source.record}
        if not append:
            card.write_card(root)
    except (PrepkitError, KeyboardInterrupt) as error:
        if all_added and not (append and is_zoo(written)):  # else `close` has told where all is kept
            has_no_card = is_zoo(root) and not append
            kept = f"'{root}' is finished but for its card" if has_no_card else "All models are kept"
            error.add_note(f"{kept}; {how_to_go_on}, or delete '{written}'.")
        raise
    return WrittenZoo(root, read_manifest(root), (*notes, *writer.notes, *lacking), source.types)


def _holds_all(writer: ZooWriter, source: Source, may_leave_out: bool) -> bool:
    """Return whether the zoo that is appended to has all models of a source, or all that were not left out."""
    held = [id_ in writer for id_ in source.ids]
    return all(held) or (may_leave_out and any(held))


def _keep_teacher(writer: ZooWriter, source: Source) -> None:
    """Put the source's teacher into a new zoo that has none; a zoo that holds nothing is discarded if that fails."""
    try:
        teacher = None if writer.has_teacher else source.teacher()
        if teacher is not None:
            writer.set_teacher(teacher.tensors, teacher.architecture)
    except PrepkitError:
        if not len(writer):
            writer.discard()
        raise


def _check_ids(source: Source) -> None:
    """Raise ZooError for an id with a line feed or another control character: lists have one id a line."""
    for index, id_ in enumerate(source.ids):
        if CONTROL.search(id_):
            raise ZooError(
                f"model {source.name(index)!r}: its id {id_!r} has a control character, so a list of ids, one a line, "
                "would be ambiguous. Rename the file, or what the table calls it."
            )


def _check_missing(root: Path, source: Source, may_leave_out: bool, command: str) -> None:
    """Raise ZooError for a finished zoo, with what it lacks of a source, unless it lacks only its card."""
    ids = set(local_zoo(root).table["id"].to_pylist())
    foreign, missing = sorted(ids.difference(source.ids)), [id_ for id_ in source.ids if id_ not in ids]
    if foreign:
        raise ZooError(
            f"'{root}' is a finished zoo, of which {counted(len(foreign), 'instance')} {_are(foreign)} none of these "
            f"models: {listed(foreign)}. Name another folder."
        )
    if missing and (not may_leave_out or (root / card.README).exists()):
        left_out = ", or were left out of it" if may_leave_out else ""
        add = "Name them alone with append=True"
        if command.startswith(IMPORT):
            add = "Import them alone with append=True"
        raise ZooError(
            f"'{root}' is a finished zoo, and {len(missing):,} of {counted(len(source.ids), 'model')} {_are(missing)} "
            f"not in it: {listed(missing)}. They came later{left_out}. {add}, or delete the folder to begin anew."
        )
    if (root / card.README).exists():
        all_of_them = "the only model" if len(ids) == 1 else f"all {len(ids):,} models"
        raise ZooError(
            f"'{root}' is a finished zoo and holds {all_of_them}, so nothing is left to do. To make it anew, delete "
            "the folder, or name another."
        )


def _are(items: Sized) -> str:
    return "is" if len(items) == 1 else "are"
