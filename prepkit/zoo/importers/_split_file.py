"""Files that tell each model's split by its path, as DWSNets, neural-graphs and the CNN Wild Park publish them.

    {"train": {"path": ["mnist-inrs/mnist_png_training_5_0/checkpoints/model_final.pth", ...], "label": ["5", ...]},
     "val": {"path": [...], "label": [...]}, "test": {"path": [...], "label": [...]}}

or without the other lists, as the zoo of Fashion-MNIST has it: {"train": ["train/model_7.pth", ...], ...}. A path may
begin in any folder, since its last parts say which model it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError, counted, listed
from prepkit.zoo.write.model_paths import slashed

PATH = "path"
NAMES = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}  # of splits


@dataclass(frozen=True)
class SplitRow:
    """What a file of splits says of one model.

    split:  "train", "validation", "test", or what the file calls another one
    values: value of each other list, such as `label`
    """

    split: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class SplitFile:
    """A file of splits.

    parts: how many parts at the end of a path say which model it is
    rows:  what the file says of each model, by the end of its path
    """

    file: Path
    sha256: str
    parts: int
    rows: Mapping[str, SplitRow]
    repeated: Sequence[str]

    @classmethod
    def read(cls, file: str | os.PathLike[str], parts: int) -> SplitFile:
        """Read a file of splits.

        raises ZooError naming what is wrong, and for a model that is in two splits
        """
        file = Path(file)
        try:
            content = file.read_bytes()
            data = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
        except OSError as error:
            raise ZooError(f"{file}: cannot be read ({error.strerror}).") from None
        except (ValueError, RecursionError) as error:
            raise ZooError(f"{file}: not a whole JSON file of splits ({error}). Fetch it again.") from None
        rows: dict[str, SplitRow] = {}
        repeated = []
        for name, path, values in _lines(data, file):
            row = SplitRow(NAMES.get(name, name), values)
            end = _end(path, parts)
            other = rows.setdefault(end, row)
            if other.split != row.split:
                raise ZooError(
                    f"{file}: '{path}' is in {other.split} and in {row.split}; take it out of one of them, since a "
                    "model for training must not be tested."
                )
            if other is not row:
                repeated.append(path)
        return cls(file, hashlib.sha256(content).hexdigest(), parts, rows, repeated)

    @property
    def record(self) -> dict[str, str]:
        """The file's name and sha256, for the zoo's provenance."""
        return {"name": self.file.name, "sha256": self.sha256}

    def joined(self, paths: Sequence[str]) -> tuple[list[SplitRow | None], list[str]]:
        """Return the row of each model's path, None where the file has none, and sentences on what does not fit.

        raises ZooError if the file names none of the models
        """
        ends = [_end(path, self.parts) for path in paths]
        rows = [self.rows.get(end) for end in ends]
        if not any(rows):
            raise ZooError(
                f"{self.file}: names none of {counted(len(paths), 'model')}; it has {listed(self.rows, 2)}, and the "
                f"models end in {listed(ends, 2)}. Is it the file of another zoo?"
            )
        there = set(ends)
        absent = [end for end in self.rows if end not in there]
        unnamed = [end for end, row in zip(ends, rows, strict=True) if row is None]
        notes = []
        if absent:
            name = "names" if len(absent) == 1 else "name"
            notes.append(f"{counted(len(absent), 'row')} of {self.file.name} {name} no model here: {listed(absent)}.")
        if unnamed:
            have = "has" if len(unnamed) == 1 else "have"
            notes.append(
                f"{counted(len(unnamed), 'model')} {have} no row in {self.file.name}, and so no split: "
                f"{listed(unnamed)}."
            )
        if self.repeated:
            again = counted(len(self.repeated), "row stands", "rows stand")
            notes.append(f"{again} in {self.file.name} again, with the same split: {listed(self.repeated)}.")
        return rows, notes


def _lines(data: Any, file: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """Return split, path and other values of each line of all lists.

    raises ZooError for data of another form
    """
    example = '{"train": {"path": [...]}, "val": {"path": [...]}, "test": {"path": [...]}}'
    if not isinstance(data, dict) or not data:
        raise ZooError(f"{file}: holds no splits such as {example}.")
    lines = []
    for name, part in data.items():
        lists = {PATH: part} if isinstance(part, list) else part
        is_whole = isinstance(lists, dict) and all(isinstance(each, list) for each in lists.values())
        if not is_whole or not all(isinstance(path, str) for path in lists.get(PATH, [0])):
            raise ZooError(f"{file}, {name}: holds no list of paths; splits are such as {example}.")
        sizes = {key: len(each) for key, each in lists.items()}
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{key} {size:,}" for key, size in sizes.items())
            raise ZooError(f"{file}, {name}: its lists have different lengths ({found}). Fetch the file again.")
        others = {key: each for key, each in lists.items() if key != PATH}
        for number, path in enumerate(lists[PATH]):
            lines.append((name, path, {key: each[number] for key, each in others.items()}))
    return lines


def _end(path: str, parts: int) -> str:
    return "/".join(slashed(path).split("/")[-parts:])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, in which no key may stand twice."""
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"the key '{twice}' stands twice")
    return dict(pairs)
