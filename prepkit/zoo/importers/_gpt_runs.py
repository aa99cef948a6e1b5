"""Runs of G.pt's checkpoints: folders with an LMDB data base, and what runs.json says of the runs in each.

000000_000001/data.mdb     name of a checkpoint -> its numbers, float32; NAME_arch -> sizes of its tensors
000000_000001/runs.json    {run: {"checkpoints": {name: metrics}, "metadata": {...}}}, or the inner object alone
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError, counted, listed
from prepkit.zoo.importers._lmdb_values import DATA
from prepkit.zoo.importers._tensor_shapes import read_json

RUNS = "runs.json"
CHECKPOINTS, METADATA = "checkpoints", "metadata"


@dataclass(frozen=True)
class Run:
    """One training.

    checkpoints: names of its checkpoints, in the order of runs.json
    """

    name: str
    folder: Path
    checkpoints: tuple[str, ...]


def groups_in(folder: Path) -> list[Path]:
    """Return the folders with data bases, in the order of their names, which is that of the paper's split.

    raises ZooError if there is none, or one is not whole
    """
    inner = [folder] if (folder / DATA).exists() else sorted(path for path in folder.iterdir() if path.is_dir())
    groups = [path for path in inner if (path / DATA).exists() or (path / RUNS).exists()]
    if not groups:
        raise ZooError(f"'{folder}' holds no runs of G.pt: neither it nor a folder in it has {DATA} and {RUNS}.")
    for group in groups:
        lacking = next((name for name in (DATA, RUNS) if not (group / name).is_file()), None)
        if lacking is not None:
            raise ZooError(f"'{group}' lacks {lacking}; fetch it, or take the folder away.")
    return groups


def runs_in(group: Path) -> list[Run]:
    """Return the runs of a folder: first those that its name lists, in that order, then the others.

    raises ZooError for a runs.json that is not of this kind
    """
    by_name = {
        name: Run(name, group, tuple(_table(run, CHECKPOINTS, f"{group / RUNS}, {name}")))
        for name, run in read_runs(group).items()
    }
    named = [name for name in dict.fromkeys(group.resolve().name.split("_")) if name in by_name]
    return [by_name[name] for name in dict.fromkeys((*named, *by_name))]


def read_runs(group: Path) -> dict[str, Any]:
    """Return what runs.json says of each run, by name; a file of one run does not name it, so it is the folder's.

    raises ZooError if it cannot be read
    """
    data, place = read_json(group / RUNS)
    if isinstance(data, dict) and CHECKPOINTS in data:
        data = {group.resolve().name: data}
    if not isinstance(data, dict) or not data or not all(isinstance(run, dict) for run in data.values()):
        raise ZooError(f'{place}: expected {{run: {{"{CHECKPOINTS}": {{name: metrics}}, "{METADATA}": ...}}}}.')
    return data


def metrics_of(run: Mapping[str, Any], name: str, place: str) -> dict[str, Any]:
    """Return the metrics of a checkpoint.

    raises ZooError if there are none
    """
    return _table(_table(run, CHECKPOINTS, place), name, place)


def _table(table: Mapping[str, Any], key: str, place: str) -> dict[str, Any]:
    value = table.get(key)
    if not isinstance(value, dict):
        raise ZooError(f"{place}: '{key}' is missing or no table of names.")
    return value


def check_names(runs: list[Run]) -> None:
    """Raise ZooError if a run stands twice, or has no checkpoint."""
    first: dict[str, Run] = {}
    for run in runs:
        other = first.setdefault(run.name, run)
        if other is not run:
            raise ZooError(f"run '{run.name}' stands in '{other.folder}' and in '{run.folder}'; take one of them away.")
    empty = [run.name for run in runs if not run.checkpoints]
    if empty:
        have = "has" if len(empty) == 1 else "have"
        raise ZooError(f"{counted(len(empty), 'run')} {have} no checkpoint in {RUNS}: {listed(empty)}. Take them away.")
