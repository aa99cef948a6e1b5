"""Counts, verdicts and numbers in words, alike on the page, in Markdown and on the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netspace.experiments.result import Claim
from netspace.experiments.verdict import HELD, NOT_TOLD, SHARES, UNDECIDED, VERDICTS, Interval, as_shown
from netspace.report.model import RecipeClaim, Report
from prepkit.support.text import short_number

KIND_WORDS = {
    "paper": ("claim of the paper", "claims of the paper"),
    "beyond": ("question beyond the paper", "questions beyond the paper"),
    "easier": ("claim on easier zoos, of shared starts", "claims on easier zoos, of shared starts"),
    "check": ("check", "checks"),
}


def tally(report: Report) -> str:
    """`31 of 36 claims of the paper held in every run, 2 undecided; 4 of 12 questions beyond the paper; 9 of 9 checks.`

    Those that are not named did not hold.
    """
    parts = [f"{held} of {total} {text}{others}" for held, total, text, others in kind_counts(report)]
    return "; ".join(parts) + "." if parts else "No claims."


def kind_counts(report: Report) -> list[tuple[int, int, str, str]]:
    """For each kind of claim in the report: how many held, of how many, the kind in words, and `others`."""
    counts: list[tuple[int, int, str, str]] = []
    for kind, count in report.counts.items():
        if count["of"]:
            text = KIND_WORDS[kind][count["of"] > 1]
            text = text if counts else f"{text} held{_in_every_run(report)}"
            counts.append((count[HELD], count["of"], text, others(count)))
    return counts


def heading(report: Report, kind: str) -> str:
    """`Claims of the paper: 31 of 36 held in every run, 2 undecided`"""
    count, text = report.counts[kind], KIND_WORDS[kind][1]
    told = f"{count[HELD]} of {count['of']} held{_in_every_run(report)}{others(count)}"
    return f"{text[0].upper()}{text[1:]}: {told}"


def others(count: Mapping[str, int]) -> str:
    """`, 2 undecided, 1 not told`: the numbers of claims that neither held nor failed to; empty without any."""
    return "".join(f", {count[verdict]} {verdict}" for verdict in (UNDECIDED, NOT_TOLD) if count[verdict])


def _in_every_run(report: Report) -> str:
    return " in every run" if any(claim.runs > 1 for claim in report.claims) else ""


def verdict(claim: RecipeClaim) -> str:
    """`held`, `undecided`, or, where runs differ, in how many of them it held."""
    counts = {verdict: claim.verdicts.count(verdict) for verdict in VERDICTS}
    first = next(verdict for verdict in VERDICTS if counts[verdict])
    runs = len(claim.verdicts)
    return first if counts[first] == runs else f"{first} in {counts[first]} of {runs} runs"


def measured(claim: RecipeClaim) -> str:
    """A claim's number over all runs; of a single run with its interval."""
    return number_of(claim) + interval_text(claim.interval, claim.unit)


def number_of(claim: RecipeClaim) -> str:
    """A claim's number over all runs, as `averaged` says it."""
    return averaged(claim.known, lambda value: in_unit(value, claim.unit), claim.runs, claim.unit)


def interval_text(interval: Interval | None, unit: str) -> str:
    """` (71 to 98 %)`: an interval after its number; empty without one, or where it is shown as a single number."""
    if interval is None or not all(map(math.isfinite, interval)):
        return ""
    low, high = (in_unit(value, unit) for value in interval)
    if low == high:
        return ""
    return f" ({low.removesuffix(f' {unit}') if unit else low} to {high})"


def averaged(numbers: Sequence[float], say: Callable[[float], str], runs: int | None = None, unit: str = "") -> str:
    """`0.981`, `0.981 ± 0.004 (3 runs)`, `1 (in each of 3 runs)`, `0.981 ± 0.004 (from 2 of 3 runs)`.

    numbers: one for each run that has a number
    say:     puts a number into words
    runs:    number of all runs; as many as numbers, if missing
    unit:    the words end in it; it is said once, after the deviation
    """
    known, runs = len(numbers), len(numbers) if runs is None else runs
    text = say(statistics.fmean(numbers) if numbers else math.nan)
    deviation = statistics.stdev(numbers) if known > 1 else 0.0
    if deviation > 0:
        text = f"{text.removesuffix(f' {unit}')} ± {say(deviation)}"
    if runs == 1:
        return text
    if known < runs:
        return f"{text} (from {known} of {runs} runs)"
    return f"{text} ({runs} runs)" if deviation > 0 else f"{text} (in each of {runs} runs)"


def in_unit(value: float, unit: str) -> str:
    """A claim's number in its unit: `97.1 %`, `9.3 points`, `0.55 IoU`, `0.934`; the share 1 becomes 100 %."""
    if not math.isfinite(value):
        return short_number(value)
    shown = as_shown(value, unit)
    return f"{100 * shown:g} {unit}" if unit in SHARES else f"{short_number(shown)} {unit}".rstrip()


def bound(claim: RecipeClaim | Claim) -> str:
    """The bound of a claim's number in its unit: `>= 95 %`; no share exceeds 1, so `>= 100 %` is said as `= 100 %`."""
    relation, _, limit = claim.bound.partition(" ")
    if relation == "==" or (relation, float(limit), claim.unit) == (">=", 1.0, "%"):
        relation = "="
    return f"{relation} {in_unit(float(limit), claim.unit)}"


def score(name: str, value: float) -> str:
    """`predicted accuracy 93.4 %`: a validation score in words; the name is a key of a run's scores."""
    if name == "score":
        return f"score {short_number(value)} (the larger, the better)"
    return f"{score_name(name)} {in_unit(value, 'points' if name.endswith('difference') else '%')}"


def score_name(name: str) -> str:
    """`ClassId accuracy`: the key of a validation score in words."""
    return name.replace("_", " ").replace("class id", "ClassId")


def cell(value: Any) -> str:
    """A table's cell as text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return short_number(value) if isinstance(value, int | float) else str(value)


def versions_text(versions: Mapping[str, str]) -> str:
    """`prepkit 0.1.0, python 3.11`."""
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
