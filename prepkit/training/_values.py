"""Values that a training can have beside plain numbers: ranges, numbers of epochs, schedules, what is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from prepkit.support.reading import (
    Key,
    Place,
    Reader,
    checked,
    choice,
    given,
    is_number,
    list_of,
    number,
    read_keys,
    require,
    whole,
    wrong,
)

MOST_EPOCHS = 100_000

ABOVE_0 = number("a number above 0", lambda value: value > 0)
FROM_0_BELOW_1 = number("a number from 0 to below 1", lambda value: 0 <= value < 1)
ABOVE_0_UP_TO_1 = number("a number above 0 and up to 1", lambda value: 0 < value <= 1)


@dataclass(frozen=True)
class Range:
    """Numbers that are drawn for each instance; one number where `low` is `high`. `scale`: "linear" or "log"."""

    low: float
    high: float
    scale: str = "linear"

    def __str__(self) -> str:
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"

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
    """What the learning rate is multiplied by as epochs go by; see prepkit.training._schedule.

    at:     (step) where `factor` comes in: whole numbers are epochs, others shares of the instance's epochs
    every:  (exponential) after how many epochs `factor` comes in again
    """

    kind: Literal["constant", "step", "cosine", "exponential"] = "constant"
    at: tuple[int | float, ...] = ()
    every: int = 1
    factor: float = 1.0

    def __str__(self) -> str:
        """`step 0.1 at 150, 180, 210`, as zoos name the schedule of an instance."""
        if self.kind == "step":
            return f"step {self.factor:g} at {', '.join(f'{place:g}' for place in self.at)}"
        return f"exponential {self.factor:g} every {self.every}" if self.kind == "exponential" else self.kind

    def scaled(self, share: float) -> Schedule:
        """The same schedule for a training that is `share` as long: epochs move along, shares stay."""
        at = tuple(max(1, round(place * share)) if isinstance(place, int) else place for place in self.at)
        return replace(self, at=at, every=max(1, round(self.every * share)))


@dataclass(frozen=True)
class Keep:
    """What is stored of a training: its last weights, those that were best in validation, or every so many epochs.

    every:        (trajectory) the weights after each so many epochs, and the last ones
    after:        (best_validation) the epoch from which on weights are judged; those after the last epoch always are
    judged_every: (best_validation) after each so many epochs weights are judged
    """

    kind: Literal["last", "best_validation", "trajectory"] = "last"
    every: int | None = None
    after: int = 0
    judged_every: int = 1

    def __str__(self) -> str:
        if self.every is not None:
            return f"every {self.every}"
        rest = f" of every {self.judged_every} after {self.after}" if self != Keep(self.kind) else ""
        return f"{self.kind}{rest}"

    def judges(self, epoch: int, epochs: int) -> bool:
        """Whether the weights after an epoch, counted from 1, may be the best in validation of an instance."""
        return self.kind == "best_validation" and (
            epoch == epochs or (epoch > self.after and epoch % self.judged_every == 0)
        )

    def scaled(self, share: float, last: int) -> Keep:
        """The same for a training that is `share` as long and ends after epoch `last`."""
        every = None if self.every is None else min(self.every, last)
        judged_every = max(1, round(self.judged_every * share))
        return replace(self, every=every, after=round(self.after * share), judged_every=judged_every)

    def epochs(self, epochs: int) -> tuple[int, ...]:
        """The epochs of an instance after which weights are stored; "best_validation" counts as its last one."""
        return tuple(sorted({*range(self.every, epochs + 1, self.every), epochs})) if self.every else (epochs,)


ZERO = Range(0.0, 0.0)
CONSTANT = Schedule()
LAST = Keep()


# Readers ------------------------------------------------------------------------------------------------------


def number_or_range(one: Reader) -> Reader:
    """A number, or `{low, high, scale}`; the other reader reads each number."""
    words = f"{one.words}, or {{low, high, scale}}"
    keys = {"low": Key(one), "high": Key(one), "scale": Key(choice("linear", "log"), default="linear")}

    def read(value: Any, place: Place) -> Range:
        if not isinstance(value, Mapping):
            try:
                return Range(one(value, place), one(value, place))
            except place.error:
                raise wrong(place, words, value) from None
        values = read_keys(keys, value, place)
        if values["low"] > values["high"]:
            raise wrong(place, "low to be at most high", value)
        if values.get("scale") == "log" and values["low"] <= 0:
            raise wrong(place["low"], "a number above 0, as the scale is log", values["low"])
        return Range(**values)

    return Reader(words, read)


EPOCH = whole(1, MOST_EPOCHS)
EPOCH_LIST = list_of(EPOCH, "a list of numbers of epochs", least=1)
EPOCHS_KEYS = {
    "values": Key(EPOCH_LIST),
    "steps": Key(EPOCH_LIST),
    "low": Key(EPOCH),
    "high": Key(EPOCH),
    "last": Key(EPOCH),
}


def _epochs(value: Any, place: Place) -> Epochs:
    if isinstance(value, Mapping):
        values = given(EPOCHS_KEYS, value, place)
        for keys, candidates in CANDIDATES.items():
            if values.keys() == set(keys):
                return Epochs(candidates(values, place))
    elif type(value) is int and 1 <= value <= MOST_EPOCHS:
        return Epochs((value,))
    raise wrong(place, EPOCHS.words, value)


def listed_epochs(values: Mapping[str, Any], place: Place) -> tuple[int, ...]:
    """The numbers of `{values = [1, 2, 5]}`."""
    if len(set(values["values"])) < len(values["values"]):
        raise wrong(place["values"], "each number of epochs once", list(values["values"]))
    return tuple(sorted(values["values"]))


def all_between(values: Mapping[str, Any], place: Place) -> tuple[int, ...]:
    """All numbers of `{low = 1, high = 60}`."""
    if values["low"] > values["high"]:
        raise wrong(place, "low to be at most high", dict(values))
    return tuple(range(values["low"], values["high"] + 1))


def dense_start(values: Mapping[str, Any], place: Place) -> tuple[int, ...]:
    """The numbers of `{last = 600, steps = [1, 2, 5, 10, 25, 50]}`: every 1 in the first of six hundreds, and so on.

    The range up to `last` is cut into as many equal spans as there are steps (paper, Suppl.: Nets Datasets; METHOD).
    """
    last, steps = values["last"], values["steps"]
    span, rest = divmod(last, len(steps))
    if rest:
        raise wrong(place["last"], f"a multiple of {len(steps)}, the number of steps", last)
    if max(steps) > span:
        raise wrong(place["steps"], f"steps of at most {span}, which is {last} / {len(steps)}", list(steps))
    return tuple(start * span + epoch for start, step in enumerate(steps) for epoch in range(step, span + 1, step))


CANDIDATES = {("values",): listed_epochs, ("low", "high"): all_between, ("last", "steps"): dense_start}
EPOCHS = Reader(f"{EPOCH.words}, {{values}}, {{low, high}} or {{last, steps}}", _epochs)


def _are_positions(value: Any) -> bool:
    items = value if isinstance(value, list) else []
    epochs = [item for item in items if type(item) is int and 1 <= item <= MOST_EPOCHS]
    shares = [item for item in items if type(item) is float and 0 < item < 1]
    return bool(items) and len(items) in (len(epochs), len(shares))


POSITIONS = checked(
    "a list of epochs such as [150, 180], or of shares of all epochs such as [0.5, 0.6]", _are_positions, tuple
)
SCHEDULE_KEYS: dict[str, dict[str, Key]] = {
    "constant": {},
    "step": {"at": Key(POSITIONS), "factor": Key(ABOVE_0_UP_TO_1)},
    "cosine": {},
    "exponential": {"every": Key(EPOCH), "factor": Key(ABOVE_0_UP_TO_1)},
}
KIND = Key(choice(*SCHEDULE_KEYS))


def _schedule(value: Any, place: Place) -> Schedule:
    table = {"kind": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise wrong(place, SCHEDULE.words, value)
    require({"kind": KIND}, table, place)
    keys = {"kind": KIND} | SCHEDULE_KEYS[KIND.reader(table["kind"], place["kind"])]
    values = read_keys(keys, table, place)
    return Schedule(**values)


SCHEDULE = Reader(
    '"constant", "cosine", {kind = "step", at, factor} or {kind = "exponential", every, factor}', _schedule
)
EVERY = {"every": Key(EPOCH)}
BEST = {
    "kind": Key(choice("best_validation")),
    "after": Key(whole(0, MOST_EPOCHS), default=0),
    "every": Key(EPOCH, default=1),
}


def _keep(value: Any, place: Place) -> Keep:
    if isinstance(value, Mapping) and "kind" in value:
        values = read_keys(BEST, value, place)
        return Keep(values["kind"], after=values.get("after", 0), judged_every=values.get("every", 1))
    if isinstance(value, Mapping):
        values = read_keys(EVERY, value, place)
        return Keep("trajectory", **values)
    if value not in ("last", "best_validation"):
        raise wrong(place, KEEP.words, value)
    return Keep(value)


KEEP = Reader('"last", "best_validation", {every = 10} or {kind = "best_validation", after, every}', _keep)
BETAS = checked(
    "two numbers from 0 to below 1",
    lambda value: isinstance(value, list) and len(value) == 2 and all(is_number(b) and 0 <= b < 1 for b in value),
    lambda value: (float(value[0]), float(value[1])),
)
