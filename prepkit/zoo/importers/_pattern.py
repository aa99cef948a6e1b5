"""Patterns of paths, whose fields become columns: `{run}/checkpoint_{epoch:int}/checkpoints`.

`{name}` stands for text within one part of a path, `{name:int}` for a whole number (checkpoint_000005 gives 5),
`{name:float}` for a number, and `*` for any text that is no column. A path fits if its last parts do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import overload

from prepkit.errors import ZooError, counted, listed
from prepkit.prep.slot import natural_key
from prepkit.zoo.format.columns import OWN_COLUMNS, checked_name
from prepkit.zoo.write.model_paths import slashed

FIELD = re.compile(r"\{([^{}]*)\}")
INT = r"[+-]?[0-9]{1,18}"  # as many digits as 64 bits hold
FLOAT = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
TYPES = {"int": INT, "float": FLOAT, "text": "[^/]+"}
READERS = {"int": int, "float": float, "text": str}
FILLED = tuple(name for name in OWN_COLUMNS if name not in ("id", "split"))

Fields = dict[str, int | float | str]


@dataclass(frozen=True)
class Fit:
    """A path that fits a pattern.

    root:   text of the path before the parts that the pattern describes; it ends in `/` or is empty
    texts:  text of each field as it stands in the path
    fields: value of each field
    """

    root: str
    texts: Mapping[str, str]
    fields: Fields


@dataclass(frozen=True)
class PathPattern:
    """A pattern as the user wrote it.

    kinds: type of each field, in order: "int", "float" or "text"
    """

    text: str
    kinds: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> PathPattern:
        """Read a pattern.

        raises ZooError for one that has no fields, a field twice, or an unknown type
        """
        text = slashed(text).strip("/")
        kinds: dict[str, str] = {}
        for inside in FIELD.findall(text):
            name, _, kind = inside.partition(":")
            kind = kind or "text"
            if kind not in TYPES:
                raise ZooError(f"pattern '{text}': there is no type '{kind}' of a field; use {listed(TYPES)}.")
            if name in kinds:
                raise ZooError(f"pattern '{text}': the field '{name}' stands twice; give each a name of its own.")
            if name in FILLED:
                raise ZooError(f"pattern '{text}': the zoo fills the column '{name}' itself; rename the field.")
            kinds[name if name in ("id", "split") else checked_name(name, f"pattern '{text}'")] = kind
        rest = FIELD.sub("", text)
        if "{" in rest or "}" in rest:
            raise ZooError(f"pattern '{text}': a brace has no partner; a field is {{name}} or {{name:int}}.")
        return cls(text, kinds)

    @cached_property
    def parts(self) -> list[str]:
        """Parts of the pattern between slashes."""
        return self.text.split("/")

    def fit(self, path: str) -> Fit | None:
        """Return how a path fits, None if it does not.

        raises ZooError for a path that fits in several ways
        """
        root, tail = self._split(path)
        match = self._greedy.fullmatch(tail)
        if match is None:
            return None
        texts = self._texts(match)
        other = self._lazy.fullmatch(tail)
        if other is not None and self._texts(other) != texts:
            ways = [", ".join(f"{name} '{text}'" for name, text in way.items()) for way in (self._texts(other), texts)]
            raise ZooError(
                f"'{tail}' fits '{self.text}' in several ways: {ways[0]}, or {ways[1]}. Give the fields types such as "
                "{epoch:int}, or put more text between them."
            )
        return Fit(root, texts, {name: READERS[kind](texts[name]) for name, kind in self.kinds.items()})

    def path_of(self, texts: Mapping[str, str]) -> str:
        """Return the path that has these fields, as they stand in another path.

        raises ZooError if a field is missing, or the pattern holds a `*`
        """
        missing = [name for name in self.kinds if name not in texts]
        if missing or "*" in self.text:
            what = f"the field {listed(missing)}, which the pattern of the files has not" if missing else "a `*`"
            raise ZooError(f"table '{self.text}': it has {what}; use fields of the files alone, or none.")
        return FIELD.sub(lambda match: texts[match[1].partition(":")[0]], self.text)

    def _texts(self, match: re.Match[str]) -> dict[str, str]:
        return {name: match[group] for name, group in zip(self.kinds, self._groups, strict=True)}

    def _split(self, path: str) -> tuple[str, str]:
        parts = slashed(path).split("/")
        tail = parts[-len(self.parts) :]
        return "".join(f"{part}/" for part in parts[: -len(self.parts)]), "/".join(tail)

    @cached_property
    def _groups(self) -> list[str]:
        return [f"f{number}" for number in range(len(self.kinds))]

    @cached_property
    def _greedy(self) -> re.Pattern[str]:
        return re.compile(self._regex(self.text, lazy=False))

    @cached_property
    def _lazy(self) -> re.Pattern[str]:
        return re.compile(self._regex(self.text, lazy=True))

    @cached_property
    def part_regexes(self) -> list[re.Pattern[str] | None]:
        """A regular expression for each part of the pattern; None for a part that is plain text."""
        plain = [not FIELD.search(part) and "*" not in part for part in self.parts]
        return [
            None if is_plain else re.compile(self._regex(part, lazy=False))
            for part, is_plain in zip(self.parts, plain, strict=True)
        ]

    def _regex(self, text: str, lazy: bool) -> str:
        groups = dict(zip(self.kinds, self._groups, strict=True))
        question = "?" if lazy else ""
        parts = []
        end = 0
        for match in FIELD.finditer(text):
            parts.append(_literal(text[end : match.start()]))
            name = match[1].partition(":")[0]
            kind = TYPES[self.kinds[name]]
            parts.append(f"(?P<{groups[name]}>{kind + question if kind != FLOAT else kind})")
            end = match.end()
        return "".join([*parts, _literal(text[end:])])


class Fits(Sequence[Fit]):
    """How files fit a pattern. Each is found when it is asked for, since thousands would take more memory than paths.

    raises ZooError for a file that does not fit
    """

    def __init__(self, pattern: PathPattern, files: Sequence[str]) -> None:
        self._pattern, self._files = pattern, files
        for _ in self:  # checks all files
            pass

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> Fit: ...

    @overload
    def __getitem__(self, index: slice) -> list[Fit]: ...

    def __getitem__(self, index: int | slice) -> Fit | list[Fit]:
        if isinstance(index, slice):
            return [self._fit(file) for file in self._files[index]]
        return self._fit(self._files[index])

    def _fit(self, file: str) -> Fit:
        fit = self._pattern.fit(file)
        if fit is None:
            raise ZooError(
                f"'{file}' does not fit the pattern '{self._pattern.text}'; leave it out, or change the pattern."
            )
        return fit


def _literal(text: str) -> str:
    return "[^/]*".join(map(re.escape, text.split("*")))


@dataclass(frozen=True)
class Walk:
    """What a walk along a pattern found.

    files:   paths that fit, in natural order
    without: folders that fit all parts but the last, and hold no such file
    """

    files: list[str]
    without: list[str]


def walk(root: Path, pattern: PathPattern) -> Walk:
    """Find all files below a folder that fit a pattern; only folders that fit its parts are looked into.

    raises ZooError for a folder that is missing or a file, and if nothing fits, with what is there instead
    """
    if not root.is_dir():
        kind = "a file; unpack an archive first, and name the folder" if root.exists() else "not there"
        raise ZooError(f"'{root}' is {kind}.")
    folders = [""]
    for number, (part, regex) in enumerate(zip(pattern.parts[:-1], pattern.part_regexes[:-1], strict=True)):
        below = list(_entries(root, folders, part, regex, folders_only=True))
        if not below:
            raise _nothing_fits(root, pattern, folders, number)
        folders = below
    part, regex = pattern.parts[-1], pattern.part_regexes[-1]
    files, without = [], []
    for folder in folders:
        here = list(_entries(root, [folder], part, regex, folders_only=False))
        files += here
        if not here and folder:
            without.append(folder.rstrip("/"))
    if not files:
        raise _nothing_fits(root, pattern, folders, len(pattern.parts) - 1)
    return Walk(files, without)


def _entries(
    root: Path, folders: list[str], part: str, regex: re.Pattern[str] | None, *, folders_only: bool
) -> Iterator[str]:
    for folder in folders:
        if regex is None:
            path = root / folder / part
            if path.is_dir() if folders_only else path.is_file():
                yield folder + part + ("/" if folders_only else "")
            continue
        with os.scandir(root / folder) as entries:
            names = [
                entry.name
                for entry in entries
                if regex.fullmatch(entry.name) and (entry.is_dir() if folders_only else entry.is_file())
            ]
        for name in sorted(names, key=natural_key):
            yield folder + name + ("/" if folders_only else "")


def _nothing_fits(root: Path, pattern: PathPattern, folders: list[str], number: int) -> ZooError:
    """Return the error for a pattern that nothing fits: which part of it, and what is there instead."""
    names = {name for folder in folders[:20] for name in os.listdir(root / folder)}
    there = f"there is {listed(sorted(names), 4)}" if names else "nothing is there"
    kind = "file" if number == len(pattern.parts) - 1 else "folder"
    where = f"in {counted(len(folders), 'folder')} of '{root}'" if folders != [""] else f"in '{root}'"
    return ZooError(f"no {kind} {where} fits '{pattern.parts[number]}' of the pattern '{pattern.text}'; {there}.")
