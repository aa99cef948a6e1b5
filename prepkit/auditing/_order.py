"""The distance of two networks after the hidden units of one were put in the order of the other's.

Each unit goes to the unit with the nearest values. Values along axes whose order is not known yet are sorted first;
then all groups are put in order again, with the others' order known, until nothing changes. The distance is that of
the networks after a reordering that was really made: it is never less than that of the best order, which is not
searched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prepkit.symmetry.acting import Action, Change
from prepkit.symmetry.spec import Fixed, Group, Product, Symmetries, Term, Units

ROUNDS = 4


@dataclass(frozen=True)
class _Place:
    """An axis of a tensor along which units stand: `outer` x units x `inner` places."""

    tensor: str
    axis: int
    outer: int
    inner: int


class Reordering:
    """Puts hidden units of one network in the order of another's.

    left: names of the groups whose units are left as they are, since they stand along axes in several parts
    """

    def __init__(self, symmetries: Symmetries) -> None:
        self._action = Action(symmetries)
        self._places: dict[str, list[_Place]] = {}
        self._groups: dict[str, Group] = {}
        self.left: list[str] = []
        self._movable_axes: set[tuple[str, int]] = set()
        for group in symmetries.movable:
            places = [_place(symmetries, group.name, *where) for where in symmetries.places_of(group.name)]
            if group.over or any(place is None for place in places):
                self.left.append(group.name)
            else:
                self._places[group.name] = [place for place in places if place is not None]
                self._groups[group.name] = group
                self._movable_axes.update((place.tensor, place.axis) for place in self._places[group.name])

    def distance(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
        """Return the distance of the first network and the reordered second.

        first, second: `[*shape]` by name, float64
        """
        identity = {name: torch.arange(group.size) for name, group in self._groups.items()}
        change: dict[str, Tensor] = {}
        for _ in range(ROUNDS):
            new = {name: self._order(name, first, second, change) for name in self._groups}
            if change and all(torch.equal(new[name], change[name]) for name in new):
                break
            change = new
        moved = self._action.on_tensors(Change({**identity, **change}), second)
        return distance(first, moved)

    def _order(
        self, name: str, first: Mapping[str, Tensor], second: Mapping[str, Tensor], known: Mapping[str, Tensor]
    ) -> Tensor:
        """Return for each unit of the first network the one of the second that is put in its place."""
        others = Change({other: order for other, order in known.items() if other != name})
        size = self._groups[name].size
        squares = np.zeros((size, size))
        for place in self._places[name]:
            own = {place.tensor: second[place.tensor]}
            there = self._action.on_tensors(others, own)[place.tensor] if known else second[place.tensor]
            a, b = (self._rows(place, tensor, size, bool(known)) for tensor in (first[place.tensor], there))
            squares += (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
        return torch.from_numpy(_assigned(squares))

    def _rows(self, place: _Place, tensor: Tensor, size: int, known: bool) -> NDArray[np.float64]:
        """Return the values of each unit, `[units, values]`, sorted along what may be in any order."""
        shape = tensor.shape
        before, after = math.prod(shape[: place.axis]), math.prod(shape[place.axis + 1 :])
        values = tensor.reshape(before, place.outer, size, place.inner, after).movedim(2, 0)
        mixed = (
            any((place.tensor, axis) in self._movable_axes for axis in range(len(shape)) if axis != place.axis)
            and not known
        )
        rows: NDArray[np.float64] = values.reshape(size, -1).numpy()
        return np.sort(rows, axis=1) if mixed else rows


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the Euclidean distance of all values of two networks in float64."""
    return math.sqrt(sum(float((first[name] - second[name]).square().sum()) for name in first))


def _place(symmetries: Symmetries, group: str, tensor: str, axis: int) -> _Place | None:
    """Return where a group stands, None unless the axis is `fixed x units x fixed` places."""
    term: Term | None = symmetries.axes[tensor][axis]
    factors = term.factors if isinstance(term, Product) else (term,)
    own = [number for number, factor in enumerate(factors) if isinstance(factor, Units) and factor.group == group]
    if len(own) != 1 or not all(isinstance(f, Fixed) for n, f in enumerate(factors) if n != own[0]):
        return None
    sizes = [factor.size for factor in factors if factor is not None]
    return _Place(tensor, axis, math.prod(sizes[: own[0]]), math.prod(sizes[own[0] + 1 :]))


def _assigned(squares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each row a column of its own with a small value: the surest rows choose first."""
    choice: NDArray[np.int64] = squares.argmin(1)
    if len(np.unique(choice)) == len(choice):
        return choice
    free = np.ones(len(squares), dtype=bool)
    for row in np.argsort(squares.min(1), kind="stable").tolist():
        choice[row] = int(np.where(free, squares[row], np.inf).argmin())
        free[choice[row]] = False
    return choice
