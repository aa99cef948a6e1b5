"""Models in files: a file of weights or a PRep at a time, and the task that all models were trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prepkit.address import HubAddress
from prepkit.errors import ZooError, listed
from prepkit.version import __version__
from prepkit.zoo.format.sources import PREFIX, SOURCE, SOURCE_SHA256, VERSIONS
from prepkit.zoo.write.adding import Model, Source, Told
from prepkit.zoo.write.csv_columns import ModelRow, ModelRows
from prepkit.zoo.write.model_paths import name_of

WITHOUT_PREFIX = "without prefix: "


@dataclass(frozen=True)
class LocalModel:
    """A model's file on the disk, and its source: the file's path, or the address on the Hub with the commit."""

    file: Path
    source: str


class FileSource(Source):
    """The models of some rows, each of which is a file.

    fetched:     gives each model as a file, as long as its context lasts
    key, prefix: as in `load_checkpoint`
    """

    has_mixed_tables = True

    def __init__(
        self,
        models: ModelRows,
        fetched: Callable[[Path | HubAddress], AbstractContextManager[LocalModel]],
        key: str | None = None,
        prefix: str | None = None,
    ) -> None:
        self.rows, self.types, self._notes = models.rows, models.types, models.notes
        self.ids = [row.id for row in self.rows]
        self._has_source = any(isinstance(row.model, HubAddress) for row in self.rows)
        self._fetched, self._prefix = fetched, prefix
        self._reader = ModelReader(key, prefix)

    def name(self, index: int) -> str:
        """Return the id and the file of a model."""
        return f"'{self.ids[index]}' ({name_of(self.rows[index].model)})"

    def read(self, index: int) -> Model:
        """Read a model's file, with what its row says."""
        row = self.rows[index]
        with self._fetched(row.model) as local:
            model, without_prefix = self.read_file(local.file, f"'{local.source}'")
            source = {SOURCE: local.source if isinstance(row.model, HubAddress) else None} if self._has_source else {}
        columns = {**row.columns, **source, **model.columns}
        return replace(model, split=row.split, columns=columns, counts=counts_of_prefix(without_prefix))

    def told(self, index: int) -> Told:
        """Return what a model's row says."""
        return Told(self.rows[index].columns, self.rows[index].split)

    def sha256(self, index: int) -> str | None:
        """Return the sha256 of a model's file on the disk; of a model of the Hub the address says which it is."""
        model = self.rows[index].model
        return self.sha256_of_file(model) if isinstance(model, Path) else None

    def sha256_of_file(self, file: Path) -> str | None:
        """Return what `read_file` gives as sha256 of a file."""
        return sha256_of_model(file)

    def read_file(self, file: Path, place: str) -> tuple[Model, tuple[str, ...]]:
        """Read a model's file as ModelReader does; other kinds of files have readers of their own."""
        return self._reader.read(file, place)

    def notes(self) -> Sequence[str]:
        """Return sentences on the rows, and on the names that the prefix left out."""
        return *self._notes, *note_on_prefix(self._prefix, self.counts)


class ModelReader:
    """Reads files of weights and PReps, with the sha256 of the weights' file and what the file says beside them.

    key, prefix: as in `load_checkpoint`; a PRep has neither
    """

    def __init__(self, key: str | None = None, prefix: str | None = None) -> None:
        from prepkit.checkpoint.alike import CheckpointReader

        self._checkpoints = CheckpointReader(key, prefix)
        self._has_prefix = prefix is not None

    def read(self, file: Path, place: str = "") -> tuple[Model, tuple[str, ...]]:
        """Read one file.

        place: what errors call the file, if not by its path
        returns the model, and the names that do not begin with the prefix
        raises CheckpointError, PRepFileError
        """
        from prepkit.prep.file import is_prep_file, load_prep

        place = place or f"'{file}'"
        if is_prep_file(file):
            prep = load_prep(file)
            return Model(prep, place, {SOURCE_SHA256: prep.origin.source_sha256}), ()
        checkpoint, sha256 = self._checkpoints.read(file)
        without_prefix = checkpoint.dropped if self._has_prefix else ()
        return Model(checkpoint, place, {SOURCE_SHA256: sha256}, checkpoint.said, checkpoint.others), without_prefix


def sha256_of_model(file: Path) -> str | None:
    """Return the sha256 that a ModelReader gives with a file."""
    from prepkit.checkpoint.load import sha256_of
    from prepkit.prep.file import is_prep_file, read_prep_header

    return read_prep_header(file).origin.source_sha256 if is_prep_file(file) else sha256_of(file)


def counts_of_prefix(without: Iterable[str]) -> dict[str, int]:
    """Return what `Model.counts` says of the names that do not begin with the prefix."""
    return {f"{WITHOUT_PREFIX}{name}": 1 for name in without}


def note_on_prefix(prefix: str | None, counts: Mapping[str, int]) -> list[str]:
    """Return a sentence on the names that do not begin with the prefix, if there are any."""
    without = sorted(name.removeprefix(WITHOUT_PREFIX) for name in counts if name.startswith(WITHOUT_PREFIX))
    return [f"Names without the prefix '{prefix}' are left out: {listed(without)}."] if without else []


def check_columns(rows: Iterable[ModelRow], table: Path | str | None) -> None:
    """Raise ZooError if the user's table, or tables, fill a column that is filled from the models."""
    rows = list(rows)
    has_source = any(isinstance(row.model, HubAddress) for row in rows)
    for name in (*((SOURCE,) if has_source else ()), SOURCE_SHA256, PREFIX, VERSIONS):
        if any(name in row.columns for row in rows):
            raise ZooError(f"{table}: the column '{name}' is filled from the models themselves; rename it.")


def provenance_of_models(command: str, count: int) -> dict[str, Any]:
    """Describe how a zoo was made of files, without paths and times, so that the same files give the same bytes."""
    import safetensors
    import torch

    versions = {"prepkit": __version__, "torch": str(torch.__version__), "safetensors": safetensors.__version__}
    return {"command": command, "sources": count, "versions": versions}


def read_task(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    raises ZooError naming the file, the line where it is not JSON, and what to do
    """
    try:
        task = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ZooError(f"{path}, line {error.lineno}: not JSON: {error.msg}. {REMEDY}") from None
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{path}: not JSON in UTF-8: {error}. {REMEDY}") from None
    except OSError as error:
        raise ZooError(f"{path}: cannot be read: {error.strerror}. {REMEDY}") from None
    if not isinstance(task, dict):
        raise ZooError(f"{path}: holds a {type(task).__name__}, not an object. {REMEDY}")
    return task


REMEDY = """Write an object such as {"kind": "images", "dataset": "digits"} in it."""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
