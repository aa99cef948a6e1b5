"""Symmetries as data: groups of hidden units, where they stand, and by what their values can be multiplied.

    symmetries.axes["fc.weight"]      # (None, Product((Units("P_3", 16), Fixed(4)))): four values to each unit
    symmetries.permutation_spec()     # {"conv1.weight": ("P_0", None, None, None), ...}, as git-re-basin has it
    symmetries.to_dict()              # all of it, JSON-able

Shapes: an axis of n values holds n units of a group, or its places are taken apart into factors and parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from prepkit.errors import SymmetryError
from prepkit.prep.layout import Layout
from prepkit.support.text import Brief

Kind = Literal["scale", "sign", "phase"]


@dataclass(frozen=True)
class Group:
    """Hidden units that may change places with each other.

    name:   "P_0", "P_1", ... in the order in which they appear
    size:   number of units
    over:   names of groups: at each unit of those, these units may have another order
    reason: why they stay where they are; None if they may change places
    """

    name: str
    size: int
    over: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Fixed:
    """Places that nothing moves to."""

    size: int


@dataclass(frozen=True)
class Units:
    """The units of a group, in order."""

    group: str
    size: int


@dataclass(frozen=True)
class Product:
    """Places numbered by several factors, the outermost first: unit, row, column."""

    factors: tuple[Term, ...]

    @property
    def size(self) -> int:
        """Number of places."""
        return math.prod(factor.size for factor in self.factors)


@dataclass(frozen=True)
class Sum:
    """Several parts one after another."""

    parts: tuple[Term, ...]

    @property
    def size(self) -> int:
        """Number of places."""
        return sum(part.size for part in self.parts)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first place of each part."""
        return tuple(sum(part.size for part in self.parts[:index]) for index in range(len(self.parts)))


Term = Fixed | Units | Product | Sum


@dataclass(frozen=True)
class Scaling:
    """What the values of each unit can be multiplied by, or have added, without a change of the function.

    name:   "S_0", "S_1", ...
    kind:   "scale": any positive number; "sign": -1; "phase": half a period more of a sine, which is -1 behind it
    group:  the units, each of which has its own number
    powers: by tensor and axis, the power with which the number multiplies the values of the unit
    shifts: by tensor, what is added for each half period; empty but for "phase"
    """

    name: str
    kind: Kind
    group: str
    powers: Mapping[tuple[str, int], int]
    shifts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Fixture:
    """Units along an axis of a tensor that stay where they are, and why."""

    tensor: str
    axis: int
    size: int
    reason: str


@dataclass(frozen=True, eq=False, repr=False)
class Symmetries(Brief):
    """All that is known of the symmetries of one network.

    layout:   the tensors, as they lie in a PRep
    groups:   units that change places together, in the order of the tensors
    axes:     for each tensor of the state dict, one term an axis; None where nothing along the axis moves
    scalings: what values can be multiplied by
    still:    a number for each axis along which nothing moves; axes that hold the same inputs or outputs share it
    fixtures: axes along which something stays that is no input, output or position, with the reason
    proof:    largest relative error of the outputs, in float64, under random changes
    """

    layout: Layout
    groups: tuple[Group, ...]
    axes: Mapping[str, tuple[Term | None, ...]]
    scalings: tuple[Scaling, ...]
    still: Mapping[tuple[str, int], int]
    fixtures: tuple[Fixture, ...]
    proof: float

    @cached_property
    def group(self) -> dict[str, Group]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    @property
    def movable(self) -> tuple[Group, ...]:
        """Groups whose units may change places."""
        return tuple(group for group in self.groups if group.reason is None)

    def places_of(self, group: str) -> list[tuple[str, int]]:
        """Return the tensors and axes along which a group stands."""
        return [
            (name, index)
            for name, terms in self.axes.items()
            for index, term in enumerate(terms)
            if term is not None and any(one.group == group for one in units_in(term))
        ]

    def block(self, group: str, tensor: str, axis: int) -> int:
        """Return how many consecutive values of an axis belong to one unit of a group; 1 but for flattened maps."""
        term = self.axes[tensor][axis]
        found = None if term is None else next((stride for one, stride in _strides(term) if one.group == group), None)
        if found is None:
            raise SymmetryError(f"{group} does not stand along axis {axis} of '{tensor}'.")
        return found

    def permutation_spec(self) -> dict[str, tuple[Any, ...]]:
        """Return the axes as git-re-basin writes them: one name or None for each axis.

        An axis that is more than the units of one group is a dict as in `to_dict`.
        """
        return {
            name: tuple(term.group if isinstance(term, Units) else term_to_dict(term) for term in terms)
            for name, terms in self.axes.items()
        }

    def integer_spec(self) -> dict[str, tuple[int, ...]]:
        """Return the axes as universal neural functionals read them: one number a group, and one a fixed axis.

        Numbers of groups start at 0, and those of fixed axes are negative: the same where the same inputs or outputs
        stand. These functionals know of no fixed axis, and are equivariant to reordering these too.
        raises SymmetryError for an axis that is more than the units of one group, which such numbers cannot say
        """
        numbers = {group.name: number for number, group in enumerate(self.movable)}
        spec = {}
        for name, terms in self.axes.items():
            row = []
            for index, term in enumerate(terms):
                if term is None:
                    row.append(-1 - self.still[name, index])
                elif isinstance(term, Units) and term.group in numbers and not self.group[term.group].over:
                    row.append(numbers[term.group])
                else:
                    raise SymmetryError(
                        f"axis {index} of '{name}' is {term_text(term)}, which a specification with one number an axis "
                        "cannot say; use permutation_spec or to_dict."
                    )
            spec[name] = tuple(row)
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-able data."""
        return {
            "layout_sha256": self.layout.sha256,
            "groups": [
                {"name": group.name, "size": group.size, "over": list(group.over), "reason": group.reason}
                for group in self.groups
            ],
            "axes": {name: [term_to_dict(term) for term in terms] for name, terms in self.axes.items()},
            "scalings": [
                {
                    "name": scaling.name,
                    "kind": scaling.kind,
                    "group": scaling.group,
                    "powers": [[name, axis, power] for (name, axis), power in scaling.powers.items()],
                    "shifts": dict(scaling.shifts),
                }
                for scaling in self.scalings
            ],
            "fixed": [vars(fixture) for fixture in self.fixtures],
            "proof": self.proof,
        }


def units_in(term: Term) -> Iterator[Units]:
    """Yield the units in a term, in order."""
    if isinstance(term, Units):
        yield term
    elif isinstance(term, Product | Sum):
        for part in term.factors if isinstance(term, Product) else term.parts:
            yield from units_in(part)


def _strides(term: Term, stride: int = 1) -> Iterator[tuple[Units, int]]:
    if isinstance(term, Units):
        yield term, stride
    elif isinstance(term, Sum):
        for part in term.parts:
            yield from _strides(part, stride)
    elif isinstance(term, Product):
        for index, factor in enumerate(term.factors):
            yield from _strides(factor, stride * math.prod(one.size for one in term.factors[index + 1 :]))


def term_to_dict(term: Term | None) -> Any:
    """Return a term as JSON-able data: null, "P_0", a number of fixed places, or an object with one key."""
    if term is None:
        return None
    if isinstance(term, Units):
        return term.group
    if isinstance(term, Fixed):
        return term.size
    key, own = ("product", term.factors) if isinstance(term, Product) else ("sum", term.parts)
    return {key: [term_to_dict(part) for part in own]}


def term_text(term: Term | None) -> str:
    """Return a term as people read it: `P_0`, `P_1 x 16` or `P_1 + P_2`."""
    if term is None:
        return "-"
    if isinstance(term, Units):
        return term.group
    if isinstance(term, Fixed):
        return str(term.size)
    if isinstance(term, Sum):
        return " + ".join(map(term_text, term.parts))
    return " x ".join(f"({term_text(one)})" if isinstance(one, Sum) else term_text(one) for one in term.factors)
