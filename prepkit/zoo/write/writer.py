"""ZooWriter: build a zoo instance by instance, in constant memory, resumable after a kill at any moment.

While it is written, a zoo has no zoo.json but a folder `.writing` with the open shards (staging.py), the journal
(journal.py) and the lock. `close` writes the table and the teacher, then zoo.json, whose presence makes the zoo
visible, and removes the folder. An instance is finished when `add` has returned.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from prepkit.errors import OutputError, ZooError, listed
from prepkit.families.registry import Architecture, Registry
from prepkit.files import output_error
from prepkit.lock import take_lock
from prepkit.prep.file import PRep
from prepkit.prep.shape import PRepShape
from prepkit.version import __version__
from prepkit.zoo.format.manifest import MANIFEST, Manifest, Shard, StoredArchitecture, write_manifest
from prepkit.zoo.format.settings import settings_of
from prepkit.zoo.format.shards import Extent, shard_format
from prepkit.zoo.format.tables import Schema, plain_columns, write_table
from prepkit.zoo.read.buffers import Buffers
from prepkit.zoo.write.checks import check_counts, check_json, check_splits, checked_dtype, new_ids, stack_size
from prepkit.zoo.write.finishing import members, table_rows
from prepkit.zoo.write.instance_rows import Packable, looked_up, packable, packable_stack, rows_of
from prepkit.zoo.write.journal import Begin, Entry, Taught
from prepkit.zoo.write.staging import SHARDS, Stage, Threads
from prepkit.zoo.write.teacher import drop_others, keep_teacher, publish_teacher, take_back
from prepkit.zoo.write.working import WRITING, open_journal, prepare, remove_litter

if TYPE_CHECKING:
    from torch import Tensor, nn

SHARD_BYTES = 256 << 20


class ZooWriter:
    """Writes a zoo. A context manager: leaving it without an exception finishes the zoo.

    path:         the zoo's folder; made if missing, and empty but for an unfinished zoo with `resume`
    width:        of the PReps, a multiple of 8
    height:       common height of the zoo, for readers; the tallest architecture's if missing
    name:         of the zoo; the folder's if missing
    format:       of the shards, "safetensors" or "hdf5"
    dtype:        of the PReps; that of the first instance if missing
    registry:     the architectures and their ClassIds, also those without instances; if missing, those that are
                  added, ascending in packed parameters
    task:         what the instances were trained on, JSON-able
    license:      of the zoo, an identifier such as "mit"
    provenance:   how it was made, JSON-able; without times, if the same input is to give the same bytes. It becomes
                  the attribute `provenance`, a dict in which the caller may change what `close` will write
    shard_bytes:  a shard holds at most this many bytes of values, but at least one instance
    resume:       go on with an unfinished zoo, given all other arguments as before; `finished_ids` and
                  `has_teacher` say what is there
    raises ZooLocked if another process writes it, ZooError if it is finished or was begun with other settings

    >>> with ZooWriter("my-zoo", width=512) as writer:
    ...     writer.add(network, split="train", accuracy=0.91)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        width: int = 512,
        height: int | None = None,
        name: str | None = None,
        format: str = "safetensors",
        dtype: str | None = None,
        registry: Registry | None = None,
        task: Mapping[str, Any] | None = None,
        license: str | None = None,
        provenance: Mapping[str, Any] | None = None,
        shard_bytes: int = SHARD_BYTES,
        resume: bool = False,
    ) -> None:
        self.root = Path(path)
        self.width = PRepShape.least(1, width).width
        self.height = None if height is None else PRepShape(height, width).height
        self.name = name or self.root.resolve().name
        self.registry = registry
        self._kind = shard_format(format)
        self._dtype = checked_dtype(dtype)
        self._shard_bytes = shard_bytes
        self.provenance = dict(provenance or {})
        self._about = {"task": task, "license": license}
        check_json({**self._about, "provenance": self.provenance})
        self._settings = settings_of(
            self.width, self.height, format, name, registry, task, license, provenance, shard_bytes
        )
        for member in registry or ():
            member.layout.shape(self.width, self.height)
        self._teacher: Taught | None = None
        self._stages: dict[str, Stage] = {}
        self._stored: dict[str, StoredArchitecture] = {}
        self._schema = Schema()
        self._ids: set[str] = set()
        self._splits: dict[str, int] = {}
        self._closed = False
        self._broken: BaseException | None = None
        self._folder = self.root / WRITING
        self._open(resume)

    # Adding ---------------------------------------------------------------------------------------------------

    @property
    def working_folder(self) -> Path:
        """The folder `.writing`, which is there as long as the zoo is unfinished and removed by `close`.

        A caller may keep files of its own in a folder in it; a resuming writer leaves them alone.
        """
        return self._folder

    @property
    def finished_ids(self) -> frozenset[str]:
        """Ids of all instances that are in the zoo."""
        return frozenset(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def add(
        self,
        model: nn.Module | Mapping[str, Tensor] | PRep,
        *,
        id: str | None = None,
        split: str | None = None,
        architecture: Architecture | str | None = None,
        **columns: Any,
    ) -> str:
        """Add one instance and return its id. It is finished, also after a kill, when this returns.

        model:        a network, a state dict or a PRep; BatchNorm is folded
        id:           unique in the zoo; a running number if missing
        split:        "train", "validation", "test" or another name
        architecture: recognised if missing
        columns:      metadata: numbers, text, booleans, None
        raises ZooError, LayoutMismatch, FusionError, CheckpointError (NaN) before anything is written
        """
        place = f"instance '{id}'" if id is not None else f"instance {len(self)}"
        item = packable(model, looked_up(architecture), place)
        return self._add(item, (), [id], [split], [columns], place)[0]

    def add_stack(
        self,
        stack: Mapping[str, Tensor] | Tensor,
        *,
        architecture: Architecture | str,
        ids: Sequence[str] | None = None,
        split: str | Sequence[str | None] | None = None,
        **columns: Sequence[Any],
    ) -> list[str]:
        """Add N instances of one architecture at once and return their ids; all of them are finished, or none.

        stack:   tensors `[N, *shape]` by name, without BatchNorm, or PReps `[N, H, W]` of any width
        ids:     N ids; running numbers if missing
        split:   one for all, or N
        columns: N values each
        raises as `add` does
        """
        from torch import Tensor

        known = looked_up(architecture)
        if known is None:
            raise ZooError("a stack needs its architecture.")
        place = f"stack of {known.name}"
        tensors = known.layout.unpack(stack) if isinstance(stack, Tensor) else stack
        item = packable_stack(tensors, known, place)
        count = stack_size(item.layout, item.tensors, place)
        splits = [split] * count if split is None or isinstance(split, str) else list(split)
        names: list[str | None] = [None] * count if ids is None else list(ids)
        check_counts({"ids": names, "split": splits, **columns}, count, place)
        rows = [{name: values[index] for name, values in columns.items()} for index in range(count)]
        return self._add(item, (count,), names, splits, rows, place)

    @property
    def has_teacher(self) -> bool:
        """True if the zoo has a teacher; what `set_teacher` was given is kept, also after a kill."""
        return self._teacher is not None

    def set_teacher(self, model: nn.Module | Mapping[str, Tensor] | PRep, architecture: Any = None) -> None:
        """Keep one network beside the instances as their teacher; the last one given counts.

        raises as `add` does; the teacher that was there stays then
        """
        self._check_open()
        item = packable(model, looked_up(architecture), "teacher")
        for piece in rows_of(item, self.width, item.layout.dtype, (), "teacher", self._buffers):  # checks the values
            self._buffers.give_back(piece.buffer)
        taught = keep_teacher(item, self.width, self._folder)
        if taught != self._teacher:
            self._journal.teach(taught)
        self._teacher = taught
        drop_others(taught, self._folder)

    def _add(
        self,
        item: Packable,
        batch: tuple[int, ...],
        ids: list[str | None],
        splits: list[str | None],
        columns: Sequence[Mapping[str, Any]],
        place: str,
    ) -> list[str]:
        self._check_open()
        names = new_ids(ids, self._ids, place)
        if not names:
            return []
        plain = [plain_columns(row, f"{place} ({name})") for name, row in zip(names, columns, strict=True)]
        schema = self._schema.extended(plain, place)
        check_splits(splits, place)
        self._check_member(item, place)
        dtype = self._dtype or item.layout.dtype
        rows = rows_of(item, self.width, dtype, batch, place, self._buffers)
        self._dtype = dtype
        entries = [Entry(n, item.name, s, row) for n, s, row in zip(names, splits, plain, strict=True)]
        with self._noting_failures():
            stage = self._stage(item)
            for piece in rows:
                self._buffers.give_back_after(stage.append(piece.values), piece)
            self._journal.add(entries)
        self._schema = schema
        self._count(entries)
        return names

    def _count(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._ids.add(entry.id)
            if entry.split is not None:
                self._splits[entry.split] = self._splits.get(entry.split, 0) + 1

    def _check_member(self, item: Packable, place: str) -> None:
        item.layout.shape(self.width, self.height)
        known = self._stored.get(item.name)
        if known is not None and known.layout != item.layout:
            raise ZooError(
                f"{place}: other instances of {item.name} have another layout (dtypes or tied tensors differ)."
            )
        if self.registry is not None and item.name not in {member.name for member in self.registry}:
            raise ZooError(
                f"{place}: {item.name} is not in the zoo's registry: {listed(member.name for member in self.registry)}."
            )

    # Finishing ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Finish the zoo: publish the last shards, the table and the teacher, then zoo.json.

        raises ZooError if `provenance` is not JSON; it can be put right and `close` called again
        """
        if self._closed and self._broken is None:
            return
        self._check_open()
        check_json({"provenance": self.provenance})
        try:
            with self._noting_failures():
                self._publish()
        finally:
            self._release()
        shutil.rmtree(self._folder)

    def discard(self) -> None:
        """Give up what is unfinished: all that was written is removed, and the folder too if it was not there before.

        Nothing happens to a finished zoo.
        """
        if (self.root / MANIFEST).exists():
            return
        self._release()
        for folder in (self.root / SHARDS, self._folder):
            shutil.rmtree(folder, ignore_errors=True)
        if self._is_new:
            with suppress(OSError):  # someone else's files are in it by now
                self.root.rmdir()

    def _publish(self) -> None:
        (self.root / SHARDS).mkdir(exist_ok=True)
        teacher = None if self._teacher is None else self._teacher.stored
        architectures = members(self._stored, self.registry, teacher, self.width)
        staged = [self._stages[stored.name] for stored in architectures if stored.name in self._stages]
        shards = [shard for stage in staged for shard in stage.shards()]
        rows_a_shard = {name: stage.full.rows for name, stage in self._stages.items()}
        rows = table_rows(self._journal.entries(self.width), architectures, shards, rows_a_shard)
        table = write_table(rows, self._schema.arrow(), self.root, self._folder)
        write_manifest(self._manifest(architectures, shards, table), self.root, overwrite=False)

    def _manifest(self, architectures: list[StoredArchitecture], shards: list[Shard], table: Any) -> Manifest:

        tallest = max((stored.height for stored in architectures if stored.class_id is not None), default=4)
        return Manifest(
            name=self.name,
            width=self.width,
            height=self.height or tallest,
            dtype=self._dtype or "float32",
            shard_format=self._kind.name,
            architectures=tuple(architectures),
            shards=tuple(shards),
            table=table,
            splits=dict(sorted(self._splits.items())),
            teacher=publish_teacher(self._teacher, self.root, self._folder),
            created_by=f"prepkit {__version__}",
            provenance=self.provenance,
            **self._about,  # type: ignore[arg-type]
        )

    def __enter__(self) -> ZooWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the zoo; after an exception leave it unfinished, to be resumed."""
        try:
            if kind is None:
                self.close()
        finally:
            self._release()

    # Opening --------------------------------------------------------------------------------------------------

    def _open(self, resume: bool) -> None:
        self._is_new = not self.root.exists()
        prepare(self.root, self._folder)
        self._lock = take_lock(self._folder / "lock", self.root)
        self._threads, self._buffers = Threads(), Buffers()
        try:
            self._journal, begun = open_journal(self.root, self._folder, self._settings, resume)
            if begun:
                self._resume()
        except BaseException:
            self._release()
            raise

    def _resume(self) -> None:
        remove_litter(self.root)
        counts: dict[str, int] = {}
        published: dict[str, Shard] = {}
        for line in self._journal.lines(self.width):
            if isinstance(line, Shard):
                published[line.path] = line
            elif isinstance(line, Begin):
                self._take_up(line)
            elif isinstance(line, Taught):
                self._teacher = line
            else:
                counts[line.architecture] = counts.get(line.architecture, 0) + 1
                self._schema = self._schema.extended([line.columns], f"instance '{line.id}'")
                self._count([line])
        for name, stored in self._stored.items():
            self._stage_of(stored).resume(counts.get(name, 0), published)
        take_back(self._teacher, self.root, self._folder)

    def _take_up(self, begin: Begin) -> None:
        if self._dtype not in (None, begin.dtype):
            raise ZooError(f"'{self.root}' was begun with dtype {begin.dtype}, not {self._dtype}.")
        self._dtype = begin.dtype
        self._stored[begin.stored.name] = begin.stored

    def _stage(self, item: Packable) -> Stage:
        """The stage of an architecture, which is written to the journal before its first instance."""
        if item.name in self._stages:
            return self._stages[item.name]
        if item.name not in self._stored:
            self._stored[item.name] = item.stored(self.width)
            self._journal.begin(self._stored[item.name], self._dtype or item.layout.dtype)
        return self._stage_of(self._stored[item.name])

    def _stage_of(self, stored: StoredArchitecture) -> Stage:
        row = Extent(1, stored.height, self.width, self._dtype or stored.layout.dtype)
        extent = replace(row, rows=max(1, self._shard_bytes // row.row_bytes))
        stage = Stage(self.root, self._folder, stored.name, self._kind, extent, self._threads, self._journal.publish)
        self._stages[stored.name] = stage
        return stage

    @contextmanager
    def _noting_failures(self) -> Iterator[None]:
        """Around what writes: after a failure the files may hold more than the journal says, so nothing may follow."""
        try:
            yield
        except OSError as error:
            self._broken = error if isinstance(error, OutputError) else output_error(self.root, error)
            raise self._broken from error
        except BaseException as error:
            self._broken = error
            raise

    def _check_open(self) -> None:
        if self._broken is not None:
            raise ZooError(
                f"writing '{self.root}' failed before ({str(self._broken) or type(self._broken).__name__}); what was "
                "finished is kept. Remove the cause, then go on with ZooWriter(..., resume=True)."
            ) from self._broken
        if self._closed:
            raise ZooError(f"'{self.root}': this writer is closed.")

    def _release(self) -> None:
        """Close all files and give the lock back, once."""
        if self._closed:
            return
        self._closed = True
        for stage in self._stages.values():
            stage.abandon()
        self._threads.stop()
        if hasattr(self, "_journal"):
            self._journal.close()
        self._lock.release()
