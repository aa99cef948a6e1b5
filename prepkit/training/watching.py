"""Progress of a zoo that is being written or trained, or whose writing was interrupted, as its folder tells it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prepkit.support.lock import holder_of
from prepkit.support.text import Brief
from prepkit.training._plan import plan
from prepkit.training._provenance import read_provenance, training_folder
from prepkit.training._spool import done_file
from prepkit.training._units import units_of
from prepkit.training.spec import parse_spec
from prepkit.zoo.write.unfinished import read_unfinished
from prepkit.zoo.write.working import JOURNAL, WRITING


@dataclass(frozen=True, repr=False)
class ZooProgress(Brief):
    """How far an unfinished zoo is.

    holder:        the process that writes it; None if its writing was interrupted
    seconds:       how long that process has been writing; None without one
    idle_seconds:  how long ago the last instance was finished, or the writing began
    finished:      number of instances that are finished
    waiting:       number of further instances that are trained, and wait for others that come before them
    planned:       number of instances that the zoo will have; None if `zoo train` does not make it
    architectures: number of finished instances by architecture
    splits:        number of finished instances by split
    """

    name: str
    holder: str | None
    seconds: float | None
    idle_seconds: float
    finished: int
    waiting: int
    planned: int | None
    architectures: Mapping[str, int]
    splits: Mapping[str, int]


def progress_of(root: Path) -> ZooProgress | None:
    """Return how far the unfinished zoo in a folder is; None if it holds none. Nothing in the folder is changed.

    raises ZooError if the journal or the training's record is damaged
    """
    found = read_unfinished(root)
    if found is None:
        return None
    contents = found.contents
    holder = holder_of(root / WRITING / "lock")
    waiting, planned = _of_training(root)
    return ZooProgress(
        found.name,
        holder,
        None if holder is None else _age(root / WRITING / "lock"),
        _age(root / WRITING / JOURNAL),
        len(found.entries),
        waiting,
        planned,
        dict(contents.num_instances),
        dict(sorted(contents.splits.items())),
    )


def _of_training(root: Path) -> tuple[int, int | None]:
    """Return how many trained instances wait, and how many are planned, None if nothing is trained here."""
    begun = read_provenance(root)
    if begun is None:
        return 0, None
    spec = parse_spec(begun.spec, str(root)).with_sizes(**begun.sizes)
    units = units_of(spec, plan(spec), begun.engine)
    waiting = [unit for unit in units if done_file(training_folder(root), unit).exists()]
    return sum(len(unit.ids) for unit in waiting), sum(len(unit.ids) for unit in units)


def _age(file: Path) -> float:
    with suppress(OSError):  # the zoo was finished meanwhile
        return max(0.0, time.time() - file.stat().st_mtime)
    return 0.0
