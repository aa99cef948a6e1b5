"""Models as data sets of models on the Hub keep them, such as Model-J: a safetensors file a model, with its metadata.

    prepkit zoo import model-j SD_200 zoo --table train-00000-of-00001.parquet

`_model_folders` has the layouts. The texts in the header of each file become columns, typed over all models as the
cells of a CSV file are; those that are lists, such as dataset_chosen_targets, are read as literals, never run.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prepkit.checkpoint.load import load_checkpoint, sha256_of
from prepkit.checkpoint.safetensors_header import HeaderError, read_header
from prepkit.checkpoint.sharded import shards_of
from prepkit.errors import CheckpointError, ZooError, counted, listed
from prepkit.zoo.format.columns import plain_columns
from prepkit.zoo.format.lora import NOT_RUN, diffusers_config, pairs_in
from prepkit.zoo.format.sources import SOURCE_SHA256
from prepkit.zoo.importers._hub_table import SPLIT, joined_rows
from prepkit.zoo.importers._model_folders import FoundModels, models_in
from prepkit.zoo.importers.tree import Tables, check_folder, listed_tables
from prepkit.zoo.write.adding import Model, Source, Told
from prepkit.zoo.write.cell_types import typed

CONFIG = "config.json"
MOST_LETTERS = 100_000  # of a text that is read as a literal
RECORD = {"adapters": "LoRA adapters of diffusers: dW = B A"}


def found(folder: Path, *, table: Tables = None, key: str | None = None, prefix: str | None = None) -> Source:
    """Find the models in a folder.

    table:       a table of the data set on the Hub, or several: CSV, TSV, JSON, JSONL or Parquet
    key, prefix: as in `load_checkpoint`
    raises ZooError if there is no model, or the table is of other models
    """
    check_folder(folder)
    models = models_in(folder)
    if not models.models:
        empty = f" {counted(len(models.without), 'folder')} of models without weights: {listed(models.without)}."
        raise ZooError(
            f"'{folder}' holds no model: no folder in it has model.safetensors or pytorch_lora_weights.safetensors."
            f"{empty if models.without else ''}"
        )
    return ModelJSource(models, [Path(name) for name in listed_tables(table)], key, prefix)


class ModelJSource(Source):
    """Models in folders, with the rows of tables."""

    has_mixed_tables = True

    def __init__(self, models: FoundModels, tables: Sequence[Path], key: str | None, prefix: str | None) -> None:
        self.models = models.models
        self.ids = [model.id for model in self.models]
        self._key, self._prefix = key, prefix
        self.options = {"tables": [table.name for table in tables], **({"key": key} if key else {})}
        if prefix is not None:
            self.options["prefix"] = prefix
        joined = joined_rows(tables, self.models)
        self._rows = joined.rows
        self._notes = list(joined.notes)
        if models.without:
            hold = "holds" if len(models.without) == 1 else "hold"
            count = counted(len(models.without), "folder")
            self._notes.append(f"{count} of a model that {hold} no weights, left out: {listed(models.without)}.")
        self._metadata = _typed([_texts(model.file) for model in self.models], self._notes)
        if any(_is_lora(model.file) for model in self.models[:1]):
            self.record, self.how_to_run = RECORD, {"unverifiable": NOT_RUN}

    def name(self, index: int) -> str:
        """Return the id and the file of a model."""
        return f"'{self.ids[index]}' ({self.models[index].file})"

    def read(self, index: int) -> Model:
        """Read a model's file, with its metadata, its config and its row in a table."""
        file = self.models[index].file
        checkpoint = load_checkpoint(file, self._key, self._prefix)
        shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.items()}
        adapter = diffusers_config(shapes)
        if adapter is not None:
            pairs_in(shapes, adapter, str(file))
        elif _is_lora(file) and not any("lora" in name for name in shapes):
            raise ZooError(
                f"{file}: holds no LoRA adapter, such as pairs *.lora.down.weight, *.lora.up.weight; it has "
                f"{listed(shapes)}."
            )
        said, unkept = _config(file.parent / CONFIG)
        told = self.told(index)
        return Model(
            checkpoint,
            f"'{file}'",
            {**told.columns, SOURCE_SHA256: sha256_of(file)},
            {**self._metadata[index], **said},
            unkept,
            told.split,
        )

    def told(self, index: int) -> Told:
        """Return what a model's path and its row say."""
        columns = {**self._rows.get(index, {}), **self.models[index].columns}
        split = columns.pop(SPLIT, None)
        return Told(columns, self.models[index].split or split)

    def sha256(self, index: int) -> str | None:
        """Return the sha256 of a model's file."""
        return sha256_of(self.models[index].file)

    def notes(self) -> Sequence[str]:
        """Return sentences on folders, rows and metadata that were left out."""
        return self._notes


def _is_lora(file: Path) -> bool:
    return file.name == "pytorch_lora_weights.safetensors"


def _texts(file: Path) -> Mapping[str, str]:
    """Return the texts in the header of a file or of its parts; none of one that cannot be read, which `read` tells."""
    texts: dict[str, str] = {}
    with suppress(HeaderError, OSError, CheckpointError):
        parts = [file.parent / part for part in shards_of(file)] if file.suffix == ".json" else [file]
        for part in parts:
            header = read_header(part)
            texts |= {name: text for name, text in header.metadata.items() if text not in header.tensors}
    texts.pop("format", None)
    return texts


def _typed(texts: Sequence[Mapping[str, str]], notes: list[str]) -> list[dict[str, Any]]:
    """Return the metadata of each model, typed over all of them."""
    names = sorted({name for own in texts for name in own})  # a header has them in any order
    rows: list[dict[str, Any]] = [{} for _ in texts]
    for name in names:
        cells = ["" if own.get(name, "None") == "None" else own[name] for own in texts]
        for row, value in zip(rows, _values(name, cells, notes), strict=True):
            if value is not None:
                row[name] = value
    return rows


def _values(name: str, cells: Sequence[str], notes: list[str]) -> Sequence[Any]:
    filled = [cell for cell in cells if cell]
    if filled and all(cell[0] in "[({" for cell in filled):
        try:
            return [_literal(cell) if cell else None for cell in cells]
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, ZooError):
            notes.append(f"The metadata '{name}' is kept as text: not all of it are lists of numbers or texts.")
            return [cell or None for cell in cells]
    return typed(cells).values


def _literal(cell: str) -> list[Any]:
    """Read a list, a tuple or a set of numbers and texts as Python writes it, without running anything.

    raises what ast.literal_eval raises; ZooError for anything else
    """
    if len(cell) > MOST_LETTERS:
        raise ValueError(cell[:40])
    value = ast.literal_eval(cell)
    items = (
        sorted(value, key=str) if isinstance(value, set) else list(value) if isinstance(value, list | tuple) else None
    )
    if items is None or any(isinstance(item, list | tuple | dict | bytes) for item in items):
        raise ValueError(cell[:40])
    return list(plain_columns({"list": items}, "")["list"])


def _config(file: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the numbers and texts of a config.json by dotted name, and the names of all else in it.

    raises ZooError if it is damaged
    """
    if not file.is_file():
        return {}, []
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ZooError(f"{file}: damaged, it is not JSON ({str(error)[:200]}). Fetch it again.") from None
    if not isinstance(values, dict):
        raise ZooError(f"{file}: holds a {type(values).__name__}, not an object. Fetch it again.")
    said = {f"config.{name}": value for name, value in values.items() if not isinstance(value, dict)}
    return said, [f"config.{name}" for name, value in values.items() if isinstance(value, dict)]
