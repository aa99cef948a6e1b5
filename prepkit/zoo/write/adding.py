"""Add the models that an importer found to a zoo, one after the other, in constant memory.

A Source says which models there are (`ids`) and reads one of them when it is asked (`read`). What comes out is a Model:
tensors, what the source itself knows of it (`columns`), and what its file says beside the tensors (`said`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from prepkit.casting import check_finite
from prepkit.checkpoint.load import Checkpoint
from prepkit.errors import CheckpointError, OutputError, PrepkitError, ZooError, counted, listed
from prepkit.packing import check_packable
from prepkit.prep.file import PRep
from prepkit.support.progress import Advance
from prepkit.support.signals import noted_interruption
from prepkit.zoo.format.columns import OWN_COLUMNS, plain_columns
from prepkit.zoo.format.sources import names_columns
from prepkit.zoo.write._heard import Heard, Remarks
from prepkit.zoo.write._instance_rows import ONLY_FINITE, has_finite_sum
from prepkit.zoo.write._recognised import Recognised

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.families.registry import Architecture
    from prepkit.zoo.write.writer import ZooWriter

HEARD = "import/heard.jsonl"  # in the folder that a zoo has while it is written
SMALL = 1 << 16  # values of a network that are copied to be added up
PACK_FIRST = "Cast it with `prepkit pack --dtype float32`, and make the zoo of that PRep."

FINITE_OR_DROPPED = f"{ONLY_FINITE}. With drop_nan=True all such models are left out, and counted"


@dataclass(frozen=True)
class Packing:
    """How models are packed: the arguments of these names of `create_zoo`."""

    architecture: Architecture | str | None = None
    keep_batch_norm: bool = False
    keep_unfoldable: Literal["affine"] | None = None


@dataclass(frozen=True)
class Model:
    """One model as a source read it.

    tensors: a state dict, a Checkpoint or a PRep
    place:   the file or the part of one, for errors
    columns: what the source knows of the model
    said:    what the model's own file says beside its tensors; a value that the table cannot hold is left out and told
    unkept:  names of what stands in the file beside the tensors and is no value of a table
    architecture: the one to pack it as; that of Packing if missing
    counts:  what the source counts for its notes, which get the sums over all models in `Source.counts`
    """

    tensors: Mapping[str, Tensor] | PRep
    place: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)
    unkept: Sequence[str] = ()
    split: str | None = None
    architecture: Architecture | str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What paths and tables say of a model: values by column, and its split."""

    columns: Mapping[str, Any]
    split: str | None = None


class Source(ABC):
    """Models that an importer found.

    ids:    id of each model, all of them different
    types:  what each column of the user's tables became, for the notes
    options: how the models were looked for, which a resumed import must share; part of the zoo's provenance
    record: what the importer knows of all models; it goes into the zoo's provenance
    counts: after all models were read, the sums of what `read` counted in `Model.counts`, also before an interruption
    has_mixed_tables: whether tables may hold values of several types in one column, which are then left out and counted
    leaves_out_copies: whether a model with the weights of an earlier one is left out, and counted
    how_to_run: how they are run, with the keys of HowToRun (`prepkit.zoo.format.function`); None if it is unknown
    task:   record of the task that all were trained on, for a zoo whose user names none; None if it is unknown
    """

    ids: Sequence[str]
    types: Mapping[str, str] = {}
    options: Mapping[str, Any] = {}
    record: Mapping[str, Any] = {}
    counts: Mapping[str, int] = {}
    how_to_run: Mapping[str, Any] | None = None
    task: Mapping[str, Any] | None = None
    has_mixed_tables: bool = False
    leaves_out_copies: bool = False

    @abstractmethod
    def read(self, index: int) -> Model:
        """Read one model.

        raises PrepkitError naming its file
        """

    def told(self, index: int) -> Told:
        """Return what paths and tables say of a model, without reading its file; a resumed import compares it."""
        return Told({})

    def sha256(self, index: int) -> str | None:
        """Return what `read` gives as sha256 of a model's file; None if the source knows none."""
        return None

    def name(self, index: int) -> str:
        """Return what a message calls a model."""
        return f"'{self.ids[index]}'"

    def teacher(self) -> Model | None:
        """Read the network that the zoo keeps beside its instances as their teacher; None if there is none."""
        return None

    def notes(self) -> Sequence[str]:
        """Return sentences on what was found, after all models were read."""
        return ()


def add_models(
    writer: ZooWriter,
    source: Source,
    packing: Packing,
    progress: Advance | None,
    *,
    keep_going: bool = False,
    drop_nan: bool = False,
    how_to_go_on: str = "go on with resume=True",
) -> tuple[str, ...]:
    """Add the models that are not in the zoo yet, and return sentences on what was left out of them or is unusual.

    After a failure a zoo that holds some of them is kept, and the error gets a note that says so; an empty one is
    discarded.
    keep_going: add the other models too before an error is raised that tells of all that failed
    drop_nan:   leave out models that hold NaN or infinity, and count them
    """
    foreign = sorted(writer.written_ids.difference(source.ids))
    if foreign:
        raise ZooError(
            f"'{writer.root}' holds {counted(len(foreign), 'instance')} of none of these models: {listed(foreign)}. "
            "Give the same models as before, and more if you like, or delete the folder."
        )
    recognised = Recognised(keep_unfoldable=packing.keep_unfoldable, keep_batch_norm=packing.keep_batch_norm)
    failures: list[str] = []
    finished = writer.written_ids
    waiting = array("q", (index for index, id_ in enumerate(source.ids) if id_ not in finished))
    if progress is not None and len(waiting) < len(source.ids):
        progress(len(source.ids) - len(waiting))
    with (
        _telling_what_is_kept(writer, len(source.ids), how_to_go_on),
        closing(Heard(writer.working_folder / HEARD, finished)) as heard,
        writer.in_groups(),
        noted_interruption() as interruptions,
    ):
        if source.leaves_out_copies:
            kept = (index for index, id_ in enumerate(source.ids) if id_ in finished)
            heard.digests.update(digest_of(source.read(index).tensors) for index in kept)
        for index in waiting:
            try:
                _add(writer, source, index, packing.architecture, recognised, heard, drop_nan)
            except PrepkitError as error:  # an OutputError is of the zoo, not of one model
                if not keep_going or interruptions or isinstance(error, OutputError):
                    raise
                failures.append(f"failed: {error}")
            if progress is not None:
                progress(1)
        if failures:
            raise _not_finished(failures, len(source.ids))
        if source.ids and not len(writer):
            raise ZooError(f"No model is left: {counted(len(source.ids), 'model')}, and all hold NaN or infinity.")
    source.counts = heard.counts
    return (*source.notes(), *heard.notes())


def _add(
    writer: ZooWriter,
    source: Source,
    index: int,
    architecture: Architecture | str | None,
    recognised: Recognised,
    heard: Heard,
    drop_nan: bool,
) -> None:
    id_ = source.ids[index]
    model = source.read(index)
    architecture = model.architecture or architecture
    item = recognised.like(model.tensors, architecture)
    if not isinstance(model.tensors, PRep):
        if item is None:
            check_packable(model.tensors, model.place, PACK_FIRST)
        if not _are_finite(model.tensors):
            try:  # before it is folded, and with the name of the file
                check_finite(model.tensors, model.place, remedy=FINITE_OR_DROPPED)
            except CheckpointError:
                if not drop_nan:
                    raise
                heard.not_finite.append(id_)
                return
    digest = digest_of(model.tensors) if source.leaves_out_copies else b""
    if digest in heard.digests:
        heard.copies.append(id_)
        return
    remarks = Remarks(counts=dict(model.counts))
    item = item or recognised.packable(
        model.tensors, architecture, source.name(index), left_out=remarks.buffers, costs=remarks.costs
    )
    prefix = ""
    if isinstance(model.tensors, PRep):
        prefix = model.tensors.origin.prefix
    elif isinstance(model.tensors, Checkpoint):
        prefix = model.tensors.prefix
    told = _held(writer, model.columns, remarks) if source.has_mixed_tables else model.columns
    columns = {**told, **names_columns(prefix, item.versions)}
    said = _fitting(writer, columns, model, remarks)
    heard.keep(id_, remarks)
    writer.add(item, id=id_, split=model.split, **columns, **said)
    heard.add(remarks)
    if digest:
        heard.digests.add(digest)


def _are_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether all values are surely finite; a sum that overflows says no too."""
    import torch

    floats = [tensor.flatten() for tensor in tensors.values() if tensor.is_floating_point() and tensor.numel()]
    if len({tensor.dtype for tensor in floats}) == 1 and sum(map(len, floats)) <= SMALL:
        floats = [torch.cat(floats)]  # one sum takes less time than many
    return all(map(has_finite_sum, floats))


def digest_of(tensors: Mapping[str, Tensor] | PRep) -> bytes:
    """Return a digest of all tensors with their names, dtypes and shapes."""
    import torch

    named = tensors.state_dict() if isinstance(tensors, PRep) else tensors
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(named):
        tensor = named[name].detach().cpu()
        digest.update(f"{name}\n{tensor.dtype}\n{list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _held(writer: ZooWriter, columns: Mapping[str, Any], remarks: Remarks) -> dict[str, Any]:
    """Return the columns without values of another kind than those before, which are counted."""
    if writer.can_hold(columns):
        return dict(columns)
    held = {name: value for name, value in columns.items() if writer.can_hold({name: value})}
    remarks.unlike_of_tables = [name for name in columns if name not in held]
    return held


def _fitting(writer: ZooWriter, columns: Mapping[str, Any], model: Model, remarks: Remarks) -> dict[str, Any]:
    """Return those values of a model's file that the table can hold, by column; the others are counted."""
    remarks.unkept = list(model.unkept)
    fitting = {}
    for name, value in model.said.items():
        column = name
        if name in OWN_COLUMNS:
            column = f"file.{name}"
            if column in model.said:
                remarks.unkept.append(name)
                continue
            remarks.renamed[name] = column
        if column in columns:
            remarks.twice += [column] if columns[column] != value else []
            continue
        try:
            fitting.update(plain_columns({column: value}, ""))
        except ZooError:
            remarks.unkept.append(name)
    if writer.can_hold(fitting):
        return fitting
    unlike = [name for name, value in fitting.items() if not writer.can_hold({name: value})]
    remarks.unlike = unlike
    return {name: value for name, value in fitting.items() if name not in unlike}


@contextmanager
def _telling_what_is_kept(writer: ZooWriter, total: int, how_to_go_on: str) -> Iterator[None]:
    """Say in a note of an error how much of the zoo is kept; discard a zoo that holds nothing."""
    try:
        yield
    except (PrepkitError, KeyboardInterrupt) as error:
        if len(writer):
            are = "is" if len(writer) == 1 else "are"
            kept = f"{len(writer):,} of {counted(total, 'model')} {are} kept"
            error.add_note(f"{kept}; {how_to_go_on}, or delete '{writer.root}'.")
        else:
            writer.discard()
        raise


def _not_finished(failures: list[str], total: int) -> ZooError:
    """Return the error that sums failures up; its notes tell of each."""
    cannot = f"{len(failures):,} of {counted(total, 'model')} cannot be added, so the zoo is not finished"
    error = ZooError(f"{cannot}. Mend them, or leave them out of the command.")
    for failure in failures:
        error.add_note(failure)
    return error
