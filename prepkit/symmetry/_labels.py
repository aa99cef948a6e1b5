"""What a run notes of tensors: what runs along their axes, and how values scale when units do.

Each axis has a site: the power with which a value is multiplied when a unit along that axis is. Operations bind the
sites of what they read and make by equations; what leaves the inputs and the outputs alone is a symmetry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prepkit.symmetry._dims import Dim, Dims, factors

System = Literal["scale", "sign"]
BOTH: tuple[System, ...] = ("scale", "sign")
SCALE: tuple[System, ...] = ("scale",)
SIGN: tuple[System, ...] = ("sign",)


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor: the Dims that run along it, the outermost first, and its site."""

    dims: tuple[Dim, ...]
    site: int

    @property
    def size(self) -> int:
        """Number of places."""
        return math.prod(dim.size for dim in self.dims)


@dataclass(frozen=True)
class Label:
    """What is known of a tensor.

    axes:   one for each axis
    shifts: parameters that were added to each value, times a number: (name, number)
    """

    axes: tuple[Axis, ...]
    shifts: tuple[tuple[str, float], ...] = ()

    @property
    def dims(self) -> list[Dim]:
        """All Dims along all axes."""
        return [dim for axis in self.axes for dim in axis.dims]


@dataclass(frozen=True)
class Equation:
    """The sum of numbers times sites is zero, for each leaf along these sites.

    terms:   (number, site)
    shared:  only leaves that run along all of the sites count; otherwise a site counts as zero for a leaf that does
             not run along it
    along:   Dims whose leaves alone count; None for all
    """

    system: System
    terms: tuple[tuple[float, int], ...]
    shared: bool = False
    along: tuple[Dim, ...] | None = None


@dataclass
class Notes:
    """All that a run notes: Dims, the Dims along each site, equations, and shifts that must be zero."""

    dims: Dims = field(default_factory=Dims)
    sites: list[tuple[Dim, ...]] = field(default_factory=list)
    equations: list[Equation] = field(default_factory=list)
    shift_sites: dict[str, int] = field(default_factory=dict)
    shift_numbers: dict[str, float] = field(default_factory=dict)
    bound_shifts: set[str] = field(default_factory=set)

    # Axes -----------------------------------------------------------------------------------------------------

    def axis(self, dims: Iterable[Dim]) -> Axis:
        """Return an axis with a site of its own."""
        own = tuple(dims)
        self.sites.append(own)
        return Axis(own, len(self.sites) - 1)

    def fresh(self, size: int, reason: str | None = None) -> Axis:
        """Return an axis of which nothing is known yet."""
        return self.axis([] if size == 1 else [self.dims.leaf(size, reason)])

    def fresh_label(self, shape: Sequence[int], reason: str | None = None) -> Label:
        """Return a label of which nothing is known yet; with a reason, nothing along its axes may change places."""
        return Label(tuple(self.fresh(size, reason) for size in shape))

    def loose_label(self, shape: Sequence[int]) -> Label:
        """Return a label of which nothing is known yet: units along each axis may depend on the place along others."""
        label = self.fresh_label(shape)
        for axis in label.axes:
            for dim in axis.dims:
                dim.over = {other for beside in label.axes if beside is not axis for other in beside.dims}
        return label

    def like(self, axis: Axis) -> Axis:
        """Return an axis along which the same runs, with a site of its own."""
        return self.axis(axis.dims)

    def derived(self, dims: Iterable[Dim], sources: Iterable[Axis]) -> Axis:
        """Return an axis whose values are those along others: one of them itself if it is the same."""
        own, sources = tuple(dims), list(sources)
        for source in sources:
            if own and _factors(source.dims) == _factors(own):
                return source
        made = self.axis(own)
        for source in sources:
            self.equal(made, source, shared=True)
        return made

    # Equations ------------------------------------------------------------------------------------------------

    def equate(
        self,
        terms: Iterable[tuple[float, Axis | None]],
        systems: Sequence[System] = BOTH,
        shared: bool = False,
        along: Iterable[Dim] | None = None,
    ) -> None:
        """Note that a sum of numbers times sites is zero; None is an axis that is not there."""
        own = tuple((number, axis.site) for number, axis in terms if axis is not None)
        chosen = None if along is None else tuple(along)
        if own and chosen != ():
            self.equations += [Equation(system, own, shared, chosen) for system in systems]

    def equal(self, a: Axis, b: Axis | None, systems: Sequence[System] = BOTH, shared: bool = False) -> None:
        """Note that values along two axes are multiplied alike."""
        if b is None or a.site != b.site:
            self.equate([(1, a), (-1, b)], systems, shared)

    def zero(self, axes: Iterable[Axis | None], systems: Sequence[System] = BOTH) -> None:
        """Note that values along axes may not be multiplied."""
        for axis in axes:
            self.equate([(1, axis)], systems)

    # Dims -----------------------------------------------------------------------------------------------------

    def unify(self, a: Iterable[Dim], b: Iterable[Dim]) -> None:
        """Make what runs along two axes of one size the same."""
        left, right = self.dims.product(list(a)), self.dims.product(list(b))
        self.dims.unify(left, right)

    def fix(self, axes: Iterable[Axis], reason: str) -> None:
        """Say that what runs along axes may not change places."""
        self.dims.fix([dim for axis in axes for dim in axis.dims], reason)

    def mix(self, label: Label, axes: Iterable[int]) -> None:
        """Note that values along these axes of a tensor meet."""
        mixed = set(axes)
        own = [dim for index in mixed for dim in label.axes[index].dims]
        rest = [dim for index, axis in enumerate(label.axes) if index not in mixed for dim in axis.dims]
        self.dims.mix(own, rest)

    def take_apart(self, dims: Iterable[Dim], sizes: Sequence[int], reason: str) -> list[list[Dim]]:
        """Share Dims out to axes of these sizes, in order; those that do not fit may not change places."""
        left = [factor for dim in dims for factor in factors(dim)]
        shares: list[list[Dim]] = []
        pending = list(sizes)
        while pending:
            size = pending.pop(0)
            share: list[Dim] = []
            while size > 1 and left:
                first = left.pop(0)
                if first.size > size and first.size % size == 0:
                    first, rest = self.dims.split(first, size)
                    left[:0] = factors(rest)
                if size % first.size:
                    left.insert(0, first)
                    break
                share += factors(first)
                size //= first.size
            shares.append(share)
            if size > 1:
                shares += self._misfit(share, size, left, pending, reason)
        return shares

    def _misfit(self, share: list[Dim], size: int, left: list[Dim], pending: list[int], reason: str) -> list[list[Dim]]:
        """Fix Dims until they hold as many places as the axes that are taken from `pending`; return these axes."""
        self.dims.fix(share, reason)
        whole, places, taken = size, 1, list[int]()
        while places != whole:
            if places < whole and left:
                first = left.pop(0)
                self.dims.fix([first], reason)
                places *= first.size
            elif pending:
                taken.append(pending.pop(0))
                whole *= taken[-1]
            else:
                break
        share[:] = [self.dims.leaf(math.prod(dim.size for dim in share) * size, reason)]
        return [[self.dims.leaf(one, reason)] if one > 1 else [] for one in taken]


def _factors(dims: Iterable[Dim]) -> list[Dim]:
    return [factor for dim in dims for factor in factors(dim)]
