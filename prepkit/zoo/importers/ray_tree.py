"""Trees of runs that ray-tune wrote, or that look so: ModelZooDataset, WeightCLIP, vision transformers, CWI's.

    prepkit zoo import ray-tree tune_zoo_mnist_uniform zoo --data mnist_png

Networks are rebuilt from their tensors, as settings may lie. With test images, running decides how inputs were
normalised, and whether pooling stands before the activation; without, names decide, and a note says so.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from prepkit.errors import CheckpointError, ZooError, counted, listed
from prepkit.packing import chosen_options
from prepkit.support.files import sha256_of_file
from prepkit.zoo.format.function import ACCURACY
from prepkit.zoo.importers._ray_conventions import (
    NORMALISATIONS,
    Convention,
    Normalisation,
    Sample,
    data_set,
    decide,
    images_of,
)
from prepkit.zoo.importers._ray_networks import (
    ACTIVATIONS_UNDER,
    BIASES,
    INPUTS,
    KIND,
    OUTPUTS,
    Rebuilt,
    ResNetNetwork,
    corrected,
    how_to_run,
    named_activation,
    only_size,
    rebuilt,
)
from prepkit.zoo.importers._ray_notes import notes_on_tables, notes_on_tree
from prepkit.zoo.importers._ray_runs import SETTINGS, Run, Tree, copies, find_runs
from prepkit.zoo.importers._ray_splits import (
    SORTED,
    THREE_SHARES,
    TWO_SHARES,
    families,
    read_runs_order,
    shuffled_splits,
)
from prepkit.zoo.importers._ray_tables import EPOCH, PARENT, RUN, RunTable, TablesTold, read_run, read_settings
from prepkit.zoo.importers._strict import PAPER, STRICT, StrictSource, check_splits
from prepkit.zoo.importers.tree import check_folder
from prepkit.zoo.write.adding import Model, Source, Told
from prepkit.zoo.write.model_files import ModelReader, sha256_of_model

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.families.registry import Architecture

Key = tuple[Any, ...]
Found = tuple[Run, int, Mapping[str, "Tensor"], Rebuilt]

BELIED, UNKNOWN = "settings.", "networks."  # starts of names of what is counted
SAMPLE = 4  # models that are run to find the convention
RUNS_KEPT = 8  # runs whose tables are kept in memory
SPLITS = (PAPER, SORTED, STRICT)
FROM_TENSORS = (OUTPUTS, INPUTS, BIASES)
BEGAN_FROM = ("pretraining::model::path", "training::init_checkpoint_path")  # settings: <run>/checkpoint_1/checkpoints


def found(
    folder: Path,
    *,
    data: str | os.PathLike[str] | None = None,
    epochs: int | Collection[int] | None = None,
    splits: str | None = None,
    order: str | os.PathLike[str] | None = None,
    unfinished: bool = False,
    task: Mapping[str, Any] | None = None,
) -> Source:
    """Find the models in a folder of runs.

    data:       folder of the images that they classify: train/CLASS and test/CLASS, or torchvision's files
    epochs:     checkpoints to take, by their numbers; all if missing
    splits:     "sorted", "strict", or "paper", which needs `order`; see `_ray_splits`. None if missing
    order:      a list of the folders of runs, one a line, as they were shuffled for "paper"
    unfinished: take runs too that have no settings
    task:       record of the task, which then says how inputs are normalised
    raises ZooError if there are no runs, a table is damaged, or no convention gives the accuracies that are stored
    """
    check_folder(folder)
    check_splits(splits, SPLITS)
    if (splits == PAPER) != (order is not None):
        raise ZooError(
            "`splits` paper and `order` go together: the published loaders shuffle the folders of runs as a file "
            "system lists them, which no copy keeps, so give that list; `splits` sorted does so with sorted names."
        )
    if task is not None and data is not None:
        raise ZooError("`task` says how inputs are normalised, and data=PATH finds it by running; give one of them.")
    wanted = None if epochs is None else {epochs} if isinstance(epochs, int) else set(epochs)
    source = RaySource(folder, None if data is None else Path(data), wanted, splits, order, unfinished, task)
    return StrictSource(source, source.family) if splits == STRICT else source


class RaySource(Source):
    """The checkpoints of all runs in a folder.

    runs:  those that are taken
    files: file of each model
    """

    has_mixed_tables = True

    def __init__(
        self,
        folder: Path,
        data: Path | None,
        epochs: set[int] | None,
        splits: str | None,
        order: str | os.PathLike[str] | None,
        unfinished: bool,
        task: Mapping[str, Any] | None,
    ) -> None:
        tree = find_runs(folder)
        self.runs = _taken(tree, folder, unfinished)
        self._wanted, self._reader = epochs, ModelReader()
        self._notes = notes_on_tree(tree, unfinished)
        self._settings = {run.name: read_settings(run) for run in self.runs}
        self._parents = {run.name: run.parent or _began_from(self._settings[run.name]) for run in self.runs}
        self._told = TablesTold()
        self._tables: OrderedDict[str, RunTable] = OrderedDict()
        self._split = self._splits(splits, order)
        self._models = [(run, epoch) for run in self.runs for epoch in self._epochs(run)]
        if not self._models:
            known = sorted({epoch for run in self.runs for epoch in run.epochs})
            raise ZooError(
                f"no run in '{folder}' has epoch {listed(sorted(epochs or ()))}; there are {listed(known, 12)}."
            )
        self.ids = [f"{run.name}/{epoch}" for run, epoch in self._models]
        self._rebuilt: dict[Key, Rebuilt | None] = {}
        self._architectures: dict[tuple[Key, str], Architecture] = {}
        self._data_sets = {run.name: data_set(folder, run, self._settings[run.name]) for run in self.runs}
        self.task = task
        self._convention = self._find_convention(data)
        self.options = {
            **chosen_options(splits=splits, unfinished=unfinished),
            **({} if order is None else {"order": {"name": Path(order).name, "sha256": sha256_of_file(Path(order))}}),
            **({} if epochs is None else {"epochs": sorted(epochs)}),
            **({} if self._convention is None else {"convention": self._convention.name}),
        }

    def name(self, index: int) -> str:
        """Return the id and the file of a model."""
        return f"'{self.ids[index]}' ({self._file(index)})"

    def read(self, index: int) -> Model:
        """Read a model's file, with the settings of its run and its row of result.json."""
        run, _ = self._models[index]
        model, _ = self._reader.read(Path(self._file(index)))
        if not isinstance(model.tensors, Mapping):
            raise ZooError(f"{model.place}: is a PRep already; `prepkit zoo create` takes it.")
        told, settings = self.told(index), self._settings[run.name]
        true = corrected(model.tensors, settings)
        shape = {name: true.get(name, settings[name]) for name in FROM_TENSORS if name in settings}
        architecture = self._architecture(run, model.tensors)
        unknown = [] if architecture else [f"{UNKNOWN}{settings.get(KIND) or 'of unknown type'}"]
        return replace(
            model,
            columns={**told.columns, **shape, **model.columns},
            split=told.split,
            architecture=architecture,
            counts=dict.fromkeys((*(f"{BELIED}{name}" for name in true), *unknown), 1),
        )

    def told(self, index: int) -> Told:
        """Return the settings and metrics of a model, but for settings that its tensors may belie."""
        run, epoch = self._models[index]
        table = self._table(run)
        columns: dict[str, Any] = {RUN: run.name, EPOCH: epoch}
        if any(self._parents.values()):
            columns[PARENT] = self._parents[run.name]
        columns |= {name: value for name, value in table.settings.items() if name not in FROM_TENSORS}
        columns |= table.rows.get(epoch, {})
        return Told(columns, self._split.get(run.name))

    def sha256(self, index: int) -> str | None:
        """Return the sha256 of a model's file."""
        return sha256_of_model(Path(self._file(index)))

    def notes(self) -> Sequence[str]:
        """Return sentences on what was left out, what settings say wrongly, and how the convention was found."""
        notes = [*self._notes, *notes_on_tables(self._told)]
        if settings := self._counted(BELIED):
            notes.append(f"Settings that tensors belie, so that the columns have what the tensors say: {settings}.")
        if kinds := self._counted(UNKNOWN):
            notes.append(f"Networks that prepkit does not rebuild, so that they are kept but cannot be run: {kinds}.")
        return notes

    def _counted(self, start: str) -> str:
        """Return what was counted of all models under names that begin so."""
        found = {name: count for name, count in self.counts.items() if name.startswith(start)}
        return listed(f"{name.removeprefix(start)} ({counted(count, 'model')})" for name, count in found.items())

    def family(self, index: int) -> str:
        """Return the first run that a model's run comes from; those of a family are split together."""
        return self._families[self._models[index][0].name]

    def _file(self, index: int) -> str:
        run, epoch = self._models[index]
        return run.epochs[epoch]

    def _table(self, run: Run) -> RunTable:
        if run.name not in self._tables:
            self._tables[run.name] = read_run(run, self._settings[run.name], self._told)
            if len(self._tables) > RUNS_KEPT:
                self._tables.popitem(last=False)
        return self._tables[run.name]

    # Networks and how they are run ------------------------------------------------------------------------------

    def _architecture(self, run: Run, tensors: Mapping[str, Tensor]) -> Architecture | None:
        """Return what builds a model's network; None if that is unknown."""
        key, network = self._network(run, tensors)
        if network is None:
            return None
        label = self._data_sets[run.name].name
        if (key, label) not in self._architectures:
            pool_first = self._convention is None or self._convention.pool_first
            self._architectures[key, label] = network.architecture(label, pool_first)
        return self._architectures[key, label]

    def _network(self, run: Run, tensors: Mapping[str, Tensor]) -> tuple[Key, Rebuilt | None]:
        """Return a model's network, and a key that it shares with those that are equal but for values."""
        settings = self._settings[run.name]
        activation = named_activation(settings)
        key = (activation, *((name, *tensor.shape) for name, tensor in tensors.items()))
        if key not in self._rebuilt:
            self._rebuilt[key] = rebuilt(tensors, activation)
        return key, self._rebuilt[key]

    def _find_convention(self, data: Path | None) -> Convention | None:
        """Find how inputs were normalised, by running or by names, and keep the task and how networks are run."""
        found = list(self._samples())
        if not found and data is not None:
            raise ZooError(
                "no model can be compared with the images, since none of those that were looked at has a network that "
                "prepkit rebuilds. Leave data=PATH out."
            )
        if not found:
            self._notes.append(
                "How the networks are run is unknown: none of those that were looked at is one that prepkit rebuilds."
            )
            return None
        networks = [found_one[-1] for found_one in found]
        activation = next((name for name in ACTIVATIONS_UNDER if name in self._settings[found[0][0].name]), None)
        sets = {self._data_sets[run.name].name for run in self.runs}
        if self.task is not None:
            given = {key: self.task[key] for key in ("mean", "std") if self.task.get(key) is not None}
            self.how_to_run = {**how_to_run(networks, activation, pool_first=True), **given}
            return None
        likely = self._likely(networks[0]) if len(sets) == 1 else None
        if data is not None and len(sets) > 1:
            raise ZooError(
                f"runs are of several data sets ({listed(sorted(sets))}), but one folder holds images of one. Import "
                "the runs of each data set alone."
            )
        if data is not None:
            convention = self._run(data, found, likely, images_of(min(sets), data))
        elif likely is not None:
            convention = Convention(likely)
            self._notes.append(
                f"Names tell that the data set is {min(sets)}, so inputs are taken to be normalised as "
                f"'{likely.name}', which nothing proves: name the folder of the images, data=PATH, and running decides."
            )
        else:
            why = f"runs are of several data sets ({listed(sorted(sets))})" if len(sets) > 1 else "no name tells it"
            self._notes.append(
                f"How inputs were normalised is unknown: {why}. For runs of one data set name the folder of the "
                "images, data=PATH, and running decides; or give a task."
            )
            self.how_to_run = how_to_run(networks, activation, pool_first=True)
            return None
        self.task = convention.normalisation.task(networks[0].channels, only_size(networks), images_of(min(sets), data))
        self.how_to_run = {
            **how_to_run(networks, activation, convention.pool_first),
            "convention": convention.name,
            "mean": self.task["mean"],
            "std": self.task["std"],
        }
        return convention

    def _likely(self, network: Rebuilt) -> Normalisation | None:
        known = self._data_sets[self.runs[0].name]
        name = known.of_resnets if isinstance(network, ResNetNetwork) else known.of_chains
        return None if name is None else NORMALISATIONS[name]

    def _run(self, data: Path, found: Sequence[Found], likely: Normalisation | None, dataset: str) -> Convention:
        """Return the convention by which some models have the accuracies that are stored."""
        samples = []
        for run, epoch, tensors, network in found:
            stored = self._table(run).rows.get(epoch, {}).get(ACCURACY)
            if isinstance(stored, int | float):
                samples.append(Sample(network, tensors, float(stored), f"'{run.epochs[epoch]}'"))
        if not samples:
            raise ZooError(
                "no model can be compared with the images: none of those that were looked at has a stored accuracy."
            )
        decision = decide(samples, likely, data, dataset)
        self._notes.append(decision.note)
        self.record = {"conventions_run": {"models": len(samples), "accuracy_differences": dict(decision.differences)}}
        return decision.convention

    def _samples(self) -> Iterator[Found]:
        """Yield some models whose network is known, spread evenly over the runs: the last ones that were measured.

        Files that cannot be read are left to `read`, which tells of them.
        """
        from prepkit.checkpoint.load import load_checkpoint

        runs = [run for run in self.runs if self._epochs(run)]
        chosen = Counter(place * len(runs) // SAMPLE for place in range(SAMPLE))
        for number, count in chosen.items():
            run = runs[number]
            rows = self._table(run).rows
            measured = [epoch for epoch in self._epochs(run) if rows.get(epoch, {}).get(ACCURACY) is not None]
            for epoch in (measured or self._epochs(run))[-count:]:
                try:
                    tensors = load_checkpoint(run.epochs[epoch])
                except CheckpointError:
                    continue
                _, network = self._network(run, tensors)
                if network is not None:
                    yield run, epoch, tensors, network

    def _epochs(self, run: Run) -> list[int]:
        return [epoch for epoch in run.epochs if self._wanted is None or epoch in self._wanted]

    # Splits ----------------------------------------------------------------------------------------------------

    def _splits(self, splits: str | None, order: str | os.PathLike[str] | None) -> dict[str, str]:
        """Return the split of each run, and tell of copies of runs."""
        again = copies(self.runs)
        if again:
            runs = counted(len(again), "run has", "runs have")
            pairs = listed((f"{run} of {other}" for run, other in again.items()), 3)
            self._notes.append(f"{runs} the last weights of an earlier run: {pairs}.")
        self._families = families(self._parents, again)
        names = [run.name for run in self.runs]
        if splits == PAPER:
            of_folder = shuffled_splits(read_runs_order(Path(order or ""), names), TWO_SHARES)
            return {name: of_folder[Path(name).name] for name in names}
        if splits == SORTED:
            self._notes.append(
                "The split is that of the published loaders for sorted names of runs, not the published one, which "
                "depends on the order of a file system."
            )
            return shuffled_splits(sorted(names), THREE_SHARES)
        return {}


def _taken(tree: Tree, folder: Path, unfinished: bool) -> list[Run]:
    """Return the runs to take.

    raises ZooError if all are unfinished and none of those is wanted
    """
    runs = [run for run in tree.runs if unfinished or run.settings is not None]
    if not runs:
        raise ZooError(
            f"none of {counted(len(tree.runs), 'run')} in '{folder}' has a {' or a '.join(SETTINGS)}, so all are "
            "unfinished, or half downloaded. Fetch them again; `unfinished` takes them as they are."
        )
    return runs


def _began_from(settings: Mapping[str, Any]) -> str | None:
    """Return the name of the run whose checkpoint the settings name as the beginning."""
    path = next((settings[name] for name in BEGAN_FROM if isinstance(settings.get(name), str)), "")
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return parts[-3] if len(parts) > 2 else None
