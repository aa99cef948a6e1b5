"""UnfinishedStore: the finished instances of a zoo that is being written, or whose writing was interrupted.

What it shows is what the journal names when it is opened, and does not change while the writer goes on: values that an
instance was finished with are never written again, neither in an open shard nor in one that is published meanwhile.
So all shards are opened at once, whatever their names are later. Nothing in the folder is changed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError
from prepkit.zoo.format.manifest import MANIFEST, Shard, StoredArchitecture, StoredFile
from prepkit.zoo.format.shards import Extent, shard_format
from prepkit.zoo.read.shard_values import FileShard, MappedShard, OpenFile, ShardValues
from prepkit.zoo.read.store import LocalStore, Store, maps
from prepkit.zoo.write._contents import Contents
from prepkit.zoo.write._finishing import manifest_of, members, table_rows
from prepkit.zoo.write._journal import Entry, Line, lines_of, settings_of
from prepkit.zoo.write.working import JOURNAL, WRITING

if TYPE_CHECKING:
    import pyarrow as pa

ATTEMPTS = 20  # a writer may give a shard its name between two looks at the folder
NO_FILE = StoredFile("none", 0, 1, "0" * 64)  # the table of an unfinished zoo is in memory


@dataclass(frozen=True)
class Unfinished:
    """What the journal of an unfinished zoo says.

    settings: those of its writer
    entries:  finished instances, in order
    """

    root: Path
    settings: Mapping[str, Any]
    contents: Contents
    entries: list[Entry]

    @property
    def name(self) -> str:
        """The name that the zoo will have."""
        return self.settings["name"] or self.root.resolve().name


def read_unfinished(root: Path) -> Unfinished | None:
    """Read what an unfinished zoo holds now; None if the folder holds none.

    raises ZooError if its journal is damaged or of an older version
    """
    path = root / WRITING / JOURNAL
    entries: list[Entry] = []

    def noted(line: Line) -> Line:
        if isinstance(line, Entry):
            entries.append(line)
        return line

    try:
        settings = settings_of(path)
        if not settings:
            return None
        contents = Contents(None)
        contents.replay(map(noted, lines_of(path, settings["width"])), root)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Unfinished(root, settings, contents, entries)


def open_unfinished(root: Path, *, verify: bool | None = None, mmap: bool | None = None) -> Store:
    """Open the finished instances of an unfinished zoo; a zoo that is finished is opened as it is.

    raises ZooError if the folder holds neither, or the journal is damaged
    """
    for attempt in range(1, ATTEMPTS + 1):
        if (root / MANIFEST).exists():
            break
        found = read_unfinished(root)
        if found is None:
            if not (root / WRITING).is_dir():
                break
            continue
        try:
            return UnfinishedStore(found, maps(mmap))
        except FileNotFoundError:
            if attempt == ATTEMPTS:
                raise ZooError(
                    f"'{root}': a shard of the unfinished zoo is gone; delete it and write it again."
                ) from None
    return LocalStore(root, verify=verify, mmap=mmap)


class UnfinishedStore(Store):
    """The instances that were finished when it was opened. ClassIds are those that the zoo would have if it ended now.

    raises FileNotFoundError if a shard was renamed meanwhile
    """

    is_remote = False

    def __init__(self, unfinished: Unfinished, is_mapped: bool) -> None:
        self.unfinished = unfinished
        contents, settings = unfinished.contents, unfinished.settings
        self._kind = shard_format(settings["format"])
        architectures = _numbered(contents.architectures, settings)
        self._opened: list[ShardValues] = []
        self._rows_a_shard: dict[str, int] = {}
        shards: list[Shard] = []
        for stored in architectures:
            shards += self._shards_of(stored, contents, is_mapped)
        manifest = manifest_of(
            contents,
            architectures,
            height=settings["height"],
            name=unfinished.name,
            width=settings["width"],
            shard_format=settings["format"],
            shards=tuple(shards),
            table=replace(NO_FILE, rows=len(unfinished.entries)),
            task=settings["task"],
            license=settings["license"],
            provenance=settings["provenance"],
        )
        super().__init__(unfinished.root, is_mapped, manifest)
        self.is_mapped = is_mapped

    def shard(self, number: int) -> ShardValues:
        """Return a shard, which is open already."""
        return self._opened[number]

    def file(self, path: str) -> Path:
        """Return the file in the folder."""
        return self._file_inside(path)

    def _read_table(self) -> pa.Table:
        import pyarrow as pa

        unfinished, manifest = self.unfinished, self.manifest
        rows = table_rows(unfinished.entries, manifest.architectures, manifest.shards, self._rows_a_shard)
        schema = unfinished.contents.schema.arrow()
        return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)

    def _shards_of(self, stored: StoredArchitecture, contents: Contents, is_mapped: bool) -> list[Shard]:
        """Open all shards of an architecture, and describe them up to the last instance that is finished."""
        settings, root = self.unfinished.settings, self.unfinished.root
        dtype, count = contents.dtype or "float32", contents.num_instances[stored.name]
        row = Extent(1, stored.height, settings["width"], dtype)
        full = replace(row, rows=max(1, settings["shard_bytes"] // row.row_bytes))
        self._rows_a_shard[stored.name] = full.rows
        begin = len(self._kind.frame(full).before)
        published = {_number(path, stored.name): root / path for path in contents.published}
        found = []
        for number in range(-(-count // full.rows)):
            extent = replace(full, rows=min(full.rows, count - number * full.rows))
            part = root / WRITING / f"{stored.name}-{number:05d}.part"
            opened = OpenFile(published.get(number, part))
            path = opened.path.relative_to(root).as_posix()
            size = os.fstat(opened.descriptor).st_size
            if size < begin + extent.num_bytes:
                raise ZooError(
                    f"{opened.path}: the values of instances that were finished are gone (a power failure?); delete "
                    f"'{root}' and write it again."
                )
            self._opened.append(_mapped(opened, begin, extent) if is_mapped else FileShard(opened, begin, extent))
            found.append(Shard(path, extent.rows, size, NO_FILE.sha256, stored.name))
        return found

    def __getstate__(self) -> dict[str, Any]:
        raise ZooError(
            f"'{self.root}' is unfinished, and another process could find other instances in it. Use one process, "
            "processes that are forked, or the zoo when it is finished."
        )


def _mapped(opened: OpenFile, offset: int, extent: Extent) -> MappedShard:
    """Map an open file, which may have another name by now."""
    same = Path(f"/dev/fd/{opened.descriptor}")
    return MappedShard(same if same.exists() else opened.path, offset, extent)


def _numbered(known: Mapping[str, StoredArchitecture], settings: Mapping[str, Any]) -> list[StoredArchitecture]:
    """Return the architectures that have instances, in the order of their ClassIds."""
    class_ids = settings["registry"]
    if class_ids is None:
        return members(known, None, None, settings["width"])
    numbered = [replace(stored, class_id=class_ids[name]) for name, stored in known.items()]
    return sorted(numbered, key=lambda stored: stored.class_id or 0)


def _number(path: str, architecture: str) -> int:
    """Return the number of a published shard, `shards/NAME-00003-0123456789ab.h5`; -1 for that of another."""
    name, _, rest = path.rpartition("/")[2].rpartition("-")[0].rpartition("-")
    return int(rest) if name == architecture and rest.isdigit() else -1
