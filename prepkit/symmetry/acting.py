"""Acting with symmetries: networks with other values and the same function.

    action = Action(prepkit.symmetries(architecture))
    change = action.draw(generator, count=len(preps))      # for each instance other orders, signs, scales and phases
    moved = action.on_preps(change, preps)                 # [N, H, W]
    tensors = action.on_tensors(change, tensors)           # the same for named tensors [N, *shape]

A value comes from one place, is multiplied by one number, and has one number added. So a change of a batch of PReps is
one gather, whose index is the sum of a few table look-ups, and one multiplication where values scale.
Shapes: N instances, U units of all groups, V values of a network, H x W the PRep.
"""

# ruff: noqa: N803 - names of tensors end in their axes

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prepkit.errors import LayoutMismatch, SymmetryError
from prepkit.symmetry._blocks import Blocks, Entry, take
from prepkit.symmetry.spec import Product, Scaling, Sum, Symmetries, Term, Units

KINDS = ("permute", "scale", "sign", "phase")
SPREAD = 0.5  # scales are drawn from exp(-0.5) to exp(0.5)
CACHED_PLACES = 1 << 18  # places of values that are worked out at once: 2 MiB
TURNS = 2  # phases are drawn from -2 to 2 half periods


@dataclass(frozen=True, eq=False)
class Change:
    """One change of one network, or of each of N networks.

    sources: by group, the unit that each unit comes from, `[(N), *over, size]`
    numbers: by scaling, what each unit is multiplied by, or for a phase its half periods, `[(N), *over, size]`
    """

    sources: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Mapping[str, Tensor] = field(default_factory=dict)

    def only(self, names: Collection[str]) -> Change:
        """Return the change of these groups and scalings alone."""
        return Change(
            {name: value for name, value in self.sources.items() if name in names},
            {name: value for name, value in self.numbers.items() if name in names},
        )


class Action:
    """The symmetries of a network, ready to act.

    raises LayoutMismatch in its methods for values that are not those of the network's layout
    """

    def __init__(self, symmetries: Symmetries) -> None:
        self.symmetries = symmetries
        self._entries = {slot.name: self._entries_of(slot.name, slot.shape) for slot in symmetries.layout}

    # Drawing --------------------------------------------------------------------------------------------------

    def draw(
        self, generator: torch.Generator, count: int | None = None, kinds: Collection[str] = ("permute",)
    ) -> Change:
        """Draw a change at random.

        count: number of instances, each of which has a change of its own; None for one network
        kinds: "permute", "scale", "sign", "phase"
        """
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise SymmetryError(f"unknown kind of symmetry '{unknown[0]}'; use {', '.join(KINDS)}.")
        lead = () if count is None else (count,)
        sources, numbers = {}, {}
        if "permute" in kinds:
            for group in self.symmetries.movable:
                keys = torch.rand(*lead, *self.shape(group.name), generator=generator)
                sources[group.name] = keys.argsort(dim=-1)
        for scaling in self.symmetries.scalings:
            if scaling.kind in kinds:
                keys = torch.rand(*lead, *self.shape(scaling.group), generator=generator, dtype=torch.float64)
                numbers[scaling.name] = _number(scaling, keys)
        return Change(sources, numbers)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a group's units: its size, after the sizes of the groups that it is over."""
        group = self.symmetries.group[name]
        return (*(self.symmetries.group[other].size for other in group.over), group.size)

    # Acting ---------------------------------------------------------------------------------------------------

    def on_tensors(self, change: Change, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return named tensors with their values changed; those that no symmetry touches are the same objects.

        tensors: `[*shape]` or `[N, *shape]` by name, as in a state dict; names of tied tensors may be among them
        """
        moved = {}
        aliases = dict(self.symmetries.layout.ties)
        for name, tensor in tensors.items():
            own = aliases.get(name, name)
            if own not in self._entries:
                moved[name] = tensor
            elif own in moved and tensors.get(own) is tensor:
                moved[name] = moved[own]
            else:
                moved[name] = self._moved(change, own, tensor)
        return moved

    def _moved(self, change: Change, name: str, tensor: Tensor) -> Tensor:
        shape = self._slots[name].shape
        if tuple(tensor.shape[tensor.dim() - len(shape) :]) != shape:
            raise LayoutMismatch(f"'{name}' has shape {list(tensor.shape)}; the network's is {list(shape)}.")
        values = tensor
        entries = [entry for entry in self._entries[name] if entry.group in change.sources]
        if entries and all(_is_along_axis(entry, change, self.shape(entry.group)) for entry in entries):
            for axis in {entry.axis for entry in entries}:
                own = [entry for entry in entries if entry.axis == axis]
                places = self._places_of((shape[axis],), [_of_axis(entry) for entry in own], change)
                values = values.index_select(values.dim() - len(shape) + axis, places)
        elif entries:
            flat = values.reshape(*values.shape[: values.dim() - len(shape)], -1)
            places = self._places_of(shape, entries, change)
            places = places.reshape(*places.shape[: places.dim() - len(shape)], -1)
            flat = flat.index_select(-1, places) if places.dim() == 1 else _gathered(flat, places)
            values = flat.view(*flat.shape[:-1], *shape)
        factor, added = self._numbers_of(name, change)
        fresh = values is not tensor and not values.requires_grad  # it can be written to
        if factor is not None:
            factor = factor.to(values.dtype)
            values = values.mul_(factor) if fresh else values * factor
        return values if added is None else values + added.to(values.dtype)

    def on_preps(self, change: Change, preps: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Return PReps `[N, H, W]` with their values changed; padding stays as it is.

        A change of one network is that of all of them.
        out: `[N, H, W]` of the same dtype and device, contiguous, overwritten and returned; it may be `preps` itself.
             No gradient is followed then
        """
        total = self.symmetries.layout.total
        if preps.dim() != 3 or preps.shape[1] * preps.shape[2] < total:
            raise LayoutMismatch(f"expected PReps [N, H, W] of {total:,} values, found {list(preps.shape)}.")
        if out is not None and (out.shape != preps.shape or out.dtype != preps.dtype or not out.is_contiguous()):
            raise LayoutMismatch(
                f"out is {list(out.shape)} {out.dtype}; the PReps are {list(preps.shape)} {preps.dtype}."
            )
        moved = self._gathered_preps(change, preps.flatten(1), None if out is None else out.view(len(out), -1))
        for slot in self.symmetries.layout:
            factor, added = self._numbers_of(slot.name, change)
            own = moved[:, slot.start : slot.stop].view(len(moved), *slot.shape)
            if factor is not None:
                own *= factor.to(own)
            if added is not None:
                own += added.to(own)
        return moved.view(preps.shape) if out is None else out

    def _gathered_preps(self, change: Change, flat_NV: Tensor, out_NV: Tensor | None) -> Tensor:
        """Take values from their places, for some instances at once, so that the places stay in the cache."""
        count, cells = self._count(change), flat_NV.shape[1]
        if count is not None:
            _check_count(count, flat_NV)
        follows = flat_NV.requires_grad and torch.is_grad_enabled() and out_NV is None
        if count is None or follows or flat_NV.device.type != "cpu":
            places = self.places(change, cells).to(flat_NV.device)
            moved = flat_NV.index_select(1, places) if count is None else flat_NV.gather(1, places)
            return moved if out_NV is None else out_NV.copy_(moved)
        moved, total = torch.empty_like(flat_NV) if out_NV is None else out_NV, self.symmetries.layout.total
        if moved is not flat_NV:
            moved[:, total:] = flat_NV[:, total:]
        for slot in self.symmetries.layout:
            own, target = (tensor[:, slot.start : slot.stop] for tensor in (flat_NV, moved))
            blocks = self._blocks[slot.name]
            entries = [entry for entry in blocks.entries if entry.group in change.sources]
            if not entries:
                target.copy_(own)
                continue
            short, long = (_batched(part, blocks.shape) for part in self._parts(blocks.shape, entries, change))
            step = max(1, CACHED_PLACES // slot.size)
            for first in range(0, count, step):
                rows = slice(first, first + step)
                places = (_some(short, rows) + _some(long, rows)).expand(-1, *blocks.shape)
                take(own[rows], places.reshape(len(places), -1), blocks.values, target[rows])
        return moved

    def places(self, change: Change, cells: int | None = None) -> Tensor:
        """Return the place that each value of a flat PRep comes from, `[V]` or `[N, V]`; padding comes from itself.

        cells: number of cells of the PRep; that of its values if missing
        """
        layout = self.symmetries.layout
        count = self._count(change)
        cells = layout.total if cells is None else cells
        places = torch.empty(*(() if count is None else (count,)), cells, dtype=torch.int64)
        places[..., layout.total :] = torch.arange(layout.total, cells)
        for slot in layout:
            entries = [entry for entry in self._entries[slot.name] if entry.group in change.sources]
            own = places[..., slot.start : slot.stop].view(*places.shape[:-1], *slot.shape)
            own.copy_(self._places_of(slot.shape, entries, change)).add_(slot.start)
        return places

    def _count(self, change: Change) -> int | None:
        for name, source in change.sources.items():
            return len(source) if source.dim() > len(self.shape(name)) else None
        for scaling in self.symmetries.scalings:
            if scaling.name in change.numbers:
                numbers = change.numbers[scaling.name]
                return len(numbers) if numbers.dim() > len(self.shape(scaling.group)) else None
        return None

    def _places_of(self, shape: tuple[int, ...], entries: list[Entry], change: Change) -> Tensor:
        """Return the flat place in a tensor that each of its values comes from, `[*shape]` or `[N, *shape]`."""
        short, long = self._parts(shape, entries, change)
        places = short + long
        return places.expand(*places.shape[: places.dim() - len(shape)], *shape)

    def _parts(self, shape: tuple[int, ...], entries: list[Entry], change: Change) -> tuple[Tensor, Tensor]:
        """Return two parts of the flat places that values come from, which are to be broadcast and added.

        The place of a value is a sum over the axes, so that all but the last sum are over short tables.
        """
        steps = _steps(shape)
        sums: dict[tuple[int, ...], Tensor] = {}  # by the axes along which they differ
        for axis, size in enumerate(shape):
            own = _along(torch.arange(size), axis, len(shape)) * steps[axis]
            sums[tuple(own.shape)] = sums[tuple(own.shape)] + own if tuple(own.shape) in sums else own
        for entry in entries:
            table = _padded(change.sources[entry.group], self.shape(entry.group))
            own = (table[..., entry.units] - self._digits(entry)) * (steps[entry.axis] * entry.stride)
            key = tuple(entry.units.shape)
            sums[key] = sums[key] + own if key in sums else own
        *rest, long = [torch.zeros((1,) * len(shape), dtype=torch.int64), *sorted(sums.values(), key=Tensor.numel)]
        return sum(rest[1:], start=rest[0]) if rest else torch.zeros_like(long), long

    def _digits(self, entry: Entry) -> Tensor:
        size = self.symmetries.group[entry.group].size
        return torch.where(entry.units >= 0, entry.units % size, 0)

    def _numbers_of(self, name: str, change: Change) -> tuple[Tensor | None, Tensor | None]:
        """Return what the values of a tensor are multiplied by, and what is added; None for nothing."""
        factor: Tensor | None = None
        added: Tensor | None = None
        for scaling in self.symmetries.scalings:
            if scaling.name not in change.numbers:
                continue
            numbers = change.numbers[scaling.name]
            if scaling.kind == "phase" and name in scaling.shifts:
                for entry in self._entries[name]:
                    if entry.group == scaling.group:
                        table = _padded(numbers, self.shape(scaling.group))
                        own = table[..., entry.units] * scaling.shifts[name]
                        added = own if added is None else added + own
            for entry in self._entries[name]:
                power = scaling.powers.get((name, entry.axis), 0)
                if entry.group == scaling.group and power:
                    own = 1 - 2 * (numbers % 2) if scaling.kind == "phase" else numbers
                    table = _padded(own, self.shape(scaling.group), 1)[..., entry.units] ** power
                    factor = table if factor is None else factor * table
        return factor, added

    # Tables ---------------------------------------------------------------------------------------------------

    def places_of_units(self, tensor: str) -> list[tuple[str, int, Tensor]]:
        """Return where units stand in a tensor: group, axis, and the flat places `[units, values of each]`.

        Units of a group that is over others are counted through: those at the first outer unit come first. Values of a
        unit come in the order of the tensor.
        """
        found, shape = [], self._slots[tensor].shape
        for entry in self._entries[tensor]:
            units = entry.units.expand(shape).flatten()
            order = units.argsort(stable=True)[int((units < 0).sum()) :]
            found.append((entry.group, entry.axis, order.view(math.prod(self.shape(entry.group)), -1)))
        return found

    @cached_property
    def _blocks(self) -> dict[str, Blocks]:
        return {name: Blocks.of(slot.shape, self._entries[name]) for name, slot in self._slots.items()}

    @cached_property
    def _slots(self) -> dict[str, Any]:
        return {slot.name: slot for slot in self.symmetries.layout}

    def _entries_of(self, name: str, shape: tuple[int, ...]) -> list[Entry]:
        terms = self.symmetries.axes[name]
        places = [_along(torch.arange(size), axis, len(shape)) for axis, size in enumerate(shape)]
        entries = []
        for axis, term in enumerate(terms):
            if term is None:
                continue
            beside = {}
            for other, own in enumerate(terms):
                if other != axis and own is not None:
                    beside.update(direct_digits(own, places[other]))
            inside = torch.ones_like(places[axis], dtype=torch.bool)
            for units, digit, there, stride, env in digits(term, places[axis], inside, 1, beside):
                number = torch.zeros_like(digit)
                for outer in self.symmetries.group[units.group].over:
                    number = number * self.symmetries.group[outer].size + env[outer]
                entries.append(Entry(axis, units.group, torch.where(there, number * units.size + digit, -1), stride))
        return entries


Digits = Iterator[tuple[Units, Tensor, Tensor, int, dict[str, Tensor]]]


def digits(term: Term, place: Tensor, inside: Tensor, stride: int, env: Mapping[str, Tensor]) -> Digits:
    """Yield for all units in a term: the unit at each place, where there is one, the stride, and outer units."""
    if isinstance(term, Units):
        yield term, place.clamp(0, term.size - 1), inside, stride, dict(env)
    elif isinstance(term, Sum):
        for start, part in zip(term.starts, term.parts, strict=True):
            own = place - start
            yield from digits(part, own, inside & (own >= 0) & (own < part.size), stride, env)
    elif isinstance(term, Product):
        own_env = {**env, **direct_digits(term, place)}
        for factor, own, inner in _factors_of(term, place):
            yield from digits(factor, own, inside, stride * inner, own_env)


def direct_digits(term: Term, place: Tensor) -> dict[str, Tensor]:
    """Return the unit of each group at each place, for groups that stand at all places of an axis."""
    if isinstance(term, Units):
        return {term.group: place}
    found = {}
    if isinstance(term, Product):
        for factor, own, _ in _factors_of(term, place):
            if isinstance(factor, Units):
                found[factor.group] = own.clamp(0, factor.size - 1)
    return found


def _factors_of(term: Product, place: Tensor) -> Iterator[tuple[Term, Tensor, int]]:
    inner = term.size
    for factor in term.factors:
        inner //= factor.size
        yield factor, torch.div(place, inner, rounding_mode="floor") % factor.size, inner


def _number(scaling: Scaling, keys: Tensor) -> Tensor:
    if scaling.kind == "sign":
        return 1 - 2 * (keys < 0.5).to(torch.float64)
    if scaling.kind == "phase":
        return torch.floor(keys * (2 * TURNS + 1)) - TURNS
    return torch.exp((2 * keys - 1) * SPREAD)


def _padded(values: Tensor, shape: tuple[int, ...], beyond: float = 0) -> Tensor:
    """Return the values of all units in a row, and one more behind them for places without a unit."""
    flat = values.reshape(*values.shape[: values.dim() - len(shape)], math.prod(shape))
    return torch.nn.functional.pad(flat, (0, 1), value=beyond)


def _check_count(count: int, flat_NV: Tensor) -> None:
    if flat_NV.dim() < 2 or count != len(flat_NV):
        found = len(flat_NV) if flat_NV.dim() > 1 else 1
        raise SymmetryError(f"a change of {count} networks does not fit {found} of them.")


def _gathered(flat_NV: Tensor, places_NV: Tensor) -> Tensor:
    _check_count(len(places_NV), flat_NV)
    return flat_NV.gather(-1, places_NV.to(flat_NV.device))


def _along(values: Tensor, axis: int, axes: int) -> Tensor:
    return values.view([-1 if index == axis else 1 for index in range(axes)])


def _steps(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _is_along_axis(entry: Entry, change: Change, shape: tuple[int, ...]) -> bool:
    """Whether one order for all networks says where the values of an axis come from, whatever their other places."""
    one_order = change.sources[entry.group].dim() == len(shape)
    return one_order and entry.units.numel() == entry.units.shape[entry.axis]


def _of_axis(entry: Entry) -> Entry:
    return Entry(0, entry.group, entry.units.flatten(), entry.stride)


def _batched(part: Tensor, shape: tuple[int, ...]) -> Tensor:
    return part if part.dim() > len(shape) else part.unsqueeze(0)


def _some(part: Tensor, rows: slice) -> Tensor:
    return part[rows] if len(part) > 1 else part
