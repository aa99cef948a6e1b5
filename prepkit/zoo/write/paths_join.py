r"""Join the rows of a table to models by path. Every row names one model, and every model has one row.

    a row's `file`               names the model
    hf://user/model              with this address, as it was given
    setA/0.pt, setA\0.pt         with this path in one folder: the table's, the current one, or one with all models
    /data/setA/0.pt              with this path
    C:\exp\runs\3\model.pt       with this path in a folder `runs` with all models, if no row's file is there
    0.pt                         with this path, or the only one of this name, if no other row ends in it

The suffix of a file may be missing. A row whose own file is there, but is none of the models, is the row of no model.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prepkit.address import HUB_SCHEME, HubAddress
from prepkit.errors import ZooError, listed
from prepkit.zoo.write.model_paths import common_folder, name_of, place_of, slashed, stem, without_suffix

DRIVE = re.compile(r"[A-Za-z]:/")


@dataclass(frozen=True)
class Join:
    """The number of each model's row, None for a model without one, and the folder that the rows' paths start from.

    notes: sentences on how rows were joined, where it was not by a path from the table's own folder
    """

    rows: list[int | None]
    notes: tuple[str, ...] = ()


def joined(models: Sequence[Path | HubAddress], files: Sequence[str], table: Path, lines: Sequence[int]) -> Join:
    """Find the row of each model.

    files: how the rows name their models
    lines: number of each row's line, for errors
    raises ZooError if a row fits several models, or a model several rows
    """
    numbers: dict[str, int] = {}
    for number, file in enumerate(files):
        first = numbers.setdefault(_plain(file), number)
        if first != number:
            raise ZooError(f"{table}, line {lines[number]}: file '{file}' stands twice, also in line {lines[first]}.")
    join = _PathJoin(models, numbers, table)
    rows: list[int | None] = [None] * len(models)
    for row, model in join.found():
        other = rows[model]
        if other is not None:
            raise ZooError(
                f"{table}, lines {lines[other]} and {lines[row]}: '{files[other]}' and '{files[row]}' both name "
                f"{models[model]}; keep one of them."
            )
        rows[model] = row
    return Join(rows, tuple(join.notes))


def row_of_equal_name(model: Path | HubAddress, files: Sequence[str]) -> str | None:
    """Return the first row that ends in a model's name but was not joined to it, for an error."""
    names = _names(name_of(model))
    return next((file for file in files if slashed(file).rpartition("/")[2] in names), None)


class _PathJoin:
    """Looks rows up among models: addresses, then paths, then names.

    files: number of each row, by its path
    """

    def __init__(self, models: Sequence[Path | HubAddress], files: dict[str, int], table: Path) -> None:
        self.models, self.table, self.notes = models, table, list[str]()
        self.addresses = {
            name: number
            for number, model in enumerate(models)
            if isinstance(model, HubAddress)
            for name in (str(model), stem(model))
        }
        self.places = {place_of(model): number for number, model in enumerate(models) if isinstance(model, Path)}
        self.without_suffix: dict[str, list[int]] = {}
        for place, number in self.places.items():
            self.without_suffix.setdefault(without_suffix(place), []).append(number)
        self.folder = place_of(table).rpartition("/")[0]
        self.root = common_folder(list(self.places))
        self.files = files

    def found(self) -> list[tuple[int, int]]:
        """Return the pairs of a row and its model."""
        pairs, relative, absolute = [], dict[str, int](), dict[str, int]()
        for file, row in self.files.items():
            if file in self.addresses:
                pairs.append((row, self.addresses[file]))
            elif not file.startswith(HUB_SCHEME):
                (absolute if _is_absolute(file) else relative)[file] = row
        if not self.places:
            return pairs
        return pairs + self._at_absolute(absolute) + self._below_a_folder(relative)

    def _at(self, place: str) -> int | None:
        """Return the model at an absolute path, with or without suffix."""
        if place in self.places:
            return self.places[place]
        candidates = self.without_suffix.get(place, [])
        if len(candidates) > 1:
            several = listed(str(self.models[number]) for number in candidates)
            raise ZooError(f"{self.table}: '{place}' may be {several}; give the suffix in the table.")
        return candidates[0] if candidates else None

    def _pairs(self, places: dict[str, int]) -> list[tuple[int, int]]:
        return [(row, model) for place, row in places.items() if (model := self._at(place)) is not None]

    def _below_a_folder(self, files: dict[str, int]) -> list[tuple[int, int]]:
        """Return the pairs of rows with relative paths, which all start from the folder where most are found."""
        with_folder = {file: row for file, row in files.items() if "/" in file}
        found = self._found_in(self.folder, with_folder)
        start = self.folder
        for folder in self._other_folders():
            if len(found) == min(len(with_folder), len(self.places)):
                break
            here = self._found_in(folder, with_folder)
            if len(here) > len(found):
                found, start = here, folder
        if start != self.folder:
            self.notes.append(f"The rows of {self.table} name models by their paths in '{start}'.")
        pairs = self._found_in(start, files)
        joined = {row for row, _ in pairs}
        return pairs + self._by_name({file: row for file, row in files.items() if row not in joined}, pairs)

    def _found_in(self, folder: str, files: dict[str, int]) -> list[tuple[int, int]]:
        """Return the pairs of rows whose paths start from a folder."""
        pairs = self._pairs({posixpath.normpath(f"{folder}/{file}"): row for file, row in files.items()})
        if folder == self.folder or not pairs:
            return pairs
        rows = {row for row, _ in pairs}
        elsewhere = self._elsewhere({file: row for file, row in files.items() if row in rows})
        return [pair for pair in pairs if pair[0] not in elsewhere]

    def _other_folders(self) -> list[str]:
        """Return the folders that paths may start from if not from the table's, the likeliest first."""
        above = [self.root]
        while above[-1]:
            above.append(above[-1].rpartition("/")[0])
        return list(dict.fromkeys([slashed(os.getcwd()), *above]))

    def _elsewhere(self, files: dict[str, int]) -> set[int]:
        """Return the rows whose file, seen from the table's folder, is there but is none of the models."""
        places = {posixpath.normpath(f"{self.folder}/{file}"): row for file, row in files.items()}
        return {row for place, row in places.items() if self._at(place) is None and os.path.isfile(place)}

    def _by_name(self, files: dict[str, int], pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the pairs of rows without a folder whose name only one model has, and no other row ends in."""
        names_of_rows = Counter(file.rpartition("/")[2] for file in self.files)
        models: dict[str, set[int]] = {}
        rows: Counter[int] = Counter()  # number of rows that end in a model's name
        for place, number in self.places.items():
            for name in _names(place):
                models.setdefault(name, set()).add(number)
                rows[number] += names_of_rows[name]
        by_name = {
            file: next(iter(models[file])) for file in files if "/" not in file and len(models.get(file, ())) == 1
        }
        alone = {file: files[file] for file, model in by_name.items() if rows[model] == 1}
        elsewhere = self._elsewhere(alone)
        taken = {model for _, model in pairs}
        return [
            (row, by_name[file]) for file, row in alone.items() if row not in elsewhere and by_name[file] not in taken
        ]

    def _at_absolute(self, files: dict[str, int]) -> list[tuple[int, int]]:
        """Return the pairs of rows with absolute paths, also those that another machine wrote."""
        pairs = self._pairs(files)
        if pairs or not files or any(os.path.exists(file) for file in files):
            return pairs
        folder = common_folder(list(files))
        if not self.root or folder.rpartition("/")[2] != self.root.rpartition("/")[2]:
            return pairs
        below = {file.removeprefix(f"{folder}/"): row for file, row in files.items()}
        pairs = self._pairs({f"{self.root}/{path}": row for path, row in below.items() if "/" in path})
        if pairs:
            self.notes.append(f"Paths of {self.table} in '{folder}' are taken for those in '{self.root}'.")
        return pairs


def _names(place: str) -> set[str]:
    """Return the name of a file with and without its suffix."""
    name = place.rpartition("/")[2]
    return {name, without_suffix(name)}


def _plain(file: str) -> str:
    """Return the path in a row with `/` between its parts and without `.`; an address stays as it is."""
    return file if file.startswith(HUB_SCHEME) else posixpath.normpath(slashed(file))


def _is_absolute(file: str) -> bool:
    return file.startswith("/") or DRIVE.match(file) is not None
