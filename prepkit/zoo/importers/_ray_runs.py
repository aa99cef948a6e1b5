"""The runs of a ray-tune tree: which folders are runs, which checkpoints each has, and which runs are one twice.

    <run>/params.json or config.json        the settings; a run without is unfinished
    <run>/result.json                       a line for each epoch
    <run>/checkpoint_000005/checkpoints     the weights of an epoch, beside files of the training that are left

A run may stand at any depth: fine-tuned ones stand in a folder that is called as what they began from.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prepkit.errors import ZooError, counted, listed
from prepkit.prep.slot import natural_key
from prepkit.zoo.importers._folders import walked

SETTINGS = ("params.json", "config.json")
RESULTS = "result.json"
WEIGHTS = "checkpoints"
CHECKPOINT = re.compile(r"checkpoint_([0-9]{1,18})")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")
FINE_TUNED = "finetuning"  # the folder that holds, for each pretrained network, those that began from it
ENDS = 1 << 16  # bytes of each end of a file that are compared first: a zip file's end has the sums of all its members


@dataclass(frozen=True)
class Run:
    """A run: a network that was trained once.

    path:     its folder
    name:     its path below the folder that is imported
    settings: the file with its settings; None if it is unfinished
    epochs:   file of the weights of each epoch, in order
    parent:   name of the run that it began from, where the tree says so
    """

    path: str
    name: str
    settings: str | None
    epochs: Mapping[int, str]
    parent: str | None

    @property
    def results(self) -> str:
        """The file with a line for each epoch."""
        return f"{self.path}/{RESULTS}"


@dataclass
class Tree:
    """What a tree holds.

    runs:       all runs with weights, finished or not, in natural order
    empty:      runs without any weights
    without:    folders of checkpoints that lack the file of the weights
    left:       how many files stand beside weights, by name
    archives:   files in it that are archives
    """

    runs: list[Run] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    archives: list[str] = field(default_factory=list)


def find_runs(folder: Path) -> Tree:
    """Find all runs in a folder.

    raises ZooError if there is none, or one has two folders of an epoch
    """
    found = Tree()
    for path, folders, names in walked(folder):
        place = str(path)
        checkpoints = [name for name in folders if CHECKPOINT.fullmatch(name)]
        folders[:] = [name for name in folders if not name.startswith(".") and name not in checkpoints]
        found.archives += [f"{place}/{name}" for name in names if name.endswith(ARCHIVES)]
        if checkpoints or "params.json" in names or RESULTS in names:
            _add(found, folder, place, checkpoints, names)
    found.runs.sort(key=lambda run: natural_key(run.name))
    if not found.runs:
        raise _nothing(folder, found)
    return found


def _add(found: Tree, folder: Path, place: str, checkpoints: Sequence[str], names: Sequence[str]) -> None:
    name = Path(place).relative_to(folder).as_posix()
    epochs: dict[int, str] = {}
    for checkpoint in checkpoints:
        epoch = int(checkpoint.rpartition("_")[2])
        with os.scandir(f"{place}/{checkpoint}") as entries:
            files = [entry.name for entry in entries if entry.is_file()]
        found.left.update(file for file in files if file != WEIGHTS)
        if WEIGHTS not in files:
            found.without.append(f"{place}/{checkpoint}")
        elif epoch in epochs:
            raise ZooError(
                f"'{place}' has two folders of epoch {epoch}, '{checkpoint}' and "
                f"'{Path(epochs[epoch]).parent.name}'. Take one of them away."
            )
        else:
            epochs[epoch] = f"{place}/{checkpoint}/{WEIGHTS}"
    if not epochs:
        found.empty.append(place)
        return
    settings = next((f"{place}/{file}" for file in SETTINGS if file in names), None)
    parts = Path(place).parts
    parent = parts[-2] if len(parts) > 2 and parts[-3] == FINE_TUNED else None
    run_name = folder.resolve().name if name == "." else name
    found.runs.append(Run(place, run_name, settings, dict(sorted(epochs.items())), parent))


def _nothing(folder: Path, found: Tree) -> ZooError:
    start = f"'{folder}' holds no run with weights: no folder has a checkpoint_000001/{WEIGHTS} or the like"
    if found.archives:
        are = "is an archive" if len(found.archives) == 1 else "are archives"
        return ZooError(f"{start}, but there {are} in it: {listed(found.archives)}. Unpack first.")
    if found.without:
        return ZooError(f"{start}; {counted(len(found.without), 'folder')} lack it: {listed(found.without)}.")
    return ZooError(f"{start}. Name the folder that holds the runs, or use `prepkit zoo import tree`.")


def copies(runs: Iterable[Run]) -> dict[str, str]:
    """Return runs whose last weights are those of an earlier run, byte for byte, with that run's name.

    Only files whose size and ends are equal are read whole.
    raises ZooError for a file that cannot be read
    """
    first: dict[tuple[int, bytes], Run] = {}
    found: dict[str, str] = {}
    for run in runs:
        file = _last(run)
        try:
            key = _ends(file)
            other = first.setdefault(key, run)
            if other is not run and _digest(_last(other)) == _digest(file):
                found[run.name] = other.name
        except OSError as error:
            raise ZooError(f"'{file}' cannot be read: {error.strerror}.") from None
    return found


def _last(run: Run) -> str:
    return run.epochs[max(run.epochs)]


def _ends(file: str) -> tuple[int, bytes]:
    with open(file, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        digest = hashlib.sha256(opened.read(ENDS))
        opened.seek(max(0, size - ENDS))
        digest.update(opened.read(ENDS))
    return size, digest.digest()


def _digest(file: str) -> bytes:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
