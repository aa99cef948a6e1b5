"""Read metadata of models from a CSV file, and join them to the models by path.

    file,id,split,accuracy
    run0_epoch9.pt,run0-9,train,0.91
    run1_epoch9,run1-9,test,

`file` is a model's path, with or without its suffix, or its address on the Hub; `joining` says which model it names.
`id` and `split` may be missing. All other columns are the user's. A column holds int, float, bool or text: the
narrowest type that fits all its cells; an empty cell is None.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepkit.address import HubAddress
from prepkit.errors import ZooError, counted, listed
from prepkit.zoo.format.tables import OWN_COLUMNS, plain_columns
from prepkit.zoo.write.joining import joined, row_of_equal_name
from prepkit.zoo.write.model_paths import ids_of

FILE = "file"
INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")  # 007 is a name; 18 digits fit 64 bits
# A float holds whole numbers of up to 15 digits exactly; longer ones stay text.
FLOAT = re.compile(
    r"[+-]?((0|[1-9][0-9]{0,14})([eE][+-]?[0-9]+)?|(0|[1-9][0-9]*)?\.[0-9]*([eE][+-]?[0-9]+)?|inf|nan)", re.IGNORECASE
)


@dataclass(frozen=True)
class ModelRow:
    """A model to be added: its file or address, its id, its split and the user's columns."""

    model: Path | HubAddress
    id: str
    split: str | None
    columns: dict[str, Any]


@dataclass(frozen=True)
class ModelRows:
    """The rows of all models, and what is to be said about the table that they were joined to.

    notes: sentences on the join, and on rows of the table that name no model
    """

    rows: list[ModelRow]
    notes: tuple[str, ...] = ()


def rows_of_models(models: Iterable[Path | HubAddress], table: Path | None) -> ModelRows:
    """Return a row for each model.

    raises ZooError for a model without a file or a row, two rows or ids of one name, a damaged CSV
    """
    models = list(models)
    absent = [str(model) for model in models if isinstance(model, Path) and not model.is_file()]
    if absent:
        raise ZooError(f"{len(absent)} of {len(models)} models are no files: {listed(absent)}.")
    ids = ids_of(models)
    if table is None:
        rows = [ModelRow(model, id_, None, {}) for model, id_ in zip(models, ids, strict=True)]
        _check_ids(rows)
        return ModelRows(rows)
    lines = read_csv(table)
    files = [line.file for line in lines]
    join = joined(models, files, table, [line.number for line in lines])
    missing = [model for model, row in zip(models, join.rows, strict=True) if row is None]
    if missing:
        raise ZooError(_without_row(missing, files, table))
    numbers = [number for number in join.rows if number is not None]
    rows = [_row(model, id_, lines[number]) for model, id_, number in zip(models, ids, numbers, strict=True)]
    _check_ids(rows)
    used = set(numbers)
    unused = [file for number, file in enumerate(files) if number not in used]
    return ModelRows(rows, (*join.notes, *_note_on_unused(unused, table)))


def _without_row(missing: list[Path | HubAddress], files: list[str], table: Path) -> str:
    have = "has" if len(missing) == 1 else "have"
    message = f"{table}: {counted(len(missing), 'model')} {have} no row in it: {listed(missing)}."
    equal = ((model, row_of_equal_name(model, files)) for model in missing)
    model, row = next(((model, row) for model, row in equal if row is not None), (None, None))
    if row is None:
        return message
    return (
        f"{message} '{row}' is not taken for {model}: a row names its model by the path from the table's folder, or "
        "from a folder that holds all models, or by a name that no other model and no other row has."
    )


def _note_on_unused(unused: list[str], table: Path) -> tuple[str, ...]:
    if not unused:
        return ()
    have = "has" if len(unused) == 1 else "have"
    return (f"{counted(len(unused), 'row')} of {table} {have} no model here: {listed(unused)}.",)


@dataclass(frozen=True)
class TableLine:
    """A row of the table: the number of its line, the model that it names, and its other cells by column."""

    number: int
    file: str
    cells: dict[str, Any]


def read_csv(path: Path) -> list[TableLine]:
    """Read the lines of a CSV file, with typed cells.

    raises ZooError naming the line that is wrong
    """
    header, lines = _lines(path)
    _check_header(path, header)
    columns = {name: typed([line[place] for _, line in lines]) for place, name in enumerate(header)}
    for name in {FILE, "id", "split"} & columns.keys():
        columns[name] = [line[header.index(name)] or None for _, line in lines]
    rows = []
    for index, (number, _) in enumerate(lines):
        row = {name: values[index] for name, values in columns.items()}
        file = row.pop(FILE)
        if file is None:
            raise ZooError(f"{path}, line {number}: {FILE} is missing.")
        rows.append(TableLine(number, file, row))
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


def _row(model: Path | HubAddress, id_: str, line: TableLine) -> ModelRow:
    columns = {name: value for name, value in line.cells.items() if name not in ("id", "split")}
    return ModelRow(model, line.cells.get("id") or id_, line.cells.get("split"), columns)


def _check_ids(rows: list[ModelRow]) -> None:
    models: dict[str, Path | HubAddress] = {}
    for row in rows:
        if row.id in models:
            raise ZooError(
                f"'{models[row.id]}' and '{row.model}' both have the id '{row.id}'; give them different ones in a "
                "column `id` of the table."
            )
        models[row.id] = row.model
