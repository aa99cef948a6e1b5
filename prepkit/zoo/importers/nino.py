"""Trajectories of NiNo: every state of many trainings, as one array of float16 numbers without a header.

    fm-16.dat           [run, state, parameter]; lm1b-3-24_p1.dat and lm1b-3-24_p2.dat have half of the runs each
    fm-16_metrics.dat   [run, state, metric]

A model is read when it is its turn, so memory does not grow with the files, and its numbers stay float16.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prepkit.errors import ZooError, counted, listed, nearest
from prepkit.packing import chosen_options
from prepkit.zoo.importers._matrix import Rows
from prepkit.zoo.importers._nino_sets import ACCURACIES, ACCURACY, RUN, SETS, STATE, TrajectorySet, read_set
from prepkit.zoo.importers._selection import Selection, as_text, chosen
from prepkit.zoo.importers._strict import StrictSource, check_splits
from prepkit.zoo.importers.tree import check_folder
from prepkit.zoo.write.adding import Model, Source, Told

HALF = np.dtype("<f2")
DATA_FILE = re.compile(r"(.+?)(?:_p([1-9][0-9]*))?\.dat")
METRICS = "_metrics"
EXAMPLE = '{"states": 124, "metrics": ["train_loss"], "tensors": {"fc.weight": [10, 32], "fc.bias": [10]}}'


def found(
    folder: Path,
    *,
    dataset: str | None = None,
    states: Selection | None = None,
    runs: Selection | None = None,
    splits: str | None = None,
    layout: str | os.PathLike[str] | None = None,
) -> Source:
    """Find the states of trajectories in a folder.

    dataset: name of the set, such as "fm-16"; the only one in the folder if missing
    states:  states of each run to take, such as "0:2688:100", "-1" or [0, 100]; all if missing
    runs:    runs to take, in the same way
    splits:  "strict", which leaves states with equal weights out and keeps a run in one split; none if missing
    layout:  JSON file that describes a set which is not known, see `_nino_sets`
    raises ZooError for a file that is missing, or whose size is not that of the set
    """
    check_folder(folder)
    check_splits(splits)
    files = _data_files(folder)
    if dataset is None and len(files) != 1:
        held = f"holds several sets, {listed(files)}" if files else "holds no set of trajectories (NAME.dat)"
        raise ZooError(f"'{folder}' {held}; name the folder that holds one, and the set as `dataset`.")
    name = next(iter(files)) if dataset is None else dataset
    if name not in files:
        raise ZooError(f"'{folder}' holds no set '{name}'; there are {listed(files) or 'none'}.{nearest(name, files)}")
    if layout is None and name not in SETS:
        raise ZooError(
            f"'{folder / name}.dat': the order of its parameters is unknown; known are {listed(SETS)}. Describe it "
            f"with `layout`, a JSON file such as {EXAMPLE}."
        )
    of_set = SETS[name] if layout is None else read_set(Path(layout))
    of_states, of_runs = as_text(states), as_text(runs)
    source = NinoSource(folder, name, files[name], of_set, of_states, of_runs)
    file = None if layout is None else Path(layout).name
    source.options = chosen_options(dataset=dataset, states=of_states, runs=of_runs, layout=file)
    return source if splits is None else StrictSource(source, lambda index: str(source.models[index][0]))


def _data_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of weights by the name of their set, each set's parts in order."""
    found: dict[str, dict[int, Path]] = {}
    for file in sorted(folder.glob("*.dat")):
        match = DATA_FILE.fullmatch(file.name)
        if match is not None and not file.stem.endswith(METRICS) and file.is_file():
            found.setdefault(match[1], {})[int(match[2] or 0)] = file
    for name, parts in found.items():
        if 0 in parts and len(parts) > 1:
            raise ZooError(f"'{folder}' holds '{name}.dat' and parts of it; take away what is not of this set.")
        absent = next((part for part in range(1, max(parts)) if part not in parts), None)
        if absent is not None:
            raise ZooError(f"'{folder}' lacks '{name}_p{absent}.dat', so nothing tells the runs after it. Fetch it.")
    return {name: [parts[part] for part in sorted(parts)] for name, parts in found.items()}


class NinoSource(Source):
    """States of a set's trajectories.

    models: run and state of each model
    """

    def __init__(
        self, folder: Path, name: str, files: list[Path], of_set: TrajectorySet, states: str | None, runs: str | None
    ) -> None:
        self._set = of_set
        self._notes: list[str] = []
        of_part = None if of_set.parts is None or of_set.runs is None else of_set.runs // of_set.parts
        self._parts = [_rows(file, of_part, of_set.states, of_set.tensors.size, "parameters") for file in files]
        self._runs_of_part = [part.rows // of_set.states for part in self._parts]
        present = sum(self._runs_of_part)
        self._check_runs(folder, name, present)
        self._metrics = self._metrics_file(folder / f"{name}{METRICS}.dat", of_set.runs or present)
        self.how_to_run, self.task = of_set.how_to_run, of_set.task
        if of_set.architecture is None:
            self._notes.append(
                f"Tensors of {name} are kept by name and shape; prepkit has no family of their network, so it cannot "
                "run them."
            )
        numbers = chosen(states, of_set.states, "states", "state")
        self.models = [(run, state) for run in chosen(runs, present, "runs", "run") for state in numbers]
        self.ids = [f"{run}/{state}" for run, state in self.models]

    def name(self, index: int) -> str:
        """Return the id of a model, and its place in the file."""
        return f"'{self.ids[index]}' ({self._place(index)})"

    def read(self, index: int) -> Model:
        """Read a model's row of the array, and its metrics."""
        part, row = self._row(index)
        tensors = self._set.tensors.tensors(part.row(row))
        columns = self.told(index).columns
        return Model(tensors, self._place(index), columns, architecture=self._set.architecture)

    def told(self, index: int) -> Told:
        """Return a model's run, state and metrics."""
        run, state = self.models[index]
        columns: dict[str, Any] = {RUN: run, STATE: state}
        if self._metrics is not None:
            values = self._metrics.row(run * self._set.states + state).tolist()
            columns |= dict(zip(self._set.metrics, values, strict=True))
            accuracy = next((columns[name] for name in ACCURACIES if name in columns), None)
            if accuracy is not None:
                columns[ACCURACY] = accuracy / 100 if self._is_per_cent else accuracy
        return Told(columns)

    def notes(self) -> Sequence[str]:
        """Return sentences on runs that are missing, and on what the columns mean."""
        return self._notes

    @cached_property
    def _is_per_cent(self) -> bool:
        """Whether the accuracies of the metrics go up to 100 rather than 1."""
        if self._metrics is None:
            return False
        states, names = self._set.states, self._set.metrics
        place = next(names.index(name) for name in ACCURACIES if name in names)
        by_run = Rows(self._metrics.file, self._metrics.rows // states, states * len(names), HALF)
        largest = [np.nanmax(by_run.row(run)[place :: len(names)], initial=0) for run in range(by_run.rows)]
        if max(largest) <= 1:
            return False
        self._notes.append(f"The column {ACCURACY} is {names[place]} divided by 100, as it is given in per cent.")
        return True

    def _row(self, index: int) -> tuple[Rows, int]:
        """Return the file that holds a model, and its row there."""
        run, state = self.models[index]
        for part, runs in zip(self._parts, self._runs_of_part, strict=True):
            if run < runs:
                return part, run * self._set.states + state
            run -= runs
        raise IndexError(index)

    def _place(self, index: int) -> str:
        run, state = self.models[index]
        return f"{self._row(index)[0].file}, run {run}, state {state}"

    def _metrics_file(self, file: Path, runs: int) -> Rows | None:
        if not self._set.metrics:
            return None
        if not file.is_file():
            raise ZooError(f"'{file}' is missing, which holds the metrics of each state. Fetch it.")
        return _rows(file, runs, self._set.states, len(self._set.metrics), "metrics")

    def _check_runs(self, folder: Path, name: str, present: int) -> None:
        """Tell of parts that are not there; raise ZooError if the layout names another number of runs."""
        runs, parts = self._set.runs, self._set.parts
        if runs is None or present == runs:
            return
        if parts is None or present > runs:
            raise ZooError(
                f"'{folder}': the files of '{name}' hold {counted(present, 'run')}, but the layout says {runs:,}. "
                "Fetch what is missing, or correct the layout."
            )
        absent = listed(f"{name}_p{part}.dat" for part in range(len(self._parts) + 1, parts + 1))
        self._notes.append(f"{absent} is not there, so runs {present:,} to {runs - 1:,} are left out.")


def _rows(file: Path, runs: int | None, states: int, columns: int, noun: str) -> Rows:
    """Return the rows of a file, whose size has to be that of so many runs, or of any number of whole ones if None.

    raises ZooError if it is not
    """
    size = file.stat().st_size
    of_run = states * columns * HALF.itemsize
    shape = f"{counted(states, 'state')} x {columns:,} {noun} x {HALF.itemsize} bytes"
    if runs is None and (size % of_run or not size):
        raise ZooError(
            f"'{file}' has {size:,} bytes, which is no number of whole runs of {of_run:,} bytes ({shape}). Fetch it "
            "again, or correct the layout."
        )
    if runs is not None and size != runs * of_run:
        raise ZooError(
            f"'{file}' has {size:,} bytes, but {counted(runs, 'run')} x {shape} = {runs * of_run:,} bytes are "
            "expected. Fetch it again, or describe what it holds with `layout`."
        )
    return Rows(file, size // of_run * states, columns, HALF)
