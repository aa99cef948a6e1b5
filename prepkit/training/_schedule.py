"""How a schedule changes the learning rate from epoch to epoch."""

from __future__ import annotations

import math
from fractions import Fraction

from prepkit.training._values import Schedule


def factor(schedule: Schedule, epoch: int, epochs: int) -> float:
    """The factor of the learning rate in an epoch.

    epoch:  counted from 0, below `epochs`
    epochs: number of epochs of the instance's whole training

    constant:    1
    step:        `factor` to the power of how many places of `at` the epoch has reached
    cosine:      falls from 1 in the first epoch to 0 after the last (Loshchilov and Hutter, 2017, without restarts)
    exponential: `factor` to the power of how often `every` epochs are over
    """
    if schedule.kind == "step":
        return schedule.factor ** sum(epoch >= first_epoch(place, epochs) for place in schedule.at)
    if schedule.kind == "exponential":
        return schedule.factor ** (epoch // schedule.every)
    if schedule.kind == "cosine":
        return (1 + math.cos(math.pi * epoch / epochs)) / 2
    return 1.0


def first_epoch(place: float, epochs: int) -> int:
    """The first epoch, counted from 0, that has reached a place of a step schedule.

    place: an epoch if it is a whole number, else a share of all epochs
    """
    if isinstance(place, int):
        return place
    # The share is taken as it was written, in decimals: 0.55 of 20 epochs is 11, but 0.55 * 20 would round up to 12.
    return math.ceil(Fraction(str(place)) * epochs)
