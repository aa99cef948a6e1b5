"""The target of a bench: the column that is predicted, as numbers or as classes, and the split of the instances.

Shapes: N instances of a split.
"""

# ruff: noqa: N806 - names of arrays end in their axes

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prepkit.errors import PrepkitError, ZooError, counted, listed, nearest
from prepkit.support.text import Brief
from prepkit.zoo.change.splitting import RUN, assigned, groups_of
from prepkit.zoo.format.columns import OWN_COLUMNS
from prepkit.zoo.read.groups import rows_by_architecture

if TYPE_CHECKING:
    import pyarrow as pa

    from prepkit.zoo.read.zoo import Zoo

Kind = Literal["number", "class"]
KINDS = ("number", "class")
TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
HELD_OUT = {TRAIN: Fraction(85, 100), VALIDATION: Fraction(15, 100)}  # where a zoo has no validation instances
MOST_CLASSES = 1000
LEAST = {TRAIN: 8, VALIDATION: 2, TEST: 2}  # instances of each architecture
Architectures = Mapping[str, Sequence[int]]


@dataclass(frozen=True, repr=False)
class Part(Brief):
    """The instances of one split, as a learner sees them.

    zoo:         the instances: `zoo.preps()` are their weights `[N, H, W]`, and prepkit.views makes other forms of them
    target:      the true values `[N]`: float64, or class numbers int64. None for test instances: their values stand in
                 the table of `zoo` as well, where a fair learner does not look.
    num_classes: the number of classes; 0 where the target is a number
    seed:        what a learner's random choices follow from
    """

    zoo: Zoo
    target: np.ndarray | None
    num_classes: int = 0
    seed: int = 0

    @property
    def known(self) -> np.ndarray:
        """The true values `[N]` of training or validation instances; raises PrepkitError for test instances."""
        if self.target is None:
            raise PrepkitError("the true values of test instances are not given to learners.")
        return self.target

    def __len__(self) -> int:
        return len(self.zoo)

    @property
    def architectures(self) -> Architectures:
        """The rows of each architecture."""
        return rows_by_architecture(self.zoo)

    def select(self, rows: Sequence[int]) -> Part:
        """Return some of the instances."""
        target = None if self.target is None else self.target[np.asarray(rows, np.int64)]
        return replace(self, zoo=self.zoo.select(np.asarray(rows, np.int64)), target=target)


@dataclass(frozen=True, repr=False)
class Question(Brief):
    """What is predicted, and from which instances.

    column:  the column of the table
    kind:    "number" or "class"
    classes: the values of the column by class number; empty for numbers
    is_log:  whether the numbers are natural logarithms of the column
    truth:   the true values `[N]` of the test instances
    runs:    the number of the run of each test instance `[N]`; each has a number of its own where there are no runs
    grouped: whether no run has instances in several splits; None where there is no column `run`
    notes:   sentences that the reader of the results should know
    """

    column: str
    kind: Kind
    classes: tuple[Any, ...]
    is_log: bool
    train: Part
    validation: Part
    test: Part
    truth: np.ndarray
    runs: np.ndarray
    grouped: bool | None
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The target as people read it."""
        return f"log of {self.column}" if self.is_log else self.column


def asked(zoo: Zoo, column: str, *, kind: Kind | None, log: bool, seed: int) -> Question:
    """Return the question whether a column of a zoo's table can be predicted.

    kind: whether the values are numbers or classes; texts and booleans are classes, all else numbers, if missing
    log:  predict the logarithm
    seed: what learners' random choices follow from
    raises ZooError for a column that is not there or cannot be predicted, or a zoo without a split
    """
    if kind not in (None, *KINDS):
        raise PrepkitError(f"kind is {' or '.join(map(repr, KINDS))}; found {kind!r}.")
    values = _column(zoo, column)
    kind = kind or _kind_of(values, column)
    if log and kind == "class":
        raise ZooError(f"'{column}' holds classes, which have no logarithm; leave `log` out, or take kind='number'.")
    usable, notes = _with_values(zoo, column, values, kind)
    parts, splitting = _split(usable)
    _check_sizes(parts)
    notes += splitting
    classes: tuple[Any, ...] = ()
    if kind == "class":
        numbers, classes, seen = _classes(parts, column)
        notes += seen
    else:
        numbers = {split: _numbers(part, column, log) for split, part in parts.items()}
    _check_varies(numbers, column, kind)
    grouped, leak = _grouped(parts)
    notes += leak
    train, validation, test = (
        Part(parts[split], numbers[split] if split != TEST else None, len(classes), seed) for split in SPLITS
    )
    return Question(
        column, kind, classes, log, train, validation, test, numbers[TEST], _runs(parts[TEST]), grouped, tuple(notes)
    )


# The column -------------------------------------------------------------------------------------------------------


def _column(zoo: Zoo, column: str) -> pa.ChunkedArray:
    import pyarrow as pa

    names = [name for name in zoo.table.column_names if name not in OWN_COLUMNS]
    if column not in names:
        found = "it is one that the zoo keeps for itself" if column in OWN_COLUMNS else "there is no such column"
        raise ZooError(
            f"'{zoo.name}', column '{column}': {found}; what can be predicted is {listed(names, 30) or 'nothing'}."
            f"{nearest(column, names)}"
        )
    values = zoo.table[column]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_nested(values.type) or pa.types.is_temporal(values.type) or pa.types.is_binary(values.type):
        raise ZooError(
            f"'{zoo.name}', column '{column}': it holds {values.type}, which is neither a number nor a class; choose "
            "another column, or add one with `prepkit zoo annotate`."
        )
    return values


def _kind_of(values: pa.ChunkedArray, column: str) -> Kind:
    import pyarrow as pa

    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return "class" if is_text or pa.types.is_boolean(values.type) else "number"


def _with_values(zoo: Zoo, column: str, values: pa.ChunkedArray, kind: Kind) -> tuple[Zoo, list[str]]:
    """Return the instances that have a value, and a note of those that have none."""
    found = values.to_pylist()
    if kind == "number" and any(isinstance(value, str) for value in found):
        raise ZooError(f"'{zoo.name}', column '{column}': it holds text, which is no number; take kind='class'.")
    rows = [
        row for row, value in enumerate(found) if value is not None and (isinstance(value, str) or _is_finite(value))
    ]
    if not rows:
        raise ZooError(f"'{zoo.name}', column '{column}': no instance has a value, so there is nothing to predict.")
    missing = len(zoo) - len(rows)
    if not missing:
        return zoo, []
    return zoo.select(np.array(rows)), [f"{counted(missing, 'instance')} without a value in '{column}' are left out."]


def _is_finite(value: Any) -> bool:
    return math.isfinite(float(value))


def _numbers(zoo: Zoo, column: str, log: bool) -> np.ndarray:
    values_N = np.array([float(value) for value in zoo.table[column].to_pylist()], np.float64)
    if log and values_N.min(initial=1.0) <= 0:
        raise ZooError(
            f"'{zoo.name}', column '{column}': its least value is {values_N.min():g}, which has no logarithm; leave "
            "`log` out."
        )
    return np.log(values_N) if log else values_N


def _classes(parts: Mapping[str, Zoo], column: str) -> tuple[dict[str, np.ndarray], tuple[Any, ...], list[str]]:
    """Return the class numbers of each split, the classes, and a note of those that only test instances have.

    raises ZooError for more classes than can be learned
    """
    values = {split: part.table[column].to_pylist() for split, part in parts.items()}
    known = sorted(set(values[TRAIN]) | set(values[VALIDATION]))
    unseen = sorted(set(values[TEST]) - set(known))
    classes = (*known, *unseen)
    name, instances = parts[TRAIN].name, len(values[TRAIN])
    if len(set(values[TRAIN])) > min(MOST_CLASSES, instances // 2):
        raise ZooError(
            f"'{name}', column '{column}': {counted(instances, 'training instance')} have "
            f"{len(set(values[TRAIN])):,} different values, such as {listed(map(repr, known[:3]))}. That is "
            f"too many for classes: at most {MOST_CLASSES:,}, with two training instances each. Choose another column."
        )
    number = {value: place for place, value in enumerate(classes)}
    numbers = {split: np.array([number[value] for value in each], np.int64) for split, each in values.items()}
    notes = []
    if unseen:
        count = sum(value in set(unseen) for value in values[TEST])
        notes.append(
            f"{counted(count, 'test instance')} are of classes that no training instance has ({listed(unseen, 4)}), so "
            "no learner can be right about them."
        )
    return numbers, classes, notes


def _check_varies(numbers: Mapping[str, np.ndarray], column: str, kind: Kind) -> None:
    for split in (TRAIN, TEST):
        if len(np.unique(numbers[split])) < 2 and not (split == TEST and kind == "class"):
            raise ZooError(
                f"column '{column}': all {counted(len(numbers[split]), f'{split} instance')} have the same value, so "
                "there is nothing to predict; choose another column."
            )


# The instances ----------------------------------------------------------------------------------------------------


def _split(zoo: Zoo) -> tuple[dict[str, Zoo], list[str]]:
    """Return the instances of the three splits, and a note where validation instances were taken out of training ones.

    raises ZooError if the zoo has no split
    """
    there = zoo.manifest.splits
    if TRAIN not in there or TEST not in there:
        found = f"it has {listed(there)}" if there else "it has none"
        command = "`prepkit zoo split DIR --force`" if there else "`prepkit zoo split DIR`"
        raise ZooError(
            f"'{zoo.name}' has no split into {TRAIN} and {TEST} ({found}), so results could not be compared. "
            f"{command} draws one that keeps training runs together."
        )
    parts = {split: zoo.split(split) for split in SPLITS if split in there}
    if VALIDATION in parts:
        return parts, []
    table = parts[TRAIN].table
    groups = groups_of(table, RUN if RUN in table.column_names else None)
    chosen = np.array(assigned(groups, HELD_OUT, 0, len(table)))
    whole = parts[TRAIN]
    parts |= {split: whole.select(np.flatnonzero(chosen == split)) for split in HELD_OUT}
    return parts, [
        f"'{zoo.name}' has no validation split, so {counted(len(parts[VALIDATION]), 'training instance')} were held "
        "out for validation, runs together."
    ]


def _check_sizes(parts: Mapping[str, Zoo]) -> None:
    """Raise ZooError for an architecture of the test instances with too few instances in a split."""
    counts = {
        split: {name: len(rows) for name, rows in rows_by_architecture(part).items()} for split, part in parts.items()
    }
    for name in counts[TEST] or {"": 0}:
        for split, least in LEAST.items():
            count = counts[split].get(name, 0)
            if count < least:
                of = f" of {name}" if name else ""
                raise ZooError(
                    f"'{parts[TRAIN].name}': {split} has {counted(count, 'instance')}{of} with a value, and a bench "
                    f"needs at least {least}. Draw another split (`prepkit zoo split`), or choose instances with "
                    "where='...'."
                )


def _grouped(parts: Mapping[str, Zoo]) -> tuple[bool | None, list[str]]:
    """Return whether no run stands in several splits, and a note if one does."""
    if any(RUN not in part.table.column_names for part in parts.values()):
        return None, []
    runs = {split: set(part.table[RUN].to_pylist()) - {None} for split, part in parts.items()}
    shared = (runs[TRAIN] | runs[VALIDATION]) & runs[TEST]
    if not shared:
        return True, []
    return False, [
        f"{counted(len(shared), 'run')} have instances both in {TEST} and in another split, so the results are better "
        "than on new runs; `prepkit zoo split --force` draws a split that keeps runs together."
    ]


def _runs(test: Zoo) -> np.ndarray:
    """Return a number for each run of the test instances `[N]`; an instance without a run is a run of its own."""
    groups = groups_of(test.table, RUN if RUN in test.table.column_names else None)
    runs_N = np.empty(len(test), np.int64)
    for number, group in enumerate(groups):
        runs_N[list(group.rows)] = number
    return runs_N
