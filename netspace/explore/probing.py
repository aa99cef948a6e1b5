"""A cheap look at a zoo before any training: do the outputs of unseen instances follow from their PReps?

    found = probe("zoo")
    found.verdict                     # "learnable", "in part" or "not learnable"
    found.text                        # two sentences

Kernel ridge regression from PReps to outputs (the reader) stands in for the space: it takes seconds, and on the zoos
where both were tried, it told apart which ones a space can learn (benchmarks/results).
Shapes: N training instances, M unseen ones, V values of an instance's outputs, F values of a PRep.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import prepkit
from netspace.data import OWN, START, TEST, TRAIN, runs_of
from netspace.explore._probed_instances import Part, chosen_rows, readable
from netspace.explore._probed_outputs import Outputs, outputs_of
from netspace.explore._reader import read_outputs
from prepkit.errors import expect
from prepkit.support.bootstrap import interval_of_mean
from prepkit.support.device import choose_device
from prepkit.support.json_values import json_value
from prepkit.support.progress import Progress
from prepkit.support.statistics import finite_mean, library, mean_or_nan
from prepkit.support.text import Brief
from prepkit.tasks.randomness import generator
from prepkit.zoo.read.accuracy import chunks

FORMAT = "netspace-probe/1"
PAIRS = 16  # of training instances, half-way between which a network is run
EXPLAINED, TOLD_APART = 0.5, 0.75  # from here a zoo is learnable; half of the pairs are told apart by chance
NOT_EXPLAINED = 0.2  # below it a zoo is not learnable
ONE_BASIN = 0.8  # of the accuracy of both ends: from here, and for shapes from their overlap, they lie in one basin

OWN_STARTS, ONE_START, SHARED_STARTS, UNKNOWN_STARTS = "own", "one", "shared", "unknown"

Verdict = Literal["learnable", "in part", "not learnable"]
STARTS: dict[Verdict, str] = {
    "learnable": "The outputs of unseen instances follow from their PReps, so a space can learn this zoo",
    "in part": "The outputs of unseen instances follow from their PReps in part, so a space will blur them",
    "not learnable": (
        "The outputs of unseen instances do not follow from their PReps, so a space can learn training instances by "
        "heart and what all have in common, but not what is an unseen instance's own"
    ),
}


@dataclass(frozen=True, repr=False)
class Probe(Brief):
    """The result of `probe`.

    about:      what was probed, as JSON has it
    rows:       by architecture, numbers of instances, the chosen kernel, `explained`, `told_apart` with its interval,
                `halfway`, and the measures of netspace.explore._probed_outputs
    explained:  share of the variance of unseen instances' outputs that the reader explains, the mean of architectures
    told_apart: share of pairs of unseen instances whose two guesses fit better as they are than swapped, and
                `interval`, the middle 95 % of a bootstrap over runs
    verdict:    whether a space can be expected to learn the zoo
    notes:      sentences that the reader of the result should know
    """

    about: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]
    explained: float
    told_apart: float
    interval: tuple[float, float]
    verdict: Verdict
    notes: Sequence[str]

    @property
    def is_shapes(self) -> bool:
        """Whether instances are shapes, not classifiers."""
        return bool(self.about["outputs"]["kind"] == "shapes")

    @property
    def text(self) -> str:
        """Two sentences: whether a space can learn the zoo, and what lies half-way between its instances."""
        low, high = map(_percent, self.interval)
        pairs = "pairs of unseen instances" if self.is_shapes else "pairs of unseen instances of nearest accuracy"
        first = (
            f"{STARTS[self.verdict]}: the reader explains {_share(self.explained)} of their variance, and of the "
            f"{pairs} {_percent(self.told_apart)} are told apart ({low} to {high}; by chance 50 %)."
        )
        return f"{first} {self._halfway()}"

    def _halfway(self) -> str:
        found = {
            key: finite_mean([row["halfway"][key] for row in self.rows.values()])
            for key in next(iter(self.rows.values()))["halfway"]
        }
        half, ends = found["halfway"], found["ends"]
        where = "Half-way between the weights of two training instances"
        start = (
            f"{where} stands a shape that overlaps (IoU) that of their mean distances by {half:.2f}, and the two "
            f"overlap each other by {ends:.2f}"
            if self.is_shapes
            else f"{where} the accuracy is {_percent(half)}, and at both ends {_percent(ends)}"
        )
        in_one = half >= (1 if self.is_shapes else ONE_BASIN) * ends
        return f"{start}, so {_basins(in_one, self.about['starts'])}."

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        document = {
            "format": FORMAT,
            **self.about,
            "verdict": self.verdict,
            "text": self.text,
            "explained": self.explained,
            "told_apart": self.told_apart,
            "interval": list(self.interval),
            "by_architecture": self.rows,
            "notes": list(self.notes),
        }
        found: dict[str, Any] = json_value(document)
        return found


def probe(
    zoo: prepkit.Zoo | str | os.PathLike[str],
    *,
    split: str = TEST,
    data: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> Probe:
    """Tell, without training a space, how well the outputs of unseen instances follow from their PReps.

    Each architecture is read by itself. Kernel ridge regressions learn outputs from the PReps of training instances,
    cross-validation inside these chooses one, and it guesses the outputs of the unseen instances.

    zoo:    an open zoo or view, or the path of one (hf:// too); networks are run on the test images of its task, or, as
            shapes, on a grid
    split:  split of the unseen instances
    data:   folder of the task's data
    seed:   what the pairs and the bootstrap are drawn from
    device: "cpu", "cuda", ... where networks are run
    raises ZooMismatch for a zoo without a task, without the splits, or with too few instances of every architecture;
    StatisticsMissing without scikit-learn; DataMissing, DeviceError

    >>> probe("digits_single").verdict
    'not learnable'
    """
    expect(zoo, (prepkit.Zoo, str, os.PathLike), "zoo", "a Zoo, which prepkit.open_zoo gives, or its path")
    library("sklearn"), library("scipy.stats")
    opened, progress = zoo if isinstance(zoo, prepkit.Zoo) else prepkit.open_zoo(zoo), progress or Progress()
    where = choose_device(device)
    kind = outputs_of(opened, where, None if data is None else Path(data))
    chosen, notes = chosen_rows(opened, split)
    progress.begin(sum(len(rows) for parts in chosen.values() for rows in parts))
    parts = {name: [_run(opened, kind, rows, where, progress) for rows in both] for name, both in chosen.items()}
    whole, more = readable(opened, parts)
    rows, shares = {}, []
    for name, (known, unseen) in whole.items():
        progress.advance(0, f"reading {name}")
        rows[name], shares_M = _read(opened, kind, known, unseen, where, seed)
        shares.append(shares_M)
    explained = finite_mean([row["explained"] for row in rows.values()])
    shares_all, unseen_rows = torch.cat(shares), [row for _, unseen in whole.values() for row in unseen.rows]
    told_apart = mean_or_nan(shares_all)
    between = interval_of_mean(shares_all.numpy(), runs_of(opened.select(unseen_rows)), seed)
    about = {
        "zoo": {"name": opened.name, "sha256": opened.manifest.to_dict()["sha256"], "instances": len(opened)},
        "split": split,
        "starts": starts_of(opened),
        "outputs": kind.about,
        "seed": seed,
    }
    return Probe(
        about, rows, explained, told_apart, between, verdict_of(explained, told_apart, between[0]), [*notes, *more]
    )


def verdict_of(explained: float, told_apart: float, low: float) -> Verdict:
    """Judge the two shares; `low` is the lower end of the interval of `told_apart`."""
    if explained >= EXPLAINED and told_apart >= TOLD_APART:
        return "learnable"
    return "in part" if explained >= NOT_EXPLAINED and low > 0.5 else "not learnable"


def starts_of(zoo: prepkit.Zoo) -> str:
    """Return how the training instances began, by the column `start`: "own", "one", "shared" or "unknown".

    Of an architecture, "one" is the same start for all, and "shared" are some starts that several share.
    """
    table = zoo.split(TRAIN).table
    if START not in table.column_names:
        return UNKNOWN_STARTS
    pairs = set(zip(table["architecture"].to_pylist(), table[START].to_pylist(), strict=True))
    starts = {start for _, start in pairs}
    if starts == {OWN}:
        return OWN_STARTS
    if {None, "", OWN} & starts:
        return UNKNOWN_STARTS
    return ONE_START if len(pairs) == len({name for name, _ in pairs}) else SHARED_STARTS


# The parts of a probe ---------------------------------------------------------------------------------------------


def _run(zoo: prepkit.Zoo, kind: Outputs, rows: Sequence[int], device: torch.device, progress: Progress) -> Part:
    """Run instances of one architecture."""
    preps, outputs = [], []
    for places in chunks(len(rows)):
        few = [rows[place] for place in places]
        preps_NHW = zoo.preps(few).to(device, torch.float32)
        preps.append(preps_NHW.flatten(1).cpu())
        outputs.append(kind.of(zoo.class_ids(few).tolist(), preps_NHW))
        progress.advance(len(few))
    return Part(tuple(rows), torch.cat(preps), torch.cat(outputs))


def _read(
    zoo: prepkit.Zoo, kind: Outputs, known: Part, unseen: Part, device: torch.device, seed: int
) -> tuple[dict[str, Any], Tensor]:
    """Let the reader guess unseen instances of one architecture: what is measured, and the shares told apart `[M]`."""
    reading = read_outputs(_arrays(known), _arrays(unseen), np.array(runs_of(zoo.select(list(known.rows)))))
    measures, shares_M = kind.measures(torch.from_numpy(reading.guesses_MV), unseen.outputs_NV)
    order = torch.randperm(len(known.rows), generator=generator("pairs half-way", seed)).tolist()
    pairs = min(PAIRS, len(order) // 2)
    first, second = ([known.rows[place] for place in order[start : start + pairs]] for start in (0, pairs))
    half = kind.halfway(zoo, (first, second), lambda rows: zoo.preps(rows).to(device, torch.float32))
    return {
        "training_instances": len(known.rows),
        "unseen_instances": len(unseen.rows),
        "kernel": reading.kernel,
        "strength": reading.strength,
        "explained_inside": reading.inside,
        "explained": reading.explained,
        "told_apart": mean_or_nan(shares_M),
        "interval": list(interval_of_mean(shares_M.numpy(), runs_of(zoo.select(list(unseen.rows))), seed)),
        **measures,
        "halfway": half,
    }, shares_M


def _arrays(part: Part) -> tuple[np.ndarray, np.ndarray]:
    return part.preps_NF.numpy(), part.outputs_NV.numpy()


def _basins(in_one: bool, starts: str) -> str:
    """Say where two training instances lie, by what was measured, and what is known of their starts."""
    if in_one:
        common = "as networks with a common start do"
        known = {OWN_STARTS: "though each began with a start of its own", ONE_START: common, SHARED_STARTS: common}
        return f"the two lie in one basin{', ' + known[starts] if starts in known else ''}"
    known = {
        OWN_STARTS: ", as networks with starts of their own do; those with a common start can be read better",
        ONE_START: ", though all of an architecture began with one start: training led them apart",
        SHARED_STARTS: "; only instances with one and the same start, as the column `start` tells, may share a basin",
    }
    return f"each lies in a basin of its own{known.get(starts, '')}"


def _share(share: float) -> str:
    return _percent(share) if share >= 0.005 else "none"


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.0f} %"
