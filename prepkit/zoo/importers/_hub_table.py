"""The tables of a data set of models on the Hub, joined to models by path, id or number.

    hf_model_path    train/model_idx_0007/pytorch_lora_weights.safetensors
    hf_model_id      acme/vit-1
    model_idx        7, with a column `split`, or the split at the start of the table's name: train-00000.parquet

The first of these columns that a row fills finds its model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError, counted, listed
from prepkit.zoo.format.columns import OWN_COLUMNS
from prepkit.zoo.importers._model_folders import KNOWN_SPLITS, SPLITS, FoundModel
from prepkit.zoo.importers._row_keys import as_field
from prepkit.zoo.write.tables import holdable, read_table

PATH, ID, NUMBER, SPLIT = "hf_model_path", "hf_model_id", "model_idx", "split"
PARQUET = b"PAR1"


@dataclass
class HubRows:
    """Rows by the number of their model.

    notes: sentences on rows without a model and models without a row
    """

    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def joined_rows(files: Sequence[Path], models: Sequence[FoundModel]) -> HubRows:
    """Read tables, and find the model of each row.

    raises ZooError for a table without such columns, two rows of a model that differ, or no row of any model
    """
    found = HubRows()
    places: dict[int, str] = {}
    look = _LookUp(models)
    unused: list[str] = []
    for file in files:
        numbers, rows, notes = _read(file)
        found.notes += notes
        of_name = _split_of_name(file)
        for number, row in zip(numbers, rows, strict=True):
            place = f"{file}, row {number}"
            split = row.get(SPLIT) or of_name
            split = None if split is None else SPLITS.get(str(split), str(split))
            model = look.up(row, split, place)
            if model is None:
                unused.append(place)
                continue
            of_folder = models[model].split
            if split is not None and of_folder not in (None, split):
                raise ZooError(
                    f"{place}: is of the split '{split}', but {models[model].file} is in that of '{of_folder}'."
                )
            kept = {_column(name): value for name, value in row.items() if name != SPLIT}
            kept |= {SPLIT: split} if split else {}
            if found.rows.setdefault(model, kept) != kept:
                raise ZooError(f"{places[model]} and {place} are of one model, {models[model].file}, and differ.")
            places.setdefault(model, place)
    if files and not found.rows:
        raise ZooError(
            f"no row of {listed(files)} is of any of {counted(len(models), 'model')}, such as '{models[0].id}'."
        )
    without = [model.id for number, model in enumerate(models) if number not in found.rows]
    if files and without:
        found.notes.append(f"{counted(len(without), 'model')} without a row: {listed(without)}.")
    if unused:
        found.notes.append(f"{counted(len(unused), 'row')} without a model: {listed(unused)}.")
    return found


class _LookUp:
    """Finds models by what a row says."""

    def __init__(self, models: Sequence[FoundModel]) -> None:
        self._paths = [model.file.absolute().parts for model in models]
        self._by_end: dict[int, dict[tuple[str, ...], int]] = {}
        self._by_id = {model.columns.get(ID, model.id): number for number, model in enumerate(models)}
        self._splits_of: dict[Any, dict[str | None, int]] = {}  # models by their split, for each model_idx
        for number, model in enumerate(models):
            if NUMBER in model.columns:
                self._splits_of.setdefault(model.columns[NUMBER], {})[model.split] = number

    def up(self, row: dict[str, Any], split: str | None, place: str) -> int | None:
        """Return the number of a row's model; None if it is not there."""
        if row.get(PATH):
            return self._by_path(str(row[PATH]))
        if row.get(ID) in self._by_id:
            return self._by_id[row[ID]]
        index = as_field(row.get(NUMBER), "int")
        if index is None:
            if row.get(ID):
                return None
            raise ZooError(f"{place}: none of {PATH}, {ID} and {NUMBER} says which model it is of.")
        splits = self._splits_of.get(index, {})
        if len(splits) > 1 and split is None:
            raise ZooError(
                f"{place}: models of {listed(splits)} have {NUMBER} {index}, and nothing says which split it is of. "
                f"Add a column {SPLIT}, or call the table train.csv and the like."
            )
        # A model that is in no folder of a split is found by its number alone.
        return next(iter(splits.values()), None) if split is None else splits.get(split, splits.get(None))

    def _by_path(self, path: str) -> int | None:
        """Return the model whose own path ends in this one."""
        parts = tuple(part for part in path.split("/") if part not in ("", "."))
        ends = self._by_end.get(len(parts))
        if ends is None:
            ends = {own[-len(parts) :]: number for number, own in enumerate(self._paths)}
            self._by_end[len(parts)] = ends
        return ends.get(parts)


def _read(file: Path) -> tuple[list[int], list[dict[str, Any]], tuple[str, ...]]:
    """Return the number and the values of each row, and sentences on how the file was read."""
    try:
        with file.open("rb") as opened:
            is_parquet = opened.read(4) == PARQUET
    except OSError as error:
        raise ZooError(f"{file}: cannot be read: {error.strerror}.") from None
    if not is_parquet:
        table = read_table(file, strict=False)
        unkept = [f"{name} ({count})" for name, count in table.unkept.items()]
        left = (f"Left in {file}, since a table has no place for it: {listed(unkept)}.",) if unkept else ()
        return table.numbers, table.rows, (*table.notes, *left)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        read = pq.ParquetFile(file, pre_buffer=False).read(use_threads=False).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ZooError(
            f"{file}: not a whole Parquet file ({str(error).splitlines()[0][:200]}); fetch it again."
        ) from None
    rows, unkept_names = [], dict[str, None]()
    for values in read:
        row: dict[str, Any] = {}
        for name, value in values.items():
            try:
                row |= holdable({name: value})
            except ZooError:
                unkept_names[name] = None
        rows.append(row)
    left = (f"Left in {file}, since a table has no place for it: {listed(unkept_names)}.",) if unkept_names else ()
    return list(range(1, len(rows) + 1)), rows, left


def _column(name: str) -> str:
    """Return the name that a column of the table has in the zoo's table."""
    return f"table.{name}" if name in OWN_COLUMNS else name


def _split_of_name(file: Path) -> str | None:
    """Return the split at the start of a table's name."""
    longest_first = sorted(KNOWN_SPLITS, key=len, reverse=True)
    match = re.match(rf"({'|'.join(longest_first)})(?![A-Za-z_])", file.name)
    return match[1] if match else None
