"""Splits of ray-tune trees; all checkpoints of a run are in one.

paper:  that of ModelZooDataset's loader: Python's `random.seed(42)` shuffles the folders of the runs, and the first
        70 % are for training. It shuffles the order in which a file system lists them, which no copy of the tree
        keeps; so the order must be given, as those who split the zoo had it.
sorted: the same for runs in the order of their names, with 70 % for training, 15 % for validation and 15 % for
        testing, as SANE divides. It is not the published split.
strict: that of `_strict`; runs that began from each other, or are each other's copies, count as one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from prepkit.errors import ZooError, counted, listed
from prepkit.zoo.importers._paper_split import TEST, TRAIN, VALIDATION
from prepkit.zoo.write.model_paths import paths_in

SORTED = "sorted"
SEED = 42
TWO_SHARES, THREE_SHARES = (0.7, 0.3), (0.7, 0.15, 0.15)  # of ModelZooDataset, and of SANE


def read_runs_order(file: Path, runs: Iterable[str]) -> list[str]:
    """Return the names of all folders in the order of a list, by which a run is found through its last part.

    Folders that are not runs here were shuffled too, so they stay in the order.
    raises ZooError for a list that lacks a run or names one twice
    """
    try:
        paths = paths_in(file.read_bytes())
    except OSError as error:
        raise ZooError(f"{file}: cannot be read: {error.strerror}.") from None
    names = [PurePosixPath(str(path)).name for path in paths]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ZooError(f"{file}: names {listed(twice)} more than once; name each folder once.")
    missing = sorted({PurePosixPath(run).name for run in runs} - set(names))
    if missing:
        raise ZooError(
            f"{file}: lacks {counted(len(missing), 'run')}: {listed(missing)}. It has to name all folders of runs, "
            "one a line, in the order that was shuffled."
        )
    return names


def shuffled_splits(names: Sequence[str], shares: Sequence[float]) -> dict[str, str]:
    """Return the split of each name after shuffling; two shares are for training and testing, three as named above."""
    order = list(names)
    random.Random(SEED).shuffle(order)
    ends = [int(shares[0] * len(order))]
    ends.append(ends[0] + int(shares[1] * len(order)) if len(shares) == 3 else ends[0])
    return {
        name: TRAIN if place < ends[0] else VALIDATION if place < ends[1] else TEST for place, name in enumerate(order)
    }


def families(parents: Mapping[str, str | None], copies: Mapping[str, str]) -> dict[str, str]:
    """Return for each run the first one that it comes from, through copies and through what it began from.

    parents: by run, the name of the folder that it began from, which need not be in the tree
    copies:  by run, the earlier run that it is a copy of
    """
    by_name: dict[str, list[str]] = {}
    for run in parents:
        by_name.setdefault(PurePosixPath(run).name, []).append(run)
    found = {}
    for start in parents:
        run, seen = start, {start}
        while True:
            origin = copies.get(run) or parents.get(run)
            of_name = by_name.get(origin or "", [])
            origin = of_name[0] if len(of_name) == 1 else origin
            if not origin or origin in seen:
                break
            run = origin
            seen.add(run)
        found[start] = run
    return found
