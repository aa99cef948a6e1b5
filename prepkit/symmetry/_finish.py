"""From the notes of a run to Symmetries: names for groups, terms for axes, and what values can be multiplied by."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prepkit.prep.layout import Layout
from prepkit.symmetry._degrees import Sites, rank
from prepkit.symmetry._dims import Dim, below, factors, leaves, overs, parts, root
from prepkit.symmetry._labels import Label, Notes
from prepkit.symmetry._trace import INPUT, OUTPUT, Run
from prepkit.symmetry.spec import Fixed, Fixture, Group, Product, Scaling, Sum, Symmetries, Term, Units

UNUSED = "the run never read it"
ALONE = "it is taken by itself, apart from the units beside it"
# Nobody expects these to move; positions are named where nothing beside them moves.
PLAIN = (INPUT, OUTPUT, "it is a position in a kernel", "its rows are looked up by number")
POSITION = "it is a position in a picture"


def finish(run: Run, layout: Layout) -> Symmetries:
    """Return the symmetries that a run allows, of which nothing is proved yet."""
    for name, label in run.state.items():
        if name not in run.used:
            run.notes.fix(label.axes, UNUSED)
    labels = {name: run.state[name] for name in [slot.name for slot in layout] + [alias for alias, _ in layout.ties]}
    _settle(run.notes, labels.values())
    names = _named(labels.values())
    groups = tuple(
        Group(name, leaf.size, tuple(names[other] for other in _ordered(leaf)), leaf.reason)
        for leaf, name in names.items()
    )
    axes = {name: tuple(_axis(run.notes, axis.dims, names) for axis in label.axes) for name, label in labels.items()}
    return Symmetries(
        layout,
        groups,
        axes,
        _scalings(run.notes, labels, names, layout),
        _still(labels, axes),
        _fixtures(labels, layout),
        math.nan,
    )


# Dependence ---------------------------------------------------------------------------------------------------


def _settle(notes: Notes, labels: Iterable[Label]) -> None:
    """Let units depend only on units that stand beside them in every tensor, in one direction."""
    own = list(labels)
    for label in own:
        for axis in label.axes:
            _settle_choices(notes, [factor for dim in axis.dims for factor in factors(dim)], set())
    for label in own:
        notes.dims.prune(label.dims)
    found = leaves(dim for label in own for dim in label.dims)
    for leaf in found:
        leaf.over = {other for other in overs(leaf) if other.kind == "leaf"}
    for leaf in found:
        leaf.over = {other for other in leaf.over if leaf not in other.over or other.number < leaf.number}
    for leaf in found:
        if _reaches(leaf, leaf):
            leaf.over = {other for other in leaf.over if other.number < leaf.number}
    changed = True
    while changed:  # what stands beside units must be found where the term is taken apart
        changed = False
        for label in own:
            for axis in label.axes:
                beside = {
                    one for other in label.axes if other is not axis for dim in other.dims for one in _direct(dim)
                }
                changed |= _keep_found(notes, list(axis.dims), beside)


def _settle_choices(notes: Notes, own: list[Dim], before: set[Dim]) -> None:
    """Merge choices by a place that does not stand along the same axis before them."""
    for factor in own:
        if factor.kind == "choice" and (factor.on is None or root(factor.on) not in before):
            notes.dims.merge(factor)
        for part in list(root(factor).parts):
            _settle_choices(notes, factors(part), before)
        before = {*before, *below(factor)}


def _reaches(start: Dim, goal: Dim) -> bool:
    seen: set[Dim] = set()
    pending = list(start.over)
    while pending:
        leaf = pending.pop()
        if leaf is goal:
            return True
        if leaf not in seen:
            seen.add(leaf)
            pending += leaf.over
    return False


def _direct(dim: Dim) -> list[Dim]:
    return [factor for factor in factors(dim) if factor.kind == "leaf"]


def _keep_found(notes: Notes, dims: list[Dim], beside: set[Dim]) -> bool:
    own = [factor for dim in dims for factor in factors(dim)]
    here = beside | {factor for factor in own if factor.kind == "leaf"}
    changed = False
    for factor in own:
        if factor.kind == "leaf" and not factor.over <= here:
            factor.over = factor.over & here
            changed = True
        elif factor.kind == "sum":
            for part in factor.parts:
                changed |= _keep_found(notes, [part], here)
    return changed


def _ordered(leaf: Dim) -> list[Dim]:
    return sorted(leaf.over, key=lambda other: other.number)


# Names and terms ----------------------------------------------------------------------------------------------


def _named(labels: Iterable[Label]) -> dict[Dim, str]:
    """Return names of the leaves that move, and of those at which others may have another order."""
    found = leaves(dim for label in labels for dim in label.dims)
    needed = {other for leaf in found if leaf.reason is None for other in leaf.over}
    named = [leaf for leaf in found if leaf.reason is None or leaf in needed]
    return {leaf: f"P_{number}" for number, leaf in enumerate(named)}


def _axis(notes: Notes, dims: Sequence[Dim], names: Mapping[Dim, str]) -> Term | None:
    term = _term(notes, [factor for dim in dims for factor in factors(dim)], names)
    return None if isinstance(term, Fixed) else term


def _term(notes: Notes, own: list[Dim], names: Mapping[Dim, str]) -> Term:
    if not own:
        return Fixed(1)
    first, *rest = own
    if first.kind == "sum":
        if any(one.kind == "choice" for dim in rest for one in below(dim)):
            rows = [
                [part, *(factor for dim in rest for factor in factors(notes.dims.given(dim, first, index)))]
                for index, part in enumerate(parts(first))
            ]
            return _sum([_term(notes, [one for one in row if one.size > 1], names) for row in rows])
        head: Term = _sum([_term(notes, factors(part), names) for part in parts(first)])
    else:
        head = Units(names[first], first.size) if first in names else Fixed(first.size)
    if not rest:
        return head
    tail = _term(notes, rest, names)
    if isinstance(head, Fixed) and isinstance(tail, Fixed):
        return Fixed(head.size * tail.size)
    flat = [one for part in (head, tail) for one in (part.factors if isinstance(part, Product) else (part,))]
    return Product(tuple(flat))


def _sum(own: list[Term]) -> Term:
    """Return several parts as one term; fixed neighbours become one."""
    flat: list[Term] = []
    for term in (one for part in own for one in (part.parts if isinstance(part, Sum) else (part,))):
        if isinstance(term, Fixed) and flat and isinstance(flat[-1], Fixed):
            flat[-1] = Fixed(flat[-1].size + term.size)
        else:
            flat.append(term)
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def _still(labels: Mapping[str, Label], axes: Mapping[str, tuple[Term | None, ...]]) -> dict[tuple[str, int], int]:
    """Return a number for each axis along which nothing moves, by what stands along it."""
    numbers: dict[object, int] = {}
    found = {}
    for name, label in labels.items():
        for index, axis in enumerate(label.axes):
            if axes[name][index] is None:
                key = tuple(leaves(axis.dims)) or (name, index)
                found[name, index] = numbers.setdefault(key, len(numbers))
    return found


def _fixtures(labels: Mapping[str, Label], layout: Layout) -> tuple[Fixture, ...]:
    """Return what stays, but for inputs, outputs and positions: each once, at the first axis along which it stands."""
    found: dict[Dim, Fixture] = {}
    for slot in layout:
        for index, axis in enumerate(labels[slot.name].axes):
            along = leaves(axis.dims)
            moves = any(leaf.reason is None for leaf in along)
            for leaf in along:
                plain = (*PLAIN, POSITION) if moves else PLAIN
                if leaf.reason is not None and leaf.reason not in plain:
                    found.setdefault(leaf, Fixture(slot.name, index, leaf.size, leaf.reason))
            own = [factor for dim in axis.dims for factor in factors(dim)]
            for one in parts(own[0]) if len(own) == 1 else ():
                if one.size == 1:
                    found.setdefault(one, Fixture(slot.name, index, 1, ALONE))
    return tuple(found.values())


# Scalings -----------------------------------------------------------------------------------------------------


def _scalings(
    notes: Notes, labels: Mapping[str, Label], names: Mapping[Dim, str], layout: Layout
) -> tuple[Scaling, ...]:
    own = {slot.name: labels[slot.name] for slot in layout}
    places = {axis.site: (name, index) for name, label in own.items() for index, axis in enumerate(label.axes)}
    shifts = {}
    for name, site in notes.shift_sites.items():
        if name in notes.bound_shifts or name not in notes.shift_numbers or name not in own:
            notes.equate([(1, _site(site))], ("sign",))
        else:
            shifts[site] = name
    sites = Sites(notes)
    found: list[Any] = []
    for leaf in names:
        if leaf.reason is not None:
            continue
        for system in ("scale", "sign"):
            wanted = [*places, *(shifts if system == "sign" else ())]
            for powers in sites.powers(system, leaf, wanted, last=[*shifts]):
                steps = {shifts[site]: math.pi / notes.shift_numbers[shifts[site]] for site in powers if site in shifts}
                kind = "phase" if steps else system
                own_powers = {places[site]: power for site, power in powers.items() if site in places}
                found.append((leaf, kind, own_powers, steps))
    return tuple(
        Scaling(f"S_{number}", kind, names[leaf], powers, steps)
        for number, (leaf, kind, powers, steps) in enumerate(_without_repetitions(found))
    )


def _site(site: int) -> Any:
    from prepkit.symmetry._labels import Axis

    return Axis((), site)


def _without_repetitions(found: list[Any]) -> list[Any]:
    """Leave out scalings of whole groups of units that scalings of the units in them make up."""
    return [one for one in found if not _is_made_of(one, [other for other in found if one[0] in other[0].over])]


def _is_made_of(one: Any, others: list[Any]) -> bool:
    """Return whether scalings of units multiply the same tensors, if all units of an outer unit have one number."""
    modulus = None if one[1] == "scale" else 2
    rows = [_by_tensor(other) for other in others if (other[1] == "scale") == (modulus is None)]
    return rank([*rows, _by_tensor(one)], modulus) == rank(rows, modulus)


def _by_tensor(scaling: Any) -> dict[Any, float]:
    powers: dict[Any, float] = defaultdict(float)
    for (name, _), power in scaling[2].items():
        powers[name] += power
    return {**powers, **{("shift", name): 1 for name in scaling[3]}}
