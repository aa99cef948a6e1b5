"""Differences between the runs of a report: between recipes on one zoo, and between the runs of one recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from netspace.report.model import RecipeClaim, Report, RunResults
from netspace.report.words import averaged, tally
from prepkit.support.json_values import by_dotted_key
from prepkit.support.text import duration, short_number

SEED = "training.seed"
LABELS = ("name", "description")  # keys of a recipe that do not change a training


@dataclass(frozen=True)
class Variant:
    """A recipe compared with its base: the first recipe of the same zoo and setting.

    changes: dotted key, value in the base, value in the variant
    claims:  the claims that both make, the base's and the variant's
    figures: scores and times that both have: name, text for the base, text for the variant
    """

    base: str
    name: str
    changes: Sequence[tuple[str, Any, Any]]
    claims: Sequence[tuple[RecipeClaim, RecipeClaim]]
    figures: Sequence[tuple[str, str, str]]


def variants(report: Report) -> list[Variant]:
    """Compare each recipe with the first one of its zoo and setting."""
    bases: dict[tuple[str, str], Sequence[RunResults]] = {}
    compared = []
    for runs in report.recipes.values():
        run = runs[0].run
        base = bases.setdefault((run.record["zoo"]["sha256"], run.recipe.setting), runs)
        if base is not runs:
            compared.append(_compare(base, runs, report.claims))
    return compared


def without_variants(report: Report) -> str:
    """Say how many claims hold without variants, which are often meant to be worse; empty if there is no variant."""
    names = [variant.name for variant in variants(report)]
    rest = replace(report, runs=tuple(one for one in report.runs if one.run.recipe.name not in names))
    return f"Without variants of a recipe ({', '.join(names)}): {tally(rest)}" if names else ""


def _compare(base: Sequence[RunResults], variant: Sequence[RunResults], claims: Sequence[RecipeClaim]) -> Variant:
    first, second = base[0].run.recipe, variant[0].run.recipe
    before, after = by_dotted_key(first.to_dict()), by_dotted_key(second.to_dict())
    changes = [
        (key, before.get(key), after.get(key))
        for key in before | after
        if before.get(key) != after.get(key) and key not in (*LABELS, SEED)
    ]
    pairs = [
        (one, other)
        for kind in ("paper", "beyond")  # a check says nothing about a method
        for one in claims
        for other in claims
        if (one.recipe, other.recipe, one.kind) == (first.name, second.name, kind) and one.asks_the_same(other)
    ]
    return Variant(first.name, second.name, changes, pairs, _figures(base, variant))


def _figures(*groups: Sequence[RunResults]) -> list[tuple[str, str, str]]:
    """Return the best validation scores that all runs have, and the time of their trainings where it was logged."""
    runs = [run for group in groups for run in group]
    rows = []
    for name in groups[0][0].scores:
        if all(name in run.scores for run in runs):
            first, second = (averaged([run.scores[name] for run in group], short_number) for group in groups)
            rows.append((f"best validation: {name}", first, second))
    if all(run.training_seconds > 0 for run in runs):
        first, second = (averaged([run.training_seconds for run in group], duration) for group in groups)
        rows.append(("duration of the training steps", first, second))
    return rows


def spread(report: Report) -> str:
    """Say what ± is the spread over: the differences between runs of one recipe; empty if no recipe has several."""
    several = [runs for runs in report.recipes.values() if len(runs) > 1]
    keys = dict.fromkeys(key for runs in several for key in _differing(runs))
    if not several:
        return ""
    differ = f"only in {', '.join(keys)}" if keys else "in nothing that is recorded"
    return f"± is the spread over the runs of a recipe, which differ {differ}."


def _differing(runs: Sequence[RunResults]) -> list[str]:
    """Return the dotted keys in which runs differ: of their recipes, their zoos, and the versions that trained them."""
    records = []
    for run in (one.run for one in runs):
        others = {"zoo": run.record["zoo"]["sha256"], "versions": run.record.get("versions", {})}
        records.append(by_dotted_key({**run.recipe.to_dict(), **others}))
    keys = dict.fromkeys(key for record in records for key in record)
    return [key for key in keys if key not in LABELS and len({repr(record.get(key)) for record in records}) > 1]
