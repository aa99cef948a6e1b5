"""A report as one HTML file: no other file, no request, light and dark, on paper too. For its look see report_style.py.

All text that comes from runs, zoos and results is escaped; the page's own policy forbids it to load anything.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace.checkpoint import BEST
from netspace.report_markdown import bound, cell, duration, found, number, tally, told, verdict, words
from netspace.report_style import SCRIPT, STYLE

if TYPE_CHECKING:
    from netspace.experiments.result import Claim, Picture, Result, Table
    from netspace.report import Judged, Merit, Report

KINDS = {".png": "image/png", ".svg": "image/svg+xml"}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
LONG_TABLE = 12  # rows; longer ones are folded
LONG_CELL = 25  # characters; such a cell is given room where the window is narrow
LONG_NUMBERS = 20_000  # characters of JSON; longer ones stay in their file


class Cell:
    """A table's cell that is marked up already, and what it is sorted by."""

    def __init__(self, html: str, value: float | str, numeric: bool = False) -> None:
        self.html, self.value, self.numeric = html, value, numeric


def page(report: Report) -> str:
    """The whole document."""
    shown = first_of_recipe(report.runs)
    sections = [overview(report), side_by_side(report.merits), *failures(report)]
    sections += [run_section(one, index in shown) for index, one in enumerate(report.runs)]
    title = escape(report.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{contents(report)}\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def first_of_recipe(runs: Sequence[Judged]) -> set[int]:
    """Indices of the first run of each recipe: it is shown whole, others with other seeds without pictures."""
    seen: dict[str, int] = {}
    for index, one in enumerate(runs):
        seen.setdefault(one.run.recipe.name, index)
    return set(seen.values())


# Sections -------------------------------------------------------------------------------------------------------


def contents(report: Report) -> str:
    """Links to all sections."""
    items = ['<li><a href="#claims">Claims</a></li>']
    for one in report.runs:
        inner = "".join(
            f'<li><a href="#{anchor(one.name, name)}">{escape(result.title)}</a></li>'
            for name, result in one.results.items()
        )
        items.append(f'<li><a href="#{anchor(one.name)}">{escape(one.name)}</a><ul>{inner}</ul></li>')
    return f'<nav aria-label="Contents"><ul>{"".join(items)}</ul></nav>'


def overview(report: Report) -> str:
    """Title, how many claims held, all runs, all claims."""
    held = sum(one.held == len(one.numbers) for one in report.merits)
    share = 100 * held / max(1, len(report.merits))
    # The first run of a recipe that has the experiment.
    homes = {(one.run.recipe.name, name): one.name for one in reversed(report.runs) for name in one.results}
    rows = [
        (
            chip(verdict(one), one.held == len(one.numbers)),
            one.text,
            Cell(escape(found(one)), one.mean, True),
            signs(bound(one)),
            Cell(
                f'<a href="#{anchor(homes[one.recipe, one.experiment], one.experiment)}">{escape(one.recipe)}</a>',
                one.recipe,
            ),
        )
        for one in report.merits
    ]
    runs = [
        (
            Cell(f'<a href="#{anchor(one.name)}">{escape(one.name)}</a>', one.name),
            one.run.recipe.setting,
            len(one.run.registry.class_ids),
            one.run.recipe.training.seed,
            Cell(held_of(one), share_held(one), True),
            (one.run.facts(BEST) or {}).get("step"),
            Cell(duration(one.seconds), one.seconds, True),
            Cell(duration(experiment_seconds(one)), experiment_seconds(one), True),
        )
        for one in report.runs
    ]
    columns = ("run", "setting", "architectures", "seed", "held", "best after step", "training", "experiments")
    return (
        f'<header id="claims"><h1>{escape(report.title)}</h1>'
        f'<p class="soft">Made {escape(report.made)} on {escape(report.hardware)}; '
        f"{escape(words(report.versions))}.</p></header>"
        f'<div class="tally"><strong>{escape(tally(report.merits))}</strong>'
        f'<div class="bar"><span style="width:{share:.1f}%"></span></div></div>'
        + table("Runs", columns, runs)
        + table("Claims", ("", "claim", "found", "must be", "recipe"), rows)
    )


def side_by_side(merits: Iterable[Merit]) -> str:
    """What several recipes claim alike, one column a recipe: ablations beside what they are ablations of."""
    groups: dict[tuple[str, str], dict[str, Merit]] = {}
    for one in merits:
        groups.setdefault((one.text, one.bound), {})[one.recipe] = one
    shared = {key: of for key, of in groups.items() if len(of) > 1}
    recipes = list(dict.fromkeys(recipe for of in shared.values() for recipe in of))
    if not shared:
        return ""
    rows = [
        (
            text,
            signs(bound(next(iter(of.values())))),
            *(
                Cell(f"{escape(found(of[name]))} {mark(of[name])}", of[name].mean, True) if name in of else None
                for name in recipes
            ),
        )
        for (text, _), of in shared.items()
    ]
    return folded("The same claims, recipe beside recipe", table("", ("claim", "must be", *recipes), rows))


def failures(report: Report) -> list[str]:
    """What could not be made, if anything."""
    if not report.failures:
        return []
    items = "".join(f"<li>{escape(one)}</li>" for one in report.failures)
    return [f'<div class="failed"><strong>Could not be made</strong><ul>{items}</ul></div>']


def run_section(one: Judged, whole: bool) -> str:
    """A run: how it was trained, then its experiments; pictures only if it is to be shown whole."""
    run = one.run
    recipe, best, zoo = run.recipe, run.facts(BEST) or {}, run.record["zoo"]
    facts = {
        "recipe": f"{recipe.name}, setting {recipe.setting}, seed {recipe.training.seed}",
        "zoo": f"{zoo['name']}, sha256 {zoo['sha256'][:12]}",
        "PRep": f"{recipe.network.height} x {recipe.network.width}, embedding of {recipe.network.embedding_size}",
        "architectures": ", ".join(f"{each.name} ({each.num_parameters:,})" for each in run.registry),
        "steps": f"{recipe.training.steps:,}, best after {best.get('step', 0):,}; they took {duration(one.seconds)}",
        "validation": ", ".join(f"{name} {number(value)}" for name, value in best.get("scores", {}).items()),
        "trained with": words(run.record.get("versions", {})),
    }
    parts = [
        f'<h2 id="{anchor(one.name)}">{escape(one.name)}</h2>',
        paragraphs(recipe.description),
        "<dl>" + "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()) + "</dl>",
        folded("Recipe", f"<pre>{escape(json.dumps(recipe.to_dict(), indent=2))}</pre>"),
    ]
    if whole and one.training is not None:
        parts.append(image("Losses and validation scores while it was trained", one.training, ".png"))
    if not whole:
        parts.append('<p class="soft">Another seed of a recipe above: its pictures lie in the folder of the run.</p>')
    parts += [experiment_section(one, name, result, whole) for name, result in one.results.items()]
    return "\n".join(parts)


def experiment_section(one: Judged, name: str, result: Result, whole: bool) -> str:
    """An experiment: words, claims, pictures, tables, numbers."""
    parts = [f'<h3 id="{anchor(one.name, name)}">{escape(result.title)}</h3>']
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


# Pieces ---------------------------------------------------------------------------------------------------------


def claim_list(claims: Sequence[Claim]) -> str:
    """Each with its mark, its number and what it must be."""
    items = [
        f"<li>{chip('held' if one.held else 'NOT held', one.held).html} {inline(one.text)}: "
        f"<strong>{told(one.number, one.unit)}</strong> "
        f'<span class="soft">(must be {escape(signs(bound(one)))})</span></li>'
        for one in claims
    ]
    return f'<ul class="claims">{"".join(items)}</ul>' if items else ""


def signs(text: str) -> str:
    """A bound as it is printed in books, on one line."""
    for written, printed in ((">=", "≥"), ("<=", "≤"), ("==", "=")):
        text = text.replace(written, printed)
    return text.replace(" ", "\u00a0")


def chip(text: str, held: bool) -> Cell:
    """A mark that says its meaning in words as well as in colour."""
    sign, kind = ("✓", "held") if held else ("✗", "not")
    return Cell(f'<span class="chip {kind}">{sign} {escape(text)}</span>', int(held))


def mark(one: Merit) -> str:
    """A chip without words, for narrow cells."""
    sign, kind = ("✓", "held") if one.held == len(one.numbers) else ("✗", "not")
    return f'<span class="chip {kind}" title="{escape(verdict(one))}">{sign}</span>'


def table_of(one: Table) -> str:
    """A result's table; a long one is folded."""
    made = table(one.title if len(one.rows) <= LONG_TABLE else "", one.columns, one.rows)
    return made if len(one.rows) <= LONG_TABLE else folded(f"{one.title} ({len(one.rows)} rows)", made)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose columns can be sorted; one of numbers stands to the right."""
    numeric = [bool(rows) and all(is_number(row[place]) for row in rows) for place in range(len(columns))]
    heads = "".join(
        f'<th scope="col"{right(numeric[place])}>'
        f'<button type="button" aria-label="sort by {escape(name or "mark")}">{escape(name)}</button></th>'
        for place, name in enumerate(columns)
    )
    body = "".join(
        "<tr>" + "".join(cell_html(value, numeric[place]) for place, value in enumerate(row)) + "</tr>" for row in rows
    )
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    head = f"<thead><tr>{heads}</tr></thead>"
    return f'<div class="wide"><table>{caption}{head}<tbody>{body}</tbody></table></div>'


def cell_html(value: Any, numeric: bool) -> str:
    """One cell; `data-value` is what it is sorted by where that is not its text."""
    if isinstance(value, Cell):
        key = "" if isinstance(value.value, float) and not math.isfinite(value.value) else value.value
        return f'<td{right(numeric)} data-value="{escape(str(key))}">{value.html}</td>'
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td{right(numeric)} data-value="{value!r}">{number(value)}</td>'
    kind = ' class="words"' if isinstance(value, str) and len(value) > LONG_CELL else right(numeric)
    return f"<td{kind}>{inline(cell(value))}</td>"


def is_number(value: Any) -> bool:
    """Whether a cell may stand in a column of numbers; an empty one may."""
    if isinstance(value, Cell):
        return value.numeric
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def right(numeric: bool) -> str:
    """The class of a cell of numbers."""
    return ' class="number"' if numeric else ""


def picture_of(folder: Path, picture: Picture) -> str:
    """A picture of a result, whole within the page; what is missing is said."""
    path = folder / picture.file
    if path.suffix.lower() not in KINDS or not path.is_file():
        return f'<p class="failed">The picture {escape(picture.file)} is missing.</p>'
    return image(picture.title, path.read_bytes(), path.suffix.lower())


def image(title: str, content: bytes, suffix: str) -> str:
    """A figure whose bytes stand in the page."""
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<figure><img alt="{escape(title)}" src="data:{KINDS[suffix]};base64,{data}">'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )


def folded(title: str, html: str) -> str:
    """What is shown when it is asked for."""
    return f"<details><summary>{escape(title)}</summary>{html}</details>"


def paragraphs(text: str) -> str:
    """Plain text with empty lines between paragraphs."""
    return "".join(f"<p>{inline(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def inline(text: str) -> str:
    """Escaped, with `code` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def anchor(*names: str) -> str:
    """An id within the page."""
    return "-".join(re.sub(r"[^A-Za-z0-9_]+", "-", name) for name in names)


def claims_of(one: Judged) -> list[Claim]:
    """All claims of a run."""
    return [claim for result in one.results.values() for claim in result.claims]


def held_of(one: Judged) -> str:
    """`7 of 9`: how many of a run's claims held."""
    return f"{sum(claim.held for claim in claims_of(one))} of {len(claims_of(one))}"


def share_held(one: Judged) -> float:
    """Of a run's claims."""
    return sum(claim.held for claim in claims_of(one)) / max(1, len(claims_of(one)))


def experiment_seconds(one: Judged) -> float:
    """What all experiments of a run took."""
    return float(sum(result.stamp.get("seconds") or 0.0 for result in one.results.values()))
