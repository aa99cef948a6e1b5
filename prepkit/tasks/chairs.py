"""Procedural chairs: a seat, legs, a back and, if wanted, arms, made of up to ten boxes from ten numbers.

    parameters = chair(number=3, seed=0)         # always the same ten numbers
    solid = build(parameters)                    # a BoxUnion in the unit sphere

Lengths are in units of a usual seat's width, before the chair is scaled to the unit sphere. x is to the side, y up, and
z to the front, as in ShapeNet's upright models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from prepkit.tasks._sdf import BoxUnion, normalised

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# name: least value, largest value
RANGES: dict[str, tuple[float, float]] = {
    "seat_width": (0.8, 1.25),
    "seat_depth": (0.8, 1.2),
    "seat_thickness": (0.08, 0.22),
    "leg_height": (0.5, 1.1),
    "leg_thickness": (0.08, 0.2),
    "leg_inset": (0.0, 0.15),  # distance of legs from the seat's sides, and of front legs from its front
    "back_height": (0.6, 1.4),  # above the seat
    "back_thickness": (0.08, 0.2),
    "back_opening": (
        0.0,
        0.7,
    ),  # open share of the back's height, below its panel; below OPEN_FROM it is 0
    "arm_height": (0.0, 0.5),  # height of the arm rests above the seat; below ARMS_FROM there are no arms
}
OPEN_FROM = 0.2
ARMS_FROM = 0.22  # more than the thickest arm, so that there is room below it


def chair(number: int, seed: int) -> dict[str, float]:
    """The ten parameters of a chair, each uniform in its range.

    They follow from sha256 alone, not from a random generator, so they never change.
    """
    return {
        name: low + (high - low) * _uniform(f"chair:{seed}:{number}:{name}") for name, (low, high) in RANGES.items()
    }


def chair_between(first: int, second: int, gamma: float, seed: int) -> BoxUnion:
    """The chair on the way from one number's (gamma = 0) to another's (1), whose parameters are between theirs."""
    start, end = chair(first, seed), chair(second, seed)
    return build({name: (1 - gamma) * start[name] + gamma * end[name] for name in start})


def build(parameters: Mapping[str, float]) -> BoxUnion:
    """The chair of these parameters, normalised as DeepSDF does; see prepkit.tasks._sdf.normalised."""
    boxes = normalised(chair_boxes(parameters))
    return BoxUnion(boxes[:, 0], boxes[:, 1])


def chair_boxes(parameters: Mapping[str, float]) -> Array:
    """Low and high corners `[n, 2, 3]` of a chair's boxes: seat, four legs, back, and four of the arms."""
    value = parameters
    half_width, depth = value["seat_width"] / 2, value["seat_depth"]
    seat_bottom = value["leg_height"]
    seat_top = seat_bottom + value["seat_thickness"]
    top = seat_top + value["back_height"]
    is_open = value["back_opening"] >= OPEN_FROM
    panel_bottom = seat_top + value["back_opening"] * value["back_height"] if is_open else seat_top
    boxes = [
        ((-half_width, seat_bottom, 0.0), (half_width, seat_top, depth)),
        ((-half_width, panel_bottom, 0.0), (half_width, top, value["back_thickness"])),
    ]
    thickness, inset = value["leg_thickness"], value["leg_inset"]
    inner, outer = half_width - inset - thickness, half_width - inset
    # The hind legs stand at the seat's rear, below the back; they go on to the top as posts if the back is open.
    for rear, front, end in (
        (0.0, thickness, top if is_open else seat_bottom),
        (depth - inset - thickness, depth - inset, seat_bottom),
    ):
        boxes += [((-outer, 0.0, rear), (-inner, end, front)), ((inner, 0.0, rear), (outer, end, front))]
    if value["arm_height"] >= ARMS_FROM:
        arm_top, front = seat_top + value["arm_height"], depth - inset
        under, support = arm_top - thickness, front - thickness
        for left, right in ((-outer, -inner), (inner, outer)):
            # Each arm is a rest from the rear to the front, and a support below it that stands above the front leg.
            boxes.append(((left, under, 0.0), (right, arm_top, front)))
            boxes.append(((left, seat_top, support), (right, under, front)))
    return np.array(boxes)


def _uniform(text: str) -> float:
    """A number in 0 .. 1 (1 excluded) from the first 53 bits of a text's sha256."""
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11) * 2.0**-53
