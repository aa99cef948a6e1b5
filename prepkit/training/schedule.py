"""The learning rate over time: what a schedule multiplies it by, epoch by epoch."""

from __future__ import annotations

import math
from fractions import Fraction

from prepkit.training.values import Schedule


def factor(schedule: Schedule, epoch: int, epochs: int) -> float:
    """What the learning rate is multiplied by in an epoch.

    epoch:  counted from 0, below `epochs`
    epochs: of the instance's whole training
    constant:    1
    step:        `factor` once for each place that the epoch has reached
    cosine:      from 1 in the first epoch towards 0 after the last (Loshchilov and Hutter, 2017, without restarts)
    exponential: `factor` once for each `every` epochs that are over
    """
    if schedule.kind == "step":
        return schedule.factor ** sum(epoch >= first_epoch(place, epochs) for place in schedule.at)
    if schedule.kind == "exponential":
        return schedule.factor ** (epoch // schedule.every)
    if schedule.kind == "cosine":
        return (1 + math.cos(math.pi * epoch / epochs)) / 2
    return 1.0


def first_epoch(place: float, epochs: int) -> int:
    """The first epoch, counted from 0, before which a place of a step schedule has been passed.

    place: epochs if a whole number, else a share of all epochs
    """
    if isinstance(place, int):
        return place
    # The share as it was written in decimals: 0.55 of 20 epochs is 11, but 0.55 * 20 is above it and would round to 12.
    return math.ceil(Fraction(str(place)) * epochs)
