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
from typing import Any

from prepkit.api import open_zoo
from prepkit.auditing._answers import Answers, KnownAnswers, Probe, answers_of, fewer, probe_of_task, random_probe
from prepkit.auditing._controls import TRAINING, is_simple
from prepkit.auditing._controls import controls as drawn_controls
from prepkit.auditing._nearest import Known
from prepkit.auditing._stacks import Stack, stacks_of_zoo
from prepkit.errors import PrepkitError, ZooError
from prepkit.support.json_values import json_value
from prepkit.support.progress import Progress
from prepkit.support.statistics import finite_mean
from prepkit.support.text import Brief
from prepkit.tasks import load_task
from prepkit.zoo.read.zoo import Zoo

FORMAT = "prepkit-novelty/1"
TOLERANCE = 1e-3
CONTROLS = 12  # of each kind and architecture
GENERATED = "generated"
TRAIN, VALIDATION, TEST = "train", "validation", "test"
MEASURES = ("distance", "difference", "agreement", "overlap", "accuracy")


@dataclass(frozen=True, repr=False)
class Group(Brief):
    """Networks of one kind, and how near the nearest training network of each is.

    rows: one a network: id, architecture, and where they exist
          distance    of its weights from the nearest training network's, a share of that one's norm, after alignment;
                      nearest_in_weights is its id
          difference  of its outputs, a share of the spread of the training network's; nearest_in_outputs is its id
          agreement   largest share of the inputs with the same class
          overlap     largest intersection over union of the wrong images, or of the insides of shapes
          accuracy    on the images
    is_generated: whether they were generated, and are no control
    copies:       ids of those whose distance or difference is at most the tolerance
    """

    rows: tuple[Mapping[str, Any], ...]
    is_generated: bool
    copies: tuple[str, ...]

    def values(self, measure: str, architecture: str | None = None) -> list[float]:
        """Return a measure of all networks that have it, or of those of one architecture."""
        rows = [row for row in self.rows if architecture in (None, row["architecture"])]
        return [float(row[measure]) for row in rows if measure in row and math.isfinite(row[measure])]

    def mean(self, measure: str, architecture: str | None = None) -> float:
        """Return the mean of a measure; NaN where no network has it."""
        return finite_mean(self.values(measure, architecture))


@dataclass(frozen=True, repr=False)
class Comparison(Brief):
    """Generated networks beside the best control that is at least as new in its outputs.

    gain:     accuracy of the generated networks minus that of the best such control, a mean over their architectures
              as often as each was generated; NaN where no control is as new
    controls: by architecture the name of that control
    to_best:  accuracy minus that of the best training network of the same architecture
    """

    gain: float
    controls: Mapping[str, str]
    to_best: float


@dataclass(frozen=True, repr=False)
class Novelty(Brief):
    """What was found.

    training:  name of the zoo, or part of it, that the generator learned from
    networks:  number of training networks
    kind:      "classes", "shapes" or "values": what outputs are
    inputs:    what networks ran on, such as `360 test images`
    tolerance: up to which a network is a copy
    groups:    generated networks and controls by name, the generated ones first
    best:      by architecture, id and accuracy of the best training network; empty where there is no accuracy
    notes:     sentences on what was not compared
    """

    training: str
    networks: int
    kind: str
    inputs: str
    tolerance: float
    seed: int
    groups: Mapping[str, Group]
    best: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]

    @property
    def generated(self) -> dict[str, Group]:
        """The groups of generated networks."""
        return {name: group for name, group in self.groups.items() if group.is_generated}

    @property
    def best_accuracy(self) -> float:
        """The accuracy of the best training network of all; NaN where there is none."""
        return max((one["accuracy"] for one in self.best.values()), default=math.nan)

    def compared(self, name: str) -> Comparison:
        """Compare a group with the controls, by accuracy."""
        group = self.groups[name]
        parts: list[tuple[int, float]] = []
        chosen: dict[str, str] = {}
        for architecture in dict.fromkeys(row["architecture"] for row in group.rows):
            own = [row for row in group.rows if row["architecture"] == architecture]
            control, accuracy = self._best_control(group.mean("overlap", architecture), architecture)
            parts.append((len(own), group.mean("accuracy", architecture) - accuracy))
            if control:
                chosen[architecture] = control
        known = [(count, gain) for count, gain in parts if math.isfinite(gain)]
        total = sum(count for count, _ in known)
        gain = sum(count * gain for count, gain in known) / total if total else math.nan
        away = [row["accuracy"] - self._best_of(row["architecture"]) for row in group.rows if "accuracy" in row]
        return Comparison(gain, chosen, finite_mean(away))

    def _best_of(self, architecture: str) -> float:
        one = self.best.get(architecture)
        return self.best_accuracy if one is None else float(one["accuracy"])

    def _best_control(self, overlap: float, architecture: str) -> tuple[str, float]:
        """Return the most accurate control of an architecture, or of all, that is at least as new as an overlap."""
        best, accuracy = "", math.nan
        for name, group in self.groups.items():
            if group.is_generated or not is_simple(name):
                continue
            of = architecture if group.values("overlap", architecture) else None
            if group.mean("overlap", of) <= overlap and not group.mean("accuracy", of) <= accuracy:
                best, accuracy = name, group.mean("accuracy", of)
        return best, accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        document = {
            "format": FORMAT,
            **{key: value for key, value in vars(self).items() if key != "groups"},
            "groups": {
                name: {
                    "is_generated": group.is_generated,
                    "copies": group.copies,
                    "means": {measure: group.mean(measure) for measure in MEASURES},
                    "networks": group.rows,
                    **({"compared": vars(self.compared(name))} if group.is_generated else {}),
                }
                for name, group in self.groups.items()
            },
        }
        found: dict[str, Any] = json_value(document)
        return found


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
    check(controls, seed, tolerance)
    own, known = (zoo if isinstance(zoo, Zoo) else open_zoo(zoo) for zoo in (generated, against))
    training, held_out, words = parts_of(known, split)
    training = training if where is None else training.where(where)
    for zoo, what in ((own, "generated networks"), (training, "training networks")):
        if not len(zoo):
            raise ZooError(f"'{zoo.name}' has no {what} to compare; choose others.")
    stacks = stacks_of_zoo(training), stacks_of_zoo(own), [] if held_out is None else stacks_of_zoo(held_out)
    probe, chosen_by, notes = _probes(training, stacks[0] + stacks[1], data)
    found = compared(
        stacks[0],
        {GENERATED: stacks[1]},
        probe,
        chosen_by=chosen_by,
        held_out=stacks[2],
        count=controls,
        seed=seed,
        tolerance=tolerance,
        training=words,
        progress=progress,
    )
    return Novelty(**{**vars(found), "notes": (*notes, *found.notes)})


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


def _probes(zoo: Zoo, stacks: Sequence[Stack], data: Any) -> tuple[Probe, Probe | None, list[str]]:
    """Return the inputs, those on which the best training network is chosen, and notes."""
    if zoo.task is None:
        note = "the training zoo names no task, so networks ran on random inputs and have no accuracy."
        return random_probe(stacks), None, [note]
    task = load_task(zoo.task, data)
    if task.record["kind"] == "images" and task.splits.get(VALIDATION):
        return probe_of_task(task), probe_of_task(task, VALIDATION), []
    return probe_of_task(task), None, []


# Comparing --------------------------------------------------------------------------------------------------------


def compared(
    training_stacks: Sequence[Stack],
    generated: Mapping[str, Sequence[Stack]],
    probe: Probe,
    *,
    chosen_by: Probe | None = None,
    held_out: Sequence[Stack] = (),
    count: int = CONTROLS,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    training: str = "training networks",
    progress: Progress | None = None,
) -> Novelty:
    """Compare groups of generated networks, and controls, with the training networks.

    probe:     inputs on which networks are compared
    chosen_by: images that choose the best training network; those of `probe` if missing
    held_out:  networks that the generator did not learn from
    training:  words for the training networks
    """
    hear = progress or Progress()
    hear.begin(sum(len(stack) for stack in training_stacks) + sum(len(s) for own in generated.values() for s in own))
    probe = fewer(probe, training_stacks)
    known = {stack.key: Known(stack) for stack in training_stacks}
    work = _Work(known, probe, tolerance, hear)
    best = work.learn(training_stacks, chosen_by)
    groups = {name: work.group(stacks, is_generated=True) for name, stacks in generated.items()}
    for name, stacks in drawn_controls(list(known.values()), held_out, count, seed):
        groups[name] = work.group(stacks, is_generated=False, other_runs=name == TRAINING)
    number = sum(len(stack) for stack in training_stacks)
    notes = tuple(dict.fromkeys(work.notes))
    return Novelty(training, number, probe.kind, probe.words, tolerance, seed, groups, best, notes)


class _Work:
    """Compares stacks of networks with the training networks."""

    def __init__(self, known: Mapping[Any, Known], probe: Probe, tolerance: float, progress: Progress) -> None:
        self.notes: list[str] = []
        self._known, self._probe, self._tolerance, self._progress = known, probe, tolerance, progress
        self._answers: dict[int, KnownAnswers] = {}  # by the number of outputs

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

    def group(self, stacks: Sequence[Stack], *, is_generated: bool, other_runs: bool = False) -> Group:
        """Compare some networks; other_runs: with training networks of other runs than their own only."""
        rows, copies = [], []
        for stack in stacks:
            columns = self._columns(stack, other_runs)
            for place, id_ in enumerate(stack.ids):
                own = {key: values[place] for key, values in columns.items() if values[place] is not None}
                rows.append({"id": id_, "architecture": stack.source.name, **own})
                if min(own.get("distance", math.inf), own.get("difference", math.inf)) <= self._tolerance:
                    copies.append(id_)
            if is_generated:
                self._progress.advance(len(stack))
        return Group(tuple(rows), is_generated, tuple(copies))

    def _columns(self, stack: Stack, other_runs: bool) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {}
        known = self._known.get(stack.key)
        if known is None:
            self.notes.append(
                f"No training network has the tensors of {stack.source.name}, so its weights were compared with none."
            )
        else:
            distances, rows = known.nearest(stack, other_runs=other_runs)
            columns["distance"] = _known(distances.tolist())
            columns["nearest_in_weights"] = [known.stack.ids[row] if row >= 0 else None for row in rows.tolist()]
            if known.why_in_order:
                self.notes.append(
                    f"{stack.source.name}: weights were compared with hidden units in their own order, as it is not "
                    f"known which may change places: {known.why_in_order}."
                )
        answers = self._answered(stack)
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


def _known(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
