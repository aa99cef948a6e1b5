"""Running experiments on runs: each once for a state, a zoo, a seed, sizes and code; results are kept in the run.

runner = ExperimentRunner(run)
result = runner.result("accuracy")         # RUN/experiments/accuracy.json, computed now if it is not there yet
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

import prepkit
from netspace.data import task_of
from netspace.experiments import EXPERIMENTS, UnknownExperiment, experiment_function
from netspace.experiments._subject import Subject
from netspace.experiments.result import Result, ResultError
from netspace.run.run import BEST, Run, RunError, versions
from prepkit.errors import listed
from prepkit.support.device import choose_device, hardware
from prepkit.support.files import sha256_of_code
from prepkit.support.json_values import json_value

EXPERIMENTS_FOLDER = "experiments"
PACKAGES = (Path(__file__).parents[1], Path(prepkit.__file__).parent)
LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "scikit-image", "trimesh")  # their versions change numbers
DECISIVE = ("checkpoint", "zoo", "seed", "sizes", "code")  # a result with another of these in its stamp is outdated


@dataclass
class ExperimentRunner:
    """Runs experiments on a run; its zoo and task are opened when the first experiment needs them.

    device:   "auto", "cpu", "cuda", ...
    zoo_path: where the run's zoo is now; where it was in training, if missing
    data:     folder of the task's data, where the task needs one
    seed:     decides the random choices of experiments
    sizes:    arguments of experiments in place of their defaults, by experiment: {"lines": {"pairs": 4}}
    """

    run: Run
    device: str = "auto"
    zoo_path: Path | None = None
    data: Path | None = None
    seed: int = 0
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    _progress: Callable[[str], None] | None = field(default=None, init=False, repr=False)
    _subjects: dict[str, Subject] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def torch_device(self) -> torch.device:
        """The device; raises DeviceError."""
        return choose_device(self.device)

    @cached_property
    def zoo(self) -> prepkit.Zoo:
        """The run's zoo with all splits, read at the recipe's height and width; raises ZooMismatch for another zoo."""
        return self.run.open_zoo(self.zoo_path)

    @cached_property
    def task(self) -> Any:
        """The zoo's task with its data on the device; raises what prepkit.load_task raises."""
        return task_of(self.zoo, self.torch_device, self.data)

    @property
    def folder(self) -> Path:
        """Where results are kept."""
        return self.run.path / EXPERIMENTS_FOLDER

    def saved(self, name: str) -> Result | None:
        """Return the result on the run's best state as it is now; None if there is none or one of its pictures is gone.

        raises RunError without a best state
        """
        file = self.folder / f"{name}.json"
        if not file.exists():
            return None
        try:
            result = Result.load(file)
        except ResultError:
            return None  # a file that is damaged or of another version is replaced
        wanted = self._decisive(name)
        complete = all((self.folder / picture.file).is_file() for picture in result.pictures)
        return result if complete and all(result.stamp.get(key) == wanted[key] for key in DECISIVE) else None

    def result(self, name: str, *, again: bool = False, progress: Callable[[str], None] | None = None) -> Result:
        """Return the result of an experiment on the run's best state; it is computed and saved if it is not there yet.

        again: compute it even if it is there
        raises UnknownExperiment, also for an experiment that is for other settings; RunError without a best state
        """
        saved = None if again else self.saved(name)
        if saved is not None:
            return saved
        function = experiment_function(name)
        if self.run.recipe.setting not in EXPERIMENTS[name].settings:
            raise UnknownExperiment(
                f"experiment '{name}' is for the settings {listed(EXPERIMENTS[name].settings)}; the run "
                f"'{self.run.path}' has '{self.run.recipe.setting}'."
            )
        self._progress = progress
        return self._compute(name, function)

    def release(self) -> None:
        """Free the space and the predictions that experiments share."""
        self._subjects.clear()

    def _compute(self, name: str, function: Callable[..., Result]) -> Result:
        stamp = self._decisive(name)
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{name}.json").unlink(missing_ok=True)  # its pictures are about to be replaced
        subject, started = self._subject(stamp["checkpoint"]["sha256"]), time.monotonic()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            result = function(subject, **self.sizes.get(name, {}))
        seconds, device = round(time.monotonic() - started, 1), self.torch_device
        conditions = {"seconds": seconds, "device": str(device), "hardware": hardware(device), "versions": versions()}
        result = replace(result, stamp={**stamp, **conditions})
        result.save(self.folder)
        return result

    def _subject(self, checkpoint: str) -> Subject:
        """Return the subject of a state: experiments on one state share its space and predictions."""
        if checkpoint not in self._subjects:
            subject = Subject(
                self.run, self.zoo, self.task, self.torch_device, self.folder, self.seed, self._forward_progress
            )
            self._subjects = {checkpoint: subject}
        return self._subjects[checkpoint]

    def _forward_progress(self, text: str) -> None:
        if self._progress is not None:
            self._progress(text)

    def _decisive(self, name: str) -> dict[str, Any]:
        """Return the part of a stamp that decides whether a saved result is still right."""
        best = self.run.facts(BEST)
        if best is None:
            raise RunError(
                f"the run '{self.run.path}' has no best checkpoint yet: its training ended before the first "
                "validation. Go on with resume=True."
            )
        decisive = {
            "checkpoint": {"step": best["step"], "sha256": best["sha256"]},
            "zoo": self.run.record["zoo"]["sha256"],
            "seed": self.seed,
            "sizes": self.sizes.get(name, {}),
            "code": code_sum(),
        }
        return dict(json_value(decisive, "stamp"))


@cache
def code_sum() -> str:
    """Return a sum of the code and of the libraries that decide results; it is computed once a process.

    All code counts, also what an experiment does not use: its imports do not show what is looked up by name.
    """
    return sha256_of_code(PACKAGES, LIBRARIES)
