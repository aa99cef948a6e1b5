"""make_zoo: what every importer and `create_zoo` end in. It writes the models of a Source as a zoo with its card.

A new importer needs a module here with

    def found(folder: Path, *, option: int = 0) -> Source: ...

and a line in `kinds.KINDS`. Its Source reads one model at a time, so memory does not grow with their number; a zoo
whose writing was interrupted goes on with the ids that are missing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from prepkit.errors import PrepkitError, ZooError
from prepkit.support.files import is_zoo
from prepkit.support.progress import Advance
from prepkit.zoo.card import card
from prepkit.zoo.format.function import Function
from prepkit.zoo.format.manifest import read_manifest
from prepkit.zoo.read.zoo import local_zoo
from prepkit.zoo.write.adding import Packing, Source, add_models
from prepkit.zoo.write.kept_rows import check_kept
from prepkit.zoo.write.model_files import provenance_of_models
from prepkit.zoo.write.writer import ZooWriter
from prepkit.zoo.write.written import WrittenZoo

IMPORT = "zoo import "  # commands that begin so take what others trained, whose function running has to prove
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def make_zoo(
    path: str | os.PathLike[str],
    source: Source,
    packing: Packing,
    *,
    command: str,
    resume: bool,
    keep_going: bool = False,
    drop_nan: bool = False,
    progress: Advance | None = None,
    how_to_go_on: str = "go on with resume=True",
    **about: Any,
) -> WrittenZoo:
    """Write the models of a source as a zoo, and its card.

    command:      what made the zoo, such as "zoo import tree"; the provenance and the card's columns go by it
    resume:       go on with an unfinished zoo
    keep_going:   add the other models too before an error is raised whose notes tell of each that failed
    drop_nan:     leave out models that hold NaN or infinity
    progress:     is called with a number of models each time that many more are in the zoo
    how_to_go_on: what the note of an error advises
    about:        width, format, dtype, name, license, task, as ZooWriter takes them; the source's task if there is none
    raises what `ZooWriter.add` and the source raise. Models that were added before an error are kept.
    """
    _check_ids(source)
    root = Path(path)
    if resume and is_zoo(root) and not (root / card.README).exists() and _holds(root, source, drop_nan):
        card.write_card(root)  # the command was interrupted between the zoo and its card
        return WrittenZoo(root, read_manifest(root), tuple(source.notes()), source.types)
    all_added = False
    if about.get("task") is None:
        about["task"] = source.task
    begun_with = {"command": command, "options": dict(source.options)} if source.options else {}
    try:
        with ZooWriter(path, resume=resume, provenance=begun_with, **about) as writer:
            check_kept(writer, source, packing)
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
            if command.startswith(IMPORT):
                writer.function = Function(source.how_to_run)
            writer.provenance = {**begun_with, **provenance_of_models(command, len(writer)), **source.record}
        card.write_card(root)
    except (PrepkitError, KeyboardInterrupt) as error:
        if all_added:
            kept = f"'{root}' is finished but for its card" if is_zoo(root) else "All models are kept"
            error.add_note(f"{kept}; {how_to_go_on}, or delete '{root}'.")
        raise
    return WrittenZoo(root, read_manifest(root), notes, source.types)


def _check_ids(source: Source) -> None:
    """Raise ZooError for an id with a line feed or another control character: lists have one id a line."""
    for index, id_ in enumerate(source.ids):
        if CONTROL.search(id_):
            raise ZooError(
                f"model {source.name(index)!r}: its id {id_!r} has a control character, so a list of ids, one a line, "
                "would be ambiguous. Rename the file, or what the table calls it."
            )


def _holds(root: Path, source: Source, drop_nan: bool) -> bool:
    """Return whether a finished zoo holds the models of a source, or those that were not left out."""
    ids = set(local_zoo(root).table["id"].to_pylist())
    return ids.issubset(source.ids) if drop_nan or source.leaves_out_copies else ids == set(source.ids)
