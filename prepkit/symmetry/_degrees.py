"""Solving the equations of a run: with which powers the tensors' values can be multiplied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from math import gcd, lcm
from typing import Any

from prepkit.symmetry._dims import Dim, leaves
from prepkit.symmetry._labels import Equation, Notes, System

Terms = dict[int, Fraction]


class Sites:
    """The leaves along each site, and the equations that hold for each leaf."""

    def __init__(self, notes: Notes) -> None:
        self.leaves = [frozenset(leaf for leaf in leaves(dims) if leaf.reason is None) for dims in notes.sites]
        self.equations: dict[tuple[System, Dim], list[Equation]] = defaultdict(list)
        for equation in notes.equations:
            own = [self.leaves[site] for _, site in equation.terms]
            found = frozenset.intersection(*own) if equation.shared else frozenset.union(*own)
            if equation.along is not None:
                found &= frozenset(leaves(equation.along))
            for leaf in found:
                self.equations[equation.system, leaf].append(equation)

    def powers(
        self, system: System, leaf: Dim, wanted: Sequence[int], last: Sequence[int] = ()
    ) -> list[dict[int, int]]:
        """Return a basis of the powers of `wanted` sites, those that are not zero, in whole numbers.

        last: sites that stay free as far as possible, so that each solution has few of them
        """
        equalities, others = _Classes(), list[Terms]()
        for equation in self.equations[system, leaf]:
            terms = [(Fraction(n).limit_denominator(64), s) for n, s in equation.terms if leaf in self.leaves[s]]
            if len(terms) == 1:
                equalities.join(terms[0][1], ZERO)
            elif len(terms) == 2 and (terms[0][0] == -terms[1][0] or (system == "sign" and _odd(terms))):
                equalities.join(terms[0][1], terms[1][1])
            else:
                others.append(_summed(terms))
        rows = [_summed((number, equalities.of(site)) for site, number in terms.items()) for terms in others]
        for row in rows:
            row.pop(equalities.of(ZERO), None)
        tail = {equalities.of(site) for site in last}
        own = {site: equalities.of(site) for site in wanted if leaf in self.leaves[site]}
        columns = sorted({*own.values(), *(site for row in rows for site in row)} - {equalities.of(ZERO)})
        columns.sort(key=lambda site: (site in own.values(), site in tail, -site))
        modulus = 2 if system == "sign" else None
        found = []
        for solution in _null_space([row for row in rows if row], columns, modulus):
            powers = {site: solution[kind] for site, kind in own.items() if solution.get(kind)}
            if powers:
                found.append(_whole(powers))
        return found


ZERO = -1


class _Classes:
    """Sites that are equal to each other, or to ZERO."""

    def __init__(self) -> None:
        self.links: dict[int, int] = {}

    def of(self, site: int) -> int:
        while (link := self.links.get(site)) is not None:
            site = link
        return site

    def join(self, a: int, b: int) -> None:
        a, b = self.of(a), self.of(b)
        if a != b:
            self.links[max(a, b)] = min(a, b)


def _odd(terms: Iterable[tuple[Fraction, int]]) -> bool:
    return all(number.denominator == 1 and number % 2 for number, _ in terms)


def _summed(terms: Iterable[tuple[Fraction, int]]) -> Terms:
    found: Terms = defaultdict(Fraction)
    for number, site in terms:
        found[site] += number
    return dict(found)


def rank(vectors: Sequence[Mapping[Any, float]], modulus: int | None) -> int:
    """Return how many of some vectors, by component, are independent of each other."""
    keys = {key: number for number, key in enumerate({key: None for vector in vectors for key in vector})}
    rows = [{keys[key]: Fraction(bool(n) if modulus else n) for key, n in vector.items() if n} for vector in vectors]
    return len(_reduced(rows, [*keys.values()], modulus))


def _null_space(rows: Sequence[Terms], columns: Sequence[int], modulus: int | None) -> list[Terms]:
    """Return a basis of what solves all equations; columns that come late stay free where there is a choice."""
    reduced = _reduced(rows, columns, modulus)
    basis = []
    for free in columns:
        if free not in reduced:
            solution = {column: -pivot[free] for column, pivot in reduced.items() if free in pivot}
            basis.append(_clean({free: Fraction(1), **solution}, modulus))
    return basis


def _reduced(rows: Sequence[Terms], columns: Sequence[int], modulus: int | None) -> dict[int, Terms]:
    """Return equations that are each solved for one column, by that column."""
    reduced: dict[int, Terms] = {}
    for row in rows:
        own = _clean(row, modulus)
        for column, pivot in reduced.items():
            if column in own:
                own = _added(own, pivot, -own[column], modulus)
        first = next((column for column in columns if column in own), None)
        if first is None:
            continue
        own = _clean({column: number / own[first] for column, number in own.items()}, modulus)
        for column, pivot in reduced.items():
            if first in pivot:
                reduced[column] = _added(pivot, own, -pivot[first], modulus)
        reduced[first] = own
    return reduced


def _added(a: Mapping[int, Fraction], b: Mapping[int, Fraction], times: Fraction, modulus: int | None) -> Terms:
    return _clean(_summed([*((n, s) for s, n in a.items()), *((times * n, s) for s, n in b.items())]), modulus)


def _clean(terms: Mapping[int, Fraction], modulus: int | None) -> Terms:
    if modulus is not None:
        terms = {site: number % modulus for site, number in terms.items()}
    return {site: number for site, number in terms.items() if number}


def _whole(powers: Mapping[int, Fraction]) -> dict[int, int]:
    """Return powers times the least number that makes them whole, the first of them positive."""
    times = Fraction(lcm(*(power.denominator for power in powers.values())))
    times /= gcd(*(int(power * times) for power in powers.values())) or 1
    if next(iter(powers.values())) < 0:
        times = -times
    return {site: int(power * times) for site, power in powers.items()}
