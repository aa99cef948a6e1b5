"""Files of the Small Transformer Zoo: where they stand, what their names say, and the table beside them.

    MNIST-Transformers/mnist/<run>_<checkpoint>_<score>.pt       3k2j9x1a_75_9712.pt: after epoch 75, accuracy 0.9712
    MNIST-Transformers/metadata/mnist.csv                        ckpt_file, ckpt_epoch, test_top1_accuracy, settings
    AG-News-Transformers/ag_news/..., metadata/ag_news.csv       test_accuracy

A checkpoint is the number of an epoch, or begins with `best`: the best epoch of the run, whichever that was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError, counted, listed, nearest
from prepkit.prep.slot import natural_key
from prepkit.support.reading import is_number
from prepkit.zoo.format.columns import OWN_COLUMNS
from prepkit.zoo.format.function import ACCURACY
from prepkit.zoo.format.sources import SOURCE_SHA256
from prepkit.zoo.write.model_paths import slashed
from prepkit.zoo.write.tables import read_table

DATASETS = ("mnist", "ag_news")
NAME = re.compile(r"(?P<run>[^_]+)_(?P<checkpoint>[0-9]{1,6}|best[^_]*)_(?P<score>[0-9]{1,5})\.pt")
FULL_SCORE = 10_000
EMBEDDING = "embedding.pt"  # what the makers' training saves once for all models of texts
FILE, CHECKPOINT, ACCURACIES = "ckpt_file", "ckpt_epoch", ("test_top1_accuracy", "test_accuracy")
OWN = ("run", "checkpoint", "epoch", ACCURACY, SOURCE_SHA256, *OWN_COLUMNS)
SAME = 0.5 / FULL_SCORE  # accuracies that differ by less are the same, as names have four digits


@dataclass(frozen=True)
class ModelFile:
    """A model's file, and what its name says: run, checkpoint and accuracy.

    epoch: the checkpoint, if it is the number of an epoch
    """

    path: Path
    run: str
    checkpoint: str
    accuracy: float

    @property
    def epoch(self) -> int | None:
        """The number of the epoch, None for the best one."""
        return int(self.checkpoint) if self.checkpoint.isdigit() else None

    @property
    def id(self) -> str:
        """The parts of the name, which no other file in the folder has."""
        return self.path.stem.replace("_", "/")


def dataset_folder(folder: Path, dataset: str | None) -> Path:
    """Return the folder of the models: the one that was named, or one below it that is called after a data set.

    raises ZooError if there is none, or if both data sets are there and none was chosen
    """
    if dataset is not None and dataset not in DATASETS:
        raise ZooError(f"`dataset` is {' or '.join(DATASETS)}, not {dataset!r}.{nearest(dataset, DATASETS)}")
    if not folder.is_dir():
        kind = "a file; unpack an archive first, and name the folder" if folder.exists() else "not there"
        raise ZooError(f"'{folder}' is {kind}.")
    wanted = DATASETS if dataset is None else (dataset,)
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    places = [folder.resolve(), *below, *(path / name for path in below for name in DATASETS)]
    found = [path for path in places if path.name in wanted and path.is_dir()]
    if len(found) > 1:
        raise ZooError(
            f"'{folder}' holds models in {listed(map(str, found))}; a zoo has one task, so name one of the folders"
            + (", or choose with `dataset`." if dataset is None else ".")
        )
    if not found:
        names = sorted(os.listdir(folder))
        there = f"there is {listed(names, 4)}" if names else "nothing is there"
        raise ZooError(
            f"'{folder}' holds no folder {' or '.join(wanted)} with models RUN_EPOCH_SCORE.pt; {there}. Unpack an "
            "archive first, and name the folder that holds MNIST-Transformers or AG-News-Transformers."
        )
    return folder if found[0] == folder.resolve() else found[0]


def model_files(folder: Path) -> tuple[list[ModelFile], list[str]]:
    """Return the models in a folder, in natural order, and sentences on other files.

    raises ZooError if there is no model
    """
    files, others = [], []
    for name in sorted(os.listdir(folder), key=natural_key):
        found = NAME.fullmatch(name)
        if found is not None and int(found["score"]) <= FULL_SCORE:
            score = int(found["score"]) / FULL_SCORE
            files.append(ModelFile(folder / name, found["run"], found["checkpoint"], score))
        else:
            others.append(name)
    if not files:
        there = f"there is {listed(others, 4)}" if others else "nothing is there"
        raise ZooError(f"no file in '{folder}' is called RUN_EPOCH_SCORE.pt, such as 3k2j9x1a_75_9712.pt; {there}.")
    notes = []
    if EMBEDDING in others:
        others.remove(EMBEDDING)
        notes.append(f"{EMBEDDING} is left out: it is no model, but the embedding that the models share.")
    if others:
        are = "is" if len(others) == 1 else "are"
        notes.append(f"{counted(len(others), 'file')} {are} not called RUN_EPOCH_SCORE.pt, left out: {listed(others)}.")
    return files, notes


@dataclass(frozen=True)
class Metadata:
    """The table beside the models: its file, the row of each model by the name of its file, and the rows' lines."""

    file: Path
    rows: Mapping[str, Mapping[str, Any]]
    lines: Mapping[str, int]
    types: Mapping[str, str]
    accuracy: str | None

    def columns(self, name: str) -> dict[str, Any]:
        """Return the columns of a model's row; those that the zoo fills itself have other names."""
        left_out = (FILE, CHECKPOINT, self.accuracy)
        row = self.rows.get(name, {})
        return {column_of(key): value for key, value in row.items() if key not in left_out}

    def accuracy_of(self, name: str) -> float | None:
        """Return the accuracy in a model's row."""
        value: Any = self.rows.get(name, {}).get(self.accuracy or "")
        return float(value) if is_number(value) else None


def column_of(name: str) -> str:
    """Return the name that a column of the table has in the zoo's table."""
    return f"metadata.{name}" if name in OWN else name


def metadata_of(folder: Path, given: str | os.PathLike[str] | None) -> Path | None:
    """Return the table beside a folder of models, `metadata/NAME.csv`; None if there is none."""
    if given is not None:
        return Path(given)
    places = (folder.absolute().parent / "metadata", folder.absolute().parent.parent / "metadata")
    return next((file for place in places if (file := place / f"{folder.resolve().name}.csv").is_file()), None)


def read_metadata(file: Path, files: Sequence[ModelFile]) -> tuple[Metadata, list[str]]:
    """Read the table, and compare it with the names of the files.

    raises ZooError for a table without ckpt_file, or one that names none of the models
    """
    texts = dict.fromkeys((FILE, CHECKPOINT), "text")
    table = read_table(file, texts, strict=False)
    if FILE not in table.columns:
        raise ZooError(f"{file}: no column {FILE}, which names the models; there are {listed(table.columns, 20)}.")
    rows: dict[str, Mapping[str, Any]] = {}
    lines: dict[str, int] = {}
    twice: list[str] = []
    for line, row in zip(table.numbers, table.rows, strict=True):
        name = slashed(str(row[FILE])).rpartition("/")[2]  # the makers' program put a second folder before some names
        if name in rows:
            twice.append(f"{name} (line {line})")
        rows[name], lines[name] = row, line
    names = {each.path.name for each in files}
    if not names & rows.keys():
        first = next(iter(rows), "no row")
        raise ZooError(
            f"{file}: names none of {counted(len(files), 'model')}; it has {first}, and the models are called "
            f"{files[0].path.name}. Is it the table of another folder?"
        )
    accuracy = next((name for name in ACCURACIES if name in table.columns), None)
    renamed: dict[str | None, str | None] = {
        FILE: None,
        CHECKPOINT: None,
        accuracy: ACCURACY,
    }  # None for what is no column
    types = {to: kind for name, kind in table.types.items() if (to := renamed.get(name, column_of(name))) is not None}
    notes = list(table.notes)
    if twice:
        notes.append(
            f"{counted(len(twice), 'row')} of {file.name} of a file that has a row before, which it replaces: "
            f"{listed(twice)}."
        )
    if without := [each.path.name for each in files if each.path.name not in rows]:
        notes.append(f"{counted(len(without), 'file')} without a row in {file.name}: {listed(without)}.")
    if absent := [name for name in rows if name not in names]:
        notes.append(f"{counted(len(absent), 'row')} of {file.name} without a file: {listed(absent)}.")
    metadata = Metadata(file, rows, lines, types, accuracy)
    return metadata, [*notes, *_without_accuracy(metadata, files), *_disagreements(metadata, files)]


def _without_accuracy(metadata: Metadata, files: Sequence[ModelFile]) -> list[str]:
    """Return a sentence on models whose accuracy the table does not tell, so that it is that of the file's name."""
    if metadata.accuracy is None:
        return [f"{metadata.file.name} has no column {listed(ACCURACIES)}; accuracies are those of the files' names."]
    named = [each.path.name for each in files if each.path.name in metadata.rows]
    without = [name for name in named if metadata.accuracy_of(name) is None]
    if not without:
        return []
    has, it = ("has", "its name") if len(without) == 1 else ("have", "their names")
    return [
        f"{counted(len(without), 'file')} {has} no number in the column {metadata.accuracy} of {metadata.file.name}; "
        f"the accuracy in {it} is kept: {listed(without)}."
    ]


def _disagreements(metadata: Metadata, files: Sequence[ModelFile]) -> list[str]:
    """Return sentences on files whose names say something else than the table."""
    scores, checkpoints = [], []
    for each in files:
        told = metadata.accuracy_of(each.path.name)
        if told is not None and abs(told - each.accuracy) > SAME:
            scores.append(f"{each.path.name} ({told:g})")
        row = metadata.rows.get(each.path.name, {})
        if row.get(CHECKPOINT) is not None and row[CHECKPOINT] != each.checkpoint:
            checkpoints.append(f"{each.path.name} ({row[CHECKPOINT]})")
    notes = []
    if scores:
        notes.append(
            f"{counted(len(scores), 'file')} with another accuracy in {metadata.file.name}, which is kept: "
            f"{listed(scores)}."
        )
    if checkpoints:
        notes.append(
            f"{counted(len(checkpoints), 'file')} with another {CHECKPOINT} in {metadata.file.name}; that of the name "
            f"is kept: {listed(checkpoints)}."
        )
    return notes
