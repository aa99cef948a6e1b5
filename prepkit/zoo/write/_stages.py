"""Stages: the unfinished shards of all architectures of a zoo, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prepkit.zoo.format.manifest import Shard, StoredArchitecture
from prepkit.zoo.format.shards import Extent, ShardFormat
from prepkit.zoo.write._open_files import OpenFiles
from prepkit.zoo.write.staging import Stage, Threads

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.zoo.write._contents import Contents


class Stages:
    """One stage for each architecture that has instances.

    shard_bytes:  bound of the bytes of values in a shard
    check_own:    called, by another thread, before a shard gets its name; raises if another writer has the folder
    on_published: called, by another thread, with each shard that has its name
    """

    def __init__(
        self,
        root: Path,
        folder: Path,
        kind: ShardFormat,
        width: int,
        shard_bytes: int,
        check_own: Callable[[], None],
        on_published: Callable[[Shard], None],
    ) -> None:
        self._root = root
        self._folder = folder
        self._kind = kind
        self.width = width
        self._shard_bytes = shard_bytes
        self._check_own = check_own
        self._on_published = on_published
        self._files = OpenFiles()
        self._threads = Threads()
        self._stages: dict[str, Stage] = {}

    def of(self, stored: StoredArchitecture, dtype: str) -> Stage:
        """The stage of an architecture, made when it is first asked for."""
        stage = self._stages.get(stored.name)
        if stage is None:
            row = Extent(1, stored.height, self.width, dtype)
            extent = replace(row, rows=max(1, self._shard_bytes // row.row_bytes))
            stage = self._stages[stored.name] = Stage(
                self._root,
                self._folder,
                stored.name,
                self._kind,
                extent,
                self._threads,
                self._files,
                self._check_own,
                self._on_published,
            )
        return stage

    def resume(self, contents: Contents) -> None:
        """Go on where a killed writer stopped.

        contents: what its journal says
        raises ZooError if values of a finished instance are gone, or are not those that were written
        """
        for name, stored in contents.architectures.items():
            stage = self.of(stored, contents.dtype or stored.layout.dtype)
            stage.resume(contents.num_instances[name], contents.published, contents.sums)

    def publish(self, architectures: Iterable[StoredArchitecture]) -> list[Shard]:
        """Publish all shards, and describe them in the order of their architectures."""
        stages = [self._stages[stored.name] for stored in architectures if stored.name in self._stages]
        return [shard for stage in stages for shard in stage.publish()]

    def values(self, architecture: str, row: int) -> Tensor:
        """Read the values `[cells]` of an architecture's instance `row`, counted from 0."""
        return self._stages[architecture].values(row)

    @property
    def rows_a_shard(self) -> Mapping[str, int]:
        """Number of rows in a full shard of each architecture."""
        return {name: stage.full.rows for name, stage in self._stages.items()}

    def close(self) -> None:
        """Close all files, and wait for what is being hashed and published; a later writer can resume."""
        self._files.close_all()
        self._threads.stop()
