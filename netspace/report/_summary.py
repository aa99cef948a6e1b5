"""What a page opens with: five sentences, the pictures of Fig. 3, 4 and 5 in small, and the words that it uses."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from netspace.experiments.verdict import EASIER, HELD, NOT_HELD, NOT_TOLD, UNDECIDED
from netspace.report._variants import variants
from netspace.report.model import RecipeClaim, Report, RunResults
from netspace.report.words import number_of, verdict
from prepkit.errors import counted

WIDTH = 460  # pixels of a small picture


@dataclass(frozen=True)
class Figure:
    """A figure of the paper, and where it is made.

    name:       as in the paper
    experiment: whose first picture it is
    settings:   of the runs that it is made on
    """

    name: str
    experiment: str
    settings: tuple[str, ...]


FIGURES = (
    Figure("Fig. 3 a, c", "accuracy", ("single",)),
    Figure("Fig. 3 b, d", "lines", ("single",)),
    Figure("Fig. 4", "chairs", ("sdf",)),
    Figure("Fig. 5", "boundaries", ("multi",)),
    Figure("Fig. 5 right", "boundaries", ("unseen",)),
)
SENTENCES = {"Fig. 3": ("accuracy", "lines"), "Fig. 4": ("chairs",), "Fig. 5": ("boundaries",)}
WORDS = {
    "instance": "a network with its own trained values; an architecture is a structure without values",
    "zoo": "many instances with how they were trained; NetSpace learns from its training instances and is judged on "
    "test instances, which it never saw",
    "PRep": "all parameters of an instance as one matrix, layer after layer, with zeros at the end",
    "embedding": "the few numbers that NetSpace's encoder makes of a PRep; its decoder writes a PRep from them",
    "target, predicted": "the instance that is encoded, and the one that is decoded from its embedding",
    "ClassId": "the number of an architecture in its zoo, from the fewest parameters to the most",
    "gamma": "a place on the line between two embeddings, 0 at the first and 1 at the second; the loss asks for each "
    "architecture at a gamma of its own",
    "held": "the number and the whole interval after it are within the bound; the interval, in brackets, has 95 % of "
    "what other draws of the same instances give (bootstrap)",
    "not held": "number and interval are out of the bound, or a number that must be above 0 is 0",
    "undecided": "the interval covers the bound, or the runs of a recipe do not agree",
    "not told": "the number says nothing here; the reason stands beside it",
    "points": "differences of two percentages",
}


@dataclass(frozen=True)
class Part:
    """A piece of a sentence, which may lead to a run's experiment."""

    text: str
    run: RunResults | None = None
    experiment: str = ""


def summary(report: Report) -> list[list[Part]]:
    """Return up to five sentences: what was trained, how many claims hold, and what Fig. 3, 4 and 5 came to."""
    found = [[Part(_what(report))], [Part(_verdicts(report))]]
    bases = [name for name in report.recipes if name not in {variant.name for variant in variants(report)}]
    for figure, experiments in SENTENCES.items():
        claims = [
            claim
            for claim in report.claims
            if claim.short and claim.experiment in experiments and claim.recipe in bases
        ]
        if claims:
            found.append(_sentence(report, figure, claims))
    return found


def _what(report: Report) -> str:
    zoos = {one.run.record["zoo"]["sha256"] for one in report.runs}
    runs = f"{counted(len(report.runs), 'NetSpace')} {'was' if len(report.runs) == 1 else 'were'} trained"
    return (
        f"{runs} on {counted(len(zoos), 'zoo')} of small networks, by {counted(len(report.recipes), 'recipe')}, and "
        "judged on networks that took no part in training."
    )


def _verdicts(report: Report) -> str:
    count = report.counts["paper"]
    kinds = ((HELD, "held"), (NOT_HELD, "did not hold"), (UNDECIDED, "{} undecided"), (NOT_TOLD, "{} not told"))
    parts = [
        f"{count[name]} {words.format('is' if count[name] == 1 else 'are')}" for name, words in kinds if count[name]
    ]
    told = " and ".join([", ".join(parts[:-1]), *parts[-1:]] if len(parts) > 1 else parts)
    easier = report.counts[EASIER]
    of_easier = f"; on easier zoos, of shared starts, {easier[HELD]} of {easier['of']} held" if easier["of"] else ""
    if not parts:
        return f"No claim of the paper was measured{of_easier}."
    return f"Of {counted(count['of'], 'claim')} of the paper, {told}{of_easier}."


def _sentence(report: Report, figure: str, claims: Sequence[RecipeClaim]) -> list[Part]:
    parts = [Part(f"{figure}: in ")]
    for number, claim in enumerate(claims):
        first = not number or claims[number - 1].recipe != claim.recipe
        if number:
            parts.append(Part("; in " if first else ", and "))
        if first:
            parts.append(Part(claim.recipe, report.first_runs[claim.recipe][claim.experiment], claim.experiment))
            parts.append(Part(", on an easier zoo of shared starts, " if claim.kind == EASIER else ", "))
        parts.append(Part(f"{claim.short} is {number_of(claim)} ({verdict(claim)})"))
    return [*parts, Part(".")]


def sentence_text(sentence: Sequence[Part]) -> str:
    """Return a sentence as plain text."""
    return "".join(part.text for part in sentence)


def small_figures(report: Report) -> list[tuple[Figure, RunResults, bytes]]:
    """Return each figure of the paper that was made, the first run that made it, and its picture in small as PNG."""
    found = []
    for figure in FIGURES:
        runs = [
            one for one in report.runs if one.run.recipe.setting in figure.settings and figure.experiment in one.results
        ]
        if not runs or not runs[0].results[figure.experiment].pictures:
            continue
        path = runs[0].folder / runs[0].results[figure.experiment].pictures[0].file
        if path.is_file():
            found.append((figure, runs[0], small_picture(path)))
    return found


def small_picture(path: Path) -> bytes:
    """Return a picture in small, as PNG; the lower part of a very high one is left out."""
    from PIL import Image

    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture = picture.crop((0, 0, picture.width, min(picture.height, round(0.8 * picture.width))))
    height = max(1, round(picture.height * WIDTH / picture.width))
    buffer = io.BytesIO()
    picture.resize((WIDTH, height), Image.Resampling.LANCZOS).quantize(64).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
