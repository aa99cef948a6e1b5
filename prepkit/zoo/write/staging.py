"""Stage: the shards of one architecture while they are written.

Values are appended to a file in `.writing` and hashed meanwhile; a shard is published when it is full.

A shard's file begins with the frame of a full shard, so its sha256 grows with its values. Only the last shard of an
architecture, which is rarely full, is hashed again when the writer closes, because its frame then names another number
of rows.
Values are written before their line in the journal, so the file holds all that the journal names, also after a
kill -9, since the page cache outlives the process. After a power failure the file may be shorter.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import OutputError, ZooError, counted
from prepkit.support.files import flush, output_error, publish, sha256_of_file, system_errors_as_output
from prepkit.tensors import torch_dtype
from prepkit.zoo.format.manifest import Shard
from prepkit.zoo.format.shards import Extent, Frame, ShardFormat
from prepkit.zoo.write._journal import ValuesSum
from prepkit.zoo.write._open_files import OpenFiles

if TYPE_CHECKING:
    from torch import Tensor

SHARDS = "shards"
CHUNK_BYTES = 4 << 20
WRITE_BACK_BYTES = 32 << 20


class Stage:
    """The shards of one architecture, in order: full ones are published, and at most one is open.

    full: the array of a full shard
    rows: number of rows so far
    """

    def __init__(
        self,
        root: Path,
        folder: Path,
        architecture: str,
        kind: ShardFormat,
        extent: Extent,
        threads: Threads,
        files: OpenFiles,
        check_own: Callable[[], None],
        on_published: Callable[[Shard], None],
    ) -> None:
        self.root = root
        self.folder = folder
        self.architecture = architecture
        self.kind = kind
        self.full = extent
        self.frame = self._frame(extent)
        self.threads = threads
        self.files = files
        self.check_own = check_own
        self.on_published = on_published
        self.rows = 0
        self._unwritten = 0
        self._published: list[Future[Shard]] = []
        self._sums: list[tuple[int, Future[str]]] = []  # full shards since `sums` was last asked, and their sums
        self._digest: Any = None

    def locate(self, row: int) -> tuple[int, int]:
        """Return the shard's number and the row in it of this architecture's instance `row`."""
        return divmod(row, self.full.rows)

    def part(self, number: int) -> Path:
        """Return the file of a shard that is not published."""
        return self.folder / f"{self.architecture}-{number:05d}.part"

    def append(self, values: memoryview) -> Future[None]:
        """Write whole rows, which may fill several shards; when the future is done, the values are hashed too.

        raises OutputError if the disk is full; these rows are then not in the file
        """
        hashed: Future[None] = Future()
        row_bytes = self.full.row_bytes
        while len(values):
            number, start = self.locate(self.rows)
            count = min(len(values) // row_bytes, self.full.rows - start)
            piece, values = values[: count * row_bytes], values[count * row_bytes :]
            hashed = self._write(number, start, piece)
            self.rows += count
            if start + count == self.full.rows:
                self._finish_full(number)
        return hashed

    def sums(self) -> list[ValuesSum]:
        """Return the sums of all shards that values were appended to since the last call, once these are hashed."""
        number, rows = self.locate(self.rows)
        sums = [(full, self.full.rows, sha256) for full, sha256 in self._sums]
        self._sums = []
        if rows:
            sums.append((number, rows, self.threads.hashing.submit(self._digest.hexdigest)))
        return [ValuesSum(self.architecture, shard, rows, sha256.result()) for shard, rows, sha256 in sums]

    def values(self, row: int) -> Tensor:
        """Read the values `[cells]` of this architecture's instance `row` from the disk."""
        import torch

        number, start = self.locate(row)
        part = self.part(number)
        file = part if part.exists() else self._published_file(number)
        if file is None or row >= self.rows:
            raise ZooError(f"'{self.root}': there is no instance {row} of {self.architecture}.")
        with open(file, "rb") as opened:
            opened.seek(len(self.frame.before) + start * self.full.row_bytes)
            content = bytearray(opened.read(self.full.row_bytes))
        return torch.frombuffer(content, dtype=torch_dtype(self.full.dtype))

    def publish(self) -> list[Shard]:
        """Publish the last shard, cut to the rows that it has, and return all shards."""
        number, rows = self.locate(self.rows)
        if rows:
            self._finish_last(number, rows)
        return [future.result() for future in self._published]

    # Resuming -------------------------------------------------------------------------------------------------

    def resume(self, rows: int, published: Mapping[str, Shard], sums: Mapping[tuple[str, int], ValuesSum]) -> None:
        """Go on where a killed writer stopped, when `rows` rows were finished.

        published: shards by path that are known to be whole
        sums:      the sums of unfinished shards by architecture and number; a zoo that an older version began lacks
                   some of them
        raises ZooError if the values of a finished row are gone, or are not those that were written
        """
        self.rows = rows
        number, rest = self.locate(rows)
        for full in range(number):
            file = self._published_file(full)
            shard = published.get(file.relative_to(self.root).as_posix()) if file else None
            if shard is not None and shard.rows == self.full.rows:
                self._published.append(_done(shard))
                continue
            self._reopen(full, self.full.rows, sums)
            self._finish_full(full)
        self._sums.clear()  # the journal has them
        if rest:
            self._reopen(number, rest, sums)
        unfinished = number + bool(rest)  # the first shard of a stack whose journal lines were not written
        for other, file in self._published_files():
            if other >= unfinished:
                file.unlink()
        self.part(unfinished).unlink(missing_ok=True)

    def _published_file(self, number: int) -> Path | None:
        return next((file for other, file in self._published_files() if other == number), None)

    def _published_files(self) -> list[tuple[int, Path]]:
        """Return number and file of all published shards of the architecture."""
        name = re.compile(re.escape(self.architecture) + r"-(\d{5,})-[0-9a-f]{12}" + re.escape(self.kind.suffix))
        files = [(name.fullmatch(file.name), file) for file in (self.root / SHARDS).iterdir()]
        return [(int(match[1]), file) for match, file in files if match]

    def _reopen(self, number: int, rows: int, sums: Mapping[tuple[str, int], ValuesSum]) -> None:
        part = self.part(number)
        published = self._published_file(number)
        if published and not part.exists():  # it was published, and perhaps cut, before the kill
            os.replace(published, part)
        end = len(self.frame.before) + rows * self.full.row_bytes
        if not part.exists() or part.stat().st_size < end:
            raise ZooError(
                f"{part}: the values of instances that were finished are gone (a power failure?), so this zoo cannot "
                f"be resumed. Delete '{self.root}' and write it again."
            )
        with system_errors_as_output(part):
            file = self.files.open(part)
            os.ftruncate(file, end)
            os.pwrite(file, self.frame.before, 0)
        self._digest = hashlib.sha256()
        for chunk in chunks_of(part, end):
            self._digest.update(chunk)
        known = sums.get((self.architecture, number))
        if known is not None and (known.rows, known.sha256) != (rows, self._digest.hexdigest()):
            raise ZooError(
                f"{part}: its values are not those that were written; the disk has damaged them, or another program "
                f"has changed them. This zoo cannot be resumed: delete '{self.root}' and write it again."
            )

    # Writing --------------------------------------------------------------------------------------------------

    def _write(self, number: int, start: int, values: memoryview) -> Future[None]:
        part = self.part(number)
        if self._digest is None:
            write_all(self.files.open(part, new=True), memoryview(self.frame.before), 0, part)
            self._digest = hashlib.sha256(self.frame.before)
        file = self.files.open(part)
        hashed = self.threads.hash(self._digest, values)  # another thread hashes while this one writes
        write_all(file, values, len(self.frame.before) + start * self.full.row_bytes, part)
        self._unwritten += len(values)
        if self._unwritten >= WRITE_BACK_BYTES:  # otherwise the disk would idle until the shard is full
            self._unwritten = 0
            self.threads.publishing.submit(write_back, os.dup(file))
        return hashed

    def _finish_full(self, number: int) -> None:
        """Write and hash the end of the frame, and publish, after the values that are still being hashed."""
        end = len(self.frame.before) + self.full.num_bytes
        digest, part = self._digest, self.part(number)
        write_all(self.files.open(part), memoryview(self.frame.after), end, part)
        self.files.close(part)
        self._digest = None
        self._sums.append((number, self.threads.hashing.submit(digest.hexdigest)))
        self.threads.hash(digest, memoryview(self.frame.after))
        hashed = self.threads.hashing.submit(digest.hexdigest)
        self._published.append(self.threads.publishing.submit(self._publish, part, number, self.full, hashed))

    def _finish_last(self, number: int, rows: int) -> None:
        """Give the last shard the frame of its own rows, and hash it anew."""
        extent = replace(self.full, rows=rows)
        frame = self._frame(extent)
        part = self.part(number)
        file = self.files.open(part)
        write_all(file, memoryview(frame.before), 0, part)
        write_all(file, memoryview(frame.after), len(frame.before) + extent.num_bytes, part)
        self.files.close(part)
        self._digest = None
        hashed = self.threads.hashing.submit(sha256_of_file, part)
        self._published.append(self.threads.publishing.submit(self._publish, part, number, extent, hashed))

    def _frame(self, extent: Extent) -> Frame:
        """Return the frame of an extent; HDF5's is made by means of a sparse file of the shard's size.

        raises OutputError
        """
        try:
            return self.kind.frame(extent)
        except (OSError, RuntimeError) as error:  # h5py raises both
            raise OutputError(
                f"cannot write '{self.part(0)}': {error}. A shard takes {counted(extent.num_bytes, 'byte')}; free some "
                "room, or give a smaller shard_bytes if there is a limit of a file's size (`ulimit -f`)."
            ) from error

    def _publish(self, part: Path, number: int, extent: Extent, hashed: Future[str]) -> Shard:
        size = part.stat().st_size
        flush(part)  # takes long; the hash is computed meanwhile
        sha256 = hashed.result()
        path = f"{SHARDS}/{self.architecture}-{number:05d}-{sha256[:12]}{self.kind.suffix}"
        self.check_own()
        publish(part, self.root / path)
        shard = Shard(path, extent.rows, size, sha256, self.architecture)
        self.on_published(shard)
        return shard


class Threads:
    """Two threads beside the one that writes: one hashes, the other flushes and renames."""

    def __init__(self) -> None:
        self.hashing = ThreadPoolExecutor(1, "prepkit-hash")
        self.publishing = ThreadPoolExecutor(1, "prepkit-fsync")

    def hash(self, digest: Any, values: memoryview) -> Future[None]:
        """Hash these bytes after all bytes given before; they must not change until the future is done."""
        return self.hashing.submit(digest.update, values)

    def stop(self) -> None:
        """Finish all that is waiting, and end the threads."""
        self.hashing.shutdown(wait=True)
        self.publishing.shutdown(wait=True)


def _done(shard: Shard) -> Future[Shard]:
    future: Future[Shard] = Future()
    future.set_result(shard)
    return future


def write_back(file: int) -> None:
    """Flush what was written so far to the disk, and close this descriptor; publishing reports errors."""
    with suppress(OSError):
        os.fdatasync(file)
    os.close(file)


def write_all(file: int, values: memoryview, offset: int, path: Path) -> None:
    """Write all bytes at an offset, or none: on an error the file is cut back to the offset.

    raises OutputError
    """
    done = 0
    values = values.cast("B")
    try:
        while done < len(values):
            done += os.pwrite(file, values[done:], offset + done)
    except OSError as error:
        if done:
            os.ftruncate(file, offset)
        failure: OutputError = output_error(path, error)
        raise failure from error


def chunks_of(path: Path, end: int) -> Iterator[bytes]:
    """Read the first `end` bytes of a file, in pieces."""
    with open(path, "rb") as file:
        while end and (chunk := file.read(min(end, CHUNK_BYTES))):
            end -= len(chunk)
            yield chunk
