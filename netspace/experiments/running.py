"""Running experiments on runs: each once for a state, a zoo, a seed, sizes and code; what was found stays in the run.

bench = Bench(run)
result = bench.result("accuracy")         # RUN/experiments/accuracy.json, made now if it is not there yet
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import prepkit
from netspace.data import task_of
from netspace.experiments import EXPERIMENTS, UnknownExperiment, experiment_function
from netspace.experiments.result import Progress, Result, ResultError, plain
from netspace.run.run import BEST, Run, RunError, versions
from prepkit.device import choose_device
from prepkit.errors import listed
from prepkit.files import sha256_of_file

EXPERIMENTS_FOLDER = "experiments"
PACKAGES = (Path(__file__).parents[1], Path(prepkit.__file__).parent)
LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "scikit-image", "trimesh")  # whose versions change numbers
DECIDES = ("checkpoint", "zoo", "seed", "sizes", "code")  # of a stamp: what makes it another result


@dataclass
class Bench:
    """A run, and what experiments on it need; zoo and task are opened when the first experiment asks for them.

    device: "auto", "cpu", "cuda", ...
    zoo_path: where the run's zoo is now; where it was, if missing
    data:   folder of the task's data, where the task needs one
    seed:   of what experiments draw
    sizes:  by experiment, settings of its function in place of its own: {"lines": {"pairs": 4}}
    """

    run: Run
    device: str = "auto"
    zoo_path: Path | None = None
    data: Path | None = None
    seed: int = 0
    sizes: Mapping[str, Mapping[str, Any]] | None = None

    @cached_property
    def place(self) -> torch.device:
        """The device; raises DeviceError."""
        return choose_device(self.device)

    @cached_property
    def zoo(self) -> prepkit.Zoo:
        """All splits, read at the recipe's height and width; raises ZooMismatch if it is another one."""
        return self.run.open_zoo(self.zoo_path)

    @cached_property
    def task(self) -> Any:
        """The zoo's, its data on the device; raises what prepkit.load_task raises."""
        return task_of(self.zoo, self.place, self.data)

    @property
    def folder(self) -> Path:
        """Where results are kept."""
        return self.run.path / EXPERIMENTS_FOLDER

    def saved(self, name: str) -> Result | None:
        """What was found on the run's best state as it is now; None if nothing was, or a picture of it is missing."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            return None
        try:
            result = Result.load(file)
        except ResultError:
            return None  # damaged, or of another version: it is run again
        wanted = self._decisive(name)
        whole = all((self.folder / picture.file).is_file() for picture in result.pictures)
        return result if whole and all(result.stamp.get(key) == wanted[key] for key in DECIDES) else None

    def result(self, name: str, *, again: bool = False, progress: Progress | None = None) -> Result:
        """What an experiment finds on the run's best state: what was saved, or found now and saved.

        again: run it even if it was
        raises UnknownExperiment, also for one that is for other settings; RunError without a best state
        """
        found = None if again else self.saved(name)
        if found is not None:
            return found
        function = experiment_function(name)
        if self.run.recipe.setting not in EXPERIMENTS[name].settings:
            raise UnknownExperiment(
                f"experiment '{name}' is for the settings {listed(EXPERIMENTS[name].settings)}; the run "
                f"'{self.run.path}' has '{self.run.recipe.setting}'."
            )
        return self._run(name, function, progress or (lambda text: None))

    def _run(self, name: str, function: Callable[..., Result], progress: Progress) -> Result:
        stamp = self._decisive(name)
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{name}.json").unlink(missing_ok=True)  # its pictures are about to be replaced
        zoo, task, started = self.zoo, self.task, time.monotonic()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            sizes = dict((self.sizes or {}).get(name, {}))
            result = function(self.run, zoo, task, self.place, self.folder, seed=self.seed, progress=progress, **sizes)
        seconds = round(time.monotonic() - started, 1)
        made = {"seconds": seconds, "device": str(self.place), "hardware": hardware(self.place), "versions": versions()}
        result = replace(result, stamp={**stamp, **made})
        result.save(self.folder)
        return result

    def _decisive(self, name: str) -> dict[str, Any]:
        best = self.run.facts(BEST)
        if best is None:
            raise RunError(
                f"the run '{self.run.path}' has no best checkpoint yet: its training ended before the first "
                "validation. Go on with --resume."
            )
        decisive = {
            "checkpoint": {"step": best["step"], "sha256": best["sha256"]},
            "zoo": self.run.record["zoo"]["sha256"],
            "seed": self.seed,
            "sizes": (self.sizes or {}).get(name, {}),
            "code": _code_of_this_process(),
        }
        return dict(plain(decisive, "stamp"))


def experiment(run: Run, name: str, **settings: Any) -> Result:
    """What one experiment finds on a run: what was saved, or found now and saved; settings as Bench has them."""
    return Bench(run, **settings).result(name)


def code_sum(packages: Sequence[Path] = PACKAGES) -> str:
    """Sum of all that decides what an experiment finds beside its data: the code of both packages, and LIBRARIES.

    All code counts, also what an experiment does not use: following its imports would miss what is looked up by name.
    """
    total = hashlib.sha256()
    for package in packages:
        for file in sorted(package.rglob("*.py")):
            name = f"{package.name}/{file.relative_to(package).as_posix()}"
            total.update(f"{name} {sha256_of_file(file)}\n".encode())
    for library in LIBRARIES:
        total.update(f"{library} {_installed(library)}\n".encode())
    return total.hexdigest()


@cache
def _code_of_this_process() -> str:
    """The sum once a process: what is imported does not change while it runs."""
    return code_sum()


def _installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "missing"


def hardware(device: torch.device) -> str:
    """What computes, in words: `Intel(R) Xeon(R), 2 cores`, or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    return f"{model}, {cores} core{'s' if cores != 1 else ''}"
