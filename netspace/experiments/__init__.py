"""Experiments: each measures on a trained NetSpace one thing that it can do, and draws a picture as the paper does.

    function = experiment_function("accuracy")
    result = function(Subject(run, zoo, task, device, folder))

An experiment is a module with a function `run`, and one line in EXPERIMENTS. The function takes a Subject (see
subject.py) and numbers such as how many pairs to draw; it writes its pictures into the subject's folder and returns a
Result. `running.ExperimentRunner` calls it and keeps the result in the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import prepkit
from prepkit.errors import listed, nearest

if TYPE_CHECKING:
    from netspace.experiments.result import Result

ALL = ("single", "multi", "unseen", "sdf")
IMAGES = ("single", "multi", "unseen")


class UnknownExperiment(prepkit.PrepkitError, LookupError):
    """There is no experiment of this name."""


@dataclass(frozen=True)
class Experiment:
    """Where an experiment stands, and which runs it applies to.

    module:   its module in netspace.experiments; those in `beyond` ask what the paper does not ask
    settings: settings of the recipes whose runs it applies to
    """

    module: str
    settings: tuple[str, ...]


# The report follows this order.
EXPERIMENTS = {
    "latent_map": Experiment("latent_map", ALL),
    "accuracy": Experiment("accuracy", IMAGES),
    "consensus": Experiment("beyond.consensus", ("single",)),
    "preps": Experiment("preps", ALL),
    "lines": Experiment("lines", ("single",)),
    "boundaries": Experiment("boundaries", ("multi", "unseen")),
    "chairs": Experiment("chairs", ("sdf",)),
    "optimisation": Experiment("optimisation", IMAGES),
    "identity": Experiment("beyond.identity", IMAGES),
    "novelty": Experiment("beyond.novelty", ALL),
    "representation": Experiment("beyond.representation", IMAGES),
    "orbit": Experiment("beyond.orbit", ALL),
    "hygiene": Experiment("beyond.hygiene", ALL),
}


def experiment_names(setting: str | None = None) -> list[str]:
    """Return the names of all experiments, or of those for the runs of a setting, in the order of the report."""
    return [name for name, entry in EXPERIMENTS.items() if setting is None or setting in entry.settings]


def experiment_function(name: str) -> Callable[..., Result]:
    """Return the function of an experiment; its module is imported now.

    raises UnknownExperiment
    """
    if name not in EXPERIMENTS:
        known = list(EXPERIMENTS)
        raise UnknownExperiment(f"unknown experiment '{name}'; known are {listed(known, 20)}.{nearest(name, known)}")
    function: Callable[..., Result] = import_module(f"netspace.experiments.{EXPERIMENTS[name].module}").run
    return function
