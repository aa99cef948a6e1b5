"""A report as plain Markdown; pictures stay where they are, in the runs' folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from netspace.experiments.result import KINDS
from netspace.report.variants import spread, variants, without_variants
from netspace.report.words import HELD, bound, cell, duration, found, heading, number, tally, told, verdict, words
from netspace.run.run import BEST

if TYPE_CHECKING:
    from netspace.experiments.result import Result
    from netspace.report.model import Report, RunResults
    from netspace.report.variants import Variant


def text(report: Report, folder: Path) -> str:
    """The whole document.

    folder: that it will lie in, which pictures are named from
    """
    parts = [
        f"# {report.title}",
        f"Made {report.made} on {report.hardware}; {words(report.versions)}.",
        spread(report),
        "## Claims",
        tally(report),
        without_variants(report),
    ]
    for kind in KINDS:
        parts += claim_parts(kind, report)
    if report.failures:
        parts += ["## Could not be made", "\n".join(f"- {one}" for one in report.failures)]
    for one in report.runs:
        parts += run_parts(one, folder)
    shown = variants(report)
    parts += ["## Variants of a recipe"] if shown else []
    for variant in shown:
        parts += variant_parts(variant)
    return "\n\n".join(part for part in parts if part) + "\n"


def claim_parts(kind: str, report: Report) -> list[str]:
    """A heading and a table of the claims of a kind, if there are any."""
    rows = [
        (one.recipe, one.experiment, one.text, found(one), bound(one), verdict(one))
        for one in report.claims
        if one.kind == kind
    ]
    columns = ("recipe", "experiment", "claim", "found", "must be", "")
    return [f"### {heading(kind, report)}", table(columns, rows)] if rows else []


def variant_parts(one: Variant) -> list[str]:
    """A variant: what differs, and what both claim, side by side."""
    rows = [
        (before.text, bound(before), f"{found(before)}, {verdict(before)}", f"{found(after)}, {verdict(after)}")
        for before, after in one.claims
    ]
    rows += [(name, "", before, after) for name, before, after in one.figures]
    return [
        f"### {one.name} beside {one.base}",
        "\n".join(f"- `{key}`: {cell(before)} -> {cell(after)}" for key, before, after in one.changes),
        table(("claim", "must be", one.base, one.name), rows),
    ]


def run_parts(one: RunResults, folder: Path) -> list[str]:
    """A run: how it was trained, then its experiments."""
    recipe, best, zoo = one.run.recipe, one.run.facts(BEST) or {}, one.run.record["zoo"]
    scores = ", ".join(f"{name} {number(value)}" for name, value in best.get("scores", {}).items())
    parts = [
        f"## {one.name}",
        recipe.description,
        f"Recipe `{recipe.name}`, setting {recipe.setting}, seed {recipe.training.seed}; zoo `{zoo['name']}` "
        f"(sha256 `{zoo['sha256'][:12]}`); best after step {best.get('step')}: {scores}. Its steps took "
        f"{duration(one.training_seconds)}.",
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
