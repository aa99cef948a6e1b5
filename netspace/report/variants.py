"""What differs between the runs of a report: between those of one recipe, and between a recipe and its variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from netspace.experiments.result import KINDS
from netspace.report.words import averaged, duration, number, tally
from netspace.run.run import BEST

if TYPE_CHECKING:
    from netspace.report.model import RecipeClaim, Report, RunResults

SEED = "training.seed"
UNTOLD = ("name", "description")  # of a recipe: they say what it is, not how it is trained
OF_THE_METHOD = KINDS[:2]  # a check says nothing of what a variant is good for
SEEDS_ALONE = (
    "Runs of one recipe differ in the seed of NetSpace's training alone: zoo, split and what experiments draw are the "
    "same, so ± is the spread of training, not of the data."
)


@dataclass(frozen=True)
class Variant:
    """A recipe beside another one, the base, of the same zoo and setting.

    changes: what differs: dotted key, value of the base, of the variant
    claims:  that both make, the base's and the variant's
    figures: what else is told of both, in words: name, of the base, of the variant
    """

    base: str
    name: str
    changes: tuple[tuple[str, Any, Any], ...]
    claims: tuple[tuple[RecipeClaim, RecipeClaim], ...]
    figures: tuple[tuple[str, str, str], ...]


def variants(report: Report) -> list[Variant]:
    """Each recipe beside the first one of its zoo and setting."""
    bases: dict[tuple[str, str], tuple[RunResults, ...]] = {}
    found = []
    for runs in report.recipes.values():
        key = (runs[0].run.record["zoo"]["sha256"], runs[0].run.recipe.setting)
        base = bases.setdefault(key, runs)
        if base is not runs:
            found.append(_variant(base, runs, report.claims))
    return found


def without_variants(report: Report) -> str:
    """How many claims held without variants, which are there to be other, often worse; empty if there is no variant."""
    names = [one.name for one in variants(report)]
    rest = replace(report, claims=tuple(one for one in report.claims if one.recipe not in names))
    return f"Without variants of a recipe ({', '.join(names)}): {tally(rest)}" if names else ""


def _variant(base: Sequence[RunResults], runs: Sequence[RunResults], merits: Sequence[RecipeClaim]) -> Variant:
    names = base[0].run.recipe.name, runs[0].run.recipe.name
    before, after = (_values(of[0].run.recipe.to_dict()) for of in (base, runs))
    keys = [key for key in before | after if before.get(key) != after.get(key) and key not in (*UNTOLD, SEED)]
    made, others = (
        {(one.experiment, one.text, one.bound, one.unit): one for one in merits if one.recipe == name} for name in names
    )
    shared = [(one, others[key]) for key, one in made.items() if key in others and one.kind in OF_THE_METHOD]
    return Variant(
        *names,
        tuple((key, before.get(key), after.get(key)) for key in keys),
        tuple(sorted(shared, key=lambda pair: KINDS.index(pair[0].kind))),
        _figures(base, runs),
    )


def _figures(base: Sequence[RunResults], runs: Sequence[RunResults]) -> tuple[tuple[str, str, str], ...]:
    """Best validation scores that both have, and how long the training took where that was noted."""
    found = []
    scores = [[(one.run.facts(BEST) or {}).get("scores", {}) for one in of] for of in (base, runs)]
    for name in scores[0][0]:
        if all(name in one for of in scores for one in of):
            before, after = (averaged([float(one[name]) for one in of], number) for of in scores)
            found.append((f"best validation: {name}", before, after))
    seconds = [[one.training_seconds for one in of] for of in (base, runs)]
    if all(second > 0 for of in seconds for second in of):
        before, after = (averaged(of, duration) for of in seconds)
        found.append(("steps of the training took", before, after))
    return tuple(found)


def spread(report: Report) -> str:
    """What differs between runs of one recipe, which ± is the spread over; empty if no recipe has several."""
    several = {name: _differing(runs) for name, runs in report.recipes.items() if len(runs) > 1}
    if all(keys == [SEED] for keys in several.values()):
        return SEEDS_ALONE if several else ""
    told = [f"Runs of {name} differ in {', '.join(keys) or 'nothing that is noted'}." for name, keys in several.items()]
    return " ".join([*told, "± is the spread over all of that."])


def _differing(runs: Sequence[RunResults]) -> list[str]:
    """Keys of what differs between runs: of their recipes, the zoo, versions of what trained them."""
    facts = [_values(_facts(one)) for one in runs]
    keys = dict.fromkeys(key for of in facts for key in of)
    return [key for key in keys if key not in UNTOLD and any(of.get(key) != facts[0].get(key) for of in facts)]


def _facts(one: RunResults) -> dict[str, Any]:
    record = one.run.record
    return {**one.run.recipe.to_dict(), "zoo": record["zoo"]["sha256"], "versions": record.get("versions", {})}


def _values(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of a tree by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _values(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
