"""What latent space optimisation is asked for, checked: numbers, the teacher, ClassIds and shapes of start points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

import prepkit
from netspace.data import ZooMismatch
from netspace.explore.sampling import PointError, Points, class_ids_of
from netspace.space.network import NetSpace
from prepkit.errors import counted, listed
from prepkit.zoo.read.accuracy import items_of

if TYPE_CHECKING:
    from netspace.run.run import Run

LEAST = {"steps": 1, "patience": 1, "validate_every": 1, "batch_size": 1, "noise": 0, "learning_rate": 0, "alpha": 0}
MOST = {"alpha": 1}


def check_numbers(**values: float | None) -> None:
    """Raise PointError for a number below its least value in LEAST, or above its largest in MOST; None is fine."""
    for name, value in values.items():
        least, most = LEAST[name], MOST.get(name, math.inf)
        if value is not None and not (least <= value <= most and value < math.inf):  # NaN is out of range too
            limits = f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise PointError(f"{name} {value:g} is out of range; use {limits}.")


def teacher_of(run: Run, zoo: prepkit.Zoo, device: torch.device) -> nn.Module | None:
    """Load the zoo's teacher; None for signals, whose targets are the distances themselves.

    raises ZooMismatch if there is none
    """
    if run.recipe.setting == "sdf":
        return None
    if zoo.teacher is None:
        raise ZooMismatch(
            f"zoo '{zoo.name}' has no teacher, which Eq. 5 learns from; `ZooWriter.set_teacher` adds one, or "
            f"`prepkit zoo train {run.recipe.zoo} DIR` makes a zoo that has one."
        )
    return zoo.teacher.to(device).requires_grad_(False)


def asked_class_ids_of(
    run: Run, zoo: prepkit.Zoo, space: NetSpace, points: Points, class_ids: int | Sequence[int] | None
) -> list[int]:
    """Return the ClassId that each start point is to have; see `optimize`.

    raises PointError for another number of them, or a ClassId that the run does not have
    """
    count = len(run.recipe.architectures)
    if class_ids is None:
        own = class_ids_of(zoo, points)
        if own is not None:
            return own
        with torch.no_grad():
            predicted = None if space.num_architectures is None else space.classify(points.latents)
        return [0] * len(points) if predicted is None else predicted.argmax(1).tolist()
    asked = [class_ids] * len(points) if isinstance(class_ids, int) else list(class_ids)
    if len(asked) != len(points):
        given, starts = counted(len(asked), "ClassId"), counted(len(points), "start point")
        raise PointError(f"{given} for {starts}; give one for all or one each.")
    for class_id in asked:
        if not 0 <= class_id < count:
            known = listed(f"{number} ({name})" for number, name in enumerate(run.recipe.architectures))
            raise PointError(f"ClassId {class_id} is not in this run; it has {known}.")
    return asked


def shapes_of(run: Run, zoo: prepkit.Zoo, points: Points, items: Sequence[int] | None) -> list[int]:
    """Return the number of the shape that each start point is to fit; 0 where all points see the same samples.

    raises PointError for images, for an embedding without a shape, and for another number of shapes
    """
    if run.recipe.setting != "sdf":
        if items is not None:
            raise PointError("`items` are shapes; the networks of this run all classify the same images.")
        return [0] * len(points)
    if items is None and points.rows is None:
        raise PointError("an embedding does not say which shape it is to fit; give `items`, one each.")
    shapes = items_of(zoo.select(list(points.rows or ()))) if items is None else list(items)
    if len(shapes) != len(points):
        given, starts = counted(len(shapes), "item"), counted(len(points), "start point")
        raise PointError(f"{given} for {starts}; give one each.")
    return shapes
