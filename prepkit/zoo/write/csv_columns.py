"""Read metadata of models from a table, and join them to the models by path.

    file,id,split,accuracy
    run0_epoch9.pt,run0-9,train,0.91
    run1_epoch9,run1-9,test,

`file` is a model's path, with or without its suffix, or its address on the Hub; `paths_join` says which model it names.
`id` and `split` may be missing. All other columns are the user's; `cell_types` says what becomes of their cells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prepkit.address import HubAddress
from prepkit.errors import ZooError, counted, listed
from prepkit.support.files import like_in_folder
from prepkit.zoo.format.columns import OWN_COLUMNS, plain_columns
from prepkit.zoo.write._table_text import FILE, ROLES
from prepkit.zoo.write.model_paths import ids_of
from prepkit.zoo.write.paths_join import joined, row_of_equal_name
from prepkit.zoo.write.tables import read_table


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

    notes: sentences on how the table was read and joined, and on its rows that name no model
    types: the type of each of the user's columns, with what is to be said about its cells
    """

    rows: list[ModelRow]
    notes: tuple[str, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)


def rows_of_models(
    models: Iterable[Path | HubAddress],
    table: Path | None,
    types: Mapping[str, str | type] | None = None,
    ids: Sequence[str] | None = None,
    *,
    strict: bool = True,
) -> ModelRows:
    """Return a row for each model.

    types:  types of the table's columns; the narrowest that fits all cells if missing
    ids:    id of each model that the table gives none; if missing, models are files and called by their paths
    strict: whether types may name only columns that are there
    raises ZooError for a model without a file or a row, two rows or ids of one name, a damaged CSV
    """
    models = list(models)
    if ids is None:
        absent = [str(model) for model in models if isinstance(model, Path) and not model.is_file()]
        if absent:
            are = "is no file" if len(absent) == 1 else "are no files"
            like = like_in_folder(absent[0]) if len(absent) == 1 else ""
            raise ZooError(f"{len(absent):,} of {counted(len(models), 'model')} {are}: {listed(absent)}.{like}")
        ids = ids_of(models)
    if table is None:
        if types:
            raise ZooError("types= is for the columns of a table, and there is no table.")
        rows = [ModelRow(model, id_, None, {}) for model, id_ in zip(models, ids, strict=True)]
        _check_ids(rows)
        return ModelRows(rows)
    csv = read_csv(table, types, strict=strict)
    lines = csv.lines
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
    return ModelRows(rows, (*csv.notes, *join.notes, *_note_on_unused(unused, table)), csv.types)


def rows_of_tables(
    models: Iterable[Path | HubAddress],
    tables: Sequence[Path],
    types: Mapping[str, str | type] | None = None,
    ids: Sequence[str] | None = None,
) -> ModelRows:
    """Return a row for each model, to which several tables are joined: of two values that of the earlier table is kept.

    types, ids: as in `rows_of_models`
    raises ZooError as `rows_of_models` does, for any of the tables
    """
    if len(tables) < 2:
        return rows_of_models(models, tables[0] if tables else None, types, ids)
    plain = rows_of_models(models, None, None, ids).rows
    parts = [rows_of_models(models, table, types, ids, strict=False) for table in tables]
    kinds: dict[str, str] = {}
    for part in parts:
        kinds |= {name: kind for name, kind in part.types.items() if name not in kinds}
    unknown = [name for name in types or {} if name not in kinds]
    if unknown:
        raise ZooError(f"types= names the column '{unknown[0]}'; there are {listed(kinds, 20) or 'none'}.")
    differing: Counter[str] = Counter()
    rows = []
    for model, of_model in zip(plain, zip(*(part.rows for part in parts), strict=True), strict=True):
        columns: dict[str, Any] = {}
        for table, row in zip(tables, of_model, strict=True):
            for name, value in row.columns.items():
                if columns.get(name) is None:
                    columns[name] = value
                elif value is not None and value != columns[name]:
                    differing[f"{name} of {table}"] += 1
        id_ = next((row.id for row in of_model if row.id != model.id), model.id)
        rows.append(ModelRow(model.model, id_, next((row.split for row in of_model if row.split), None), columns))
    _check_ids(rows)
    notes = [note for part in parts for note in part.notes]
    if differing:
        names = listed(f"{name} ({counted(count, 'model')})" for name, count in differing.items())
        notes.append(f"Other values than those of a table before it, left out: {names}.")
    return ModelRows(rows, tuple(notes), kinds)


def _without_row(missing: list[Path | HubAddress], files: list[str], table: Path) -> str:
    have = "has" if len(missing) == 1 else "have"
    message = f"{table}: {counted(len(missing), 'model')} {have} no row in it: {listed(missing)}."
    equal = ((model, row_of_equal_name(model, files)) for model in missing)
    model, row = next(((model, row) for model, row in equal if row is not None), (None, None))
    if row is None:
        return f"{message} Add rows, or leave these models out."
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


@dataclass(frozen=True)
class CsvTable:
    """The rows of a table, the type of each of the user's columns, and sentences on how the file was read."""

    lines: list[TableLine]
    types: dict[str, str]
    notes: tuple[str, ...]


def read_csv(path: Path, types: Mapping[str, str | type] | None = None, *, strict: bool = True) -> CsvTable:
    """Read the lines of a table, each of which names a model in a column `file`, with typed cells.

    types:  types of columns; the narrowest that fits all cells if missing
    strict: whether types may name only columns that are there
    raises ZooError naming the line that is wrong
    """
    table = read_table(path, types, strict=strict)
    if FILE not in table.columns:
        raise ZooError(
            f"{path}: there is no column '{FILE}', which names each row's model; there are {listed(table.columns)}. "
            "Rename the column that has the paths of the models."
        )
    reserved = [name for name in table.columns if name in OWN_COLUMNS and name not in ROLES]
    if reserved:
        raise ZooError(f"{path}: the zoo fills the columns {listed(reserved)} itself; rename them.")
    plain_columns(dict.fromkeys(name for name in table.columns if name not in ROLES), str(path))  # checks the names
    lines = []
    for number, row in zip(table.numbers, table.rows, strict=True):
        cells = dict(row)
        file = cells.pop(FILE, None)
        if file is None:
            raise ZooError(f"{path}, line {number}: {FILE} is missing.")
        for role in ("id", "split"):
            if cells.get(role) is not None:
                cells[role] = str(cells[role])
        lines.append(TableLine(number, str(file), cells))
    return CsvTable(lines, table.types, table.notes)


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
