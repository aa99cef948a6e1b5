"""What a report says alike on its page, in Markdown and on the terminal: counts, verdicts and numbers in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netspace.experiments.result import Claim
    from netspace.report.model import RecipeClaim, Report

HELD = {True: "held", False: "NOT held"}
# By kind of claim: one, several.
KIND_WORDS = {
    "paper": ("claim of the paper", "claims of the paper"),
    "beyond": ("question beyond the paper", "questions beyond the paper"),
    "check": ("check", "checks"),
}


def tally(report: Report) -> str:
    """`31 of 36 claims of the paper held in every run; 4 of 12 questions beyond the paper; 12 of 12 checks.`"""
    parts = [f"{held} of {of} {what}" for held, of, what in tallied(report)]
    return "; ".join(parts) + "." if parts else "No claims."


def tallied(report: Report) -> list[tuple[int, int, str]]:
    """For each kind of claim that there is: how many held, of how many, and of what."""
    found: list[tuple[int, int, str]] = []
    for kind, one in report.counts.items():
        if one["of"]:
            what = KIND_WORDS[kind][one["of"] > 1]
            found.append((one["held"], one["of"], what if found else f"{what} held{every_run(report)}"))
    return found


def every_run(report: Report) -> str:
    """` in every run`, where there are several of a recipe."""
    return " in every run" if any(one.runs > 1 for one in report.claims) else ""


def heading(kind: str, report: Report) -> str:
    """`Claims of the paper: 31 of 36 held in every run`."""
    one, what = report.counts[kind], KIND_WORDS[kind][1]
    return f"{what[0].upper()}{what[1:]}: {one['held']} of {one['of']} held{every_run(report)}"


def verdict(one: RecipeClaim) -> str:
    """`held`, `NOT held`, or in how many runs."""
    if one.held == 0 or one.holds:
        return HELD[one.holds]
    return f"held in {one.held} of {len(one.numbers)} runs"


def found(one: RecipeClaim) -> str:
    """`0.981`, or what `averaged` says; a unit stands once."""
    return averaged(one.known, lambda value: told(value, one.unit), one.runs, one.unit)


def averaged(numbers: Sequence[float], say: Callable[[float], str], runs: int | None = None, unit: str = "") -> str:
    """`0.981`, `0.981 ± 0.004 (3 runs)`, `1 (in each of 3 runs)`, `0.981 ± 0.004 (2 of 3 runs could tell)`.

    numbers: of runs that could tell
    say:     a number in words
    runs:    there are; as many as numbers, if missing
    unit:    that the words end in
    """
    known, of = len(numbers), len(numbers) if runs is None else runs
    mean = say(statistics.fmean(numbers)) if known else say(math.nan)
    deviation = statistics.stdev(numbers) if known > 1 else 0.0
    if deviation > 0:
        mean = f"{mean.removesuffix(f' {unit}')} ± {say(deviation)}"
    if known < of:
        return f"{mean} ({known} of {of} runs could tell)" if of > 1 else mean
    if of == 1:
        return mean
    return f"{mean} ({of} runs)" if deviation > 0 else f"{mean} (in each of {of} runs)"


def told(value: float, unit: str) -> str:
    """A claim's number in its unit: `97.1 %`, `9.3 points`, `0.934`; a share of 1 is told as 100 %."""
    if not math.isfinite(value):
        return number(value)
    if not unit:
        return number(float(f"{value:.3g}"))
    return f"{round(100 * value, 1) + 0.0:g} {unit}"  # -0 is 0


def bound(one: RecipeClaim | Claim) -> str:
    """What a claim's number must be, in its unit: `>= 95 %`."""
    relation, _, limit = one.bound.partition(" ")
    return f"{relation} {told(float(limit), one.unit)}"


def cell(value: Any) -> str:
    """A table's cell as text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, int | float) else str(value)


def number(value: float) -> str:
    """Four digits; whole numbers whole."""
    if isinstance(value, float) and not math.isfinite(value):
        return "none"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def words(versions: Any) -> str:
    """`prepkit 0.1.0, python 3.11`."""
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
