"""convert: the same zoo with shards of another format, proved to hold the same values.

Shards of both formats are frames around the same bytes (see shards.py), so a shard is streamed from one frame into
another: table, teacher, ClassIds and all that the manifest says are kept as they are, also what this version does not
know. The new zoo is built in a folder beside the target, read back and compared, and only then gets its name (see
building.py).
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

from prepkit.errors import OutputError, VerificationError, ZooError, listed
from prepkit.files import publish
from prepkit.progress import Advance
from prepkit.zoo.card.card import write_card
from prepkit.zoo.format.manifest import MANIFEST, Manifest, Shard, read_manifest, write_manifest
from prepkit.zoo.format.paths import inside
from prepkit.zoo.format.shards import Extent, ShardFormat, offset_of_values, shard_format
from prepkit.zoo.write.building import building
from prepkit.zoo.write.staging import SHARDS
from prepkit.zoo.write.written import WrittenZoo

if TYPE_CHECKING:
    import numpy as np

CHUNK_BYTES = 4 << 20
# What a conversion may change in a manifest.
CONVERTED = frozenset(("shard_format", "shards", "sha256"))


@dataclass(frozen=True)
class Rows:
    """The values of a shard in a file, read piece by piece: mapped pages would count as this process's memory."""

    file: Path
    offset: int
    extent: Extent

    @property
    def rows_a_piece(self) -> int:
        """Rows that are read at once."""
        return max(1, CHUNK_BYTES // self.extent.row_bytes)

    def pieces(self, rows_a_piece: int) -> Iterator[np.ndarray]:
        """All rows in order, as bytes `[rows, row_bytes]`."""
        import numpy as np

        with open(self.file, "rb") as opened:
            opened.seek(self.offset)
            for start in range(0, self.extent.rows, rows_a_piece):
                rows = min(rows_a_piece, self.extent.rows - start)
                content = opened.read(rows * self.extent.row_bytes)
                if len(content) != rows * self.extent.row_bytes:
                    raise ZooError(f"{self.file}: truncated while it was read.")
                yield np.frombuffer(content, dtype=np.uint8).reshape(rows, self.extent.row_bytes)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    format: str,
    *,
    card: bool = True,
    progress: Advance | None = None,
) -> WrittenZoo:
    """Write the zoo `source` as `target` with shards of another format, in constant memory, and prove it is the same.

    format:   "safetensors" or "hdf5"
    card:     whether the new zoo gets README.md and card.png
    progress: called with a number of bytes each time that many more were written to shards
    raises ZooError if the source has faults, OutputError if the target exists or cannot be written,
           VerificationError if what was written is not the same; the target does not exist then

    >>> convert("my-zoo", "my-zoo-hdf5", "hdf5").manifest.shard_format
    'hdf5'
    """
    kind = shard_format(format)
    check_target(Path(target), [Path(source)])
    manifest = verified(source)
    with building(target) as root:
        shards = copy_shards(Path(source), manifest, kind, manifest.width, root, {}, progress)
        copy_file(Path(source), manifest.table.path, root)
        if manifest.teacher is not None:
            copy_file(Path(source), manifest.teacher.path, root)
        write_manifest(replace(manifest, shard_format=kind.name, shards=tuple(shards)), root, overwrite=False)
        prove_same(Path(source), root)
        if card:
            write_card(root)
    return WrittenZoo(Path(target), read_manifest(target))


def check_target(target: Path, sources: list[Path]) -> None:
    """Raise OutputError before any work is done for a zoo that could not be written."""
    if target.is_dir() and any(target.iterdir()):
        raise OutputError(f"'{target}' exists already and is not empty; name a new folder.")
    if target.exists() and not target.is_dir():
        raise OutputError(f"'{target}' is a file, not a folder; name a new folder.")
    for source in sources:
        if target.resolve().is_relative_to(source.resolve()):
            raise OutputError(f"'{target}' lies in the zoo '{source}'; name a folder outside it.")


def verified(source: str | os.PathLike[str]) -> Manifest:
    """The manifest of a zoo without faults: what is damaged must not get new, right checksums.

    raises ZooError naming the first faults
    """
    from prepkit.zoo.change.verify import verify

    found = verify(source)
    if not found.ok:
        raise ZooError(f"'{source}' has {len(found.faults)} faults: {listed(found.faults, 2)}")
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

    numbers: how many shards of each architecture there are already; counted on
    """
    shards = []
    for shard in manifest.shards:
        number = numbers.get(shard.architecture, 0)
        numbers[shard.architecture] = number + 1
        rows = rows_of(source, manifest, shard)
        height = manifest.architecture(shard.architecture).layout.shape(width).height
        extent = replace(rows.extent, height=height, width=width)
        copied = copy_shard(rows, extent, shard.architecture, number, kind, root, progress)
        check_values(rows, Rows(root / copied.path, offset_of_values(root / copied.path, kind, extent), extent))
        shards.append(copied)
    return shards


def rows_of(root: Path, manifest: Manifest, shard: Shard) -> Rows:
    """The values of a shard of a zoo."""
    height = manifest.architecture(shard.architecture).height
    extent = Extent(shard.rows, height, manifest.width, manifest.dtype)
    file = inside(root, shard.path, str(root / MANIFEST))
    return Rows(file, offset_of_values(file, shard_format(manifest.shard_format), extent), extent)


def copy_shard(
    rows: Rows, extent: Extent, architecture: str, number: int, kind: ShardFormat, root: Path, progress: Advance | None
) -> Shard:
    """Stream rows into a shard of another format, height or width, and publish it."""
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


def reshaped(rows: Rows, extent: Extent) -> Iterator[bytes]:
    """The rows at another height and width: values are row-major, so only the padding at the end changes.

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


# Proof --------------------------------------------------------------------------------------------------------


def check_values(source: Rows, target: Rows) -> None:
    """Read both again and compare them bit for bit; where one is longer, it must be zero.

    raises VerificationError
    """
    import numpy as np

    count = min(source.rows_a_piece, target.rows_a_piece)
    for one, other in zip(source.pieces(count), target.pieces(count), strict=True):
        common = min(one.shape[1], other.shape[1])
        same = np.array_equal(one[:, :common], other[:, :common])
        if not same or one[:, common:].any() or other[:, common:].any():
            raise VerificationError(f"the copy of {source.file} holds other values; nothing was kept. Please report.")


def prove_same(source: Path, target: Path) -> None:
    """Compare two zoos in all but the format of their shards, whose values were compared when they were copied.

    Table and teacher are equal if their sha256 in the manifests are, which `check_whole` compares with the files.
    raises VerificationError saying what differs
    """
    check_whole(target)
    one, other = read_manifest(source), read_manifest(target)
    facts, found = one.to_dict(), other.to_dict()
    differing = [
        key for key in facts.keys() | found.keys() if key not in CONVERTED and facts.get(key) != found.get(key)
    ]
    if [(s.architecture, s.rows) for s in one.shards] != [(s.architecture, s.rows) for s in other.shards]:
        differing.append("shards")
    if differing:
        raise VerificationError(f"the copy of '{source}' differs in {listed(differing)}; nothing was kept.")


def check_whole(root: Path, manifest: Manifest | None = None) -> None:
    """Raise VerificationError if a zoo that was just written has faults.

    manifest: what its files are compared with; its own zoo.json if missing
    """
    from prepkit.zoo.change.verify import find_faults

    faults, _ = find_faults(root, manifest or read_manifest(root))
    if faults:
        raise VerificationError(f"what was written has faults: {listed(faults, 2)}; nothing was kept.")
