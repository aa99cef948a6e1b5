"""What make_zoo checks and tells when models are appended to a finished zoo instead of becoming one of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, counted, listed
from prepkit.prep.layout import canonical_json
from prepkit.zoo.format.manifest import read_manifest

if TYPE_CHECKING:
    from prepkit.zoo.write.adding import Source
    from prepkit.zoo.write.writer import ZooWriter


def task_to_append(root: Path, source: Source) -> Any:
    """Return the task that appended models share, which is the zoo's; None if what they are says of none.

    raises ZooError if the source's models were trained on another task than the zoo's
    """
    own, theirs = read_manifest(root).task, source.task
    if own is None or theirs is None:
        return None
    other = [key for key in sorted({*own, *theirs}) if canonical_json(own.get(key)) != canonical_json(theirs.get(key))]
    if other:
        differ = listed((f"{key} is {own.get(key)!r} there and {theirs.get(key)!r} here" for key in other), 3)
        raise ZooError(
            f"the task of '{root}' is another than `source` says of its models: {differ}. A zoo has one task; leave "
            "append=True out, and make a zoo of their own."
        )
    return own


def check_new(writer: ZooWriter, root: Path, source: Source, *, is_import: bool) -> None:
    """Raise ZooError naming the models whose ids the zoo that is appended to has already."""
    written = writer.written_ids
    taken = [index for index, id_ in enumerate(source.ids) if id_ in writer and id_ not in written]
    if not taken:
        return
    if not len(writer):
        writer.discard()
    models = counted(len(source.ids), "model")
    if len(taken) == len(source.ids):
        each = "the id of this model" if len(taken) == 1 else f"the ids of all {models}"
        raise ZooError(f"'{root}' has instances of {each} already, so nothing is left to append.")
    has = "has the id of an instance" if len(taken) == 1 else "have the ids of instances"
    remedy = "Name only the new models, or give them other ids, in the column `id` of a table."
    if is_import:
        remedy = "Name a `source` with only the new models, or choose them by this import's options."
    raise ZooError(
        f"{len(taken):,} of {models} {has} that '{root}' has already: {listed(map(source.name, taken))}. {remedy}"
    )


def notes_on_appended(root: Path, source: Source) -> Iterator[str]:
    """Yield sentences on what appending does not do for the models of this source.

    raises what reading the source's teacher raises
    """
    if source.leaves_out_copies:
        yield (
            f"Copies were looked for, and splits were drawn, among the new models only; `prepkit zoo audit {root}` "
            "tells of weights and runs that old and new instances share."
        )
    if source.task is not None and read_manifest(root).task is None:
        yield "The zoo notes no task, and gets none by appending, though `source` says what its models were trained on."
    if source.teacher() is not None:
        yield "The teacher of `source` is left out: only instances are appended, and the zoo keeps what it has."
