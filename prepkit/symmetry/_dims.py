"""Dims: what runs along the axes of tensors, as a structure that is refined while a network runs.

A Dim is a leaf, the product of others (a flattened map: channel, row, column), the sum of others (a concatenation), or
a choice of others by the place along another Dim (queries, keys and values that one matrix makes). Two Dims that an
operation reads side by side are the same from then on. A leaf whose units may not change places has a reason.
A leaf may also have others that it is `over`: its units may then have another order at each place along those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

Kind = Literal["leaf", "product", "sum", "choice"]


class Dim:
    """What runs along an axis, or along a part or a factor of it.

    size:   number of places
    kind:   "leaf"; "product" of `parts`, the outermost first; "sum" of `parts`, one after another; or "choice" of one
            of `parts` by the place along `on`, whose parts are `on_parts`
    over:   Dims that the order of a leaf's units may depend on
    reason: why the units of a leaf may not change places; None if they may
    link:   the Dim that this one turned out to be
    """

    __slots__ = ("kind", "link", "number", "on", "on_parts", "over", "parts", "reason", "size")

    def __init__(self, size: int, number: int, reason: str | None = None) -> None:
        self.size, self.number, self.reason = size, number, reason
        self.kind: Kind = "leaf"
        self.parts: list[Dim] = []
        self.on: Dim | None = None
        self.on_parts: list[Dim] = []
        self.over: set[Dim] = set()
        self.link: Dim | None = None


def root(dim: Dim) -> Dim:
    """Return the Dim that this one is by now."""
    while dim.link is not None:
        dim = dim.link
    return dim


def factors(dim: Dim) -> list[Dim]:
    """Return the factors of a Dim, the outermost first; one of size 1 has none."""
    dim = root(dim)
    if dim.size == 1:
        return []
    return [one for part in dim.parts for one in factors(part)] if dim.kind == "product" else [dim]


def parts(dim: Dim) -> list[Dim]:
    """Return the smallest parts of a sum in order; a Dim of another kind is its only part."""
    dim = root(dim)
    return [one for part in dim.parts for one in parts(part)] if dim.kind == "sum" else [dim]


def below(dim: Dim) -> Iterator[Dim]:
    """Yield a Dim and all that it is made of."""
    dim = root(dim)
    yield dim
    for part in dim.parts:
        yield from below(part)


def leaves(dims: Iterable[Dim]) -> list[Dim]:
    """Return the leaves that Dims are made of, each once, without those of size 1."""
    found = {one: None for dim in dims for one in below(dim) if one.kind == "leaf" and one.size > 1}
    return list(found)


def overs(leaf: Dim) -> set[Dim]:
    """Return what the order of a leaf's units may depend on, by what those Dims are by now."""
    return {factor for other in leaf.over for factor in factors(other)} - {root(leaf)}


class Dims:
    """All Dims of a run; its methods refine them."""

    def __init__(self) -> None:
        self.all: list[Dim] = []

    # Making ---------------------------------------------------------------------------------------------------

    def leaf(self, size: int, reason: str | None = None) -> Dim:
        """Make a leaf."""
        self.all.append(Dim(size, len(self.all), reason))
        return self.all[-1]

    def product(self, of: Sequence[Dim]) -> Dim:
        """Return the Dim of an axis along which several run; a single one is itself."""
        own = [factor for dim in of for factor in factors(dim)]
        if len(own) == 1:
            return own[0]
        made = self.leaf(math.prod(dim.size for dim in own))
        if own:
            made.kind, made.parts = "product", own
        return made

    def sum(self, of: Sequence[Dim]) -> Dim:
        """Return the Dim of an axis that several make up one after another."""
        own = [dim for dim in of if root(dim).size]
        if len(own) == 1:
            return root(own[0])
        made = self.leaf(sum(dim.size for dim in own))
        made.kind, made.parts = "sum", own
        return made

    def choice(self, on: Dim, of: Sequence[Dim]) -> Dim:
        """Return what is one of several Dims of one size by the place along `on`, which has as many parts."""
        if len({root(dim) for dim in of}) == 1:
            return root(of[0])
        made = self.leaf(of[0].size)
        made.kind, made.parts, made.on, made.on_parts = "choice", list(of), on, parts(on)
        return made

    # Looking --------------------------------------------------------------------------------------------------

    def given(self, dim: Dim, on: Dim, index: int) -> Dim:
        """Return what a Dim is along part `index` of `on`."""
        dim = root(dim)
        if dim.kind == "choice" and dim.on is not None and root(dim.on) is root(on):
            return self.choices(dim)[index]
        if dim.kind in ("product", "sum"):
            own = [self.given(part, on, index) for part in dim.parts]
            if all(root(a) is root(b) for a, b in zip(own, dim.parts, strict=True)):
                return dim
            return self.product(own) if dim.kind == "product" else self.sum(own)
        return dim

    def choices(self, dim: Dim) -> list[Dim]:
        """Return the Dims of a choice, one for each smallest part of what it is on."""
        found = []
        for part, own in zip(dim.on_parts, dim.parts, strict=True):
            inner = parts(part)
            found += [own] if len(inner) == 1 else [self.given(own, part, index) for index in range(len(inner))]
        return found

    # Refining -------------------------------------------------------------------------------------------------

    def fix(self, dims: Iterable[Dim], reason: str) -> None:
        """Say that the units of Dims may not change places."""
        for leaf in leaves(dims):
            leaf.reason = leaf.reason or reason

    def split(self, dim: Dim, outer: int) -> list[Dim]:
        """Make a Dim the product of `outer` places and the rest."""
        dim = root(dim)
        reason = dim.reason if dim.kind == "leaf" else None
        first, second = self.leaf(outer, reason), self.leaf(dim.size // outer, reason)
        if dim.kind == "leaf":
            dim.kind, dim.parts = "product", [first, second]
            first.over, second.over = {*dim.over, second}, {*dim.over, first}
        else:
            first.over, second.over = {second}, {first}
            self.unify(self.product([first, second]), dim)
        return [first, second]

    def cut(self, dim: Dim, place: int) -> None:
        """Make a Dim a sum that has an end of a part at `place`."""
        dim = root(dim)
        if not 0 < place < dim.size:
            return
        if dim.kind == "leaf":
            self._cut_leaf(dim, place)
        elif dim.kind == "sum":
            start = 0
            for part in parts(dim):
                self.cut(part, place - start)
                start += part.size
        elif dim.kind == "choice":
            for own in dim.parts:
                self.cut(own, place)
            halves = [[self._side(own, place, side) for own in dim.parts] for side in (0, 1)]
            on, on_parts = dim.on, dim.on_parts
            dim.kind, dim.parts, dim.on, dim.on_parts = "sum", [], None, []
            for half in halves:
                made = self.leaf(half[0].size)
                made.kind, made.parts, made.on, made.on_parts = "choice", half, on, on_parts
                dim.parts.append(made)
        else:
            self._cut_product(dim, place)

    def _side(self, dim: Dim, place: int, side: int) -> Dim:
        """Return what lies before or behind a place at which a Dim was cut."""
        before: list[Dim] = []
        behind: list[Dim] = []
        start = 0
        for part in parts(dim):
            (before if start < place else behind).append(part)
            start += part.size
        return self.sum(behind if side else before)

    def _cut_leaf(self, dim: Dim, place: int) -> None:
        pieces = [self.leaf(size, dim.reason) for size in (place, dim.size - place)]
        for piece in pieces:
            piece.over = {*dim.over}
        depending = [other for other in self.all if other.link is None and other.kind == "leaf" and dim in overs(other)]
        dim.kind, dim.parts = "sum", pieces
        for other in depending:
            self._choose(other, dim)
            for piece, own in zip(pieces, other.parts, strict=True):
                if other in piece.over:
                    piece.over = {*piece.over, own} - {other}
        for other in depending:
            for index, own in enumerate(other.parts):
                own.over = {self.given(one, dim, index) for one in own.over}

    def _choose(self, leaf: Dim, on: Dim) -> None:
        """Make a leaf that is over a sum the choice of one leaf for each part of it."""
        others = {other for other in overs(leaf) if other is not root(on)}
        own_parts = parts(on)
        made = [self.leaf(leaf.size, leaf.reason) for _ in own_parts]
        for part, own in zip(own_parts, made, strict=True):
            own.over = {self.given(other, on, own_parts.index(part)) for other in others} | {part}
        leaf.kind, leaf.parts, leaf.on, leaf.on_parts = "choice", list(made), on, own_parts

    def _cut_product(self, dim: Dim, place: int) -> None:
        first, *rest = factors(dim)
        inner = math.prod(factor.size for factor in rest)
        outer = place // inner
        self.cut(first, outer)
        if place % inner:
            self.cut(first, outer + 1)
        self._as_sum(dim)
        self.cut(dim, place)

    def _as_sum(self, dim: Dim) -> None:
        """Make a product whose outermost factor is a sum the sum of one product for each part."""
        first, *rest = factors(dim)
        dim.parts = [
            self.product([part, *(self.given(factor, first, index) for factor in rest)])
            for index, part in enumerate(parts(first))
        ]
        dim.kind = "sum"

    def unify(self, a: Dim, b: Dim) -> None:
        """Make two Dims of one size the same."""
        a, b = root(a), root(b)
        if a is b or a.size == b.size == 1:
            return
        if a.size != b.size:
            raise ValueError(f"{a.size} and {b.size} places cannot be the same")
        if a.kind != "leaf" and (b.kind == "leaf" or _ORDER[a.kind] > _ORDER[b.kind]):
            a, b = b, a
        if a.kind == "leaf" and a in below(b):  # it is one of several that turn out to be the same
            self.merge(b)
            self.unify(a, b)
        elif a.kind == "leaf":
            self._unify_leaf(a, b)
        elif b.kind == "sum":  # a is a sum, product or choice
            self._unify_sums(a, b)
        elif a.kind == "product" and b.kind == "product":
            self._unify_products(a, b)
        elif a.kind == "product":
            self._unify_with_choice(a, b)
        elif a.on is not None and b.on is not None and root(a.on) is root(b.on):
            pairs = list(zip(self.choices(a), self.choices(b), strict=True))
            a.link = b
            for own, other in pairs:
                self.unify(own, other)
        else:
            self.merge(a)
            self.merge(b)
            self.unify(a, b)

    def _unify_leaf(self, leaf: Dim, other: Dim) -> None:
        allowed = overs(leaf)
        own = overs(other) if other.kind == "leaf" else set()
        leaf.link = other
        if leaf.reason is not None:
            self.fix([other], leaf.reason)
        if other.kind == "leaf":
            other.over = {one for one in own if one in allowed} - {other}
        else:
            self.restrict([other], allowed | set(below(other)))

    def _unify_sums(self, a: Dim, b: Dim) -> None:
        for one, other in ((a, b), (b, a), (a, b)):
            place = 0
            for part in parts(other):
                place += part.size
                self.cut(one, place)
        a, b = root(a), root(b)
        if a is b:
            return
        pairs = list(zip(parts(a), parts(b), strict=True))
        if a.kind == b.kind == "sum":
            a.link = b
        for own, other in pairs:
            self.unify(own, other)

    def _unify_products(self, a: Dim, b: Dim) -> None:
        aligned = self.aligned(factors(a), factors(b))
        if aligned is None:
            self.fix([a, b], f"its {a.size} units are taken apart in two ways that do not fit each other")
            return
        if root(a) is not root(b):
            a.link = b
        for own, other in zip(*aligned, strict=True):
            self.unify(own, other)

    def _unify_with_choice(self, product: Dim, choice: Dim) -> None:
        on = choice.on if choice.on is not None else choice
        for factor in factors(product):
            if factor.kind == "leaf" and root(on) in overs(factor):
                self._choose(factor, on)
        pairs = [(self.given(product, on, index), own) for index, own in enumerate(self.choices(choice))]
        choice.link = product
        for own, other in pairs:
            self.unify(own, other)

    def aligned(self, a: Sequence[Dim], b: Sequence[Dim]) -> tuple[list[Dim], list[Dim]] | None:
        """Split factors until two lists have the same sizes in order; None if that is not possible."""
        left, right = [*a], [*b]
        found: tuple[list[Dim], list[Dim]] = ([], [])
        while left and right:
            one, other = root(left[0]), root(right[0])
            if one.kind == "product":
                left[:1] = factors(one)
            elif other.kind == "product":
                right[:1] = factors(other)
            elif one.size == other.size:
                found[0].append(left.pop(0))
                found[1].append(right.pop(0))
            elif one.size > other.size and one.size % other.size == 0:
                left[:1] = self.split(one, other.size)
            elif other.size > one.size and other.size % one.size == 0:
                right[:1] = self.split(other, one.size)
            else:
                return None
        return None if left or right else found

    def merge(self, dim: Dim) -> None:
        """Make all Dims of a choice the same, so that it depends on nothing."""
        dim = root(dim)
        if dim.kind == "choice":
            first, *rest = dim.parts
            dim.kind, dim.parts, dim.on, dim.on_parts = "leaf", [], None, []
            dim.over = set()
            for other in rest:
                self.unify(first, other)
            self.unify(dim, first)

    # Dependence -----------------------------------------------------------------------------------------------

    def restrict(self, dims: Iterable[Dim], allowed: set[Dim]) -> None:
        """Let the order of units depend on these Dims alone."""
        allowed = {root(dim) for dim in allowed}
        for dim in dims:
            for one in list(below(dim)):
                if root(one) is not one:
                    continue
                if one.kind == "choice" and one.on is not None and not self._is_among(one.on, allowed):
                    self.merge(one)
                elif one.kind == "leaf":
                    one.over = {other for other in overs(one) if self._is_among(other, allowed)}

    def _is_among(self, dim: Dim, allowed: set[Dim]) -> bool:
        dim = root(dim)
        return dim in allowed or (
            dim.kind in ("product", "choice") and all(self._is_among(part, allowed) for part in dim.parts)
        )

    def prune(self, dims: Iterable[Dim]) -> None:
        """Let the units along a tensor's axes depend on what runs along its axes alone."""
        own = list(dims)
        self.restrict(own, {one for dim in own for one in below(dim)})

    def mix(self, mixed: Iterable[Dim], others: Iterable[Dim]) -> None:
        """Note that values along some axes meet: no order along the others depends on the place there."""
        own = {one for dim in mixed for one in below(dim)}
        rest = list(others)
        beside = {one for leaf in leaves(rest) for one in overs(leaf)}
        self.restrict(rest, ({one for dim in rest for one in below(dim)} | beside) - own)


_ORDER = {"leaf": 0, "product": 1, "choice": 2, "sum": 3}
