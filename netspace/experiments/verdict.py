"""Verdicts on claims: held, not held, undecided, or not told.

    made = claim("Rank correlation", 0.90, ">=", 0.95, interval=(0.71, 0.98))
    made.verdict                                                       # "undecided": the interval covers the bound

A claim is measured on a few instances. Others would have given another number, somewhere in the interval of the
bootstrap, so a claim holds only if its whole interval does.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import prepkit

RELATIONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
STRICT = (">", "<")
# "paper" claims are the paper's, or aims set for the embedded zoos; "beyond" claims are about what the paper does not
# ask; "easier" are both in a report, if they are about a zoo whose instances share their starts; a "check" is about
# whether the measurement itself is sound, which says nothing of the method.
_, _, EASIER, CHECK = KINDS = ("paper", "beyond", "easier", "check")
# A share is shown as per cent, a difference of shares as points, any other number as it is, with its unit if any.
SHARES = ("%", "points")
UNITS = (*SHARES, "IoU", "items", "")
HELD, NOT_HELD, UNDECIDED, NOT_TOLD = VERDICTS = ("held", "not held", "undecided", "not told")
UNMEASURED = "there is nothing to measure it on"

Interval = tuple[float, float]


class ResultError(prepkit.PrepkitError, ValueError):
    """A result cannot be read, or holds a value that JSON has no form for."""


@dataclass(frozen=True)
class Claim:
    """A statement that is judged by one number.

    text:     says what the number is, so that `text: number` is understood on its own
    number:   NaN if it could not be measured
    bound:    the number's limit, such as ">= 0.95"
    verdict:  one of VERDICTS
    kind:     one of KINDS
    unit:     one of UNITS; of SHARES, number, bound and interval are shares all the same: 0.03 is shown as 3 points
    interval: where the number lies in 95 % of the draws of other instances; None if it is not a matter of instances,
              NaN and NaN if there are too few of them
    reason:   why it is not told; empty for another verdict
    short:    what the number is in a few words, where the claim stands in a page's summary; empty elsewhere
    """

    text: str
    number: float
    bound: str
    verdict: str
    kind: str = "paper"
    unit: str = ""
    interval: Interval | None = None
    reason: str = ""
    short: str = ""

    def __post_init__(self) -> None:
        for name, known in (("verdict", VERDICTS), ("kind", KINDS), ("unit", UNITS)):
            if getattr(self, name) not in known:
                raise ResultError(f"claim '{self.text}': {name} {getattr(self, name)!r} is none of {known}.")

    @property
    def held(self) -> bool:
        """Whether the claim held."""
        return self.verdict == HELD


def claim(
    text: str,
    number: float,
    relation: str,
    limit: float,
    *,
    kind: str = "paper",
    unit: str = "",
    interval: Interval | None = None,
    untold: str = "",
    short: str = "",
) -> Claim:
    """Return the claim that `number relation limit` is true, with its verdict.

    relation: one of RELATIONS
    interval: see Claim; an equality has none, because it is about the instances at hand
    untold:   a reason, in words that begin small, why the number tells nothing; empty if it tells
    short:    see Claim
    raises ResultError for an unknown kind or unit
    """
    number = _plain(number)
    judged = verdict(number, relation, limit, unit=unit, interval=interval, untold=bool(untold))
    reason = (untold or UNMEASURED) if judged == NOT_TOLD else ""
    plain = None if interval is None else (_plain(interval[0]), _plain(interval[1]))
    return Claim(text, number, f"{relation} {limit:g}", judged, kind, unit, plain, reason, short)


def _plain(number: float) -> float:
    """Return a float; every NaN becomes the same one, so that a claim that is loaded equals the one that was saved."""
    return math.nan if math.isnan(number) else float(number)


def verdict(
    number: float,
    relation: str,
    limit: float,
    *,
    unit: str = "",
    interval: Interval | None = None,
    untold: bool = False,
) -> str:
    """Return one of VERDICTS.

    not told:  the number is not finite, or it is said to tell nothing
    not held:  number and interval break the bound; or the number, as it is shown, is the limit that it must pass
    undecided: the interval covers the bound, or there are too few instances for one
    """
    if untold or not math.isfinite(number):
        return NOT_TOLD
    if relation in STRICT and as_shown(number, unit) == limit:
        return NOT_HELD  # "0 points, must be > 0" is no success, wherever its interval lies
    if interval is None or relation == "==":
        return HELD if RELATIONS[relation](number, limit) else NOT_HELD
    if not all(map(math.isfinite, interval)):
        return UNDECIDED
    holds = {RELATIONS[relation](value, limit) for value in (number, *interval)}
    return UNDECIDED if len(holds) > 1 else HELD if True in holds else NOT_HELD


def as_shown(number: float, unit: str) -> float:
    """Return a number as it is shown: a share to a tenth of a per cent or point, another to three digits."""
    return (round(number, 3) if unit in SHARES else float(f"{number:.3g}")) + 0.0  # adding 0.0 turns -0 into 0


def verdict_of_runs(verdicts: Sequence[str]) -> str:
    """Return the verdict that all runs share; undecided where they differ."""
    return verdicts[0] if len(set(verdicts)) == 1 else UNDECIDED
