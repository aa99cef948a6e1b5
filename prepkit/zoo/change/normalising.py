"""normalise: compute the means and deviations of a zoo's PReps in one pass, and keep them in the zoo.

Chunks of instances are combined as Chan, Golub and LeVeque (1979) do: each chunk has its mean and its sum of squared
distances from it, in float64, so that neither many instances nor a large mean lose digits.
Shapes: n instances of a chunk, P values of an architecture, T tensors.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from prepkit.errors import ZooError, counted, expect, listed
from prepkit.prep.layout import Layout
from prepkit.support.files import replacing, sha256_of_file
from prepkit.support.lock import changing
from prepkit.support.progress import Advance
from prepkit.support.text import Brief
from prepkit.zoo.card.card import README, replace_card
from prepkit.zoo.format.manifest import StoredPreprocessing, read_manifest, write_manifest
from prepkit.zoo.read.preprocessing import file_content
from prepkit.zoo.read.zoo import Zoo, local_zoo

CHUNK_BYTES = 32 << 20  # of float64 values
SMALLEST_DEVIATION = 1e-12  # relative to the size of the mean: below it, a deviation is only rounding
TRAIN = "train"

Per = Literal["cell", "slot"]


@dataclass(frozen=True, repr=False)
class Normalising(Brief):
    """What was computed.

    stored:    what zoo.json says of it
    constant:  number of cells or slots that are the same in all instances, which are only shifted
    notes:     sentences that the zoo's owner should read
    """

    stored: StoredPreprocessing
    constant: int
    notes: tuple[str, ...]


def normalise(
    path: str | os.PathLike[str],
    *,
    per: Per = "cell",
    split: str | None = None,
    force: bool = False,
    card: bool = True,
    progress: Advance | None = None,
) -> Normalising:
    """Compute mean and deviation of each cell or slot over the instances of a split, and keep them in the zoo.

    per:      "cell" for each value of a PRep, "slot" for each tensor
    split:    split whose instances count; "train" if missing, or all instances of a zoo without splits
    force:    replace the preprocessing that is there
    card:     whether README.md is written anew
    progress: called with a number of instances each time that many more were read
    raises ZooError for an unknown split, a split without instances or a preprocessing that is there; ZooLocked;
    OutputError

    >>> normalise("my-zoo").stored.rows
    80
    """
    expect(per, str, "per", "'cell' or 'slot'")
    if per not in ("cell", "slot"):
        raise ZooError(f"per is 'cell' or 'slot'; found {per!r}.")
    root = Path(path)
    read_manifest(root)  # before a lock is put into the folder
    with changing(root):
        zoo = local_zoo(root)
        manifest = zoo.manifest
        if manifest.preprocessing is not None and not force:
            raise ZooError(
                f"'{root}' has a preprocessing already ({manifest.preprocessing}); force=True replaces it. Learners "
                "that were trained with it will refuse the new one."
            )
        split = split or (TRAIN if manifest.splits else None)
        chosen = zoo if split is None else zoo.split(split)
        if not len(chosen):
            raise ZooError(f"'{root}': the split '{split}' has no instance, so there is nothing to compute from.")
        normals, constant = _normals(chosen, per, progress)
        content = file_content(per, split, normals)
        sha256 = hashlib.sha256(content).hexdigest()
        stored = StoredPreprocessing(
            f"preprocessing-{sha256[:12]}.safetensors", sha256, per, split, len(chosen), chosen.sha256
        )
        file = root / stored.path
        if not (file.is_file() and sha256_of_file(file) == sha256):
            with replacing(file, overwrite=True) as temporary:
                temporary.write_bytes(content)
        write_manifest(replace(manifest, preprocessing=stored), root, overwrite=True)
        notes = _notes(zoo, normals, stored, constant)
        if card and replace_card(root).readme is None:
            notes.append(f"{root / README} is your own text, so it was left alone.")
    return Normalising(stored, constant, tuple(notes))


def _normals(zoo: Zoo, per: Per, progress: Advance | None) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int]:
    """Return mean and deviation of each architecture, and how many of them are constant."""
    manifest, names = zoo.manifest, zoo.table["architecture"].to_numpy(zero_copy_only=False)
    found, constant = {}, 0
    for stored in manifest.architectures:
        rows = np.flatnonzero(names == stored.name)
        if not len(rows):
            continue
        moments = Moments(stored.layout.total)
        for values in _chunks(zoo, rows, stored.layout):
            moments.add(values)
            if progress is not None:
                progress(len(values))
        mean, variance = moments.mean, moments.variance
        if per == "slot":
            mean, variance = _of_slots(mean, variance, stored.layout)
        deviation = np.sqrt(variance)
        if not np.isfinite(deviation).all():
            raise ZooError(f"'{zoo.name}': instances of {stored.name} hold NaN or infinity; drop them first.")
        same = deviation <= SMALLEST_DEVIATION * np.maximum(1.0, np.abs(mean))
        constant += int(same.sum())
        found[stored.name] = (mean, np.where(same, 1.0, deviation))
    return found, constant


class Moments:
    """The mean and variance of each of P values, over chunks of instances that are added one after another."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = np.zeros(size)
        self._squares = np.zeros(size)  # sums of squared distances from the mean

    def add(self, values: np.ndarray) -> None:
        """Add a chunk `[n, P]` in float64."""
        count, mean = len(values), values.mean(axis=0)
        squares = ((values - mean) ** 2).sum(axis=0)
        total = self.count + count
        distance = mean - self.mean
        self.mean = self.mean + distance * (count / total)
        self._squares = self._squares + squares + distance**2 * (self.count * count / total)
        self.count = total

    @property
    def variance(self) -> np.ndarray:
        """The variance `[P]`, which divides by the number of instances."""
        return self._squares / max(self.count, 1)


def _chunks(zoo: Zoo, rows: np.ndarray, layout: Layout) -> Iterator[np.ndarray]:
    """Read the values `[n, P]` of instances of one architecture, in float64."""
    size = max(1, CHUNK_BYTES // (8 * max(layout.total, zoo.shape.cells)))
    for first in range(0, len(rows), size):
        preps = zoo.preps(rows[first : first + size])
        yield preps.flatten(1)[:, : layout.total].double().numpy()


def _of_slots(mean: np.ndarray, variance: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance `[T]` of all values of each tensor; 0 and 0 for a tensor without values."""
    means, variances = np.zeros(len(layout.slots)), np.zeros(len(layout.slots))
    for number, slot in enumerate(layout.slots):
        if slot.size:
            own = mean[slot.start : slot.stop]
            means[number] = own.mean()
            variances[number] = (variance[slot.start : slot.stop] + (own - means[number]) ** 2).mean()
    return means, variances


def _notes(
    zoo: Zoo, normals: dict[str, tuple[np.ndarray, np.ndarray]], stored: StoredPreprocessing, constant: int
) -> list[str]:
    notes = []
    present = {zoo.manifest.shards[number].architecture for number in set(zoo.shard_numbers.tolist())}
    lacking = sorted(present - normals.keys())
    if lacking:
        notes.append(f"'{stored.split}' has no instance of {listed(lacking)}, so nothing normalises them.")
    if constant:
        notes.append(
            f"{counted(constant, stored.per)} {'is' if constant == 1 else 'are'} the same in all instances, and will "
            "only be shifted to 0."
        )
    return notes
