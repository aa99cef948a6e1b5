"""Any tree of files: folders, lists and a pattern of paths whose fields become columns, with tables joined to them.

    prepkit zoo import tree runs zoo --pattern "{run}/checkpoint_{epoch:int}/checkpoints" --table "{run}/result.json"

Without a pattern the models are those that `zoo create` finds in the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from prepkit.address import HubAddress
from prepkit.errors import ZooError, counted, listed
from prepkit.packing import chosen_options
from prepkit.zoo.importers._field_tables import JoinedTable, TableForAll, TablesOfRuns
from prepkit.zoo.importers._pattern import Fits, PathPattern, walk
from prepkit.zoo.importers._strict import STRICT, StrictSource, check_splits
from prepkit.zoo.write.adding import Model, Source, Told
from prepkit.zoo.write.cell_types import KINDS
from prepkit.zoo.write.csv_columns import rows_of_tables
from prepkit.zoo.write.links import without_links
from prepkit.zoo.write.model_files import (
    FileSource,
    LocalModel,
    ModelReader,
    check_columns,
    counts_of_prefix,
    note_on_prefix,
    sha256_of_model,
)
from prepkit.zoo.write.model_paths import expanded

Paths = Iterable[str | os.PathLike[str]]
Tables = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
Types = Mapping[str, str | type]
DIFFERS = "differs: "  # begins what `Model.counts` calls a value of a table that is not the one before it


def found(
    folder: Path,
    *,
    pattern: str | None = None,
    files: Paths | None = None,
    table: Tables = None,
    on: Mapping[str, str] | None = None,
    types: Types | None = None,
    key: str | None = None,
    prefix: str | None = None,
    splits: str | None = None,
) -> Source:
    """Find the models in a folder.

    pattern:     path of a model below the folder, such as "{run}/checkpoint_{epoch:int}/checkpoints"
    files:       the models, from the folder or the current one; all that fit the pattern if missing
    table:       a table, or several; "{run}/progress.csv" is one for each run
    on:          columns of the tables for fields that have other names there, such as {"epoch": "training_iteration"}
    types:       types of the columns of text tables, as in `create_zoo`
    key, prefix: as in `load_checkpoint`
    splits:      "strict", which leaves equal models out and keeps those of a run together; see `_strict`
    raises ZooError for a pattern that nothing fits, two files with the same fields, a table without such columns
    """
    check_splits(splits)
    given = None if files is None else in_folder(folder, files)
    if given is None:
        check_folder(folder)
    source = source_of(given or [folder], pattern=pattern, table=table, on=on, types=types, key=key, prefix=prefix)
    return StrictSource(source) if splits == STRICT else source


def source_of(
    paths: Sequence[Path | HubAddress],
    *,
    pattern: str | None,
    table: Tables,
    on: Mapping[str, str] | None = None,
    types: Types | None = None,
    key: str | None = None,
    prefix: str | None = None,
    fetched: Callable[[Path | HubAddress], AbstractContextManager[LocalModel]] | None = None,
) -> Source:
    """Return the models of files, and of folders in which all that fit the pattern are taken; see `found`.

    fetched: gives a model of the Hub as a file, as long as its context lasts
    """
    tables = listed_tables(table)
    if pattern is not None:
        local = [path for path in paths if isinstance(path, Path)]
        if len(local) < len(paths):
            raise ZooError("`pattern` goes with files and folders; a model of the Hub has no fields in its path.")
        return TreeSource(local, pattern, tables, on or {}, types or {}, key, prefix)
    if on:
        raise ZooError("`on` goes with a `pattern`, such as {run}/model_{epoch:int}.pt.")
    if of_runs := [name for name in tables if "{" in name and not Path(name).exists()]:
        raise ZooError(f"table '{of_runs[0]}' has fields, so it goes with a `pattern` that has them too.")
    models, notes = expanded(paths)
    rows = rows_of_tables(models, [Path(name) for name in tables], types)
    check_columns(rows.rows, listed(tables))
    return FileSource(replace(rows, notes=(*notes, *rows.notes)), fetched or _on_disk, key, prefix)


def _on_disk(file: Path | HubAddress) -> AbstractContextManager[LocalModel]:
    return nullcontext(LocalModel(Path(str(file)), str(file)))


class TreeSource(Source):
    """Files that fit a pattern: their fields are columns, and tables are joined to them.

    files: path of each model
    fits:  how each of them fits
    """

    has_mixed_tables = True

    def __init__(
        self,
        paths: Sequence[Path],
        pattern: str,
        tables: Sequence[str],
        on: Mapping[str, str],
        types: Types,
        key: str | None,
        prefix: str | None,
    ) -> None:
        self.pattern = PathPattern.parse(pattern)
        unknown = [name for name in on if name not in self.pattern.kinds]
        if unknown:
            raise ZooError(
                f"`on` names the field {listed(unknown)}; '{self.pattern.text}' has {listed(self.pattern.kinds)}."
            )
        self._reader, self._prefix = ModelReader(key, prefix), prefix
        self.options = {
            "pattern": self.pattern.text,
            "tables": [table if "{" in table else Path(table).name for table in tables],
            **chosen_options(on=dict(on) or None, key=key, prefix=prefix),
            **({"types": {name: str(KINDS.get(kind, kind)) for name, kind in types.items()}} if types else {}),
        }
        self._found: list[str] = []
        self.files = self._files(paths)
        self.fits = Fits(self.pattern, self.files)
        roots = [path for path in paths if path.is_dir()]
        self.tables = [self._table(table, roots, on, types) for table in tables]
        self.types = {name: kind for table in self.tables for name, kind in _described(table).items()}
        missing = [name for name in types if name not in self.types]
        if missing:
            raise ZooError(f"types= names the column '{missing[0]}'; there are {listed(self.types, 20) or 'none'}.")
        self.ids = [self._id(index) for index in range(len(self.files))]
        self._check_unique()

    def name(self, index: int) -> str:
        """Return the id and the file of a model."""
        return f"'{self.ids[index]}' ({self.files[index]})"

    def read(self, index: int) -> Model:
        """Read a model's file, with its fields and its rows in the tables."""
        model, without_prefix = self.read_file(Path(self.files[index]))
        differing: dict[str, int] = {}
        told = self._told(index, differing)
        counts = {
            **counts_of_prefix(without_prefix),
            **{f"{DIFFERS}{name}": count for name, count in differing.items()},
        }
        return replace(model, columns={**told.columns, **model.columns}, split=told.split, counts=counts)

    def told(self, index: int) -> Told:
        """Return a model's fields, and its rows in the tables."""
        return self._told(index, {})

    def sha256(self, index: int) -> str | None:
        """Return the sha256 of a model's file."""
        return sha256_of_model(Path(self.files[index]))

    def _told(self, index: int, differing: dict[str, int]) -> Told:
        fit = self.fits[index]
        columns: dict[str, Any] = dict(fit.fields)
        for table in self.tables:
            for name, value in (table.row(index, fit) or {}).items():
                if name not in columns:
                    columns[name] = value
                elif columns[name] != value:
                    differing[f"{name} of {table.name}"] = differing.get(f"{name} of {table.name}", 0) + 1
        columns.pop("id", None)
        split = columns.pop("split", None)
        return Told(columns, None if split is None else str(split))

    def read_file(self, file: Path) -> tuple[Model, tuple[str, ...]]:
        """Read a model's file as ModelReader does; other kinds of files have readers of their own."""
        return self._reader.read(file)

    def notes(self) -> Sequence[str]:
        """Return sentences on files, tables and rows that were left out."""
        notes = [*self._found, *(note for table in self.tables for note in table.notes(self.fits))]
        differing = {
            name.removeprefix(DIFFERS): count for name, count in self.counts.items() if name.startswith(DIFFERS)
        }
        if differing:
            names = listed(f"{name} ({counted(count, 'model')})" for name, count in differing.items())
            notes.append(f"Other values than those of the path or of a table before it, left out: {names}.")
        return [*notes, *note_on_prefix(self._prefix, self.counts)]

    def _files(self, paths: Sequence[Path]) -> list[str]:
        files: list[str] = []
        without: list[str] = []
        for path in paths:
            if path.is_dir():
                walked = walk(path, self.pattern)
                files += [f"{path}/{file}" for file in walked.files]
                without += [f"{path}/{folder}" for folder in walked.without]
            else:
                files.append(str(path))
        if without:
            hold = "holds" if len(without) == 1 else "hold"
            name = self.pattern.parts[-1]
            self._found.append(f"{counted(len(without), 'folder')} that {hold} no file '{name}': {listed(without)}.")
        once = list(dict.fromkeys(files))
        if len(once) < len(files):
            extra = counted(len(files) - len(once), "file")
            self._found.append(f"{extra} named more than once; each is taken once.")
        kept, note = without_links(once)
        self._found += note
        return kept

    def _table(self, table: str, roots: Sequence[Path], on: Mapping[str, str], types: Types) -> JoinedTable:
        if "{" in table:
            return TablesOfRuns(roots[0] if len(roots) == 1 else None, table, self.pattern, self.fits, on, types)
        return TableForAll(Path(table), self.pattern, self.fits, self.files, on, types)

    def _id(self, index: int) -> str:
        ids = (table.id_of(index) for table in self.tables if isinstance(table, TableForAll))
        given = next((id_ for id_ in ids if id_ is not None), None)
        return given or "/".join(str(value) for value in self.fits[index].fields.values())

    def _check_unique(self) -> None:
        repeated = []
        if len(set(self.ids)) < len(self.ids):
            first: dict[str, int] = {}
            for index, id_ in enumerate(self.ids):
                other = first.setdefault(id_, index)
                if other != index:
                    repeated.append(f"{self.files[other]} and {self.files[index]}, both '{id_}'")
        if repeated:
            files = counted(len(repeated), "pair of files has", "pairs of files have")
            raise ZooError(
                f"{files} the same fields: {listed(repeated, 3)}. Leave one of each out, or give the pattern a field "
                "that tells them apart."
            )


def _described(table: JoinedTable) -> Mapping[str, str]:
    if isinstance(table, TableForAll):
        return {table.column_of(name): kind for name, kind in table.table.types.items()}
    return table.described if isinstance(table, TablesOfRuns) else {}


def check_folder(folder: Path) -> None:
    """Raise ZooError if a folder to import from is missing or a file."""
    if not folder.is_dir():
        kind = "a file; unpack an archive first, and name the folder" if folder.exists() else "not there"
        raise ZooError(f"'{folder}' is {kind}.")


def listed_tables(table: Tables) -> list[str]:
    """Return the tables that the user named: none, one or several."""
    tables = [] if table is None else [table] if isinstance(table, str | os.PathLike) else table
    return [os.fspath(name) for name in tables]


def in_folder(folder: Path, files: Paths) -> list[Path]:
    """Return the paths of a list, which start from the folder, or from the current one where the first is there."""
    paths = [Path(file) for file in files]
    if not paths:
        raise ZooError("the list of files is empty; name at least one.")
    if (folder / paths[0]).exists():
        paths = [folder / path for path in paths]
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        are = "is no file" if len(absent) == 1 else "are no files"
        raise ZooError(f"{len(absent):,} of {counted(len(paths), 'model')} {are}: {listed(absent)}.")
    return paths
