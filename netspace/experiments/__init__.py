"""Experiments: what a NetSpace that was trained can do, each one function, one picture in the paper's form, one JSON.

    function = experiment_function("accuracy")
    result = function(run, zoo, task, device, folder, seed=0, progress=print)

A function draws its pictures into `folder` and returns a Result, which the caller saves there; `running.py` does so and
knows what was done before. All functions take

    run:      what is judged, an opened Run; run.space(device=device) is the NetSpace
    zoo:      the one that the run was trained on, all splits
    task:     the zoo's, with its data on the device
    folder:   where its pictures go
    seed:     of what is drawn
    progress: told in words what is being done

Table of all: EXPERIMENTS. A new experiment is a module with `run` and one line there.
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
    """Where an experiment lives and what it is for.

    module:   in netspace.experiments, has `run`
    settings: of the recipes whose runs it applies to
    """

    module: str
    settings: tuple[str, ...]


# In the order of the report.
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
    "representation": Experiment("beyond.representation", IMAGES),
    "orbit": Experiment("beyond.orbit", ALL),
    "hygiene": Experiment("beyond.hygiene", ALL),
}


def experiment_names(setting: str | None = None) -> list[str]:
    """All experiments, or those for the runs of a setting, in the order of the report."""
    return [name for name, one in EXPERIMENTS.items() if setting is None or setting in one.settings]


def experiment_function(name: str) -> Callable[..., Result]:
    """The function of an experiment; its module is imported now.

    raises UnknownExperiment
    """
    if name not in EXPERIMENTS:
        known = list(EXPERIMENTS)
        raise UnknownExperiment(f"unknown experiment '{name}'; known are {listed(known, 20)}.{nearest(name, known)}")
    function: Callable[..., Result] = import_module(f"netspace.experiments.{EXPERIMENTS[name].module}").run
    return function
