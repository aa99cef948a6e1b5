"""convert: write a zoo again with shards of another format, and prove that it holds the same values.

Table, teacher, ClassIds and all that the manifest says are kept as they are, also keys that this version does not
know. The new zoo is built in a folder beside the target, read back and compared, and only then gets its name (see
building.py).
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from prepkit.errors import VerificationError, listed
from prepkit.support.progress import Advance
from prepkit.zoo.card.card import write_card
from prepkit.zoo.change.copying import check_target, check_whole, copy_file, copy_shards, verified_manifest
from prepkit.zoo.format.manifest import read_manifest, write_manifest
from prepkit.zoo.format.shards import shard_format
from prepkit.zoo.write.building import building
from prepkit.zoo.write.written import WrittenZoo

CONVERTED = frozenset(("shard_format", "shards", "sha256"))  # keys of a manifest that a conversion may change


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
    manifest = verified_manifest(source)
    with building(target) as root:
        shards = copy_shards(Path(source), manifest, kind, manifest.width, root, {}, progress)
        copy_file(Path(source), manifest.table.path, root)
        for path in manifest.beside:
            copy_file(Path(source), path, root)
        write_manifest(replace(manifest, shard_format=kind.name, shards=tuple(shards)), root, overwrite=False)
        prove_same(Path(source), root)
        if card:
            write_card(root)
    return WrittenZoo(Path(target), read_manifest(target))


def prove_same(source: Path, target: Path) -> None:
    """Compare two zoos in all but the format of their shards, whose values were compared when they were copied.

    Table and teacher are equal if their sha256 in the manifests are, which `check_whole` compares with the files.
    raises VerificationError saying what differs
    """
    check_whole(target)
    given, written = read_manifest(source), read_manifest(target)
    old, new = given.to_dict(), written.to_dict()
    differing = [key for key in old.keys() | new.keys() if key not in CONVERTED and old.get(key) != new.get(key)]
    if [(s.architecture, s.rows) for s in given.shards] != [(s.architecture, s.rows) for s in written.shards]:
        differing.append("shards")
    if differing:
        raise VerificationError(f"the copy of '{source}' differs in {listed(differing)}; nothing was kept.")
