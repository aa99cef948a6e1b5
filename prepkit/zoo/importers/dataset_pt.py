"""Zoos that ModelZooDataset saved as one object: a dict of data sets, each of which holds its checkpoints.

    torch.save({"trainset": ..., "valset": ..., "testset": ...}, "dataset_cifar_small_seed.pt")

    data_in       list of state dicts              properties    {"test_acc": [...], "model::nlin": [...], ...}
    paths         the folder of each run           epochs        the epoch of each
    labels_in     "<path>#_#epoch_<e>#_#layer_..." where there are no paths and epochs

The objects' class is not imported, and nothing of the file is run. Tensors are mapped from the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.checkpoint.load import sha256_of
from prepkit.checkpoint.objects import SavedObjects, attributes_of, plain, saved_objects
from prepkit.errors import UnsafeCheckpoint, ZooError, counted, listed
from prepkit.packing import chosen_options
from prepkit.support.files import like_in_folder
from prepkit.zoo.format.columns import OWN_COLUMNS
from prepkit.zoo.format.sources import SOURCE_SHA256
from prepkit.zoo.importers._saved_networks import SAMPLE, Saved, SavedNetworks
from prepkit.zoo.write.adding import Model, Source, Told

if TYPE_CHECKING:
    from torch import Tensor

SETS = {"trainset": "train", "valset": "validation", "testset": "test"}
STATES, LABELS, PATHS, EPOCHS, PROPERTIES = "data_in", "labels_in", "paths", "epochs", "properties"
NAMES = {"test_acc": "accuracy"}  # properties that all zoos call otherwise
ITERATION = "training_iteration"
LABEL = re.compile(r"(?P<path>.*?)(?:#_#| )epoch[_ ](?P<epoch>[0-9]{1,18})(?:#_#| |$)")
IMAGES = "{path}: holds the images that networks were trained on ({name}), not networks; {remedy}."
REMEDY = "the zoo is the folder of the runs beside it, or a file such as dataset_cifar_small_seed.pt"
TOKENS = re.compile(r"dataset_torch\.\w+|sample_[0-9]+\.pt")


def found(source: Path, *, data: str | os.PathLike[str] | None = None, activation: str | None = None) -> Source:
    """Find the checkpoints in a file.

    source:     the file, or a folder that holds one file dataset*.pt
    data:       folder of the images that they classify, with train/CLASS and test/CLASS, of the size that they take
    activation: that of the networks, where no property says it: "relu", "tanh", "gelu", ...
    raises ZooError for a file that is no such zoo, or whose lists differ in length
    """
    path = _file(source)
    try:
        saved = saved_objects(path)
    except UnsafeCheckpoint as error:
        if "torch.utils.data.dataset.TensorDataset" in str(error):
            raise ZooError(IMAGES.format(path=path, name="TensorDataset", remedy=REMEDY)) from None
        raise
    return DatasetSource(saved, _sets(saved), activation, None if data is None else Path(data))


def _file(source: Path) -> Path:
    if not source.is_dir():
        if not source.exists():
            raise ZooError(f"'{source}' is not there.{like_in_folder(source)}")
        _refuse_tokens(source, [source.name])
        return source
    _refuse_tokens(source, sorted(path.name for path in source.iterdir()))
    files = sorted(source.glob("dataset*.pt"))
    if len(files) != 1:
        there = f"several: {listed(file.name for file in files)}" if files else "no file dataset*.pt"
        raise ZooError(f"'{source}' holds {there}; name the file itself.")
    return files[0]


def _refuse_tokens(source: Path, names: Sequence[str]) -> None:
    name = next((name for name in names if TOKENS.fullmatch(name)), None)
    if name is not None:
        raise ZooError(
            f"'{source}': {name} holds what SANE makes of networks, cut into tokens, normalised and perhaps permuted; "
            "such files are not read. Import the zoo that they were made of, with `prepkit zoo import ray-tree`."
        )


@dataclass(frozen=True)
class SavedSet:
    """One of the data sets in a file.

    place:  file and name of the set, for errors
    states: state dict of each checkpoint
    values: properties of all, by name
    """

    place: str
    split: str
    states: Sequence[Mapping[str, Tensor]]
    values: Mapping[str, Sequence[Any]]
    paths: Sequence[Any]
    epochs: Sequence[Any]
    labels: Sequence[Any]

    def run(self, number: int) -> tuple[str | None, int | None]:
        """Return the path of a checkpoint's run and its epoch, as far as they are known."""
        label = LABEL.match(str(plain(self.labels[number]))) if self.labels else None
        path = plain(self.paths[number]) if self.paths else label["path"] if label else None
        epoch: Any = plain(self.epochs[number]) if self.epochs else int(label["epoch"]) if label else None
        is_whole = isinstance(epoch, int | float) and not isinstance(epoch, bool) and float(epoch).is_integer()
        return None if path is None else str(path), int(epoch) if is_whole else None

    def properties(self, number: int) -> dict[str, Any]:
        """Return what is known of a checkpoint, by column."""
        known = ((_column(name), plain(values[number])) for name, values in self.values.items())
        return {name: value for name, value in known if value is not None}

    def unkept(self, number: int) -> list[str]:
        """Return the names of what is known of a checkpoint and is no value of a table."""
        return [
            name for name, values in self.values.items() if values[number] is not None and plain(values[number]) is None
        ]


def _column(name: str) -> str:
    return f"properties.{name}" if name in OWN_COLUMNS else NAMES.get(name, name)


def _sets(saved: SavedObjects) -> list[SavedSet]:
    value = saved.value
    if isinstance(value, Mapping) and {"w", "m", "p"} <= value.keys():
        _refuse_tokens(saved.path, ["sample_0.pt"])
    if not isinstance(value, Mapping) or not any(name in value for name in SETS):
        kind = f"a {type(value).__name__} of {listed(value)}" if isinstance(value, Mapping) else type(value).__name__
        raise ZooError(
            f"{saved.path}: holds {kind}, no dict of {listed(SETS)}; `prepkit zoo create` takes files of one network."
        )
    sets = [_set(saved.path, name, value[name]) for name in SETS if value.get(name) is not None]
    if not any(each.states for each in sets):
        raise ZooError(f"{saved.path}: its data sets hold no networks.")
    return sets


def _set(path: Path, name: str, value: object) -> SavedSet:
    place = f"{path}, {name}"
    found = attributes_of(value)
    if found is None:
        raise ZooError(f"{place}: is a {type(value).__name__}, not a data set of networks.")
    kind, attributes = found
    if STATES not in attributes:
        if {"data", "targets"} <= attributes.keys() or "tensors" in attributes:
            raise ZooError(IMAGES.format(path=place, name=kind, remedy=REMEDY))
        raise ZooError(f"{place}: an object of {kind} without {STATES}; it has {listed(attributes) or 'nothing'}.")
    states = attributes[STATES]
    if not isinstance(states, list) or not all(isinstance(state, Mapping) for state in states):
        raise ZooError(
            f"{place}.{STATES}: holds no state dicts, but vectors, of which nothing tells which value is of which "
            "tensor. Import the folder of the runs with `prepkit zoo import ray-tree`."
        )
    properties = attributes.get(PROPERTIES)
    properties = properties if isinstance(properties, Mapping) else {}
    lists = {f"{PROPERTIES}[{str(key)!r}]": values for key, values in properties.items()}
    lists |= {key: attributes.get(key) for key in (PATHS, EPOCHS, LABELS) if attributes.get(key) is not None}
    for key, values in lists.items():
        count = len(values) if isinstance(values, list | tuple) else None
        if count != len(states):
            has = "is no list" if count is None else f"has {counted(count, 'value')}"
            raise ZooError(
                f"{place}.{key}: {has}, but there are {counted(len(states), 'network')}; so nothing tells which value "
                "is of which."
            )
    return SavedSet(
        place,
        SETS[name],
        states,
        {str(key): values for key, values in properties.items()},
        *(lists.get(key, ()) for key in (PATHS, EPOCHS, LABELS)),
    )


class DatasetSource(Source):
    """Checkpoints in the data sets of a file.

    checkpoints: set and number of each
    """

    has_mixed_tables = True

    def __init__(
        self, saved: SavedObjects, sets: Sequence[SavedSet], activation: str | None, data: Path | None
    ) -> None:
        self._saved = saved
        self._notes: list[str] = []
        every = [(each, number) for each in sets for number in range(len(each.states))]
        runs = _names_of_runs([each.run(number)[0] for each, number in every])
        ids: dict[str, tuple[SavedSet, int]] = {}
        again: list[str] = []
        self._runs: list[str | None] = []
        for (each, number), run in zip(every, runs, strict=True):
            epoch = each.run(number)[1]
            parts = [part for part in (run, epoch) if part is not None]
            id_ = "/".join(map(str, parts)) if run is not None else f"{each.split}/{number}"
            if id_ in ids:
                again.append(f"{each.place}[{number}] is {id_} of {ids[id_][0].split}")
                continue
            ids[id_] = each, number
            self._runs.append(run)
        if again:
            are = (
                "checkpoint left out, whose run and epoch are"
                if len(again) == 1
                else "checkpoints left out, each of a run and epoch"
            )
            self._notes.append(f"{len(again):,} {are} there before: {listed(again)}.")
        self.ids, self.checkpoints = list(ids), list(ids.values())
        self._tell()
        ends = (place * len(self.ids) // SAMPLE - 1 for place in range(1, SAMPLE + 1))  # of runs, as they were measured
        samples = (self._network(index) for index in dict.fromkeys(ends) if index >= 0)
        self.networks = SavedNetworks(samples, activation, data)
        self.task, self.how_to_run, self.record = self.networks.task, self.networks.how_to_run, self.networks.record
        self.options = chosen_options(activation=activation, convention=(self.how_to_run or {}).get("convention"))

    @cached_property
    def _sha256(self) -> str:
        return sha256_of(self._saved.path)

    def name(self, index: int) -> str:
        """Return the id of a checkpoint, and its place in the file."""
        return f"'{self.ids[index]}' ({self._place(index)})"

    def read(self, index: int) -> Model:
        """Take a checkpoint out of the file's data sets."""
        each, number = self.checkpoints[index]
        saved, told = self._network(index), self.told(index)
        return Model(
            saved.tensors,
            saved.place,
            {**told.columns, SOURCE_SHA256: self._sha256},
            unkept=each.unkept(number),
            split=told.split,
            architecture=self.networks.architecture(saved),
        )

    def told(self, index: int) -> Told:
        """Return the run, the epoch and the properties of a checkpoint, and its split."""
        each, number = self.checkpoints[index]
        own = {"run": self._runs[index], "epoch": each.run(number)[1]}
        known = {name: value for name, value in own.items() if value is not None}
        return Told({**each.properties(number), **known}, each.split)

    def sha256(self, index: int) -> str | None:
        """Return the sha256 of the file."""
        return self._sha256

    def notes(self) -> Sequence[str]:
        """Return sentences on properties, and on checkpoints that stand twice."""
        return *self._notes, *self.networks.notes()

    def _network(self, index: int) -> Saved:
        """Return a checkpoint, checked, with what tells of its network."""
        each, number = self.checkpoints[index]
        tensors = self._saved.checked_state(each.states[number], f"{each.split}.{STATES}[{number}]")
        own = {name: tensor.detach() for name, tensor in tensors.items()}
        return Saved(self._place(index), own, self.told(index).columns, each.run(number)[0])

    def _place(self, index: int) -> str:
        each, number = self.checkpoints[index]
        return f"{each.place}.{STATES}[{number}]"

    def _tell(self) -> None:
        """Make the notes on properties."""
        sets = {id(each): each for each, _ in self.checkpoints}.values()
        renamed = [name for name in NAMES if any(name in each.values for each in sets)]
        if renamed:
            self._notes.append(
                f"Properties have other names: {listed(f'{name} is {NAMES[name]}' for name in renamed)}."
            )
        other = [id_ for id_, unlike in zip(self.ids, self._of_other_iterations(), strict=True) if unlike]
        if other:
            self._notes.append(
                f"{ITERATION} is not the epoch of {counted(len(other), 'checkpoint')}, whose properties are perhaps "
                f"those of another epoch: {listed(other)}."
            )

    def _of_other_iterations(self) -> Iterator[bool]:
        for each, number in self.checkpoints:
            epoch = each.run(number)[1]
            iteration = plain(each.values[ITERATION][number]) if ITERATION in each.values else None
            yield epoch is not None and isinstance(iteration, int | float) and iteration != epoch


def _names_of_runs(paths: Sequence[str | None]) -> list[str | None]:
    """Return the last part of each path, or as many parts as tell different paths apart."""
    known = sorted({path.replace("\\", "/").rstrip("/") for path in paths if path is not None})
    for count in range(1, max((path.count("/") for path in known), default=0) + 2):
        names = {path: "/".join(path.split("/")[-count:]) for path in known}
        if len(set(names.values())) == len(names):
            break
    return [None if path is None else names[path.replace("\\", "/").rstrip("/")] for path in paths]
