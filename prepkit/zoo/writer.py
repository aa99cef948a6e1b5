"""ZooWriter: build a zoo instance by instance, in constant memory, resumable after a kill at any moment.

While it is written, a zoo has no zoo.json but a folder `.writing` with the open shards (staging.py), the journal
(journal.py) and the lock. `close` writes the table and the teacher, then zoo.json, whose presence makes the zoo
visible, and removes the folder. An instance is finished when `add` has returned.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from prepkit.errors import OutputError, ZooError, listed
from prepkit.files import output_error
from prepkit.prep_file import PRep
from prepkit.registry import Architecture, Registry, architecture
from prepkit.shape import PRepShape
from prepkit.zoo.checks import check_json, check_splits, checked_dtype, new_ids, stack_size
from prepkit.zoo.finishing import members, table_rows, write_teacher
from prepkit.zoo.intake import Packable, bytes_of, packable, packable_stack, rows_of
from prepkit.zoo.journal import Begin, Entry, Journal
from prepkit.zoo.lock import Lock
from prepkit.zoo.manifest import MANIFEST, Manifest, Shard, StoredArchitecture, write_manifest
from prepkit.zoo.shards import Extent, shard_format
from prepkit.zoo.staging import SHARDS, Stage, Threads
from prepkit.zoo.tables import Schema, plain_columns, write_table

if TYPE_CHECKING:
    from torch import Tensor, nn

WRITING = ".writing"
JOURNAL = "journal.jsonl"
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
    provenance:   how it was made, JSON-able; without times, if the same input is to give the same bytes
    shard_bytes:  a shard holds at most this many bytes of values, but at least one instance
    resume:       go on with an unfinished zoo; `finished_ids` says what is there
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
        self._about = {"task": task, "license": license, "provenance": dict(provenance or {})}
        check_json(self._about)
        for member in registry or ():
            member.layout.shape(self.width, self.height)
        self._teacher: Packable | None = None
        self._stages: dict[str, Stage] = {}
        self._stored: dict[str, StoredArchitecture] = {}
        self._schema = Schema()
        self._ids: set[str] = set()
        self._splits: dict[str, int] = {}
        self._closed = False
        self._broken: Exception | None = None
        self._folder = self.root / WRITING
        self._open(resume)

    # Adding ---------------------------------------------------------------------------------------------------

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
        item = packable(model, _looked_up(architecture), place)
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

        known = _looked_up(architecture)
        if known is None:
            raise ZooError("a stack needs its architecture.")
        place = f"stack of {known.name}"
        tensors = known.layout.unpack(stack) if isinstance(stack, Tensor) else stack
        item = packable_stack(tensors, known, place)
        count = stack_size(item.layout, item.tensors, place)
        splits = [split] * count if split is None or isinstance(split, str) else list(split)
        names: list[str | None] = [None] * count if ids is None else list(ids)
        lists = {"ids": names, "split": splits, **columns}
        wrong = [f"{name}: {len(values)}" for name, values in lists.items() if len(values) != count]
        if wrong:
            raise ZooError(f"{place}: there are {count} instances, but {listed(wrong)} values.")
        rows = [{name: values[index] for name, values in columns.items()} for index in range(count)]
        return self._add(item, (count,), names, splits, rows, place)

    def set_teacher(self, model: nn.Module | Mapping[str, Tensor] | PRep, architecture: Any = None) -> None:
        """Keep one network beside the instances as their teacher; the last one given counts.

        raises as `add` does
        """
        self._check_open()
        item = packable(model, _looked_up(architecture), "teacher")
        rows_of(item, self.width, item.layout.dtype, (), "teacher")
        self._teacher = item

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
        values = rows_of(item, self.width, dtype, batch, place)
        self._dtype = dtype
        entries = [Entry(n, item.name, s, row) for n, s, row in zip(names, splits, plain, strict=True)]
        try:
            self._stage(item).append(bytes_of(values))
            self._journal.add(entries)
        except OSError as error:
            self._broken = error if isinstance(error, OutputError) else output_error(self.root, error)
            raise self._broken from error
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
        """Finish the zoo: publish the last shards, the table and the teacher, then zoo.json."""
        if self._closed and self._broken is None:
            return
        self._check_open()
        try:
            (self.root / SHARDS).mkdir(exist_ok=True)
            architectures = members(self._stored, self.registry, self._teacher, self.width)
            staged = [self._stages[stored.name] for stored in architectures if stored.name in self._stages]
            shards = [shard for stage in staged for shard in stage.shards()]
            rows_a_shard = {name: stage.full.rows for name, stage in self._stages.items()}
            rows = table_rows(self._journal.entries(self.width), architectures, shards, rows_a_shard)
            table = write_table(rows, self._schema.arrow(), self.root, self._folder)
            write_manifest(self._manifest(architectures, shards, table), self.root, overwrite=False)
        except OSError as error:
            self._broken = error if isinstance(error, OutputError) else output_error(self.root, error)
            raise self._broken from error
        finally:
            self._release()
        shutil.rmtree(self._folder)

    def _manifest(self, architectures: list[StoredArchitecture], shards: list[Shard], table: Any) -> Manifest:
        from prepkit import __version__

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
            teacher=None
            if self._teacher is None
            else write_teacher(self._teacher, self.width, self.root, self._folder),
            created_by=f"prepkit {__version__}",
            **self._about,  # type: ignore[arg-type]
        )

    def __enter__(self) -> ZooWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the zoo; after an exception leave it unfinished, to be resumed."""
        if kind is None:
            self.close()
        else:
            self._release()

    # Opening --------------------------------------------------------------------------------------------------

    def _open(self, resume: bool) -> None:
        if (self.root / MANIFEST).exists():
            shutil.rmtree(self._folder, ignore_errors=True)  # of a writer that was killed after its last step
            raise ZooError(f"'{self.root}' is a finished zoo; write another folder, or `prepkit zoo merge` the two.")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            others = sorted(entry.name for entry in self.root.iterdir() if entry.name != WRITING)
            if others and not self._folder.exists():
                raise ZooError(f"'{self.root}' holds other files ({listed(others, 3)}); name an empty folder.")
            self._folder.mkdir(exist_ok=True)
            (self.root / SHARDS).mkdir(exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise OutputError(f"'{self.root}' is a file, not a folder.") from None
        except OSError as error:
            raise output_error(self.root, error) from error
        self._lock = Lock.take(self._folder / "lock", self.root)
        self._threads = Threads()
        try:
            self._begin(resume)
        except BaseException:
            self._release()
            raise

    def _begin(self, resume: bool) -> None:
        path = self._folder / JOURNAL
        if not path.exists() or path.stat().st_size == 0:
            self._journal = Journal.create(path, self._settings())
            return
        if not resume:
            raise ZooError(
                f"'{self.root}' is an unfinished zoo; go on with resume=True (--resume), or delete the folder first."
            )
        self._journal = Journal.reopen(path)
        found = self._journal.settings()
        if not found:
            self._journal.close()
            self._journal = Journal.create(path, self._settings())
            return
        different = [key for key, value in self._settings().items() if found.get(key) != value]
        if different:
            told = listed(f"{key} {found.get(key)!r}, not {self._settings()[key]!r}" for key in different)
            raise ZooError(f"'{self.root}' was begun with other settings: {told}. Give the same ones to resume.")
        self._resume()

    def _settings(self) -> dict[str, Any]:
        return {"width": self.width, "format": self._kind.name, "shard_bytes": self._shard_bytes}

    def _resume(self) -> None:
        for litter in ("models-*.parquet", "teacher-*.prep.safetensors", ".prepkit-*.tmp"):  # of a killed `close`
            for file in self.root.glob(litter):
                file.unlink()
        counts: dict[str, int] = {}
        published: dict[str, Shard] = {}
        for line in self._journal.lines(self.width):
            if isinstance(line, Shard):
                published[line.path] = line
                continue
            if isinstance(line, Begin):
                self._take_up(line)
                continue
            counts[line.architecture] = counts.get(line.architecture, 0) + 1
            self._schema = self._schema.extended([line.columns], f"instance '{line.id}'")
            self._count([line])
        for name, stored in self._stored.items():
            self._stage_of(stored).resume(counts.get(name, 0), published)

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

    def _check_open(self) -> None:
        if self._broken is not None:
            raise ZooError(
                f"writing '{self.root}' failed before ({self._broken}); what was finished is kept. Remove the cause, "
                "then go on with ZooWriter(..., resume=True)."
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


def _looked_up(known: Architecture | str | None) -> Architecture | None:
    return architecture(known) if isinstance(known, str) else known
