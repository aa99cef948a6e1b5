"""The key `start` of a spec: from which weights the instances of an architecture are trained.

Each instance has a random start of its own, unless the spec says that they share some. Zoos whose instances share a
start are another kind of zoo: their weights lie near each other, and unit by unit they mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from prepkit.errors import ZooError, listed
from prepkit.support.reading import LINE, Key, Place, Reader, given, whole, wrong

OWN = "own"
FITTED = "fitted"
FILE = "file"
MOST_STARTS = 10_000
MOST_STEPS = 10_000_000


@dataclass(frozen=True)
class Start:
    """From which weights instances are trained.

    kind:  "own": each from a random draw of its own seed; "shared": from `count` random draws, which are dealt out;
           "fitted": from one network that is fitted to the items of all training instances at once, in `steps` steps;
           "file": from the weights in a file, a checkpoint or a PRep
    place: where the key stands, for errors
    """

    kind: Literal["own", "shared", "fitted", "file"] = "own"
    count: int = 0
    steps: int = 0
    file: str = ""
    place: str = field(default="", compare=False)

    def __str__(self) -> str:
        said = {"own": '"own"', "shared": f"{{shared = {self.count}}}", "fitted": f"{{fitted = {self.steps}}}"}
        return said.get(self.kind, f'{{file = "{self.file}"}}')

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the starts, as the column `start` of a zoo's table has them: `own`, `shared-0`, `fitted`, ..."""
        return tuple(f"shared-{number}" for number in range(self.count)) if self.kind == "shared" else (self.kind,)

    def scaled(self, share: float) -> Start:
        """The same start for a training that is `share` as long."""
        return replace(self, steps=max(1, round(self.steps * share))) if self.kind == "fitted" else self


OF_ITS_OWN = Start()
KEYS = {"shared": Key(whole(1, MOST_STARTS)), "fitted": Key(whole(1, MOST_STEPS)), "file": Key(LINE)}


def _start(value: Any, place: Place) -> Start:
    if value == OWN:
        return Start(place=str(place))
    values = given(KEYS, value, place) if isinstance(value, Mapping) else {}
    if len(values) != 1:
        raise wrong(place, START.words, value)
    ((kind, found),) = values.items()
    if kind == "shared":
        return Start("shared", count=found, place=str(place[kind]))
    if kind == "fitted":
        return Start("fitted", steps=found, place=str(place[kind]))
    return Start("file", file=str(Path(place.file).parent / found), place=str(place[kind]))


START = Reader('"own", {shared = 4}, {fitted = 2000} or {file = "start.pt"}', _start)


def check_fitted(start: Start, name: str, task: Mapping[str, Any], splits: Mapping[str, int]) -> None:
    """Raise ZooError if a start is to be fitted to the training items of an architecture, and there are none.

    splits: number of instances of the architecture in each split
    """
    if start.kind != "fitted":
        return
    kind = task.get("kind")
    if kind != "shapes":
        raise ZooError(
            f"{start.place}: needs a task in which each instance has an item of its own, which is of kind 'shapes'; "
            f"all instances of this one, of kind {kind!r}, are trained on the same data. Train a network on them once, "
            "and name its file: start = {file = PATH}."
        )
    if not splits.get("train"):
        raise ZooError(
            f"{start.place}: is fitted to the items of the training instances, but {name} has instances in "
            f"{listed(splits)} only."
        )
