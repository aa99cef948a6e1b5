"""A report as one HTML file: no other file, no request, light and dark, on paper too. For its look see report_style.py.

All text that comes from runs, zoos and results is escaped; the page's own policy forbids it to load anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from netspace.experiments.result import KINDS
from netspace.report.pieces import (
    Cell,
    anchor,
    chip,
    claim_list,
    folded,
    image,
    inline,
    limit,
    link,
    marked,
    paragraphs,
    picture_of,
    table,
    table_of,
    unbroken,
)
from netspace.report.style import SCRIPT, STYLE
from netspace.report.variants import spread, variants, without_variants
from netspace.report.words import cell, duration, found, heading, number, tallied, verdict, words
from netspace.run.run import BEST

if TYPE_CHECKING:
    from netspace.experiments.result import Claim, Result
    from netspace.report.model import RecipeClaim, Report, RunResults
    from netspace.report.variants import Variant

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
LONG_NUMBERS = 20_000  # characters of JSON; longer ones stay in their file
FOLDED_KINDS = ("check",)  # of claims: those that say nothing of the method


def page(report: Report) -> str:
    """The whole document."""
    recipes = (recipe_section(name, runs) for name, runs in report.recipes.items())
    sections = [overview(report), *recipes, variants_section(report)]
    title = escape(report.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{contents(report)}\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


# Sections -------------------------------------------------------------------------------------------------------


def contents(report: Report) -> str:
    """Links to all sections: each recipe and its experiments once, however many runs it has."""
    items = [link("claims", "Claims"), link("runs", "Runs")]
    found = homes(report)
    for recipe, runs in report.recipes.items():
        titles = {name: result.title for one in reversed(runs) for name, result in one.results.items()}
        names = [name for of, name in found if of == recipe]
        inner = "".join(f"<li>{link(found[recipe, name], titles[name])}</li>" for name in names)
        items.append(f"{link(anchor('recipe', recipe), recipe)}<ul>{inner}</ul>")
    items += [link("variants", "Variants of a recipe")] if variants(report) else []
    return f'<nav aria-label="Contents"><ul>{"".join(f"<li>{item}</li>" for item in items)}</ul></nav>'


def homes(report: Report) -> dict[tuple[str, str], str]:
    """Where an experiment of a recipe is shown: in the recipe's first run that has it; by recipe and experiment."""
    found: dict[tuple[str, str], str] = {}
    for one in report.runs:
        for name in one.results:
            found.setdefault((one.run.recipe.name, name), anchor("run", one.name, name))
    return found


def overview(report: Report) -> str:
    """Title, how many claims held, the claims of each kind, the runs."""
    parts = [
        f'<header id="claims"><h1>{escape(report.title)}</h1>'
        f'<p class="soft">Made {escape(report.made)} on {escape(report.hardware)}; '
        f"{escape(words(report.versions))}.</p></header>",
        tally_list(report),
        without_variants_part(report),
        paragraphs(spread(report)),
        failures(report),
        *(claims_of_kind(kind, report) for kind in KINDS),
        runs_table(report),
    ]
    return "\n".join(part for part in parts if part)


def without_variants_part(report: Report) -> str:
    """How many claims held without variants, and where those are shown."""
    told = without_variants(report)
    return f"<p>{inline(told)} {link('variants', 'Variants beside what they vary')}</p>" if told else ""


def tally_list(report: Report) -> str:
    """How many claims of each kind held, as numbers and as bars."""
    items = "".join(
        f"<li><strong>{held} of {of}</strong> {escape(what)}"
        f'<div class="bar"><span style="width:{100 * held / of:.1f}%"></span></div></li>'
        for held, of, what in tallied(report)
    )
    return f'<ul class="tally">{items}</ul>' if items else ""


def claims_of_kind(kind: str, report: Report) -> str:
    """A table of the claims of one kind, if there are any; those of variants, and checks, are folded."""
    claims = [one for one in report.claims if one.kind == kind]
    if not claims:
        return ""
    title, apart = heading(kind, report), {one.name for one in variants(report)}
    if kind in FOLDED_KINDS:
        return folded(title, claims_table("", claims, report))
    own, others = ([one for one in claims if (one.recipe in apart) is is_apart] for is_apart in (False, True))
    rest = f"Of these, of variants of a recipe: {sum(one.holds for one in others)} of {len(others)} held"
    return claims_table(title, own, report) + (folded(rest, claims_table("", others, report)) if others else "")


def claims_table(title: str, claims: Sequence[RecipeClaim], report: Report) -> str:
    """Verdict, claim, number, bound, and a link to the recipe's experiment."""
    found_at = homes(report)
    rows = [
        (
            chip(verdict(one), one.holds),
            one.text,
            Cell(unbroken(found(one)), one.mean),
            limit(one),
            Cell(link(found_at[one.recipe, one.experiment], one.recipe), one.recipe),
        )
        for one in claims
    ]
    return f'<div class="dense">{table(title, ("", "claim", "found", "must be", "recipe"), rows)}</div>'


def runs_table(report: Report) -> str:
    """All runs, with links to them; folded."""
    rows = [
        (
            Cell(link(anchor("run", one.name), one.name), one.name),
            one.run.recipe.setting,
            len(one.run.registry.class_ids),
            one.run.recipe.training.seed,
            Cell(held_of(one), share_held(one), True),
            (one.run.facts(BEST) or {}).get("step"),
            Cell(duration(one.training_seconds), one.training_seconds, True),
            Cell(duration(experiment_seconds(one)), experiment_seconds(one), True),
        )
        for one in report.runs
    ]
    columns = ("run", "setting", "architectures", "seed", "held", "best after step", "training", "experiments")
    title = f"Runs: {len(report.runs)}, of recipes: {len(report.recipes)}"
    return folded(title, table("", columns, rows), "runs")


def variants_section(report: Report) -> str:
    """Recipes beside the one that they are variants of: what differs, and what came of it."""
    shown = variants(report)
    if not shown:
        return ""
    return "\n".join(['<h2 id="variants">Variants of a recipe</h2>', *(variant_part(one) for one in shown)])


def variant_part(one: Variant) -> str:
    """A variant: what differs, and what both claim, side by side."""
    changes = "".join(
        f"<li><code>{escape(key)}</code>: {escape(cell(before))} → {escape(cell(after))}</li>"
        for key, before, after in one.changes
    )
    rows: list[Sequence[Any]] = [
        (before.text, limit(before), marked(before), marked(after)) for before, after in one.claims
    ]
    for name, *texts in one.figures:
        rows.append((name, None, *(Cell(unbroken(text), text) for text in texts)))
    return (
        f"<h3>{escape(one.name)} beside {escape(one.base)}</h3>"
        f'<ul class="changes">{changes}</ul>'
        f'<div class="dense">{table("", ("claim", "must be", one.base, one.name), rows)}</div>'
    )


def recipe_section(name: str, runs: Sequence[RunResults]) -> str:
    """A recipe: its first run whole; other runs folded, without pictures."""
    first, *others = runs
    parts = [f'<h2 id="{anchor("recipe", name)}">{escape(name)}</h2>', paragraphs(first.run.recipe.description)]
    if others:
        links = ", ".join(link(anchor("run", one.name), one.name) for one in others)
        parts.append(f'<p class="soft">Shown is the run {escape(first.name)}; below it, without pictures: {links}.</p>')
    parts.append(run_part(first, True))
    for one in others:
        title = f"Run {one.name}, seed {one.run.recipe.training.seed}: {held_of(one)} held"
        told = '<p class="soft">Its pictures lie in the folder of the run.</p>'
        parts.append(folded(title, told + run_part(one, False)))
    return "\n".join(parts)


def failures(report: Report) -> str:
    """What could not be made, if anything."""
    items = "".join(f"<li>{escape(one)}</li>" for one in report.failures)
    return f'<div class="failed"><strong>Could not be made</strong><ul>{items}</ul></div>' if items else ""


def run_part(one: RunResults, whole: bool) -> str:
    """A run: how it was trained, then its experiments; pictures only if it is to be shown whole."""
    run = one.run
    recipe, best, zoo = run.recipe, run.facts(BEST) or {}, run.record["zoo"]
    facts = {
        "recipe": f"{recipe.name}, setting {recipe.setting}, seed {recipe.training.seed}",
        "zoo": f"{zoo['name']}, sha256 {zoo['sha256'][:12]}",
        "PRep": f"{recipe.network.height} x {recipe.network.width}, embedding of {recipe.network.embedding_size}",
        "architectures": ", ".join(f"{each.name} ({each.num_parameters:,})" for each in run.registry),
        "steps": f"{recipe.training.steps:,}, best after {best.get('step', 0):,}, in {duration(one.training_seconds)}",
        "validation": ", ".join(f"{name} {number(value)}" for name, value in best.get("scores", {}).items()),
        "trained with": words(run.record.get("versions", {})),
    }
    terms = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    parts = [
        f'<dl id="{anchor("run", one.name)}">{terms}</dl>',
        folded("Recipe", f"<pre>{escape(json.dumps(recipe.to_dict(), indent=2))}</pre>"),
    ]
    if whole and one.training_picture is not None:
        parts.append(image("Losses and validation scores while it was trained", one.training_picture, ".png"))
    parts += [experiment_section(one, name, result, whole) for name, result in one.results.items()]
    return "\n".join(parts)


def experiment_section(one: RunResults, name: str, result: Result, whole: bool) -> str:
    """An experiment: words, claims, pictures, tables, numbers."""
    parts = [f'<h3 id="{anchor("run", one.name, name)}">{escape(result.title)}</h3>']
    if whole:
        parts.append(paragraphs(result.text))
    parts.append(claim_list(result.claims))
    if whole:
        parts += [picture_of(one.folder, picture) for picture in result.pictures]
    parts += [table_of(each) for each in result.tables]
    numbers = json.dumps(result.numbers, indent=1)
    if len(numbers) > LONG_NUMBERS:
        numbers = f"{len(numbers):,} characters, in {one.run.path.name}/experiments/{name}.json"
    parts.append(folded("Numbers", f"<pre>{escape(numbers)}</pre>"))
    seconds, checkpoint = result.stamp.get("seconds"), result.stamp.get("checkpoint", {})
    if seconds is not None:
        parts.append(
            f'<p class="soft">Took {duration(seconds)} on {escape(str(result.stamp.get("hardware")))}, '
            f"with the state after step {checkpoint.get('step')}.</p>"
        )
    return "\n".join(part for part in parts if part)


def claims_of(one: RunResults) -> list[Claim]:
    """All claims of a run."""
    return [claim for result in one.results.values() for claim in result.claims]


def held_of(one: RunResults) -> str:
    """`7 of 9`: how many of a run's claims held."""
    return f"{sum(claim.held for claim in claims_of(one))} of {len(claims_of(one))}"


def share_held(one: RunResults) -> float:
    """Of a run's claims."""
    return sum(claim.held for claim in claims_of(one)) / max(1, len(claims_of(one)))


def experiment_seconds(one: RunResults) -> float:
    """What all experiments of a run took."""
    return float(sum(result.stamp.get("seconds") or 0.0 for result in one.results.values()))
