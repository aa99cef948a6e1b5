"""novelty: whether generated networks are copies of training networks, and better than what needs no generator.

found = novelty("generated", "training-zoo")
found.groups["generated"].copies                # ids of copies
found.groups["noise of 10 %"].mean("accuracy")  # a control
text_of(found)                                  # see prepkit.auditing.novelty_report

Each network is compared with the training networks in weights, after its hidden units were brought into their order,
and in outputs on one set of inputs. The same is done with controls: training networks with noise, averages of two, and
networks of another split. The intersection over union of the wrong images is that of Zeng et al., Generative Modeling
of Weights: Generalization or Memorization? (2025).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prepkit.api import open_zoo
from prepkit.auditing._answers import Answers, KnownAnswers, Probe, answers_of, fewer, probe_of_task, random_probe
from prepkit.auditing._controls import TRAINING
from prepkit.auditing._controls import controls as drawn_controls
from prepkit.auditing._nearest import Known
from prepkit.auditing._stacks import Stack, joined, stacks_of_preps, stacks_of_zoo
from prepkit.auditing.novelty_result import Group, Novelty
from prepkit.errors import PrepkitError, ZooError
from prepkit.support.progress import Progress
from prepkit.support.statistics import grouped
from prepkit.tasks import load_task
from prepkit.zoo.read.zoo import Zoo

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.families.registry import Registry

TOLERANCE = 1e-3
CONTROLS = 12  # of each kind and architecture
GENERATED = "generated"
TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True, eq=False)
class Made:
    """Networks that a generator made, where no zoo holds them.

    registry:  the architectures of the ClassIds
    class_ids: one a network
    preps:     `[N, H, W]`, without BatchNorm
    ids:       what they are called
    """

    registry: Registry
    class_ids: Sequence[int]
    preps: Tensor
    ids: Sequence[str]


def novelty(
    generated: Zoo | str | os.PathLike[str],
    against: Zoo | str | os.PathLike[str],
    *,
    split: str | None = None,
    where: str | None = None,
    data: str | os.PathLike[str] | None = None,
    controls: int = CONTROLS,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    progress: Progress | None = None,
) -> Novelty:
    """Compare generated networks with those that the generator learned from, and with simple controls.

    generated, against: open zoos or views, or addresses that open_zoo takes
    split:     the split of `against` that the generator learned from; `train` if missing, or all where there is none
    where:     a condition that chooses training networks
    data:      folder of the task's data
    controls:  number of networks of each control and architecture
    seed:      what noise and pairs follow from
    tolerance: distance up to which a network is a copy, below 1
    progress:  hears of the networks that were compared
    raises ZooError, HubError if a zoo cannot be read; PrepkitError if memory does not hold the values, if they are not
    finite, or nothing can be compared; SymmetryError without scipy; DataMissing for a task whose data are not here

    >>> novelty("generated", "training").groups["generated"].copies
    ()
    """
    own = generated if isinstance(generated, Zoo) else open_zoo(generated)
    if not len(own):
        raise ZooError(f"'{own.name}' has no generated networks to compare; choose others.")
    groups = {GENERATED: stacks_of_zoo(own)}
    known = against if isinstance(against, Zoo) else open_zoo(against)
    task = None if known.task is None else load_task(known.task, data)
    return _novelty(groups, known, split, where, task, controls, seed, tolerance, progress)


def novelty_of(
    made: Mapping[str, Made],
    against: Zoo,
    *,
    split: str | None = None,
    task: Any = None,
    controls: int = CONTROLS,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    progress: Progress | None = None,
) -> Novelty:
    """Compare groups of networks, by name, that a generator made; see `novelty`.

    task: the task of `against` with its data; random inputs are taken if missing
    """
    groups = {name: stacks_of_preps(own.registry, own.class_ids, own.preps, own.ids) for name, own in made.items()}
    return _novelty(groups, against, split, None, task, controls, seed, tolerance, progress)


def _novelty(
    groups: Mapping[str, Sequence[Stack]],
    known: Zoo,
    split: str | None,
    where: str | None,
    task: Any,
    count: int,
    seed: int,
    tolerance: float,
    progress: Progress | None,
) -> Novelty:
    check(count, seed, tolerance)
    training, held_out, words = parts_of(known, split)
    training = training if where is None else training.where(where)
    if not len(training):
        raise ZooError(f"'{training.name}' has no training networks to compare; choose others.")
    stacks, others = stacks_of_zoo(training), [] if held_out is None else stacks_of_zoo(held_out)
    probe, chosen_by, notes = _probes(task, [*stacks, *(stack for own in groups.values() for stack in own)])
    probe, hear = fewer(probe, stacks), progress or Progress()
    known_networks = {stack.key: Known(stack) for stack in stacks}
    of_controls = dict(drawn_controls(list(known_networks.values()), others, count, seed))
    everything = (stacks, *groups.values(), *of_controls.values())
    hear.begin(sum(len(stack) for own in everything for stack in own))
    work = _Work(known_networks, probe, tolerance, hear)
    best = work.learn(stacks, chosen_by)
    training_ones = of_controls.pop(TRAINING)
    work.compare([stack for own in (*groups.values(), *of_controls.values()) for stack in own])
    work.compare(training_ones, other_runs=True)
    found = {name: work.group(own, is_generated=True) for name, own in groups.items()}
    found |= {name: work.group(own) for name, own in {TRAINING: training_ones, **of_controls}.items()}
    notes += dict.fromkeys(work.notes)
    number = sum(map(len, stacks))
    return Novelty(words, number, probe.kind, probe.words, tolerance, seed, found, best, tuple(notes))


def check(controls: int, seed: int, tolerance: float) -> None:
    """Raise PrepkitError for a number that makes no sense."""
    if not (math.isfinite(tolerance) and 0 <= tolerance < 1):
        raise PrepkitError(f"tolerance is {tolerance:g}; it is a share of the norm, from 0 to below 1.")
    if type(controls) is not int or controls < 1:
        raise PrepkitError(f"controls: expected a whole number of at least 1; found {controls!r}.")
    if type(seed) is not int or seed < 0:
        raise PrepkitError(f"seed: expected a whole number of at least 0; found {seed!r}.")


def parts_of(zoo: Zoo, split: str | None) -> tuple[Zoo, Zoo | None, str]:
    """Return the training networks, those of another split that is no part of it, and words for the former.

    raises ZooError for an unknown split
    """
    there = zoo.manifest.splits
    if split is None and TRAIN not in there:
        return zoo, None, f"'{zoo.name}'"
    split = TRAIN if split is None else split
    others = [name for name in (TEST, VALIDATION) if name in there and name != split]
    held_out = zoo.split(others[0]) if others else None
    return zoo.split(split), held_out if held_out is not None and len(held_out) else None, f"'{zoo.name}', {split}"


def _probes(task: Any, stacks: Sequence[Stack]) -> tuple[Probe, Probe | None, list[str]]:
    """Return the inputs, those on which the best training network is chosen, and notes."""
    if task is None:
        note = "the training zoo names no task, so networks ran on random inputs and have no accuracy."
        return random_probe(stacks), None, [note]
    if task.record["kind"] == "images" and task.splits.get(VALIDATION):
        return probe_of_task(task), probe_of_task(task, VALIDATION), []
    return probe_of_task(task), None, []


# Comparing --------------------------------------------------------------------------------------------------------


class _Work:
    """Compares stacks of networks with the training networks."""

    def __init__(self, known: Mapping[Any, Known], probe: Probe, tolerance: float, progress: Progress) -> None:
        self.notes: list[str] = []
        self._known, self._probe, self._tolerance, self._progress = known, probe, tolerance, progress
        self._answers: dict[int, KnownAnswers] = {}  # by the number of outputs
        self._columns: dict[int, dict[str, list[Any]]] = {}  # by the identity of a stack

    def learn(self, stacks: Sequence[Stack], chosen_by: Probe | None) -> dict[str, dict[str, Any]]:
        """Run the training networks, and return the best one of each architecture."""
        by_size: dict[int, list[Answers]] = {}
        best: dict[str, dict[str, Any]] = {}
        for stack in stacks:
            answers = self._answered(stack)
            self._progress.advance(len(stack))
            if answers is None:
                continue
            by_size.setdefault(answers.size, []).append(answers)
            if answers.accuracies is not None:
                judged = None if chosen_by is None else answers_of(stack, chosen_by)
                chosen = judged.accuracies if isinstance(judged, Answers) else answers.accuracies
                row = int((answers.accuracies if chosen is None else chosen).argmax())
                best[stack.source.name] = {"id": stack.ids[row], "accuracy": float(answers.accuracies[row])}
        self._answers = {size: KnownAnswers(own) for size, own in by_size.items()}
        return best

    def compare(self, stacks: Sequence[Stack], *, other_runs: bool = False) -> None:
        """Find the nearest training networks of some stacks; other_runs: of other runs than their own only."""
        for own in grouped(stacks, lambda stack: stack.key).values():
            known = self._known.get(own[0].key)
            name = own[0].source.name
            if known is None:
                self.notes.append(
                    f"No training network has the tensors of {name}, so its weights were compared with none."
                )
                columns: dict[str, list[Any]] = {}
            else:
                columns = _in_weights(known, joined(own), other_runs)  # all at once, which costs less
                if known.why_in_order:
                    self.notes.append(
                        f"{name}: weights were compared with hidden units in their own order, as it is not known which "
                        f"may change places: {known.why_in_order}."
                    )
            first = 0
            for stack in own:
                rows = slice(first, first + len(stack))
                part = {key: values[rows] for key, values in columns.items()}
                self._columns[id(stack)] = {**part, **self._in_outputs(stack, other_runs)}
                self._progress.advance(len(stack))
                first += len(stack)

    def group(self, stacks: Sequence[Stack], *, is_generated: bool = False) -> Group:
        """Return a group of stacks that were compared."""
        rows, copies = [], []
        for stack in stacks:
            columns = self._columns[id(stack)]
            for place, id_ in enumerate(stack.ids):
                own = {key: values[place] for key, values in columns.items() if values[place] is not None}
                rows.append({"id": id_, "architecture": stack.source.name, **own})
                if min(own.get("distance", math.inf), own.get("difference", math.inf)) <= self._tolerance:
                    copies.append(id_)
        return Group(tuple(rows), is_generated, tuple(copies))

    def _in_outputs(self, stack: Stack, other_runs: bool) -> dict[str, list[Any]]:
        answers = self._answered(stack)
        columns: dict[str, list[Any]] = {}
        if answers is not None and answers.size in self._answers:
            there = self._answers[answers.size]
            for measure, (values, rows) in there.nearest(answers, other_runs=other_runs).items():
                columns[measure] = _known(values.tolist())
                if measure == "difference":
                    columns["nearest_in_outputs"] = [there.ids[row] if row >= 0 else None for row in rows.tolist()]
            if answers.accuracies is not None:
                columns["accuracy"] = answers.accuracies.tolist()
        return columns

    def _answered(self, stack: Stack) -> Answers | None:
        found = answers_of(stack, self._probe)
        if isinstance(found, Answers):
            return found
        self.notes.append(f"Networks of {stack.source.name} were not run: {found}.")
        return None


def _in_weights(known: Known, stack: Stack, other_runs: bool) -> dict[str, list[Any]]:
    distances, rows = known.nearest(stack, other_runs=other_runs)
    ids = [known.stack.ids[row] if row >= 0 else None for row in rows.tolist()]
    return {"distance": _known(distances.tolist()), "nearest_in_weights": ids}


def _known(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
