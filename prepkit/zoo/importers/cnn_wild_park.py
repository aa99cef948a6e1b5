"""The CNN Wild Park: CNNs for CIFAR-10 whose depths, widths, kernels, activations and residual sums all differ.

    prepkit zoo import cnn-wild-park dataset zoo --splits paper

    cifar10_zooV2/<run>/checkpoint_000010/checkpoint.pt        or cnn_wild/, or the runs themselves
    cnn_park_splits.json                                       the published split

A file holds the weights, the state of the optimizer (which stays there), the network's config, the iteration and what
the training said last, `last_result`. Nothing of it is run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, counted, listed
from prepkit.prep.file import PRep
from prepkit.prep.layout import canonical_json
from prepkit.support.reading import is_number
from prepkit.zoo.format.function import ACCURACY
from prepkit.zoo.importers._copies import Copies
from prepkit.zoo.importers._pattern import PathPattern
from prepkit.zoo.importers._split_file import SplitFile, SplitRow
from prepkit.zoo.importers._strict import PAPER, STRICT, StrictSource, check_splits
from prepkit.zoo.importers._wild_config import architecture_of, arguments_of, check_shapes
from prepkit.zoo.importers.tree import Paths, Tables, TreeSource, Types, check_folder, in_folder, listed_tables
from prepkit.zoo.write.adding import Model, Source, Told

if TYPE_CHECKING:
    from prepkit.families.registry import Architecture

PATTERN = "{run}/checkpoint_{checkpoint:int}/checkpoint.pt"
PREFIXES = ("cifar10_zooV2", "cnn_wild")
SPLIT_FILE = "cnn_park_splits.json"
STATE, ITERATION, STORED = "model", "iteration", "last_result.test/acc"
SAME_SCORE = 1e-9
MEAN, STD = [0.49139968, 0.48215841, 0.44653091], [0.24703223, 0.24348513, 0.26158784]
TOLERANCE = 0.002  # accuracies were measured on a GPU that rounded to TF32, which changes some of 10,000 classes
HOW_TO_RUN = {
    "measure": ACCURACY,
    "tolerance": TOLERANCE,
    "activation": "config.activation",
    "order": "convolution, residual sum, activation, for each layer; the mean over height and width; a linear layer",
    "stride": "config.stride",
    "padding": "config.padding",
    "residual": (
        "before layer i's activation the output of layer config.residual[i], after its activation, is added to the "
        "first channels, as many as both have; -1 adds nothing"
    ),
    "mean": MEAN,
    "std": STD,
}
TASK = {
    "kind": "images",
    "dataset": "uoft-cs/cifar10",
    "mean": MEAN,
    "std": STD,
    "split": {"seed": 0, "test": "test"},
}


def found(
    folder: Path,
    *,
    splits: str | None = None,
    split_file: str | os.PathLike[str] | None = None,
    pattern: str | None = None,
    files: Paths | None = None,
    table: Tables = None,
    on: Mapping[str, str] | None = None,
    types: Types | None = None,
) -> Source:
    """Find the models in a folder of the CNN Wild Park.

    splits:     "paper", the published split, or "strict", which leaves equal models out and keeps those of a run
                together; see `_strict`
    split_file: the file of the published split; cnn_park_splits.json in the folder or beside it if missing
    pattern:    path of a model below the folder, with fields as for "tree"; that of the known layout if missing
    files, table, on, types: as for "tree"
    raises ZooError if nothing fits, or the published split is not at hand or that of other models
    """
    check_splits(splits, (PAPER, STRICT))
    if split_file is not None and splits != PAPER:
        raise ZooError(f"`split_file` goes with `splits` {PAPER}.")
    check_folder(folder)
    is_known = pattern is None and files is None
    root = _root(folder) if is_known else folder
    source = WildParkSource(
        [root] if files is None else in_folder(folder, files),
        pattern or PATTERN,
        listed_tables(table),
        on or {},
        types or {},
        _runs_without(root) if is_known else [],
    )
    if splits == PAPER:
        source.split_as_paper(_split_file(folder, root, split_file))
    if splits == STRICT:
        source.copies = None  # they are left out
        return StrictSource(source)
    return source


class WildParkSource(TreeSource):
    """Models of the CNN Wild Park, each with the architecture that its config describes."""

    how_to_run = HOW_TO_RUN
    task = TASK

    def __init__(
        self,
        paths: Sequence[Path],
        pattern: str,
        tables: Sequence[str],
        on: Mapping[str, str],
        types: Types,
        notes: Sequence[str],
    ) -> None:
        super().__init__(paths, pattern, tables, on, types, STATE, None)
        self._notes = list(notes)
        self._paper: list[SplitRow | None] = []
        self._architectures: dict[str, Architecture] = {}
        self.copies: Copies | None = Copies()

    def split_as_paper(self, file: Path) -> None:
        """Give each model the split that a file tells.

        raises ZooError if the file is wrong, or names none of the models
        """
        split_file = SplitFile.read(file, len(PathPattern.parse(PATTERN).parts))
        self._paper, notes = split_file.joined(self.files)
        self._notes += notes
        self.options = {**self.options, "splits": PAPER, "split_file": split_file.record}

    def read(self, index: int) -> Model:
        """Read a model's file, with what its config says."""
        model = super().read(index)
        if isinstance(model.tensors, PRep):
            raise ZooError(f"{model.place}: is a PRep already; `prepkit zoo create` takes it.")
        arguments = arguments_of(model.said, model.place)
        check_shapes(model.tensors, arguments, model.place)
        key = canonical_json(arguments)
        if key not in self._architectures:
            self._architectures[key] = architecture_of(arguments)
        said = dict(model.said)
        accuracy = said.pop(STORED, None)
        columns = dict(model.columns)
        if columns.get(ACCURACY) is None:
            columns[ACCURACY] = float(accuracy) if is_number(accuracy) else None
        if self.copies is not None:
            self.copies.hear(self.ids[index], model.tensors)
        return replace(
            model,
            columns=columns,
            said=said,
            architecture=self._architectures[key],
            counts=dict.fromkeys(self._remarks(index, columns[ACCURACY], said.get(ITERATION)), 1),
        )

    def notes(self) -> Sequence[str]:
        """Return sentences on columns, and on files and runs that were left out."""
        notes = [f"What files call {STORED} is the column {ACCURACY}.", *self._notes]
        for what, count in self.counts.items():
            notes.append(f"{what}: {counted(count, 'model')}.")
        return [*notes, *(self.copies.notes() if self.copies else []), *super().notes()]

    def _told(self, index: int, differing: dict[str, int]) -> Told:
        told = super()._told(index, differing)
        paper = self._paper[index] if self._paper else None
        return told if paper is None else replace(told, split=paper.split)

    def _remarks(self, index: int, accuracy: float | None, iteration: Any) -> Iterator[str]:
        """Yield what is to be told of a model: no accuracy, or another one than the published split has."""
        if accuracy is None:
            yield f"No {STORED} in the file, so the column {ACCURACY} is empty"
        paper = self._paper[index] if self._paper else None
        values: Mapping[str, Any] = {} if paper is None else paper.values
        score, step = values.get("score"), values.get("step")
        if accuracy is not None and is_number(score) and abs(accuracy - float(score or 0)) > SAME_SCORE:
            yield f"The split has another score than {STORED} of the file, which is kept"
        if is_number(iteration) and is_number(step) and iteration != step:
            yield f"The split has another step than {ITERATION} of the file, which is kept"


def _root(folder: Path) -> Path:
    """Return the folder of the runs: the one that was named, or one in it.

    raises ZooError if there is none, or two
    """
    roots = [path for path in (folder, *(folder / name for name in PREFIXES)) if _has_runs(path)]
    if len(roots) > 1:
        raise ZooError(f"models are in {listed(map(str, roots))}; name one of the two.")
    if not roots:
        names = sorted(os.listdir(folder))
        there = f"there is {listed(names, 4)}" if names else "nothing is there"
        raise ZooError(
            f"'{folder}' holds no file RUN/checkpoint_xxxxxx/checkpoint.pt, neither itself nor in {PREFIXES[0]}/ or "
            f"{PREFIXES[1]}/; {there}. Unpack an archive first, and name the folder."
        )
    return roots[0]


def _has_runs(folder: Path) -> bool:
    return next(folder.glob("*/checkpoint_*/checkpoint.pt"), None) is not None


def _runs_without(root: Path) -> list[str]:
    """Return a sentence on folders of runs that hold no checkpoint at all, as those of a half-finished download."""
    with os.scandir(root) as entries:
        runs = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    without = [run for run in runs if next((root / run).glob("checkpoint_*"), None) is None]
    return [f"{counted(len(without), 'run')} without any checkpoint: {listed(without)}."] if without else []


def _split_file(folder: Path, root: Path, given: str | os.PathLike[str] | None) -> Path:
    if given is not None:
        return Path(given)
    places = dict.fromkeys(path / SPLIT_FILE for path in (folder, root, folder.absolute().parent))
    there = next((path for path in places if path.is_file()), None)
    if there is None:
        raise ZooError(
            f"`splits` paper needs the published {SPLIT_FILE}, which is in none of "
            f"{listed(str(path.parent) for path in places)}; name it with `split_file`."
        )
    return there
