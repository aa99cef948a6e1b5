"""Files that `create_zoo` reads: a model at a time, and the task that all models were trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prepkit.address import HubAddress
from prepkit.errors import OutputError, PrepkitError, ZooError, counted, listed
from prepkit.support.progress import Advance
from prepkit.support.signals import noted_interruption
from prepkit.version import __version__
from prepkit.zoo.format.sources import PREFIX, SOURCE, SOURCE_SHA256, VERSIONS, names_columns
from prepkit.zoo.write.csv_columns import ModelRow
from prepkit.zoo.write.model_paths import name_of

if TYPE_CHECKING:
    from prepkit.checkpoint.load import Checkpoint
    from prepkit.families.registry import Architecture
    from prepkit.prep.file import PRep
    from prepkit.zoo.write.writer import ZooWriter

PACK_FIRST = "Cast it with `prepkit pack --dtype float32`, and make the zoo of that PRep."


@dataclass(frozen=True)
class LocalModel:
    """A model's file on the disk, and its source: the file's path, or the address on the Hub with the commit."""

    file: Path
    source: str


@dataclass(frozen=True)
class Packing:
    """How models are read and packed: the arguments of these names of `create_zoo`."""

    architecture: Architecture | str | None = None
    key: str | None = None
    prefix: str | None = None
    keep_batch_norm: bool = False
    keep_unfoldable: Literal["affine"] | None = None


def add_models(
    writer: ZooWriter,
    rows: list[ModelRow],
    packing: Packing,
    fetched: Callable[[Path | HubAddress], AbstractContextManager[LocalModel]],
    progress: Advance | None,
    keep_going: bool = False,
) -> tuple[str, ...]:
    """Add the models that are not in the zoo yet, and return sentences on what was left out of them or is unusual.

    After a failure a zoo that holds some of them is kept, and the error gets a note that says so; an empty one is
    discarded.
    fetched:    gives each model as a file, as long as its context lasts
    keep_going: add the other models too before an error is raised that tells of all that failed
    """
    from prepkit.fusion.fold import note_on_costs
    from prepkit.prep.file import PRep
    from prepkit.zoo.write._instance_rows import packable

    has_source = any(isinstance(row.model, HubAddress) for row in rows)
    ids = {row.id for row in rows}
    foreign = sorted(writer.finished_ids - ids)
    if foreign:
        raise ZooError(
            f"'{writer.root}' holds {counted(len(foreign), 'instance')} of none of these models: {listed(foreign)}. "
            "Give the same models as before, and more if you like, or delete the folder."
        )
    buffers: set[str] = set()
    others: set[str] = set()
    costs: dict[str, float] = {}
    failures: list[str] = []
    waiting = [row for row in rows if row.id not in writer.finished_ids]
    if progress is not None and len(waiting) < len(rows):
        progress(len(rows) - len(waiting))

    def add(row: ModelRow) -> None:
        with fetched(row.model) as local:
            model, sha256 = read_model(local.file, packing.key, packing.prefix)
            item = packable(
                model,
                packing.architecture,
                f"'{row.id}' ({name_of(row.model)})",
                packing.keep_unfoldable,
                keep_batch_norm=packing.keep_batch_norm,
                left_out=buffers,
                costs=costs,
            )
            if packing.prefix is not None and not isinstance(model, PRep):
                others.update(model.dropped)
            source = {SOURCE: local.source if isinstance(row.model, HubAddress) else None} if has_source else {}
            start = model.origin.prefix if isinstance(model, PRep) else model.prefix
            names = names_columns(start, item.versions)
            columns: dict[str, Any] = {**row.columns, **source, SOURCE_SHA256: sha256, **names}
            writer.add(item, id=row.id, split=row.split, **columns)

    try:
        with noted_interruption() as interruptions:
            for row in waiting:
                try:
                    add(row)
                except PrepkitError as error:  # an OutputError is of the zoo, not of one model
                    if not keep_going or interruptions or isinstance(error, OutputError):
                        raise
                    failures.append(f"failed: {error}")
                if progress is not None:
                    progress(1)
        if failures:
            raise _not_finished(failures, len(rows))
    except (PrepkitError, KeyboardInterrupt) as error:
        if len(writer):
            are = "is" if len(writer) == 1 else "are"
            kept = f"{len(writer):,} of {counted(len(rows), 'model')} {are} kept"
            error.add_note(f"{kept}; go on with resume=True, or delete '{writer.root}'.")
        else:
            writer.discard()
        raise
    notes = []
    if others:
        notes.append(f"Names without the prefix '{packing.prefix}' are left out: {listed(sorted(others))}.")
    if buffers:
        notes.append(f"Integer buffers are left out, for which a zoo has no place: {listed(sorted(buffers))}.")
    return (*notes, *note_on_costs(costs, "model"))


def _not_finished(failures: list[str], total: int) -> ZooError:
    """Return the error that sums failures up; its notes tell of each."""
    cannot = f"{len(failures):,} of {counted(total, 'model')} cannot be added, so the zoo is not finished"
    error = ZooError(f"{cannot}. Mend them, or leave them out of the command.")
    for failure in failures:
        error.add_note(failure)
    return error


def read_model(file: Path, key: str | None = None, prefix: str | None = None) -> tuple[Checkpoint | PRep, str | None]:
    """Read a checkpoint or a PRep, and return it with the sha256 of the checkpoint; None for a PRep without it.

    key, prefix: as in `load_checkpoint`; a PRep has neither
    raises CheckpointError, PRepFileError
    """
    from prepkit.casting import check_finite
    from prepkit.checkpoint.load import load_checkpoint, sha256_of
    from prepkit.packing import check_packable
    from prepkit.prep.file import is_prep_file, load_prep
    from prepkit.zoo.write._instance_rows import ONLY_FINITE

    if is_prep_file(file):
        prep = load_prep(file)
        return prep, prep.origin.source_sha256
    checkpoint = load_checkpoint(file, key, prefix)
    check_packable(checkpoint, f"'{file}'", PACK_FIRST)
    check_finite(checkpoint, f"'{file}'", remedy=ONLY_FINITE)  # before it is folded, and with the name of the file
    return checkpoint, sha256_of(file)


def check_columns(rows: Iterable[ModelRow], table: Path | None) -> None:
    """Raise ZooError if the user's table fills a column that is filled from the models."""
    rows = list(rows)
    has_source = any(isinstance(row.model, HubAddress) for row in rows)
    for name in (*((SOURCE,) if has_source else ()), SOURCE_SHA256, PREFIX, VERSIONS):
        if any(name in row.columns for row in rows):
            raise ZooError(f"{table}: the column '{name}' is filled from the models themselves; rename it.")


def provenance_of_models(count: int) -> dict[str, Any]:
    """Describe how a zoo was made of files, without paths and times, so that the same files give the same bytes."""
    import safetensors
    import torch

    versions = {"prepkit": __version__, "torch": str(torch.__version__), "safetensors": safetensors.__version__}
    return {"command": "zoo create", "sources": count, "versions": versions}


def read_task(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    raises ZooError naming the file, the line where it is not JSON, and what to do
    """
    try:
        task = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ZooError(f"{path}, line {error.lineno}: not JSON: {error.msg}. {REMEDY}") from None
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{path}: not JSON in UTF-8: {error}. {REMEDY}") from None
    except OSError as error:
        raise ZooError(f"{path}: cannot be read: {error.strerror}. {REMEDY}") from None
    if not isinstance(task, dict):
        raise ZooError(f"{path}: holds a {type(task).__name__}, not an object. {REMEDY}")
    return task


REMEDY = """Write an object such as {"kind": "images", "dataset": "digits"} in it."""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
