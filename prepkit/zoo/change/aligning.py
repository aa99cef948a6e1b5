"""align: write a zoo again with the hidden units of its instances in the order of a reference.

    align("my-zoo", "aligned", centroid=True)

Each architecture is aligned to a reference of its own, see prepkit.symmetry.aligning. Ids, columns, splits, task and
teacher stay; the provenance names the zoo and the references. Shards are read, aligned and written piece by piece.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prepkit.errors import ZooError, counted, listed, nearest
from prepkit.support.progress import Advance
from prepkit.symmetry.aligning import UPDATES, centroid
from prepkit.version import __version__
from prepkit.zoo.card.card import write_card
from prepkit.zoo.change._alignment import (
    AlignedRows,
    Alignment,
    aligner_of,
    chunks,
    prove,
    try_copies,
)
from prepkit.zoo.change._halfway import Halfway, halfway
from prepkit.zoo.change.copying import (
    check_target,
    check_whole,
    copy_file,
    copy_shard,
    rows_of_shard,
    verified_manifest,
)
from prepkit.zoo.format.manifest import Manifest, read_manifest, write_manifest
from prepkit.zoo.format.origin import origin_of
from prepkit.zoo.format.shards import shard_format
from prepkit.zoo.read.zoo import Zoo, local_zoo
from prepkit.zoo.write.building import building
from prepkit.zoo.write.written import WrittenZoo

TRAIN = "train"


@dataclass(frozen=True)
class AlignedArchitecture:
    """What aligning the instances of one architecture did.

    reference:         id of the instance that is the reference, or "centroid of N instances"
    distance_before, distance_after: mean distance of the instances' parameters to the reference
    spread_before, spread_after:     root of their mean squared distance from their own mean
    farther:           number of instances that are farther from the reference than they were
    copies, returned:  number of scrambled copies that were aligned, and of those that came back
    output_difference: largest difference of outputs in float64, relative to their size
    halfway:           accuracies half-way between weights, or why they are not known
    """

    name: str
    instances: int
    reference: str
    distance_before: float
    distance_after: float
    spread_before: float
    spread_after: float
    farther: int
    copies: int
    returned: int
    output_difference: float
    halfway: Halfway | str


@dataclass(frozen=True)
class AlignedZoo:
    """A zoo that was aligned: what was written, and what it did to each architecture."""

    written: WrittenZoo
    architectures: tuple[AlignedArchitecture, ...]


def num_steps(manifest: Manifest, centroid: bool) -> int:
    """Return how many instances `align` reports to its progress, those of passes for centroids among them."""
    training = manifest.splits.get(TRAIN, manifest.table.rows)
    return manifest.table.rows + (UPDATES * training if centroid else 0)


def align(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    references: Iterable[str] = (),
    to_centroid: bool = False,
    seed: int = 0,
    name: str | None = None,
    data: str | os.PathLike[str] | None = None,
    card: bool = True,
    progress: Advance | None = None,
) -> AlignedZoo:
    """Write a new zoo whose instances have their hidden units in the order of a reference.

    references:  ids of reference instances, one for an architecture; others take their first training instance
    to_centroid: align to the mean of the aligned training instances of each architecture
    seed:        decides in which order groups of units are dealt with
    name:        name of the new zoo; its folder's if missing
    data:        folder of the task's data, for accuracies half-way between weights
    card:        whether the new zoo gets README.md and card.png
    progress:    called with a number of instances each time that many more were aligned
    raises ZooError for a zoo with faults, an unknown id, values that are not finite, or an architecture that cannot be
    built here; SymmetryError where scipy is missing; VerificationError if outputs changed; OutputError if the target
    exists. Nothing is written then

    >>> align("my-zoo", "aligned").architectures[0].returned
    4
    """
    root, asked = Path(source), list(references)
    check_target(Path(target), [root])
    manifest = verified_manifest(root)
    zoo = local_zoo(root)
    if asked and to_centroid:
        raise ZooError("give references or a centroid, not both.")
    found = _alignments(zoo, _by_architecture(zoo, asked), to_centroid, seed, progress)
    with building(target) as new, torch.no_grad():
        differences = {one.stored.name: prove(zoo, one, seed) for one in found.values()}
        shards, numbers = [], dict.fromkeys(found, 0)
        for shard in manifest.shards:
            rows, own = rows_of_shard(root, manifest, shard), found[shard.architecture]
            aligned = AlignedRows(rows.file, rows.offset, rows.extent, own, seed, progress or (lambda _: None))
            number, kind = numbers[shard.architecture], shard_format(manifest.shard_format)
            numbers[shard.architecture] += 1
            shards.append(copy_shard(aligned, rows.extent, shard.architecture, number, kind, new, None))
        for path in (manifest.table.path, *manifest.beside):
            if manifest.preprocessing is None or path != manifest.preprocessing.path:
                copy_file(root, path, new)
        written = replace(
            manifest,
            name=name or Path(target).resolve().name,
            shards=tuple(shards),
            preprocessing=None,
            provenance={"aligned": _origin(manifest, found, seed)},
            created_by=f"prepkit {__version__}",
        )
        write_manifest(written, new, overwrite=False)
        check_whole(new)
        if card:
            write_card(new)
    results = [_result(zoo, local_zoo(target), one, differences[one.stored.name], data) for one in found.values()]
    notes = _notes(manifest, results)
    return AlignedZoo(WrittenZoo(Path(target), read_manifest(target), tuple(notes)), tuple(results))


def _by_architecture(zoo: Zoo, ids: list[str]) -> dict[str, int]:
    """Return the instance that each of the ids names, by its architecture.

    raises ZooError for an unknown id, or two of one architecture
    """
    known = {id: row for row, id in enumerate(zoo.table["id"].to_pylist())}
    architectures = zoo.table["architecture"].to_pylist()
    found: dict[str, int] = {}
    for id in ids:
        if id not in known:
            count = counted(len(zoo), "instance")
            raise ZooError(f"the reference '{id}' is not an id of the zoo's {count}.{nearest(id, known)}")
        architecture = architectures[known[id]]
        if architecture in found:
            first = zoo.metadata(found[architecture])["id"]
            raise ZooError(f"'{first}' and '{id}' are both of {architecture}; name one reference for an architecture.")
        found[architecture] = known[id]
    return found


def _alignments(
    zoo: Zoo, given: dict[str, int], to_centroid: bool, seed: int, progress: Advance | None
) -> dict[str, Alignment]:
    """Return how the instances of each architecture are to be aligned, by its name."""
    names = zoo.table["architecture"].to_numpy(zero_copy_only=False)
    splits = zoo.table["split"].to_numpy(zero_copy_only=False)
    present = [stored for stored in zoo.manifest.architectures if (names == stored.name).any()]
    aligners = {stored.name: aligner_of(zoo, stored) for stored in present}
    found = {}
    for stored in present:
        rows, aligner = np.flatnonzero(names == stored.name), aligners[stored.name]
        training = rows[splits[rows] == TRAIN]
        training = training if len(training) else rows
        if to_centroid:
            parts = partial(chunks, zoo, stored, training)
            reference = centroid(aligner, parts, seed, progress=progress)
            named = f"centroid of {counted(len(training), 'instance')}"
        else:
            row = given.get(stored.name, int(training[0]))
            reference, named = next(chunks(zoo, stored, np.array([row])))[0], zoo.metadata(row)["id"]
        alignment = Alignment(stored, aligner, rows, reference, named)
        alignment.scrambled = try_copies(zoo, alignment, seed)
        found[stored.name] = alignment
    return found


def _origin(manifest: Manifest, found: dict[str, Alignment], seed: int) -> dict[str, Any]:
    return {
        **origin_of(manifest),
        "references": {name: one.named for name, one in found.items()},
        "seed": seed,
    }


def _result(
    zoo: Zoo, aligned: Zoo, alignment: Alignment, difference: float, data: str | os.PathLike[str] | None
) -> AlignedArchitecture:
    before, after = torch.cat(alignment.before), torch.cat(alignment.after)
    return AlignedArchitecture(
        alignment.stored.name,
        len(alignment.rows),
        alignment.named,
        float(before.mean()),
        float(after.mean()),
        alignment.spread_before.deviation,
        alignment.spread_after.deviation,
        int((after > before * (1 + 1e-6) + 1e-9).sum()),
        alignment.scrambled.copies,
        alignment.scrambled.returned,
        difference,
        halfway(zoo, aligned, alignment.stored, alignment.rows, data),
    )


def _notes(manifest: Manifest, results: list[AlignedArchitecture]) -> list[str]:
    """Return what the zoo's owner should read."""
    notes = []
    lost = [one for one in results if one.returned < one.copies]
    if lost:
        which = listed(f"{one.copies - one.returned} of {one.copies} of {one.name}" for one in lost)
        notes.append(
            f"scrambled copies of instances did not all come back ({which} did not): units of these instances are "
            "equal or nearly so, and the aligned PRep depends on the order in which they were."
        )
    for one in results:
        if one.farther:
            notes.append(
                f"{counted(one.farther, 'instance')} of {one.name} of {one.instances:,} "
                f"{'is' if one.farther == 1 else 'are'} farther from the reference than before: matching ended in a "
                "local optimum."
            )
    if manifest.preprocessing is not None:
        notes.append("the preprocessing was left out, as values changed; `prepkit zoo normalise` computes another.")
    return notes
