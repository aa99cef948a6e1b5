"""Checkpoints of G.pt (Peebles et al., Learning to Learn with Generative Models of Neural Network Checkpoints).

    prepkit zoo import gpt-lmdb checkpoint_datasets/mnist zoo --checkpoints -1 --splits paper

They stand in LMDB data bases, see `_gpt_runs`. A checkpoint is read when it is its turn, so memory does not grow with
the data base.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from prepkit.errors import ZooError, counted, listed
from prepkit.packing import chosen_options
from prepkit.zoo.format.columns import OWN_COLUMNS, SCALARS
from prepkit.zoo.importers._gpt_networks import NETWORKS, Network
from prepkit.zoo.importers._gpt_runs import METADATA, RUNS, Run, check_names, groups_in, metrics_of, read_runs, runs_in
from prepkit.zoo.importers._lmdb_values import DATA, LmdbValues, library
from prepkit.zoo.importers._selection import Selection, as_text, chosen
from prepkit.zoo.importers._strict import PAPER, STRICT, StrictSource, check_splits
from prepkit.zoo.importers._tensor_shapes import read_json, tensor_shapes
from prepkit.zoo.importers.tree import check_folder
from prepkit.zoo.write.adding import Model, Source, Told

FLOAT = np.dtype("<f4")
SIZES = "_arch"  # ends the key under which the sizes of a checkpoint's tensors stand, as float32 too
RUN, EPOCH, ITERATION, ACCURACY, ERROR = "run", "epoch", "iteration", "accuracy", "avg_test_err"
WHEN = re.compile(r"(?:.*/)?(?:ep([0-9]{1,9})_)?it([0-9]{1,9})(?:\.pt)?")
TRAIN, TEST = "train", "test"


def found(
    folder: Path,
    *,
    runs: Selection | None = None,
    checkpoints: Selection | None = None,
    splits: str | None = None,
    layout: str | os.PathLike[str] | None = None,
) -> Source:
    """Find the checkpoints in a folder of data bases, or of one.

    runs:        runs to take, such as "0:100", by their place in the order of folders; all if missing
    checkpoints: checkpoints of each run to take, such as -1 or "::20", by their place in runs.json; all if missing
    splits:      "paper": the last runs are for testing, 500 of MNIST, 2,050 of CIFAR-10 and of cartpole; or "strict",
                 which leaves checkpoints with equal weights out, and keeps a run in one split; none if missing
    layout:      JSON file with names and shapes of the tensors, for networks that are not known
    raises ZooError if the package lmdb is missing, or for a file that is missing, not whole or of another kind
    """
    check_folder(folder)
    library()
    check_splits(splits, (PAPER, STRICT))
    found_runs = [run for group in groups_in(folder) for run in runs_in(group)]
    check_names(found_runs)
    of_runs, of_checkpoints = as_text(runs), as_text(checkpoints)
    network = None
    if layout is not None:
        data, place = read_json(Path(layout))
        network = Network(tensor_shapes(data, place))
    source = GptSource(found_runs, of_runs, of_checkpoints, splits, network)
    source.options = chosen_options(
        runs=of_runs, checkpoints=of_checkpoints, splits=splits, layout=None if layout is None else Path(layout).name
    )
    return StrictSource(source, source.run_of) if splits == STRICT else source


class GptSource(Source):
    """Checkpoints of runs, with what runs.json says of them."""

    def __init__(
        self,
        runs: list[Run],
        of_runs: str | None,
        of_checkpoints: str | None,
        splits: str | None,
        given: Network | None,
    ) -> None:
        self._notes: list[str] = []
        self._lists: set[str] = set()  # values of metadata that are no column
        self._values: LmdbValues | None = None
        self._folder: Path | None = None  # that of _values
        self._read_runs = lru_cache(maxsize=1)(read_runs)
        self._runs = [runs[number] for number in chosen(of_runs, len(runs), "runs", "run")]
        self._choose(of_checkpoints)
        self._network = self._first_network() if given is None else given
        self.how_to_run, self.task = self._network.how_to_run, self._network.task
        self._test = self._tested(runs) if splits == PAPER else None

    def run_of(self, index: int) -> str:
        """Return the name of a model's run."""
        return self._runs[self._run_of[index]].name

    def name(self, index: int) -> str:
        """Return the id of a model, and its file."""
        return f"'{self.ids[index]}' ({self._file(index)})"

    def read(self, index: int) -> Model:
        """Read a checkpoint's numbers."""
        place, key = f"{self._file(index)}, '{self._key(index)}'", self._key(index)
        numbers, sizes = self._numbers(index, key, place), self._sizes(index, key, place)
        network = self._network
        if sizes is not None and sizes != network.sizes:
            raise ZooError(
                f"{place}: its tensors have {listed(sizes, 12)} values, the first checkpoint's "
                f"{listed(network.sizes, 12)}; take it away, or import it alone."
            )
        if len(numbers) != network.tensors.size:
            raise ZooError(f"{place}: has {len(numbers):,} values, its tensors {network.tensors.size:,}.")
        told = self.told(index)
        tensors = network.tensors.tensors(numbers)
        return Model(tensors, place, told.columns, split=told.split, architecture=network.architecture)

    def told(self, index: int) -> Told:
        """Return a model's run, epoch, iteration and metrics, what is said of its run, and its split."""
        run, key = self._runs[self._run_of[index]], self._key(index)
        columns: dict[str, Any] = {RUN: run.name}
        when = WHEN.fullmatch(key)
        if when is not None:
            columns |= {EPOCH: int(when[1])} if when[1] else {}
            columns[ITERATION] = int(when[2])
        said = self._read_runs(run.folder)[run.name]
        metrics = metrics_of(said, key, f"{run.folder / RUNS}, {run.name}")
        if isinstance(metrics.get(ERROR), int | float):
            columns[ACCURACY] = 1 - metrics[ERROR] / 100
        taken = (*OWN_COLUMNS, *columns)
        columns |= {f"metrics.{name}" if name in taken else name: value for name, value in self._scalars(metrics)}
        metadata = said.get(METADATA)
        if isinstance(metadata, Mapping):
            columns |= {f"{METADATA}.{name}": value for name, value in self._scalars(metadata)}
        return Told(columns, None if self._test is None else TEST if run.name in self._test else TRAIN)

    def notes(self) -> Sequence[str]:
        """Return sentences on what was left out, and on the split."""
        left = (
            [f"Left in {RUNS}, since they are lists or tables: {listed(sorted(self._lists))}."] if self._lists else []
        )
        return [*self._notes, *left]

    def _scalars(self, table: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Return what a column can hold; names of the others are kept for a note."""
        self._lists.update(name for name, value in table.items() if value is not None and type(value) not in SCALARS)
        return [(name, value) for name, value in table.items() if value is None or type(value) in SCALARS]

    def _choose(self, checkpoints: str | None) -> None:
        """Number the models, in little memory as there may be millions."""
        self._run_of, self._number = array("i"), array("i")
        by_count: dict[int, list[int]] = {}
        ids: list[str] = []
        for place, run in enumerate(self._runs):
            count = len(run.checkpoints)
            if count not in by_count:
                by_count[count] = chosen(checkpoints, count, "checkpoints", "checkpoint", f" in run '{run.name}'")
            self._run_of.extend([place] * len(by_count[count]))
            self._number.extend(by_count[count])
            prefix = f"{run.name}/"
            names = (run.checkpoints[number] for number in by_count[count])
            ids += [name if name.startswith(prefix) else prefix + name for name in names]
        if len(set(ids)) < len(ids):
            raise ZooError(f"{RUNS} gives several checkpoints one name, RUN/CHECKPOINT. Rename their runs.")
        self.ids = ids

    def _first_network(self) -> Network:
        """Return the network whose tensors have the sizes of the first checkpoint's.

        raises ZooError if none has them
        """
        key = self._key(0)
        place = f"{self._file(0)}, '{key}'"
        sizes = self._sizes(0, key, place)
        numbers = self._numbers(0, key, place)
        network = next(
            (each for each in NETWORKS if sizes in (None, each.sizes) and len(numbers) == each.tensors.size), None
        )
        if network is None:
            found = f"{len(numbers):,} values" if sizes is None else f"tensors of {listed(sizes, 12)} values"
            raise ZooError(
                f"{place}: {found}, those of no network of G.pt. Give their names and shapes with `layout`, a JSON "
                'file such as {"fc1.weight": [10, 784], "fc1.bias": [10]}, in their order.'
            )
        return network

    def _numbers(self, index: int, key: str, place: str) -> np.ndarray:
        content = self._database(index).get(key)
        if content is None:
            raise ZooError(f"{place}: is in {RUNS} but not in {DATA}. Fetch both again, or take the entry away.")
        if len(content) % FLOAT.itemsize or not content:
            raise ZooError(f"{place}: {counted(len(content), 'byte')} are no whole number of float32 values.")
        return np.frombuffer(content, FLOAT).astype(FLOAT.newbyteorder("="))

    def _sizes(self, index: int, key: str, place: str) -> tuple[int, ...] | None:
        content = self._database(index).get(key + SIZES)
        if content is None:
            return None
        if len(content) % FLOAT.itemsize:
            raise ZooError(f"{place}{SIZES}: {counted(len(content), 'byte')} are no whole number of float32 values.")
        values = np.frombuffer(content, FLOAT).tolist()
        if not all(value == value and 0 < value < 2**24 and value == int(value) for value in values):
            raise ZooError(f"{place}{SIZES}: {listed(values)} are no sizes of tensors.")
        return tuple(map(int, values))

    def _database(self, index: int) -> LmdbValues:
        """Return the data base that holds a model; one is open at a time."""
        folder = self._runs[self._run_of[index]].folder
        if self._values is None or folder != self._folder:
            if self._values is not None:
                self._values.close()
            self._values, self._folder = LmdbValues(folder), folder
        return self._values

    def _tested(self, runs: list[Run]) -> frozenset[str]:
        """Return the names of the runs that the paper tests on.

        raises ZooError if none would be left for training
        """
        count, published = self._network.test_runs, self._network.published
        if len(runs) <= count:
            raise ZooError(
                f"`splits` paper keeps the last {count:,} runs for testing; there are {counted(len(runs), 'run')}. "
                "Fetch all, or split the zoo afterwards: `prepkit zoo split`."
            )
        if published is not None and len(runs) != published:
            self._notes.append(
                f"{RUNS} name {counted(len(runs), 'run')}, not the {published:,} that were published, so the split may "
                "not be the paper's."
            )
        return frozenset(run.name for run in runs[-count:])

    def _key(self, index: int) -> str:
        return self._runs[self._run_of[index]].checkpoints[self._number[index]]

    def _file(self, index: int) -> str:
        return str(self._runs[self._run_of[index]].folder / DATA)
