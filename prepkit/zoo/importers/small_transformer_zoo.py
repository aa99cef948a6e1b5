"""The Small Transformer Zoo: transformers that classify pictures (MNIST) or texts (AG News).

    prepkit zoo import small-transformer-zoo MNIST-Transformers zoo --data mnist

Layout and table are described in `_transformer_files`, the networks in `_transformer_networks`. The files of AG News
lack the embedding of the words, so nothing can run them on texts; the zoo says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import CheckpointError, PrepkitError, ZooError
from prepkit.packing import chosen_options
from prepkit.prep.file import PRep
from prepkit.zoo.format.function import ACCURACY
from prepkit.zoo.importers._copies import Copies
from prepkit.zoo.importers._strict import PAPER, STRICT, StrictSource, check_splits
from prepkit.zoo.importers._transformer_files import (
    Metadata,
    ModelFile,
    dataset_folder,
    metadata_of,
    model_files,
    read_metadata,
)
from prepkit.zoo.importers._transformer_networks import (
    ORDER,
    SUMS,
    TEST,
    TOLERANCE,
    USUAL_HEADS,
    Convention,
    Sample,
    Sizes,
    decided,
    sizes_of,
)
from prepkit.zoo.write.adding import Model, Source, Told
from prepkit.zoo.write.model_files import ModelReader, sha256_of_model

if TYPE_CHECKING:
    from prepkit.families.registry import Architecture

MNIST = "mnist"
HEADS = "n_attention_heads"  # column of the makers' table
SAMPLES = 3  # models that are run to find the convention
NORMALISED = {"mean": [0.5], "std": [0.5]}
TASK = {"kind": "images", "dataset": "ylecun/mnist", **NORMALISED, "split": {"seed": 0, "test": TEST}}
PARTS = ({"train": "train", TEST: TEST}, {"train": "training", TEST: "testing"})  # folders of MNIST as pictures
NO_EMBEDDING = (
    "the files lack the embedding of the words, so their networks begin with embedded tokens [512, width], and nothing "
    "here can run them on texts"
)


def found(
    folder: Path,
    *,
    dataset: str | None = None,
    metadata: str | os.PathLike[str] | None = None,
    heads: int | None = None,
    data: str | os.PathLike[str] | None = None,
    splits: str | None = None,
    task: Mapping[str, Any] | None = None,
) -> Source:
    """Find the models in a folder of the Small Transformer Zoo.

    dataset:  "mnist" or "ag_news", where the folder holds both
    metadata: the table with a row for each model; metadata/NAME.csv beside the models if missing
    heads:    number of attention heads; that of the table's column n_attention_heads if missing
    data:     folder of MNIST's test pictures, or a copy of its repository of the Hub; then running decides what files
              do not tell
    splits:   "strict", which leaves equal models out and keeps those of a run together; see `_strict`
    task:     record of the task, where it is not MNIST as the makers normalised it
    raises ZooError if nothing fits, or no convention gives the accuracies that are stored
    """
    if splits == PAPER:
        raise ZooError(
            "`splits` paper cannot be: the makers' program drew the split without a seed; `splits` strict keeps the "
            "models of a run together."
        )
    check_splits(splits)
    place = dataset_folder(folder, dataset)
    files, notes = model_files(place)
    table = metadata_of(place, metadata)
    told: Metadata | None = None
    if table is None:
        notes.append(f"There is no metadata/{place.resolve().name}.csv; accuracies are those of the files' names.")
    else:
        told, more = read_metadata(table, files)
        notes += more
    source = TransformerSource(files, told, heads, place.resolve().name == MNIST, notes)
    source.take_convention(None if data is None else Path(data), task)
    if splits == STRICT:
        source.copies = None  # they are left out
        return StrictSource(source)
    return source


class TransformerSource(Source):
    """Transformers, each with its row of the table.

    files: the models
    """

    def __init__(
        self, files: Sequence[ModelFile], metadata: Metadata | None, heads: int | None, of_mnist: bool, notes: list[str]
    ) -> None:
        self.files, self.ids = files, [each.id for each in files]
        self._metadata, self._heads, self._of_mnist = metadata, heads, of_mnist
        self._notes, self._reader = notes, ModelReader()
        self.types = {} if metadata is None else metadata.types
        self.copies: Copies | None = Copies()
        self._architectures: dict[tuple[Sizes, int], Architecture] = {}

    def take_convention(self, data: Path | None, task: Mapping[str, Any] | None) -> None:
        """Find how the networks are run: by running some of them, or as the makers' program does.

        raises ZooError if no convention gives the accuracies that are stored
        """
        if data is not None and not self._of_mnist:
            raise ZooError(f"data= has no use here: {NO_EMBEDDING}.")
        self.task = _task(data, task) if self._of_mnist else None
        unknown = [index for index in range(len(self.files)) if self._heads_of(index) is None]
        self._convention = Convention(False, USUAL_HEADS if unknown else None)
        record: dict[str, Any] = {}
        if data is None:
            assumed = "without residual sums, as in the makers' program"
            if unknown:
                have = "model has" if len(unknown) == 1 else "models have"
                assumed += f", and with {USUAL_HEADS} heads where {HEADS} says nothing ({len(unknown):,} {have} none)"
            self._notes.append(
                f"The networks are built {assumed}, which nothing proves"
                + (": name the folder of the pictures, data=PATH, and running decides." if self._of_mnist else ".")
            )
            record["assumed"] = f"networks are {assumed}"
        else:
            from prepkit.tasks import load_task

            samples = list(self._samples())
            self._convention, differences, note = decided(samples, load_task(self.task, data), data)
            self._notes.append(note)
            self.record = {"conventions_run": {"models": len(samples), "differences": differences}}
        self.how_to_run = {
            "measure": ACCURACY,
            "tolerance": TOLERANCE,
            "convention": self._convention.name,
            "activation": "relu",
            "order": ORDER,
            "residual": SUMS[self._convention.sums],
            **(NORMALISED if self._of_mnist else {"unverifiable": NO_EMBEDDING}),
            **record,
        }
        self.options = chosen_options(heads=self._heads) | {"convention": self._convention.name}

    def name(self, index: int) -> str:
        """Return the id and the file of a model."""
        return f"'{self.ids[index]}' ({self.files[index].path})"

    def read(self, index: int) -> Model:
        """Read a model's file, with what its name and the table say."""
        file = self.files[index].path
        model, _ = self._reader.read(file)
        if isinstance(model.tensors, PRep):
            raise ZooError(f"{model.place}: is a PRep already; `prepkit zoo create` takes it.")
        sizes = sizes_of(model.tensors, model.place)
        self._check_table(index, sizes)
        if self._of_mnist != (sizes.patches is not None):
            kind = "no embedding.conv1" if self._of_mnist else "an embedding.conv1"
            raise ZooError(f"{model.place}: has {kind}, unlike the models of its data set; leave it out.")
        heads = self._heads_of(index) or self._convention.heads or USUAL_HEADS
        if (sizes, heads) not in self._architectures:
            self._architectures[sizes, heads] = sizes.architecture(heads, self._convention.sums, model.place)
        if self.copies is not None:
            self.copies.hear(self.ids[index], model.tensors)
        told = self.told(index)
        return replace(
            model,
            columns={**told.columns, **model.columns},
            split=told.split,
            architecture=self._architectures[sizes, heads],
        )

    def told(self, index: int) -> Told:
        """Return what a model's name and the table say."""
        each = self.files[index]
        accuracy = None if self._metadata is None else self._metadata.accuracy_of(each.path.name)
        columns = {
            "run": each.run,
            "checkpoint": each.checkpoint,
            "epoch": each.epoch,
            ACCURACY: each.accuracy if accuracy is None else accuracy,
        }
        return Told(columns if self._metadata is None else {**columns, **self._metadata.columns(each.path.name)})

    def sha256(self, index: int) -> str | None:
        """Return the sha256 of a model's file."""
        return sha256_of_model(self.files[index].path)

    def notes(self) -> Sequence[str]:
        """Return sentences on the convention, and on files and rows without a partner."""
        return [*self._notes, *(self.copies.notes() if self.copies else [])]

    def _heads_of(self, index: int) -> int | None:
        """Return a model's number of heads, None if neither the user nor the table tells it."""
        row = {} if self._metadata is None else self._metadata.rows.get(self.files[index].path.name, {})
        own = row.get(HEADS)
        return self._heads or (own if type(own) is int and own > 0 else None)

    def _check_table(self, index: int, sizes: Sizes) -> None:
        """Raise ZooError if the table has another size than the tensors."""
        if self._metadata is None:
            return
        name = self.files[index].path.name
        differs = sizes.told_by_table(self._metadata.rows.get(name, {}))
        if differs is not None:
            setting, told, is_ = differs
            raise ZooError(
                f"'{self.files[index].path}' and {self._metadata.file}, line {self._metadata.lines[name]}, disagree: "
                f"{setting} is {told} in the table, and {is_} by the tensors. Mend the row, or leave the file out."
            )

    def _samples(self) -> Iterator[Sample]:
        """Yield some models of high accuracy, which tell conventions apart; files that cannot be read are left out."""
        from prepkit.checkpoint.load import load_checkpoint

        accuracies = [float(self.told(index).columns[ACCURACY]) for index in range(len(self.files))]
        failure: PrepkitError | None = None
        count = 0
        for index in sorted(range(len(self.files)), key=lambda index: (-accuracies[index], index)):
            place = f"'{self.files[index].path}'"
            try:
                tensors = load_checkpoint(self.files[index].path)
                sizes = sizes_of(tensors, place)
            except (CheckpointError, ZooError) as error:
                failure = failure or error
                continue
            yield Sample(tensors, sizes, accuracies[index], self._heads_of(index), place)
            count += 1
            if count == SAMPLES:
                return
        if not count and failure is not None:
            raise failure


def _task(data: Path | None, task: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the user's task, or MNIST, whose pictures are in folders called after the classes, or of the Hub."""
    if task is not None:
        return task
    parts = next((parts for parts in PARTS if data is not None and (data / parts[TEST]).is_dir()), None)
    return TASK if parts is None else {**TASK, "dataset": "folder", "split": {"seed": 0, **parts}}
