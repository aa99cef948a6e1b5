"""Where the units of each group stand, and in which order groups are dealt with.

Shapes: N instances, T units of a group (at all units of those that it is over), K values of a unit, V values of a
tensor.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prepkit.symmetry.acting import Action
from prepkit.symmetry.spec import Scaling, Symmetries

LEAST_VALUES = 2  # of each unit: fewer say too little to tell units apart


@dataclass(frozen=True, eq=False)
class Site:
    """The units of one group along one axis of a tensor.

    places: the flat places of each unit's values in the tensor, `[T, K]`
    beside: groups whose units stand along other axes at these places
    """

    tensor: str
    axis: int
    places: Tensor
    beside: frozenset[str]

    def values(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the values of each unit `[N, T, K]` of tensors `[N, *shape]`."""
        flat_NV = tensors[self.tensor].flatten(1)
        return flat_NV[:, self.places.flatten()].view(len(flat_NV), *self.places.shape)


class Standing:
    """For each group the sites of its units in parameters, and all tensors that change with it."""

    def __init__(self, symmetries: Symmetries, action: Action | None = None) -> None:
        self.symmetries = symmetries
        self.action = Action(symmetries) if action is None else action
        self.sites: dict[str, list[Site]] = {group.name: [] for group in symmetries.groups}
        self.tensors: dict[str, list[str]] = {group.name: [] for group in symmetries.groups}
        for slot in symmetries.layout:
            entries = self.action.places_of_units(slot.name)
            covered = [torch.zeros(slot.size, dtype=torch.bool) for _ in entries]
            for own, (_, _, places) in zip(covered, entries, strict=True):
                own[places.flatten()] = True
            for index, (group, axis, places) in enumerate(entries):
                flat = places.flatten()
                others = (number for number in range(len(entries)) if number != index and covered[number][flat].any())
                beside = frozenset(entries[number][0] for number in others)
                if slot.name not in self.tensors[group]:
                    self.tensors[group].append(slot.name)
                if slot.kind == "parameter":  # running statistics follow their units, and say little about them
                    self.sites[group].append(Site(slot.name, axis, places, beside))

    @cached_property
    def names(self) -> list[str]:
        """The groups that move or change sign, each after those that tell most about its units, the input's first."""
        changing = {group.name for group in self.symmetries.movable} | {one.group for one in self.signs}
        left = [group.name for group in self.symmetries.groups if group.name in changing and self.sites[group.name]]
        found: list[str] = []
        while left:
            ready = [name for name in left if not set(self.symmetries.group[name].over) & set(left)] or left
            told = [name for name in ready if sum(site.places.shape[1] for site in self.told(name, left)) > 1]
            found.append((told or ready)[0])
            left.remove(found[-1])
        return found

    def told(self, name: str, unknown: Collection[str]) -> list[Site]:
        """Return the sites of a group beside which no unknown group stands; none if they say too little."""
        own = [site for site in self.sites[name] if not site.beside & set(unknown)]
        return own if sum(site.places.shape[1] for site in own) >= LEAST_VALUES else []

    @cached_property
    def signs(self) -> list[Scaling]:
        """Signs and phases of units."""
        return [scaling for scaling in self.symmetries.scalings if scaling.kind in ("sign", "phase")]

    def signs_of(self, name: str) -> list[Scaling]:
        """Return the signs and phases of a group's units."""
        return [scaling for scaling in self.signs if scaling.group == name]

    def is_movable(self, name: str) -> bool:
        """Whether the units of a group may change places."""
        return self.symmetries.group[name].reason is None
