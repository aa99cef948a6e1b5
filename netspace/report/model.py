"""report: what runs are good for, as one page: every claim with its number, pictures, recipes, versions, times.

    report([netspace.open_run("run")], Path("report.html"))      # report.html, report.md and report.json

Experiments that were not made yet are made first, and kept in the runs' folders. The page needs no other file.
"""

from __future__ import annotations

import io
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prepkit
from netspace.experiments import experiment_names
from netspace.experiments.result import DOTS_PER_INCH, KINDS, Claim, Result, new_figure, plain
from netspace.experiments.running import Bench, hardware
from netspace.run.run import BEST, Run, versions
from prepkit.errors import PrepkitError
from prepkit.files import check_writable, replacing


@dataclass(frozen=True)
class Doing:
    """What is being done, for whoever watches.

    number, of: of all that there is to do
    text:       how far it is
    left:       what comes after it
    """

    what: str
    number: int
    of: int
    text: str = ""
    left: str = ""


Progress = Callable[[Doing], None]


@dataclass(frozen=True)
class Judged:
    """A run and what was found on it.

    results:  by experiment, in the order of the report
    failures: by experiment, why it could not be made
    training: a picture of the losses and scores, PNG; None if nothing was trained
    seconds:  that the steps of the training took, as far as they were noted
    """

    run: Run
    results: Mapping[str, Result]
    failures: Mapping[str, str]
    training: bytes | None
    seconds: float

    @property
    def name(self) -> str:
        """The run's folder."""
        return self.run.path.resolve().name

    @property
    def folder(self) -> Path:
        """Where the pictures are."""
        return Bench(self.run).folder


@dataclass(frozen=True)
class Merit:
    """A claim over all runs of a recipe.

    kind, unit: see Claim
    numbers:  found, one a run that has the claim; NaN where there was nothing to find
    held:     in how many of them
    runs:     of the recipe, whether they have the claim or not
    """

    recipe: str
    experiment: str
    text: str
    bound: str
    kind: str
    unit: str
    numbers: tuple[float, ...]
    held: int
    runs: int

    @property
    def holds(self) -> bool:
        """Whether it held in every run that has it."""
        return self.held == len(self.numbers)

    @property
    def known(self) -> list[float]:
        """The numbers of runs that could tell."""
        return [one for one in self.numbers if math.isfinite(one)]

    @property
    def mean(self) -> float:
        """Of the known numbers; NaN if there is none."""
        return statistics.fmean(self.known) if self.known else math.nan

    @property
    def deviation(self) -> float | None:
        """Of the known numbers; None if there are not two."""
        return statistics.stdev(self.known) if len(self.known) > 1 else None


@dataclass(frozen=True)
class Report:
    """All that a page shows.

    made: day and time
    """

    title: str
    made: str
    runs: tuple[Judged, ...]
    merits: tuple[Merit, ...]
    hardware: str
    versions: Mapping[str, str]

    @property
    def recipes(self) -> dict[str, tuple[Judged, ...]]:
        """Runs by the name of their recipe, in order."""
        return by_recipe(self.runs)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """By kind of claim: `held` in every run that has it, `of` how many."""
        held = {kind: [one.holds for one in self.merits if one.kind == kind] for kind in KINDS}
        return {kind: {"held": sum(of), "of": len(of)} for kind, of in held.items()}

    @property
    def failures(self) -> list[str]:
        """What could not be made."""
        return [f"{one.name}, {name}: {why}" for one in self.runs for name, why in one.failures.items()]

    def to_dict(self) -> dict[str, Any]:
        """Figures of merit, JSON-able."""
        merits = [
            {
                "recipe": one.recipe,
                "experiment": one.experiment,
                "claim": one.text,
                "bound": one.bound,
                "kind": one.kind,
                "unit": one.unit,
                "numbers": list(one.numbers),
                "mean": one.mean,
                "deviation": one.deviation,
                "held": one.held,
                "runs": len(one.numbers),
                "runs_of_recipe": one.runs,
            }
            for one in self.merits
        ]
        runs = [
            {
                "run": one.name,
                "recipe": one.run.recipe.name,
                "setting": one.run.recipe.setting,
                "seed": one.run.recipe.training.seed,
                "zoo": one.run.record["zoo"]["name"],
                "zoo_sha256": one.run.record["zoo"]["sha256"],
                "best": one.run.facts(BEST),
                "training_seconds": round(one.seconds, 1),
                "experiments": {name: result.stamp.get("seconds") for name, result in one.results.items()},
                "failures": dict(one.failures),
            }
            for one in self.runs
        ]
        head = {"title": self.title, "made": self.made, "hardware": self.hardware, "versions": dict(self.versions)}
        return dict(plain({**head, "counts": self.counts, "claims": merits, "runs": runs}, "report"))


def report(
    runs: Sequence[Run],
    out: str | os.PathLike[str],
    *,
    title: str = "What these spaces of networks can do",
    only: Iterable[str] | None = None,
    device: str = "auto",
    data: Path | None = None,
    zoos: Iterable[str | os.PathLike[str]] = (),
    seed: int = 0,
    sizes: Mapping[str, Mapping[str, Any]] | None = None,
    again: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Make what experiments were not made, and write a page of all.

    out:       the page, .html; the same as .md and the figures of merit as .json are written beside it
    only:      names of experiments; all that a run's setting has, if missing
    zoos:      where zoos are now that are not where they were
    seed:      of what experiments draw
    sizes:     see Bench
    again:     also make those that were made before
    progress:  told which experiment is made
    raises OutputError or PlotsMissing before anything is computed, RunError for a run without a best state, ReportError
    without runs. An experiment that cannot be made is told on the page and in `failures`.
    """
    from netspace.report.html import page
    from netspace.report.markdown import text

    paths = files(Path(out))
    for path in paths:
        check_writable(path, overwrite=overwrite)
    if not runs:
        raise ReportError("a report needs at least one run.")
    _check_different(runs)
    new_figure(1, 1)  # raises PlotsMissing, which each experiment would
    found = gather(runs, title, only, device, data, tuple(zoos), seed, sizes, again, progress)
    for path, content in zip(paths, (page(found), text(found, paths[1].parent), as_json(found)), strict=True):
        with replacing(path, overwrite=overwrite) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return found


def _check_different(runs: Sequence[Run]) -> None:
    """raises ReportError if a run, or a copy of it, is given twice: it would be counted as two seeds."""
    seen: dict[str, Run] = {}
    for run in runs:
        best = run.facts(BEST)
        key = str(run.path.resolve()) if best is None else best["sha256"]
        if key in seen:
            raise ReportError(f"'{seen[key].path}' and '{run.path}' are the same run; give each once.")
        seen[key] = run


class ReportError(prepkit.PrepkitError, ValueError):
    """A report cannot be made of what was given."""


def files(out: Path) -> tuple[Path, Path, Path]:
    """The page, the same as Markdown, the figures as JSON.

    raises ReportError if the page's name does not end in .html
    """
    if out.suffix not in (".html", ".htm"):
        raise ReportError(f"'{out}' is no name of a page; use one that ends in .html. Markdown is written beside it.")
    return out, out.with_suffix(".md"), out.with_suffix(".json")


def as_json(found: Report) -> str:
    """The figures of merit as text."""
    return json.dumps(found.to_dict(), indent=1) + "\n"


def gather(
    runs: Sequence[Run],
    title: str,
    only: Iterable[str] | None,
    device: str,
    data: Path | None,
    zoos: Sequence[str | os.PathLike[str]],
    seed: int,
    sizes: Mapping[str, Mapping[str, Any]] | None,
    again: bool,
    progress: Progress | None,
) -> Report:
    """Make the experiments of all runs; see report."""
    wanted = None if only is None else set(only)
    if wanted is not None and not wanted <= set(experiment_names()):
        Bench(runs[0]).result(min(wanted - set(experiment_names())))  # raises UnknownExperiment, with what is known
    moved = {prepkit.open_zoo(path).manifest.to_dict()["sha256"]: Path(path) for path in zoos}
    benches = [Bench(run, device, moved.get(run.record["zoo"]["sha256"]), data, seed, sizes) for run in runs]
    jobs = [
        (bench, name)
        for bench in benches
        for name in experiment_names(bench.run.recipe.setting)
        if wanted is None or name in wanted
    ]
    results: dict[int, dict[str, Result]] = {id(bench): {} for bench in benches}
    failures: dict[int, dict[str, str]] = {id(bench): {} for bench in benches}
    for number, (bench, name) in enumerate(jobs, 1):
        what = f"{name} of {bench.run.path.resolve().name}"

        def say(text: str, what: str = what, number: int = number) -> None:
            if progress is not None:
                more = len(jobs) - number
                left = f"{more} more experiment{'s' if more > 1 else ''}; the page" if more else "the page"
                progress(Doing(what, number, len(jobs), text, left))

        say("")
        if number == 1 or bench is not jobs[number - 2][0]:
            bench.saved(name)  # raises RunError if there is nothing to judge: that is no fault of an experiment
        try:
            results[id(bench)][name] = bench.result(name, again=again, progress=say)
        except PrepkitError as error:
            failures[id(bench)][name] = str(error)
    judged = tuple(
        Judged(
            bench.run,
            results[id(bench)],
            failures[id(bench)],
            training_picture(bench.run.metrics()),
            training_seconds(bench.run),
        )
        for bench in benches
    )
    made = time.strftime("%Y-%m-%d %H:%M")
    return Report(title, made, judged, merits(judged), hardware(benches[0].place), versions())


def merits(runs: Iterable[Judged]) -> tuple[Merit, ...]:
    """The claims of all runs, those of one recipe together, in the order of recipes and experiments."""
    found: dict[tuple[str, str, str, str, str, str], list[Claim]] = {}
    recipes = by_recipe(runs)
    for recipe, of in recipes.items():
        for name in experiment_names():
            for claim in (claim for one in of if name in one.results for claim in one.results[name].claims):
                key = (recipe, name, claim.text, claim.bound, claim.kind, claim.unit)
                found.setdefault(key, []).append(claim)
    return tuple(
        Merit(*key, tuple(one.number for one in claims), sum(one.held for one in claims), len(recipes[key[0]]))
        for key, claims in found.items()
    )


def by_recipe(runs: Iterable[Judged]) -> dict[str, tuple[Judged, ...]]:
    """Runs by the name of their recipe, in the order in which recipes come first."""
    found: dict[str, tuple[Judged, ...]] = {}
    for one in runs:
        name = one.run.recipe.name
        found[name] = (*found.get(name, ()), one)
    return found


# Training ---------------------------------------------------------------------------------------------------------


def training_seconds(run: Run) -> float:
    """What the steps of a training took, from the speed that was noted with them; validations do not count."""
    instances = run.recipe.batch.instances * run.recipe.batch.accumulate
    before, seconds = 0, 0.0
    for line in run.metrics():
        if "instances_per_second" in line:
            seconds += (line["step"] - before) * instances / max(line["instances_per_second"], 1e-9)
            before = line["step"]
    return seconds


def training_picture(lines: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Losses and validation scores over the steps, as PNG; None if there are none."""
    steps = [line for line in lines if "loss" in line]
    judged = [line for line in lines if "validation" in line]
    if not steps:
        return None
    figure = new_figure(10, 3.2)
    left, right = figure.subplots(1, 2)
    skipped = ("step", "learning_rate", "instances_per_second", "gradient_norm")
    for name in (key for key in steps[0] if key not in skipped):
        points = [(line["step"], line[name]) for line in steps if line.get(name, 0) > 0]
        if points:  # a part may be 0 in every step
            left.plot(*zip(*points, strict=True), label=name, linewidth=1.6 if name == "loss" else 0.8)
    left.set(xlabel="step", ylabel="loss", yscale="log", title="training")
    unspoken = () if any("line_class_id_accuracy" in line["validation"] for line in judged) else ("class_id_accuracy",)
    for name in judged[0]["validation"] if judged else ():
        points = [(line["step"], line["validation"][name]) for line in judged if name in line["validation"]]
        if name not in ("score", *unspoken) and all(math.isfinite(value) for _, value in points):
            right.plot(*zip(*points, strict=True), label=name, marker=".", linewidth=0.8)
    right.set(xlabel="step", title="validation")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()
