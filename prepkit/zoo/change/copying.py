"""Copy the shards of a zoo to another format, height or width, and check what was copied.

Shards of both formats are frames around the same bytes (see shards.py), so a shard is streamed from one frame into
another, in constant memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from prepkit.errors import OutputError, VerificationError, ZooError, counted, listed
from prepkit.support.files import publish
from prepkit.support.progress import Advance
from prepkit.zoo.change.verify import find_faults, verify_folder
from prepkit.zoo.format.manifest import MANIFEST, Manifest, Shard, read_manifest
from prepkit.zoo.format.paths import inside
from prepkit.zoo.format.shards import Extent, ShardFormat, offset_of_values, shard_format
from prepkit.zoo.write.staging import SHARDS

if TYPE_CHECKING:
    import numpy as np

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class ShardRows:
    """The values of a shard in a file, read piece by piece: mapped pages would count as memory of this process."""

    file: Path
    offset: int
    extent: Extent

    @property
    def rows_a_piece(self) -> int:
        """The number of rows that are read at once."""
        return max(1, CHUNK_BYTES // self.extent.row_bytes)

    def pieces(self, rows_a_piece: int) -> Iterator[np.ndarray]:
        """Read all rows in order, as bytes `[rows, row_bytes]`."""
        import numpy as np

        with open(self.file, "rb") as opened:
            opened.seek(self.offset)
            for start in range(0, self.extent.rows, rows_a_piece):
                rows = min(rows_a_piece, self.extent.rows - start)
                content = opened.read(rows * self.extent.row_bytes)
                if len(content) != rows * self.extent.row_bytes:
                    raise ZooError(f"{self.file}: truncated while it was read.")
                yield np.frombuffer(content, dtype=np.uint8).reshape(rows, self.extent.row_bytes)


def check_target(target: Path, sources: list[Path]) -> None:
    """Raise OutputError before any work is done for a zoo that could not be written."""
    if target.is_dir() and any(target.iterdir()):
        raise OutputError(f"'{target}' exists already and is not empty; name a new folder.")
    if target.exists() and not target.is_dir():
        raise OutputError(f"'{target}' is a file, not a folder; name a new folder.")
    for source in sources:
        if target.resolve().is_relative_to(source.resolve()):
            raise OutputError(f"'{target}' lies in the zoo '{source}'; name a folder outside it.")


def verified_manifest(source: str | os.PathLike[str]) -> Manifest:
    """Verify a zoo and return its manifest, since a damaged file must not get a new, right checksum.

    raises ZooError naming the first faults
    """
    faults = verify_folder(Path(source)).faults
    if faults:
        raise ZooError(f"'{source}' has {counted(len(faults), 'fault')}: {listed(faults, 2)}")
    return read_manifest(source)


def copy_shards(
    source: Path,
    manifest: Manifest,
    kind: ShardFormat,
    width: int,
    root: Path,
    numbers: dict[str, int],
    progress: Advance | None,
) -> list[Shard]:
    """Write all shards of a zoo into `root` at a width, read each back, and describe them in the same order.

    numbers: number of shards of each architecture that `root` has already; raised by those that are written
    """
    shards = []
    for shard in manifest.shards:
        number = numbers.get(shard.architecture, 0)
        numbers[shard.architecture] = number + 1
        rows = rows_of_shard(source, manifest, shard)
        height = manifest.architecture(shard.architecture).layout.shape(width).height
        extent = replace(rows.extent, height=height, width=width)
        copied = copy_shard(rows, extent, shard.architecture, number, kind, root, progress)
        check_values(rows, ShardRows(root / copied.path, offset_of_values(root / copied.path, kind, extent), extent))
        shards.append(copied)
    return shards


def rows_of_shard(root: Path, manifest: Manifest, shard: Shard) -> ShardRows:
    """Return the values of a shard of a zoo."""
    height = manifest.architecture(shard.architecture).height
    extent = Extent(shard.rows, height, manifest.width, manifest.dtype)
    file = inside(root, shard.path, str(root / MANIFEST))
    return ShardRows(file, offset_of_values(file, shard_format(manifest.shard_format), extent), extent)


def copy_shard(
    rows: ShardRows,
    extent: Extent,
    architecture: str,
    number: int,
    kind: ShardFormat,
    root: Path,
    progress: Advance | None,
) -> Shard:
    """Stream rows into a shard of another format, height or width, publish it, and return its description."""
    part = root / "shard.part"
    digest = hashlib.sha256()
    frame = kind.frame(extent)
    with open(part, "wb") as out:
        for content in chain([frame.before], reshaped(rows, extent), [frame.after]):
            out.write(content)
            digest.update(content)
            if progress is not None:
                progress(len(content))
    path = f"{SHARDS}/{architecture}-{number:05d}-{digest.hexdigest()[:12]}{kind.suffix}"
    size = part.stat().st_size
    publish(part, root / path)
    return Shard(path, extent.rows, size, digest.hexdigest(), architecture)


def reshaped(rows: ShardRows, extent: Extent) -> Iterator[bytes]:
    """Bring rows to another height and width: values are row-major, so only the padding at the end changes.

    raises ZooError if there are values where the padding should be
    """
    import numpy as np

    for piece in rows.pieces(rows.rows_a_piece):
        if piece[:, extent.row_bytes :].any():
            raise ZooError(f"{rows.file}: there are values after the last parameter, which another width would lose.")
        padding = max(0, extent.row_bytes - piece.shape[1])
        yield np.pad(piece[:, : extent.row_bytes], ((0, 0), (0, padding))).tobytes()


def copy_file(source: Path, path: str, root: Path) -> None:
    """Copy a file that a manifest names."""
    part = root / "file.part"
    shutil.copyfile(inside(source, path, str(source / MANIFEST)), part)
    publish(part, root / path)


def check_values(source: ShardRows, target: ShardRows) -> None:
    """Read two shards again and compare their rows bit for bit; where a row is longer than the other, it must be zero.

    raises VerificationError
    """
    import numpy as np

    count = min(source.rows_a_piece, target.rows_a_piece)
    for given, written in zip(source.pieces(count), target.pieces(count), strict=True):
        common = min(given.shape[1], written.shape[1])
        same = np.array_equal(given[:, :common], written[:, :common])
        if not same or given[:, common:].any() or written[:, common:].any():
            raise VerificationError(f"the copy of {source.file} holds other values; nothing was kept. Please report.")


def check_whole(root: Path, manifest: Manifest | None = None) -> None:
    """Raise VerificationError if a zoo that was just written has faults.

    manifest: the manifest that its files are compared with; its own zoo.json if missing
    """
    faults, _ = find_faults(root, manifest or read_manifest(root))
    if faults:
        raise VerificationError(f"what was written has faults: {listed(faults, 2)}; nothing was kept.")
