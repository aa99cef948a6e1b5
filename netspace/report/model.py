"""What a report holds: the results of each run, and each claim over all runs of its recipe."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from netspace.experiments import experiment_names
from netspace.experiments.result import Claim, Result
from netspace.experiments.running import ExperimentRunner
from netspace.experiments.verdict import CHECK, EASIER, HELD, KINDS, VERDICTS, Interval, verdict_of_runs
from netspace.run.run import BEST, LATEST, Run
from prepkit.errors import counted
from prepkit.support.json_values import json_value
from prepkit.support.statistics import grouped


@dataclass(frozen=True)
class StageProgress:
    """How far a report or a paper is.

    stage:         name of the training or experiment that runs now
    number, total: position of the stage among all stages, counted from 1
    text:          how far the stage is
    remaining:     what comes after it
    """

    stage: str
    number: int
    total: int
    text: str = ""
    remaining: str = ""


Progress: TypeAlias = Callable[[StageProgress], None]


def announce(progress: Progress | None, stage: StageProgress) -> Callable[[str], None]:
    """Pass a stage on as it begins, and return a function that passes it on with a new text."""

    def say(text: str) -> None:
        if progress is not None:
            progress(replace(stage, text=text))

    say("")
    return say


def remaining_text(**counts: int) -> str:
    """`2 zoos, 42 experiments, the page`: what comes after a stage, from counts by noun."""
    return ", ".join([*(counted(count, noun) for noun, count in counts.items() if count), "the page"])


def is_finished(run: Run) -> bool:
    """Whether a training took all its steps, or reached the score that it stops at.

    A run without the state that training goes on from, such as one from the Hub, counts as finished.
    """
    latest, best, training = run.facts(LATEST), run.facts(BEST), run.recipe.training
    if latest is None or int(latest["step"]) >= training.steps:
        return True
    score = -math.inf if best is None else float(best["scores"].get("score", -math.inf))
    return training.stop_at is not None and score >= training.stop_at


@dataclass(frozen=True)
class RunResults:
    """A run and the results of its experiments.

    name:             of the run on the page: that of its folder, with those above where another run's is the same
    results:          by experiment, in the order of the report
    failures:         by experiment, why it could not be made
    training_picture: losses and scores as PNG; None if no step was logged
    training_seconds: duration of the training steps, as far as their speed was logged
    """

    run: Run
    name: str
    results: Mapping[str, Result]
    failures: Mapping[str, str]
    training_picture: bytes | None
    training_seconds: float

    @property
    def steps_taken(self) -> int:
        """Steps of the training as far as it came."""
        latest, steps = self.run.facts(LATEST), self.run.recipe.training.steps
        return steps if latest is None else int(latest["step"])

    @property
    def folder(self) -> Path:
        """Folder of the experiments' pictures."""
        return ExperimentRunner(self.run).folder

    @property
    def best(self) -> Mapping[str, Any]:
        """Step and scores of the run's best state; empty if there is none."""
        return self.run.facts(BEST) or {}

    @property
    def scores(self) -> Mapping[str, float]:
        """Validation scores of the run's best state; empty if there is none."""
        return dict(self.best.get("scores", {}))

    @property
    def claims(self) -> list[Claim]:
        """All claims of the run's experiments."""
        return [claim for result in self.results.values() for claim in result.claims]

    def claims_of(self, experiment: str) -> list[Claim]:
        """The claims of an experiment as the report counts them: on a zoo of shared starts, apart from the paper's."""
        claims = self.results[experiment].claims if experiment in self.results else []
        if not self.run.shares_starts:
            return list(claims)
        return [claim if claim.kind == CHECK else replace(claim, kind=EASIER) for claim in claims]

    @property
    def held(self) -> int:
        """Number of the claims that held."""
        return sum(claim.held for claim in self.claims)

    @property
    def experiment_seconds(self) -> float:
        """Time that all experiments took."""
        return float(sum(result.stamp.get("seconds") or 0.0 for result in self.results.values()))


@dataclass(frozen=True)
class RecipeClaim:
    """A claim over all runs of a recipe.

    claims: the claim as each run makes it; they differ in numbers and verdicts alone
    runs:   number of runs of the recipe, whether they make the claim or not
    """

    recipe: str
    experiment: str
    claims: tuple[Claim, ...]
    runs: int

    @property
    def text(self) -> str:
        """What the number is."""
        return self.claims[0].text

    @property
    def bound(self) -> str:
        """The number's limit."""
        return self.claims[0].bound

    @property
    def kind(self) -> str:
        """See Claim."""
        return self.claims[0].kind

    @property
    def unit(self) -> str:
        """See Claim."""
        return self.claims[0].unit

    @property
    def short(self) -> str:
        """See Claim."""
        return self.claims[0].short

    @property
    def numbers(self) -> tuple[float, ...]:
        """One for each run that makes the claim; NaN where it could not be measured."""
        return tuple(claim.number for claim in self.claims)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """One for each run that makes the claim."""
        return tuple(claim.verdict for claim in self.claims)

    @property
    def verdict(self) -> str:
        """The verdict that all runs share; undecided where they differ."""
        return verdict_of_runs(self.verdicts)

    @property
    def reasons(self) -> list[str]:
        """Why it is not told, each reason once."""
        return list(dict.fromkeys(claim.reason for claim in self.claims if claim.reason))

    @property
    def interval(self) -> Interval | None:
        """The interval of a single run; None if there are several runs, whose spread is shown, or no interval."""
        return self.claims[0].interval if self.runs == 1 else None

    @property
    def known(self) -> list[float]:
        """The numbers of runs that have one."""
        return [number for number in self.numbers if math.isfinite(number)]

    @property
    def mean(self) -> float:
        """Mean of the known numbers; NaN if there is none."""
        return statistics.fmean(self.known) if self.known else math.nan

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the known numbers; None if there are fewer than two."""
        return statistics.stdev(self.known) if len(self.known) > 1 else None

    def asks_the_same(self, other: RecipeClaim) -> bool:
        """Whether the claim of another recipe differs only in its numbers."""
        key = ("experiment", "text", "bound", "kind", "unit")
        return all(getattr(self, name) == getattr(other, name) for name in key)

    def to_dict(self) -> dict[str, Any]:
        """The claim for report.json."""
        return {
            "recipe": self.recipe,
            "experiment": self.experiment,
            "claim": self.text,
            "bound": self.bound,
            "kind": self.kind,
            "unit": self.unit,
            "verdict": self.verdict,
            "verdicts": self.verdicts,
            "reasons": self.reasons,
            "numbers": self.numbers,
            "intervals": [claim.interval for claim in self.claims],
            "mean": self.mean,
            "deviation": self.deviation,
            "held": self.verdicts.count(HELD),
            "runs": len(self.claims),
            "runs_of_recipe": self.runs,
        }


@dataclass(frozen=True)
class Report:
    """Everything that a page shows.

    made: day and time at which the report was made
    note: a sentence that the reader must know before all others; empty if there is none
    """

    title: str
    made: str
    runs: tuple[RunResults, ...]
    hardware: str
    versions: Mapping[str, str]
    note: str = ""

    @property
    def recipes(self) -> dict[str, list[RunResults]]:
        """The runs by the name of their recipe, in the order in which recipes come first."""
        return grouped(self.runs, lambda one: one.run.recipe.name)

    @cached_property
    def claims(self) -> list[RecipeClaim]:
        """The claims of all runs, those of one recipe together, in the order of recipes and experiments."""
        gathered = []
        for recipe, runs in self.recipes.items():
            for experiment in experiment_names():
                same: dict[tuple[str, str, str, str], list[Claim]] = {}
                claims_of_runs = (run.claims_of(experiment) for run in runs)
                for claim in (claim for claims in claims_of_runs for claim in claims):
                    same.setdefault((claim.text, claim.bound, claim.kind, claim.unit), []).append(claim)
                gathered += [RecipeClaim(recipe, experiment, tuple(claims), len(runs)) for claims in same.values()]
        return gathered

    @property
    def first_runs(self) -> dict[str, dict[str, RunResults]]:
        """By recipe and experiment: the first run with a result, to which the page links."""
        return {
            recipe: {name: run for name in experiment_names() for run in reversed(runs) if name in run.results}
            for recipe, runs in self.recipes.items()
        }

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """By kind of claim: how many claims have each verdict, in every run that makes them, `of` how many."""
        verdicts = {kind: [claim.verdict for claim in self.claims if claim.kind == kind] for kind in KINDS}
        return {
            kind: {verdict: found.count(verdict) for verdict in VERDICTS} | {"of": len(found)}
            for kind, found in verdicts.items()
        }

    @property
    def unfinished(self) -> list[str]:
        """A sentence for each run whose training has not come to its end."""
        return [
            f"The training of {one.name} has taken {one.steps_taken:,} of {one.run.recipe.training.steps:,} steps, so "
            "its numbers are those of an unfinished space."
            for one in self.runs
            if not is_finished(one.run)
        ]

    @property
    def failures(self) -> list[str]:
        """Run, experiment and reason for everything that could not be made."""
        return [f"{run.name}, {name}: {why}" for run in self.runs for name, why in run.failures.items()]

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON has it, without pictures and tables."""
        runs = [
            {
                "run": one.name,
                "recipe": one.run.recipe.name,
                "setting": one.run.recipe.setting,
                "seed": one.run.recipe.training.seed,
                "zoo": one.run.record["zoo"]["name"],
                "zoo_sha256": one.run.record["zoo"]["sha256"],
                "best": one.run.facts(BEST),
                "steps_taken": one.steps_taken,
                "finished": is_finished(one.run),
                "training_seconds": round(one.training_seconds, 1),
                "experiments": {name: result.stamp.get("seconds") for name, result in one.results.items()},
                "failures": one.failures,
            }
            for one in self.runs
        ]
        head = {
            "title": self.title,
            "note": self.note,
            "made": self.made,
            "hardware": self.hardware,
            "versions": self.versions,
        }
        claims = [claim.to_dict() for claim in self.claims]
        return dict(json_value({**head, "counts": self.counts, "claims": claims, "runs": runs}, "report"))
