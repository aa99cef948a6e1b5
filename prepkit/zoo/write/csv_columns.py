"""Read metadata of models from a CSV file, and join them to the models by name.

    file,id,split,accuracy
    run0_epoch9.pt,run0-9,train,0.91
    run1_epoch9,run1-9,test,

`file` is a model's file name, with or without its suffix, or its address on the Hub as it was given. `id` and `split`
may be missing. All other columns are the user's. A column holds int, float, bool or text: the narrowest type that fits
all its cells; an empty cell is None.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepkit.address import HUB_SCHEME, HubAddress
from prepkit.errors import ZooError, counted, listed
from prepkit.zoo.format.tables import OWN_COLUMNS, plain_columns

FILE = "file"
INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")  # 007 is a name; 18 digits fit 64 bits
# A float holds whole numbers of up to 15 digits exactly; longer ones stay text.
FLOAT = re.compile(
    r"[+-]?((0|[1-9][0-9]{0,14})([eE][+-]?[0-9]+)?|(0|[1-9][0-9]*)?\.[0-9]*([eE][+-]?[0-9]+)?|inf|nan)", re.IGNORECASE
)
SUFFIXES = (".prep.safetensors", ".safetensors.index.json")


@dataclass(frozen=True)
class ModelRow:
    """A model to be added: its file or address, its id, its split and the user's columns."""

    model: Path | HubAddress
    id: str
    split: str | None
    columns: dict[str, Any]


def rows_of_models(models: Iterable[Path | HubAddress], table: Path | None) -> tuple[list[ModelRow], list[str]]:
    """Return a row for each model, and the `file` of the table's rows that no model has.

    raises ZooError for a model without a file or a row, two rows or ids of one name, a damaged CSV
    """
    models = list(models)
    absent = [str(model) for model in models if isinstance(model, Path) and not model.is_file()]
    if absent:
        raise ZooError(f"{len(absent)} of {len(models)} models are no files: {listed(absent)}.")
    if table is None:
        rows = [ModelRow(model, stem(model), None, {}) for model in models]
        _check_ids(rows)
        return rows, []
    lines = read_csv(table)
    pairs = [(model, _line_name(model, lines)) for model in models]
    missing = [name_of(model) for model, name in pairs if name is None]
    if missing:
        have = "has" if len(missing) == 1 else "have"
        raise ZooError(f"{table}: {counted(len(missing), 'model')} {have} no row in it: {listed(missing)}.")
    rows = [_row(model, lines[name]) for model, name in pairs if name is not None]
    _check_ids(rows)
    used = {name for _, name in pairs}
    return rows, [name for name in lines if name not in used]


def stem(model: Path | HubAddress) -> str:
    """Return a model's name without suffix: `model` for model.pt and model.prep.safetensors, `user/model` for hf://user/model.

    An address keeps its whole path, since most files on the Hub are called model.safetensors.
    """
    name = name_of(model).removeprefix(HUB_SCHEME)
    if isinstance(model, HubAddress) and model.path is None:
        return name
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), Path(name).suffix)
    return name.removesuffix(suffix) or name


def name_of(model: Path | HubAddress) -> str:
    """Return what the table calls a model: the name of its file, or its address."""
    return model.name if isinstance(model, Path) else str(model)


def read_csv(path: Path) -> dict[str, dict[str, Any]]:
    """Read the lines of a CSV file, by the column `file`, with typed cells.

    raises ZooError naming the line that is wrong
    """
    header, lines = _lines(path)
    _check_header(path, header)
    columns = {name: typed([line[place] for _, line in lines]) for place, name in enumerate(header)}
    for name in {FILE, "id", "split"} & columns.keys():
        columns[name] = [line[header.index(name)] or None for _, line in lines]
    rows: dict[str, dict[str, Any]] = {}
    for index, (number, _) in enumerate(lines):
        row = {name: values[index] for name, values in columns.items()}
        file = row.pop(FILE)
        name = file if file is None or file.startswith(HUB_SCHEME) else Path(file).name
        if name is None or name in rows:
            problem = "is missing" if file is None else f"'{file}' stands twice"
            raise ZooError(f"{path}, line {number}: {FILE} {problem}.")
        rows[name] = row
    return rows


def typed(cells: list[str]) -> list[Any]:
    """Return the cells of a column as int, float, bool or text, empty cells as None."""
    filled = [cell for cell in cells if cell]
    read: Callable[[str], Any] = str
    if all(INTEGER.fullmatch(cell) for cell in filled):
        read = int
    elif all(FLOAT.fullmatch(cell) and any(c.isalnum() for c in cell) for cell in filled):
        read = float
    elif all(cell.lower() in ("true", "false") for cell in filled):
        read = _boolean
    return [read(cell) if cell else None for cell in cells]


def _boolean(cell: str) -> bool:
    return cell.lower() == "true"


def _lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header, and the number and cells of all other lines."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader if any(line)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ZooError(f"{path}: not a CSV file in UTF-8: {error}.") from None
    except OSError as error:
        raise ZooError(f"{path}: cannot be read: {error.strerror}.") from None
    if not lines:
        raise ZooError(f"{path}: empty; the first line names the columns, one of them '{FILE}'.")
    header = lines[0][1]
    for number, line in lines[1:]:
        if len(line) != len(header):
            cells, columns = counted(len(line), "cell"), counted(len(header), "column")
            raise ZooError(f"{path}, line {number}: {cells}, but the first line names {columns}.")
    return header, lines[1:]


def _check_header(path: Path, header: list[str]) -> None:
    if FILE not in header:
        raise ZooError(
            f"{path}: there is no column '{FILE}', which names each row's model; there are {listed(header)}."
        )
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ZooError(f"{path}: the columns {listed(repeated)} stand twice.")
    users = [name for name in header if name not in (FILE, "id", "split")]
    reserved = [name for name in users if name in OWN_COLUMNS]
    if reserved:
        raise ZooError(f"{path}: the zoo fills the columns {listed(reserved)} itself; rename them.")
    plain_columns(dict.fromkeys(users), str(path))


def _line_name(model: Path | HubAddress, lines: dict[str, dict[str, Any]]) -> str | None:
    return next((name for name in (name_of(model), stem(model)) if name in lines), None)


def _row(model: Path | HubAddress, line: dict[str, Any]) -> ModelRow:
    columns = {name: value for name, value in line.items() if name not in ("id", "split")}
    return ModelRow(model, line.get("id") or stem(model), line.get("split"), columns)


def _check_ids(rows: list[ModelRow]) -> None:
    models: dict[str, Path | HubAddress] = {}
    for row in rows:
        if row.id in models:
            raise ZooError(
                f"'{models[row.id]}' and '{row.model}' both have the id '{row.id}'; give them different ones in a "
                "column `id` of the table."
            )
        models[row.id] = row.model
