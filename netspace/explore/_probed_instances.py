"""Which instances of a zoo a probe reads: training instances and unseen ones of each architecture.

Shapes: N instances, H x W the PRep, F values of it, V values of an instance's outputs.
"""

# ruff: noqa: N806, N815 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

import prepkit
from netspace.data import TRAIN, ZooMismatch
from prepkit.errors import counted, listed
from prepkit.support.statistics import evenly
from prepkit.zoo.read.groups import rows_by_architecture

LEAST_KNOWN, LEAST_UNSEEN = 10, 3  # instances of an architecture
MOST_KNOWN, MOST_UNSEEN = 500, 100  # of more instances of an architecture, some are taken at equal steps


@dataclass(frozen=True)
class Part:
    """Instances of an architecture in a split: their rows in the zoo, PReps `[N, F]` and outputs `[N, V]`."""

    rows: tuple[int, ...]
    preps_NF: Tensor
    outputs_NV: Tensor

    def finite(self) -> Part:
        """Return the instances whose outputs are all finite; weights in a zoo always are."""
        good_N = self.outputs_NV.isfinite().all(1)
        rows = tuple(row for row, good in zip(self.rows, good_N.tolist(), strict=True) if good)
        return Part(rows, self.preps_NF[good_N], self.outputs_NV[good_N])


def chosen_rows(zoo: prepkit.Zoo, split: str) -> tuple[dict[str, tuple[list[int], list[int]]], list[str]]:
    """Return rows of training and of unseen instances of each architecture that has enough, and notes.

    raises ZooMismatch for a split that is not there, or if no architecture has enough instances
    """
    if split == TRAIN:
        raise ZooMismatch(f"the reader learns from the split '{TRAIN}'; probe the instances of another one.")
    splits = zoo.table["split"].to_pylist()
    for name in (TRAIN, split):
        if name not in splits:
            there = listed(sorted({each for each in splits if each})) or "none"
            raise ZooMismatch(
                f"zoo '{zoo.name}' has no instances in the split '{name}'; it has {there}. `prepkit zoo split` deals "
                "them."
            )
    found, notes = {}, []
    for name, rows in rows_by_architecture(zoo).items():
        known, unseen = ([row for row in rows if splits[row] == wanted] for wanted in (TRAIN, split))
        found[name] = evenly(known, MOST_KNOWN), evenly(unseen, MOST_UNSEEN)
        if len(known) > MOST_KNOWN or len(unseen) > MOST_UNSEEN:
            notes.append(
                f"of {name}, {len(found[name][0])} of {counted(len(known), 'training instance')} and "
                f"{len(found[name][1])} of {len(unseen):,} unseen ones are taken."
            )
    few = _too_few(zoo, {name: (len(known), len(unseen)) for name, (known, unseen) in found.items()})
    return {name: rows for name, rows in found.items() if name not in few}, notes + list(few.values())


def _too_few(zoo: prepkit.Zoo, counts: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Return notes on the architectures with too few instances, by name.

    counts: by architecture, training instances and unseen ones
    raises ZooMismatch if no architecture has enough
    """
    few = {
        name: f"{name} has {counted(known, 'training instance')} and {unseen} unseen"
        for name, (known, unseen) in counts.items()
        if known < LEAST_KNOWN or unseen < LEAST_UNSEEN
    }
    if len(few) == len(counts):
        raise ZooMismatch(
            f"zoo '{zoo.name}': a probe needs {LEAST_KNOWN} training instances and {LEAST_UNSEEN} unseen ones of an "
            f"architecture; {listed(few.values())}. Take a larger zoo, or another split: `prepkit zoo split ZOO "
            "--force` deals the instances anew."
        )
    return {name: f"{text}, which are too few, so it is not read." for name, text in few.items()}


def readable(zoo: prepkit.Zoo, parts: Mapping[str, Sequence[Part]]) -> tuple[dict[str, tuple[Part, Part]], list[str]]:
    """Leave out instances with outputs that are not finite, and architectures that cannot be read; returns notes too.

    raises ZooMismatch if nothing is left
    """
    finite = {name: (known.finite(), unseen.finite()) for name, (known, unseen) in parts.items()}
    notes = []
    for name, both in finite.items():
        lost = sum(len(part.rows) for part in parts[name]) - sum(len(part.rows) for part in both)
        if lost:
            notes.append(f"{counted(lost, 'instance')} of {name} with outputs that are not finite are left out.")
    few = _too_few(zoo, {name: (len(known.rows), len(unseen.rows)) for name, (known, unseen) in finite.items()})
    equal = {
        name: f"all training instances of {name} put out the same, so it is not read."
        for name, (known, _) in finite.items()
        if name not in few and not float(known.outputs_NV.std(0).max()) > 0
    }
    left = {name: both for name, both in finite.items() if name not in few | equal}
    if not left:
        raise ZooMismatch(f"zoo '{zoo.name}': {' '.join((few | equal).values())} There is nothing to read.")
    return left, [*notes, *few.values(), *equal.values()]
