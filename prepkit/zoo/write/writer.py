"""ZooWriter: write a zoo instance by instance, in constant memory; after a kill at any moment it can go on.

While a zoo is written it has no zoo.json, but a folder `.writing` with the open shards (staging.py), the journal
(journal.py) and the lock. `close` writes the table, the teacher and at last zoo.json, whose presence makes the zoo
visible, and removes the folder. An instance is finished when `add` has returned; of a group, when that is written.
Instances that are appended to a finished zoo are written as a zoo in its folder `.appending` first (appending.py).
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from prepkit.errors import ZooError, counted
from prepkit.families.registry import Architecture, Registry
from prepkit.prep.file import PRep
from prepkit.prep.shape import PRepShape
from prepkit.support.files import system_errors_as_output
from prepkit.zoo.format.function import Function
from prepkit.zoo.format.manifest import MANIFEST, write_manifest
from prepkit.zoo.format.shards import shard_format
from prepkit.zoo.write._buffers import Buffers
from prepkit.zoo.write._checks import check_json, check_member, checked_dtype, new_entries, rows_of_stack, stack_size
from prepkit.zoo.write._contents import Contents
from prepkit.zoo.write._failure import Failure
from prepkit.zoo.write._finishing import manifest_of, publish_files
from prepkit.zoo.write._group import Group
from prepkit.zoo.write._instance_rows import Packable, packable, packable_stack, packed_pieces
from prepkit.zoo.write._settings import settings_of_journal
from prepkit.zoo.write._stages import Stages
from prepkit.zoo.write._teacher import drop_others, keep_teacher, take_back
from prepkit.zoo.write.appending import join, target_of
from prepkit.zoo.write.staging import Stage
from prepkit.zoo.write.working import (
    WRITING,
    open_journal,
    remove_folder,
    remove_litter,
    remove_unfinished,
    take_folder,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prepkit.zoo.write._journal import Entry

SHARD_BYTES = 256 << 20


class ZooWriter:
    """Writes a zoo. It is a context manager: leaving it without an exception finishes the zoo.

    path:         the zoo's folder, made if missing; with `resume` it may hold an unfinished zoo, else it is empty
    width:        columns of the PReps, a multiple of 8; 512 if missing
    height:       common height at which readers give the PReps; the tallest architecture's if missing
    name:         name of the zoo; the folder's if missing
    format:       format of the shards, "safetensors" or "hdf5"; the first if missing
    dtype:        dtype of the PReps; the first instance's if missing
    registry:     the architectures and their ClassIds, also those without instances; if missing, the architectures
                  that are added, ascending in packed parameters
    task:         record of the task that the instances were trained on, JSON-able
    license:      licence of the zoo, an identifier such as "mit"
    provenance:   how the zoo was made, JSON-able; the same input gives the same bytes if there are no times in it. It
                  becomes the attribute `provenance`, a dict that the caller may change until `close` writes it
    function:     (an attribute only) how the instances are run; an importer sets it before `close`
    shard_bytes:  a shard holds at most this many bytes of values, but at least one instance
    resume:       go on with an unfinished zoo, given all other arguments as before; `finished_ids` and
                  `has_teacher` tell what it holds
    append:       add instances to a finished zoo, which `close` changes in one step, and which others read meanwhile.
                  Settings are the zoo's, ClassIds stay, `provenance` is that of what is appended. `notes` then holds
                  sentences that the owner should read
    raises ZooLocked if another process writes the zoo, ZooError if it is finished (with `append`: not finished) or was
    begun with other settings

    >>> with ZooWriter("my-zoo", width=512) as writer:
    ...     writer.add(network, split="train", accuracy=0.91)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        width: int | None = None,
        height: int | None = None,
        name: str | None = None,
        format: str | None = None,
        dtype: str | None = None,
        registry: Registry | None = None,
        task: Mapping[str, Any] | None = None,
        license: str | None = None,
        provenance: Mapping[str, Any] | None = None,
        shard_bytes: int = SHARD_BYTES,
        resume: bool = False,
        append: bool = False,
    ) -> None:
        given: dict[str, Any] = {"width": width, "height": height, "format": format, "name": name, "dtype": dtype}
        target = target_of(Path(path), {**given, "task": task, "license": license}, registry, resume, append)
        self.root, self._earlier, self.notes, chosen = target.root, target.earlier, target.notes, target.settings
        self.width = PRepShape.least(1, chosen["width"]).width
        self.height = None if chosen["height"] is None else PRepShape(chosen["height"], self.width).height
        self.name = chosen["name"] or self.root.resolve().name
        self.registry = registry
        self.provenance = dict(provenance or {})
        self.function: Function | None = None
        self._about = {"task": chosen["task"], "license": chosen["license"]}
        self._format = shard_format(chosen["format"])
        self._contents = Contents(checked_dtype(chosen["dtype"]), self._earlier)
        check_json({**self._about, "provenance": self.provenance})
        for member in registry or ():
            member.layout.shape(self.width, self.height)
        self._buffers = Buffers()
        self._is_closed = False
        self._failure = Failure(self.root)
        self._group: Group | None = None
        self._folder = self.root / WRITING
        self._open(settings_of_journal(chosen, registry, self.provenance, shard_bytes), shard_bytes, resume)

    # Adding ---------------------------------------------------------------------------------------------------

    @property
    def working_folder(self) -> Path:
        """The folder `.writing`, which exists until `close` removes it.

        A caller may keep files of its own in a folder inside; a resuming writer leaves them alone.
        """
        return self._folder

    @property
    def finished_ids(self) -> frozenset[str]:
        """The ids of all instances that are in the zoo; `id in writer` asks for one."""
        return self._contents.all_ids

    @property
    def written_ids(self) -> frozenset[str]:
        """The ids of the instances that are written here; without those of the zoo that they are appended to."""
        return frozenset(self._contents.ids)

    def __contains__(self, id: object) -> bool:
        return self._contents.has_id(id)

    def finished(self) -> Iterator[Entry]:
        """Read the instances that are written here, in order, from the disk."""
        self._write_group()
        return self._journal.entries(self.width)

    def values_of(self, architecture: str, row: int) -> Tensor:
        """Read the PRep `[cells]` of the instance `row` of an architecture that is in the zoo, from the disk."""
        return self._stages.values(architecture, row)

    @contextmanager
    def in_groups(self) -> Iterator[None]:
        """Write many instances at a time in this block: they are finished some at a time, all of them when it ends."""
        self._group = Group(self._journal, self._contents, self._buffers)
        try:
            yield
        finally:
            if self._failure:
                self._group.drop()
            self._write_group()
            self._group = None

    def can_hold(self, columns: Mapping[str, Any]) -> bool:
        """Return whether the table can hold these values, beside those that are in it."""
        return self._contents.can_hold(columns)

    def __len__(self) -> int:
        return len(self._contents.ids)

    def __repr__(self) -> str:
        return f"<ZooWriter of '{self.root}': {counted(len(self), 'instance')}>"

    def add(
        self,
        model: nn.Module | Mapping[str, Tensor] | PRep | Packable,
        *,
        id: str | None = None,
        split: str | None = None,
        architecture: Architecture | str | None = None,
        keep_unfoldable: Literal["affine"] | None = None,
        **columns: Any,
    ) -> str:
        """Add one instance and return its id. When this returns, the instance is in the zoo, also after a kill.

        model:        a network, a state dict or a PRep, whose BatchNorm is folded, or what `packable` made of one
        id:           a text that is unique in the zoo; a running number, which no instance had before, if missing
        split:        "train", "validation", "test" or another name
        architecture: the network's architecture; it is recognised if missing
        keep_unfoldable: "affine" makes a BatchNorm that has no layer to go into a scale and a shift of each channel
        columns:      metadata: numbers, texts, booleans, dates, timestamps, lists (such as training curves), None
        raises ZooError, LayoutMismatch, FusionError, CheckpointError (NaN) before anything is written
        """
        place = f"instance '{id}'" if id is not None else f"instance {len(self)}"
        item = packable(model, architecture, place, keep_unfoldable)
        return self._add(item, None, [id], [split], [columns], place)[0]

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
        item = packable_stack(stack, architecture)
        place = f"stack of {item.name}"
        count = stack_size(item.layout, item.tensors, place)
        names, splits, rows = rows_of_stack(ids, split, columns, count, place)
        return self._add(item, count, names, splits, rows, place)

    @property
    def has_teacher(self) -> bool:
        """True if the zoo has a teacher; a teacher that was set is kept, also after a kill."""
        if self._earlier is not None:
            return self._earlier.manifest.teacher is not None
        return self._contents.teacher is not None

    def set_teacher(
        self, model: nn.Module | Mapping[str, Tensor] | PRep, architecture: Architecture | str | None = None
    ) -> None:
        """Keep one network beside the instances as their teacher; it replaces a teacher that was given before.

        raises as `add` does; the teacher that was there stays then
        """
        self._check_open()
        if self._earlier is not None:
            raise ZooError(
                f"only instances are appended; '{self._earlier.root}' keeps the teacher that it has, or none."
            )
        item = packable(model, architecture, "teacher")
        for piece in packed_pieces(item, self.width, item.layout.dtype, None, "teacher", self._buffers):
            self._buffers.give_back(piece.buffer)  # the values were checked while they were packed
        with system_errors_as_output(self._folder):
            entry = keep_teacher(item, self.width, self._folder)
        if entry != self._contents.teacher:
            self._journal.set_teacher(entry)
        self._contents.teacher = entry
        drop_others(entry, self._folder)

    def _add(
        self,
        item: Packable,
        count: int | None,
        ids: Sequence[str | None],
        splits: Sequence[str | None],
        columns: Sequence[Mapping[str, Any]],
        place: str,
    ) -> list[str]:
        """Check all that can be wrong, then write: values first, then their entries in the journal."""
        self._check_open()
        contents = self._contents
        check_member(item, self.width, contents, self.registry, place)
        item.layout.shape(self.width, self.height)
        entries, schema = new_entries(item.name, ids, splits, columns, contents, place)
        if not entries:
            return []
        dtype = contents.dtype or item.layout.dtype
        pieces = packed_pieces(item, self.width, dtype, count, place, self._buffers)
        contents.dtype = dtype
        with self._failure.kept():
            stage = self._stage(item, dtype)
            if self._group is not None and count is None:
                self._group.add(stage, entries[0], schema, next(pieces))
            else:
                self._write_group()
                for piece in pieces:
                    self._buffers.give_back_after(stage.append(piece.values), piece)
                self._journal.add(entries, stage.sums())
                contents.add(entries, schema)
        return [entry.id for entry in entries]

    def _write_group(self) -> None:
        with self._failure.kept():
            if self._group is not None:
                self._group.write()

    def _stage(self, item: Packable, dtype: str) -> Stage:
        """The stage of an architecture, which is in the journal before its first instance."""
        known = self._contents.architectures
        if item.name not in known:
            stored = item.stored(self.width)
            self._journal.begin(stored, dtype)
            known[item.name] = stored
        return self._stages.of(known[item.name], dtype)

    # Finishing ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Finish the zoo: publish the last shards, the table and the teacher, then zoo.json; or append it to the other.

        raises ZooError if `provenance` is not JSON; it can be put right and `close` called again
        """
        if self._is_closed and not self._failure:
            return
        self._check_open()
        check_json({"provenance": self.provenance})
        if self._earlier is not None and not len(self):
            self.discard()
            return
        try:
            with self._failure.kept():
                self._publish()
            self._held.close()
            shutil.rmtree(self._folder, ignore_errors=True)  # before others can take the lock
        finally:
            self._release()
        remove_folder(self._folder)  # Windows removes no file that is locked
        if self._earlier is not None:
            self.notes += join(self._earlier.root, self._sum)

    def discard(self) -> None:
        """Remove all that was written of an unfinished zoo, and the folder too if it was not there before.

        A finished zoo stays.
        """
        if (self.root / MANIFEST).exists():
            return
        self._journal.check_own()
        self._release()
        remove_unfinished(self.root, self._folder, is_new=self._is_new or self._earlier is not None)

    def _publish(self) -> None:
        self._write_group()
        contents, entries = self._contents, self._journal.entries(self.width)
        files = publish_files(contents, self._stages, entries, self.registry, self.root, self._folder)
        about: dict[str, Any] = {"name": self.name, "width": self.width, "height": self.height, **self._about}
        about |= {"shard_format": self._format.name, "provenance": self.provenance, "function": self.function}
        about |= {} if self._earlier is None else {"unknown": self._earlier.mark}
        manifest = manifest_of(contents, **files, **about)
        self._journal.check_own()
        write_manifest(manifest, self.root, overwrite=False)
        self._sum = manifest.to_dict()["sha256"]

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

    def _open(self, settings: Mapping[str, Any], shard_bytes: int, resume: bool) -> None:
        self._is_new = not self.root.exists()
        self._locked, self._held = ExitStack(), ExitStack()  # the lock is given back after all that is held is closed
        # A writer that nobody holds any more, as one of a notebook's cell that failed, must not keep its folder locked.
        weakref.finalize(self, self._locked.close).atexit = False
        try:
            self._locked.callback(take_folder(self.root, self._folder).release)
            self._locked.callback(self._held.close)
            self._journal, has_begun = open_journal(self.root, self._folder, settings, resume)
            self._held.callback(self._journal.close)
            own, done = self._journal.check_own, self._journal.publish
            self._stages = Stages(self.root, self._folder, self._format, self.width, shard_bytes, own, done)
            self._held.callback(self._stages.close)
            if has_begun:
                self._resume()
        except BaseException:
            self._release()
            raise

    def _resume(self) -> None:
        remove_litter(self.root)
        contents = self._contents
        contents.replay(self._journal.lines(self.width), self.root)
        self._stages.resume(contents)
        take_back(contents.teacher, self.root, self._folder)

    def _check_open(self) -> None:
        self._failure.check()
        if self._is_closed:
            raise ZooError(f"'{self.root}': this writer is closed.")
        self._journal.check_own()

    def _release(self) -> None:
        """Close all files and give the lock back."""
        self._is_closed = True
        self._locked.close()
