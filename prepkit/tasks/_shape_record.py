"""The record of a shapes task, checked: its keys, what each may hold, and what it means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from prepkit.support.reading import (
    REQUIRED,
    Place,
    Reader,
    between,
    checked,
    keys_of,
    number,
    read_keys,
    unknown,
    whole,
)

TASK = Place("task")
CHAIRS, SDF_FILES, MESHES = "procedural_chairs", "sdf_files", "meshes"
SHA256 = checked("64 hex digits", lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value))


def even(least: int) -> Reader:
    """An even number of points, as half of them are inside and half outside."""
    return checked(
        f"an even number of at least {least}, half inside, half outside",
        lambda value: type(value) is int and value >= least and value % 2 == 0,
    )


@dataclass(frozen=True)
class Points:
    """The training points of a shape. Those of sdf_files are in the files, so only `pool` says how many are taken."""

    EXAMPLE: ClassVar[str] = "{pool = 65536}"

    pool: Annotated[int, even(2), "number of points of a shape, half of them inside"]
    near_surface: Annotated[
        float,
        between(0, 1),
        "share of points drawn on the surface, uniform by area, and moved by N(0, sigma) along each axis; the others "
        "are uniform in the solid, and in the cube -1 .. 1 around it",
    ] = 0.5
    sigma: Annotated[float, between(0, 1), "deviation of points from the surface along each axis"] = 0.05


@dataclass(frozen=True)
class Split:
    """The points of a shape that it is judged on, other ones than those it is trained on."""

    EXAMPLE: ClassVar[str] = "{seed = 0, test = 4096, validation = 4096}"

    seed: Annotated[int, whole(0), "seed of the points of all splits"]
    test: Annotated[int, even(2), "number of points for testing"]
    validation: Annotated[int, even(0), "number of points for validation"] = 0


@dataclass(frozen=True)
class ShapeRecord:
    """Fit the signed distance of one shape an instance."""

    kind: Annotated[Literal["shapes"], "kind of the task"]
    dataset: Annotated[
        Literal["procedural_chairs", "sdf_files", "meshes"],
        "chairs from a generator; .npz files with `pos` and `neg` as DeepSDF writes them; or .obj, .ply, .stl and .off "
        "files. Files are in the folder that `--data` names",
    ]
    points: Points
    split: Split
    steps_per_epoch: Annotated[int, whole(1), "steps of an epoch; each draws batch_size points, half of them inside"]
    count: Annotated[
        int | None, whole(1), "number of shapes; if missing, chairs are unlimited and files are counted"
    ] = None
    seed: Annotated[int, whole(0), "(procedural_chairs, required there) seed of the chairs"] = 0
    sha256: Annotated[
        str | None, SHA256, "(files) sha256 of their names and contents; loading adds it where it is missing"
    ] = None
    clamp: Annotated[
        float | None,
        number("a number above 0", lambda value: value > 0),
        "distances beyond it count as it (DeepSDF: 0.1), in training and evaluation; unlimited if missing",
    ] = None

    @property
    def sizes(self) -> dict[str, int]:
        """Points of a shape in each split."""
        return {"train": self.points.pool, "validation": self.split.validation, "test": self.split.test}


def check(record: Mapping[str, Any]) -> ShapeRecord:
    """Check all that can be checked without the data.

    raises ZooError naming the place in the record that is wrong
    """
    keys = dict(keys_of(ShapeRecord))
    if record.get("dataset") == CHAIRS:
        del keys["sha256"]
        keys["seed"] = keys["seed"]._replace(default=REQUIRED)
    elif record.get("dataset") in (SDF_FILES, MESHES):
        del keys["seed"]
    values = {key: value for key, value in record.items() if value is not None}
    task = ShapeRecord(**read_keys(keys, values, TASK))
    for key in record["points"] if task.dataset == SDF_FILES else ():
        if key != "pool":
            raise unknown(TASK["points"], "key", key, ("pool",))
    return task
