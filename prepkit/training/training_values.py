"""What a setting of a training can be: numbers in a range, epochs, a schedule, what is kept; and their readers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from prepkit.reading import (
    MISSING,
    Limit,
    Place,
    Reader,
    choice,
    given,
    is_number,
    number,
    require,
    whole,
    wrong,
)

MOST_EPOCHS = 100_000

ABOVE_0 = Limit("a number above 0", lambda value: value > 0)
AT_LEAST_0 = Limit("a number of at least 0", lambda value: value >= 0)
FROM_0_BELOW_1 = Limit("a number from 0 to below 1", lambda value: 0 <= value < 1)
ABOVE_0_UP_TO_1 = Limit("a number above 0 and up to 1", lambda value: 0 < value <= 1)

epoch_number = whole(1, MOST_EPOCHS)


@dataclass(frozen=True)
class Range:
    """Numbers that are drawn for each instance; one number where `low` is `high`. `scale`: "linear" or "log"."""

    low: float
    high: float
    scale: str = "linear"

    def at(self, share: float) -> float:
        """The number at a share of the way from low to high, in the range's scale; share: 0 to below 1."""
        if self.low == self.high:
            return self.low
        if self.scale == "log":
            return min(self.high, self.low * math.exp(share * math.log(self.high / self.low)))
        return self.low + share * (self.high - self.low)


@dataclass(frozen=True)
class Epochs:
    """The numbers of epochs that are dealt to instances, ascending, each once; none is dealt twice before all are."""

    candidates: tuple[int, ...]

    @property
    def last(self) -> int:
        """The largest."""
        return self.candidates[-1]

    def capped(self, most: int) -> Epochs:
        """One number becomes `most`; of several, those up to `most` remain, or `most` itself."""
        if len(self.candidates) == 1:
            return Epochs((most,))
        return Epochs(tuple(count for count in self.candidates if count <= most) or (most,))


@dataclass(frozen=True)
class Schedule:
    """What the learning rate is multiplied by as epochs go by; see prepkit.training.schedule.

    at:     (step) where `factor` comes in: whole numbers are epochs, others shares of the instance's epochs
    every:  (exponential) after how many epochs `factor` comes in again
    """

    kind: Literal["constant", "step", "cosine", "exponential"] = "constant"
    at: tuple[int | float, ...] = ()
    every: int = 1
    factor: float = 1.0

    def scaled(self, share: float) -> Schedule:
        """The same schedule for a training that is `share` as long: epochs move along, shares stay."""
        at = tuple(max(1, round(place * share)) if isinstance(place, int) else place for place in self.at)
        return replace(self, at=at, every=max(1, round(self.every * share)))


@dataclass(frozen=True)
class Keep:
    """What is stored of a training: its last weights, those that were best in validation, or every so many epochs.

    every: (trajectory) the weights after each so many epochs, and the last ones
    """

    kind: Literal["last", "best_validation", "trajectory"] = "last"
    every: int | None = None

    def epochs(self, epochs: int) -> tuple[int, ...]:
        """After which of an instance's epochs weights are stored; with "best_validation" the last one stands for it."""
        return tuple(sorted({*range(self.every, epochs + 1, self.every), epochs})) if self.every else (epochs,)


ZERO = Range(0.0, 0.0)
CONSTANT = Schedule()
LAST = Keep()


# Readers ------------------------------------------------------------------------------------------------------


def number_or_range(limit: Limit) -> Reader:
    """A number, or `{low, high, scale}`."""
    expected = f"{limit.words}, or {{low, high, scale}}"
    readers = {"low": number(limit), "high": number(limit), "scale": choice("scale", ("linear", "log"))}

    def read(value: Any, place: Place) -> Range:
        if not isinstance(value, dict):
            if not is_number(value) or not limit.holds(value):
                raise wrong(place, expected, value)
            return Range(float(value), float(value))
        found = given(value, readers, place)
        require(found, ("low", "high"), readers, place)
        if found["low"] > found["high"]:
            raise wrong(place, "low to be at most high", value)
        if found.get("scale") == "log" and found["low"] <= 0:
            raise wrong(place["low"], "a number above 0, as the scale is log", found["low"])
        return Range(**found)

    return read


def epochs(value: Any, place: Place) -> Epochs:
    """A number of epochs, `{values}`, `{low, high}`, or `{last, steps}`: dense at the start, ever sparser after."""
    if isinstance(value, dict):
        readers = {"values": list_of_epochs, "steps": list_of_epochs} | dict.fromkeys(
            ("low", "high", "last"), epoch_number
        )
        found = given(value, readers, place)
        for keys, candidates in CANDIDATES.items():
            if found.keys() == set(keys):
                return Epochs(candidates(found, place))
    elif type(value) is int and 1 <= value <= MOST_EPOCHS:
        return Epochs((value,))
    raise wrong(place, f"a whole number from 1 to {MOST_EPOCHS:,}, {{values}}, {{low, high}} or {{last, steps}}", value)


def list_of_epochs(value: Any, place: Place) -> list[int]:
    """A list of whole numbers, not empty."""
    if not isinstance(value, list) or not value:
        raise wrong(place, "a list of numbers of epochs", value)
    return [epoch_number(item, place) for item in value]


def chosen(found: Mapping[str, Any], place: Place) -> tuple[int, ...]:
    """The numbers of `{values = [1, 2, 5]}`."""
    values = sorted(found["values"])
    if len(set(values)) < len(values):
        raise wrong(place["values"], "each number of epochs once", found["values"])
    return tuple(values)


def between(found: Mapping[str, Any], place: Place) -> tuple[int, ...]:
    """All numbers of `{low = 1, high = 60}`."""
    if found["low"] > found["high"]:
        raise wrong(place, "low to be at most high", dict(found))
    return tuple(range(found["low"], found["high"] + 1))


def dense_start(found: Mapping[str, Any], place: Place) -> tuple[int, ...]:
    """The numbers of `{last = 600, steps = [1, 2, 5, 10, 25, 50]}`: every 1 in the first of six hundreds, and so on.

    The range up to `last` is cut into as many equal spans as there are steps (paper, Suppl.: Nets Datasets; METHOD).
    """
    last, steps = found["last"], found["steps"]
    span, rest = divmod(last, len(steps))
    if rest:
        raise wrong(place["last"], f"a multiple of {len(steps)}, the number of steps", last)
    if max(steps) > span:
        raise wrong(place["steps"], f"steps of at most {span}, which is {last} / {len(steps)}", steps)
    return tuple(start * span + epoch for start, step in enumerate(steps) for epoch in range(step, span + 1, step))


CANDIDATES = {("values",): chosen, ("low", "high"): between, ("last", "steps"): dense_start}


def schedule(value: Any, place: Place) -> Schedule:
    """A name, "constant" or "cosine", or a table whose `kind` says which other keys it has."""
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, dict):
        raise wrong(place, 'a name such as "cosine", or a table with its kind', value)
    kind = choice("schedule", SCHEDULES)(value.get("kind", MISSING), place["kind"])
    readers = SCHEDULES[kind]
    found = given({key: item for key, item in value.items() if key != "kind"}, readers, place)
    require(found, readers, readers, place)
    return Schedule(kind, **found)


def positions(value: Any, place: Place) -> tuple[int | float, ...]:
    """Where steps are: all whole numbers of epochs, or all shares of the instance's epochs."""
    items = value if isinstance(value, list) else []
    epochs = [item for item in items if type(item) is int and 1 <= item <= MOST_EPOCHS]
    shares = [item for item in items if type(item) is float and 0 < item < 1]
    if not items or len(items) not in (len(epochs), len(shares)):
        raise wrong(place, "a list of epochs such as [150, 180], or of shares of all epochs such as [0.5, 0.6]", value)
    return tuple(epochs or shares)


SCHEDULES: dict[str, dict[str, Reader]] = {
    "constant": {},
    "step": {"at": positions, "factor": number(ABOVE_0_UP_TO_1)},
    "cosine": {},
    "exponential": {"every": epoch_number, "factor": number(ABOVE_0_UP_TO_1)},
}


def keep(value: Any, place: Place) -> Keep:
    """A name, "last" or "best_validation", or `{every = 10}`, a trajectory."""
    if isinstance(value, dict):
        found = given(value, {"every": epoch_number}, place)
        require(found, ("every",), {"every": epoch_number}, place)
        return Keep("trajectory", found["every"])
    if not isinstance(value, str):
        raise wrong(place, '"last", "best_validation" or {every = 10}', value)
    return Keep(choice("thing to keep", ("last", "best_validation"))(value, place))


def betas(value: Any, place: Place) -> tuple[float, float]:
    """Two numbers from 0 to below 1."""
    if not isinstance(value, list) or len(value) != 2:
        raise wrong(place, "two numbers from 0 to below 1", value)
    first, second = (number(FROM_0_BELOW_1)(item, place) for item in value)
    return first, second
