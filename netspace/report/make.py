"""Make a report: the experiments of several runs, and one page with every claim, picture, recipe, version and time.

    report([netspace.open_run("run")], Path("report.html"))      # report.html, report.md and report.json

Experiments that were not made yet are made first, and kept in the runs' folders. The page needs no other file.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import prepkit
from netspace.experiments import experiment_names
from netspace.experiments.running import ExperimentRunner
from netspace.explore import colours
from netspace.report._pages import html_page, markdown_page
from netspace.report.model import Progress, Report, RunResults, StageProgress, announce, remaining_text
from netspace.report.words import score_name
from netspace.run.known_zoo import instances_of_run, sum_of
from netspace.run.run import BEST, Run, RunError, versions
from prepkit.errors import PrepkitError, listed
from prepkit.figures import new_figure, png_of
from prepkit.support.device import hardware
from prepkit.support.files import check_writable, replacing

DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (1, 3)), (0, (6, 2, 1, 2, 1, 2)))
SCORE_COLOURS = {"target_accuracy": colours.TARGET, "predicted_accuracy": colours.PREDICTED}
NOT_LOSSES = ("step", "learning_rate", "instances_per_second", "gradient_norm")  # logged with each step


class ReportError(prepkit.PrepkitError, ValueError):
    """A report cannot be made from what was given."""


def report(
    runs: Sequence[Run],
    out: str | os.PathLike[str],
    *,
    title: str = "What these spaces of networks can do",
    note: str = "",
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
    """Make the experiments that are missing, and write a page about all of them.

    note:      a sentence that the reader must know before all others
    out:       the page, .html; the same as .md and the figures of merit as .json are written beside it
    only:      names of experiments; without it, all that fit a run's setting
    zoos:      the present folders of zoos that were moved since the training
    seed:      for everything that experiments draw
    sizes:     see ExperimentRunner
    again:     also make experiments whose results are saved
    progress:  is called with the experiment that is made
    raises OutputError or PlotsMissing before anything is computed, RunError for a run without a best state, ReportError
    without runs. If an experiment cannot be made, the page and `failures` say why.
    """
    paths = page_files(Path(out))
    for path in paths:
        check_writable(path, overwrite=overwrite)
    if not runs:
        raise ReportError("a report needs at least one run.")
    _check_different(runs)
    new_figure(1, 1)  # raises PlotsMissing, which each experiment would
    moved = [(Path(path), prepkit.open_zoo(path)) for path in zoos]
    for path, zoo in moved:
        if not any(_is_zoo_of(run, zoo) for run in runs):
            raise ReportError(f"the zoo '{path}' is none that one of these runs was trained on; leave it out.")
    runners = [ExperimentRunner(run, device, _place_of_zoo(run, moved), data, seed, sizes or {}) for run in runs]
    results = _run_experiments(runners, None if only is None else set(only), again, progress)
    made = time.strftime("%Y-%m-%d %H:%M")
    content = Report(title, made, results, hardware(runners[0].torch_device), versions(), note)
    figures = json.dumps(content.to_dict(), indent=1) + "\n"
    documents = html_page(content), markdown_page(content, paths[1].parent), figures
    for path, document in zip(paths, documents, strict=True):
        with replacing(path, overwrite=overwrite) as temporary:
            temporary.write_text(document, encoding="utf-8")
    return content


def _place_of_zoo(run: Run, moved: Sequence[tuple[Path, prepkit.Zoo]]) -> Path | None:
    """Return which of these zoos is the run's; None if none is."""
    found = (path for path, zoo in moved if sum_of(zoo) == run.record["zoo"]["sha256"])
    grown = (path for path, zoo in moved if _is_zoo_of(run, zoo))
    return next(chain(found, grown), None)


def _is_zoo_of(run: Run, zoo: prepkit.Zoo) -> bool:
    return instances_of_run(zoo, run.record["zoo"], list(run.registry.class_ids)) is not None


def page_files(out: Path) -> tuple[Path, Path, Path]:
    """Paths of the page, of the same as Markdown, and of the figures as JSON.

    raises ReportError if the page's name does not end in .html
    """
    if out.suffix not in (".html", ".htm"):
        raise ReportError(f"a page cannot be named '{out}'; use a name that ends in .html.")
    return out, out.with_suffix(".md"), out.with_suffix(".json")


def _check_different(runs: Sequence[Run]) -> None:
    """Raise ReportError if a run, or a copy of it, is given twice: it would be counted as two seeds."""
    seen: dict[str, Run] = {}
    for run in runs:
        best = run.facts(BEST)
        key = str(run.path.resolve()) if best is None else best["sha256"]
        if key in seen:
            raise ReportError(f"'{seen[key].path}' and '{run.path}' are the same run; give each once.")
        seen[key] = run


def _run_experiments(
    runners: Sequence[ExperimentRunner], only: set[str] | None, again: bool, progress: Progress | None
) -> tuple[RunResults, ...]:
    """Make the experiments of all runs, or load what is saved; keep the reason where one cannot be made."""
    if only is not None and not only <= set(experiment_names()):
        runners[0].result(min(only - set(experiment_names())))  # raises UnknownExperiment, with the known names
    planned = [
        [name for name in experiment_names(runner.run.recipe.setting) if only is None or name in only]
        for runner in runners
    ]
    total, number = sum(len(names) for names in planned), 0
    if not total:
        settings = listed(dict.fromkeys(runner.run.recipe.setting for runner in runners))
        raise ReportError(f"{listed(sorted(only or ()))}: no experiment for the settings of these runs, {settings}.")
    gathered = []
    run_names = names_of([runner.run.path for runner in runners])
    for runner, run_name, names in zip(runners, run_names, planned, strict=True):
        results, failures = {}, {}
        for name in names:
            number += 1
            remaining = remaining_text(experiment=total - number)
            stage = StageProgress(f"{name} of {run_name}", number, total, "", remaining)
            say = announce(progress, stage)
            try:
                results[name] = runner.result(name, again=again, progress=say)
            except RunError:
                raise  # the run itself cannot be used, which is no fault of an experiment
            except PrepkitError as error:
                failures[name] = str(error)
        runner.release()
        lines = runner.run.metrics()
        seconds = training_seconds(lines, runner.run.recipe.batch.instances * runner.run.recipe.batch.accumulate)
        gathered.append(RunResults(runner.run, run_name, results, failures, training_picture(lines), seconds))
    return tuple(gathered)


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return the name of each folder, after those of as many folders above it as tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for own in parts:
        lengths = range(1, len(own) + 1)
        least = next((few for few in lengths if sum(each[-few:] == own[-few:] for each in parts) == 1), len(own))
        names.append("/".join(own[-least:]))
    return names


# Training ---------------------------------------------------------------------------------------------------------


def training_seconds(lines: Iterable[Mapping[str, Any]], instances: int) -> float:
    """Time that the steps of a training took, by the speed that was logged; validations do not count.

    instances: seen in each step
    """
    before, seconds = 0, 0.0
    for line in lines:
        if "instances_per_second" in line:
            seconds += (line["step"] - before) * instances / max(line["instances_per_second"], 1e-9)
            before = line["step"]
    return seconds


def training_picture(lines: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Losses and validation scores over the steps, as PNG; None if no step was logged."""
    steps = [line for line in lines if "loss" in line]
    validations = [(line["step"], line["validation"]) for line in lines if "validation" in line]
    if not steps:
        return None
    figure = new_figure(10, 3.2)
    left, right = figure.subplots(1, 2)
    # Losses are told apart by dashes, as colours stand for other ideas.
    for number, name in enumerate(key for key in steps[0] if key not in NOT_LOSSES):
        points = [(line["step"], line[name]) for line in steps if line.get(name, 0) > 0]
        style: dict[str, Any] = {"linewidth": 1.6 if name == "loss" else 0.9, "linestyle": DASHES[number % len(DASHES)]}
        if points:  # a part of the loss may be 0 in every step
            left.plot(*zip(*points, strict=True), label=name.replace("_", " "), color=colours.TARGET, **style)
    left.set(xlabel="step", ylabel="loss", yscale="log", title="training")
    # Without lines between architectures, the ClassId accuracy says little.
    several = any("line_class_id_accuracy" in scores for _, scores in validations)
    names = validations[0][1] if validations else ()
    for number, name in enumerate(names):
        points = [(step, 100 * scores[name]) for step, scores in validations if name in scores]
        skipped = name == "score" or (name == "class_id_accuracy" and not several)
        if not skipped and all(math.isfinite(value) for _, value in points):
            style = {"linestyle": DASHES[number % len(DASHES)], "color": SCORE_COLOURS.get(name, colours.NEUTRAL)}
            label = score_name(name)
            right.plot(*zip(*points, strict=True), label=label, marker=".", linewidth=0.9, **style)
    right.set(xlabel="step", ylabel="%, differences in points", title="validation")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    return png_of(figure)
