"""A report as plain Markdown; pictures stay where they are, in the runs' folders."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace.checkpoint import BEST

if TYPE_CHECKING:
    from netspace.experiments.result import Claim, Result
    from netspace.report import Judged, Merit, Report

HELD = {True: "held", False: "NOT held"}


def text(report: Report, folder: Path) -> str:
    """The whole document.

    folder: that it will lie in, which pictures are named from
    """
    parts = [
        f"# {report.title}",
        f"Made {report.made} on {report.hardware}; {words(report.versions)}.",
        "## Claims",
        tally(report.merits),
        table(
            ("recipe", "experiment", "claim", "found", "must be", ""),
            [(one.recipe, one.experiment, one.text, found(one), bound(one), verdict(one)) for one in report.merits],
        ),
    ]
    if report.failures:
        parts += ["## Could not be made", "\n".join(f"- {one}" for one in report.failures)]
    for one in report.runs:
        parts += run_parts(one, folder)
    return "\n\n".join(part for part in parts if part) + "\n"


def run_parts(one: Judged, folder: Path) -> list[str]:
    """A run: how it was trained, then its experiments."""
    recipe, best, zoo = one.run.recipe, one.run.facts(BEST) or {}, one.run.record["zoo"]
    scores = ", ".join(f"{name} {number(value)}" for name, value in best.get("scores", {}).items())
    parts = [
        f"## {one.name}",
        recipe.description,
        f"Recipe `{recipe.name}`, setting {recipe.setting}, seed {recipe.training.seed}; zoo `{zoo['name']}` "
        f"(sha256 `{zoo['sha256'][:12]}`); best after step {best.get('step')}: {scores}. Its steps took "
        f"{duration(one.seconds)}.",
    ]
    for result in one.results.values():
        parts += result_parts(result, one.folder, folder)
    return parts


def result_parts(result: Result, pictures: Path, folder: Path) -> list[str]:
    """An experiment: words, claims, pictures, tables."""
    claims = [
        f"- {HELD[claim.held]}: {claim.text}: {told(claim.number, claim.unit)} (must be {bound(claim)})"
        for claim in result.claims
    ]
    images = []
    for picture in result.pictures:
        path = os.path.relpath(pictures / picture.file, folder).replace(os.sep, "/")
        images.append(f"![{picture.title}](<{path}>)")
    tables = [
        f"**{one.title}**\n\n{table(one.columns, [[cell(value) for value in row] for row in one.rows])}"
        for one in result.tables
    ]
    return [f"### {result.title}", result.text, "\n".join(claims), *images, *tables]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a `|` in a cell would end it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(one.replace('|', chr(92) + '|') for one in line)} |" for line in lines)


# What is said alike on the page and here ------------------------------------------------------------------------


def tally(merits: Sequence[Merit]) -> str:
    """`24 of 27 claims held.`"""
    held = sum(one.held == len(one.numbers) for one in merits)
    return f"{held} of {len(merits)} claims held."


def verdict(one: Merit) -> str:
    """`held`, `NOT held`, or in how many runs."""
    if one.held in (0, len(one.numbers)):
        return HELD[one.held > 0]
    return f"held in {one.held} of {len(one.numbers)} runs"


def found(one: Merit) -> str:
    """`0.981`, or `0.981 ± 0.004 (3 runs)`."""
    if one.deviation is None:
        return told(one.mean, one.unit)
    if one.deviation == 0:
        return f"{told(one.mean, one.unit)} (in each of {len(one.numbers)} runs)"
    return f"{told(one.mean, one.unit)} ± {told(one.deviation, one.unit)} ({len(one.numbers)} runs)"


def told(value: float, unit: str) -> str:
    """A claim's number in its unit: `97.1 %`, `9.3 points`, `0.934`; a share of 1 is told as it is, 100 %."""
    if not unit or not math.isfinite(value):
        return number(value)
    return f"{round(100 * value, 1):g} {unit}"


def bound(one: Merit | Claim) -> str:
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
