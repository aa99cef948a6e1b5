"""Weight matching: an order, signs and phases of each instance's units that bring its values near those of a reference.

For each group in turn, the best assignment of its units to those of the reference, all else as it is, is the solution
of a linear assignment problem (Ainsworth, Hayase and Srinivasa, Git Re-Basin, 2022, section 3.2). A unit that may
change its sign or phase is compared in the best way. Distances are those of parameters; running statistics only follow.

The first pass goes from the input to the output, and compares each unit only by values to which no order that is still
to be found applies. So it does not depend on the order in which the units are given, nor does what follows, unless two
units are equal. Passes in random order, the same for all instances, then bring each nearer until none changes. The same
is done from the output to the input, and the nearer of both results is taken.
Shapes: N instances, R references (1 or N), T units of a group in O blocks of n, K values of a unit.
"""

# ruff: noqa: N803 - names of tensors end in their axes

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from prepkit.errors import SymmetryError
from prepkit.symmetry._standing import Site, Standing
from prepkit.symmetry.acting import Change

Tensors = dict[str, Tensor]
PASSES = 100  # at most; a few are needed
LEAST_GAIN = 1e-12  # of the values' squares: less is only rounding


class Matching:
    """Brings instances near a reference.

    reference: tensors `[R, *shape]` in float64, one reference for all instances or one for each
    seed:      decides in which order groups are dealt with after the first pass
    """

    def __init__(self, standing: Standing, reference: Mapping[str, Tensor], seed: int = 0) -> None:
        self.standing, self.reference, self.seed = standing, dict(reference), seed

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """Return tensors `[N, *shape]` in float64 of the same functions, near the reference."""
        names = self.standing.names
        if not names:
            return dict(tensors)
        found = self._swept(self._first_pass(tensors, names))
        if len(names) > 1:
            other = self._swept(self._first_pass(tensors, names[::-1]))
            nearer = self._squares(other) < self._squares(found)
            found = {name: _chosen(nearer, other[name], own) for name, own in found.items()}
        return found

    def _first_pass(self, tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensors:
        found, unknown = dict(tensors), list(names)
        for name in names:
            change = self._first_change(name, found, unknown)
            touched = {tensor: found[tensor] for tensor in self.standing.tensors[name]}
            found.update(self.standing.action.on_tensors(change, touched))
            unknown.remove(name)
        return found

    def _swept(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """Deal with all groups again and again, in random order, until no instance comes nearer."""
        found, names = {name: tensor.clone() for name, tensor in tensors.items()}, self.standing.names
        generator = torch.Generator().manual_seed(self.seed)
        active = torch.arange(len(next(iter(found.values()))))
        for _ in range(PASSES):
            own = {name: tensor[active] for name, tensor in found.items()}
            targets = {name: tensor if len(tensor) == 1 else tensor[active] for name, tensor in self.reference.items()}
            changed = torch.zeros(len(active), dtype=torch.bool)
            for number in torch.randperm(len(names), generator=generator).tolist():
                changed |= self._improve(names[number], own, targets)
            for name, tensor in found.items():
                tensor[active] = own[name]
            active = active[changed]
            if not len(active):
                break
        return found

    def _squares(self, tensors: Tensors) -> Tensor:
        """Return the squared distance of each instance's parameters that move, `[N]`."""
        names = {site.tensor for name in self.standing.names for site in self.standing.sites[name]}
        return torch.stack([squares(tensors[name] - self.reference[name]) for name in sorted(names)]).sum(0)

    # One group ------------------------------------------------------------------------------------------------

    def _first_change(self, name: str, own: Tensors, unknown: Sequence[str]) -> Change:
        sites = self.standing.told(name, unknown)
        if sites:
            return self._change(name, own, self.reference, sites)
        profiles = [_profiles(self.standing, name, tensors) for tensors in (own, self.reference)]
        return self._assigned(name, _products(*(self._blocks(name, profile) for profile in profiles)))

    def _improve(self, name: str, own: Tensors, reference: Tensors) -> Tensor:
        """Change a group where that brings an instance nearer, and return where it did, `[N]`."""
        sites = self.standing.sites[name]
        before = {tensor: own[tensor] for tensor in self.standing.tensors[name]}
        change = self._change(name, own, reference, sites)
        after = self.standing.action.on_tensors(change, before)
        names = {site.tensor for site in sites}
        gain = sum(squares(before[one] - reference[one]) - squares(after[one] - reference[one]) for one in names)
        size = sum(squares(before[one]) + squares(reference[one]) for one in names)
        better = torch.as_tensor(gain > LEAST_GAIN * size)
        if better.any():
            for tensor, values in after.items():
                own[tensor] = _chosen(better, values, before[tensor])
        return better

    def _change(self, name: str, own: Tensors, reference: Tensors, sites: Sequence[Site]) -> Change:
        """Return the change of one group that brings the values at these sites nearest to the reference."""
        scalings = self.standing.signs_of(name)
        linear: dict[tuple[int, ...], Tensor] = {}  # by the signs and phases that multiply values
        shifted: dict[int, list[tuple[tuple[int, ...], float, Tensor, Tensor]]] = {}
        for site in sites:
            parity = tuple(scaling.powers.get((site.tensor, site.axis), 0) % 2 for scaling in scalings)
            values, targets = (self._blocks(name, site.values(tensors)) for tensors in (own, reference))
            phase = next((i for i, scaling in enumerate(scalings) if site.tensor in scaling.shifts), None)
            if phase is None:
                products = _products(values, targets)
                linear[parity] = linear[parity] + products if parity in linear else products
            else:
                shifted.setdefault(phase, []).append((parity, scalings[phase].shifts[site.tensor], values, targets))
        options = list(product((0, 1), repeat=len(scalings)))
        scores, turns = [], []
        for option in options:
            score, own_turns = sum(_sign(parity, option) * part for parity, part in linear.items()), {}
            for phase, parts in shifted.items():
                rest, own_turns[phase] = _turned(parts, option, option[phase])
                score = score - rest / 2
            scores.append(torch.as_tensor(score))
            turns.append(own_turns)
        if len(options) == 1:
            return self._assigned(name, scores[0])
        best, choice = torch.stack(scores).max(0)
        change = self._assigned(name, best)
        order = change.sources.get(name)
        pairs = torch.arange(best.shape[-1]).expand(best.shape[:-1]) if order is None else order.view(best.shape[:-1])
        option_of = choice.gather(-1, pairs[..., None])[..., 0]  # [N, O, n]
        shape = (len(best), *self.standing.action.shape(name))
        numbers = {}
        for index, scaling in enumerate(scalings):
            bits = torch.tensor([option[index] for option in options])[option_of]
            number = (1 - 2 * bits if scaling.kind == "sign" else bits).double()
            if index in shifted:
                of_all = torch.stack([own_turns[index].gather(-1, pairs[..., None])[..., 0] for own_turns in turns])
                number = of_all.gather(0, option_of[None])[0]
            numbers[scaling.name] = number.view(shape)
        return Change(change.sources, numbers)

    def _assigned(self, name: str, scores_NOnn: Tensor) -> Change:
        """Return the order of units with the largest sum of scores, where these may change places.

        scores_NOnn: one for each unit of the reference and each unit of the instance
        """
        if not self.standing.is_movable(name):
            return Change()
        solve = _solver()
        blocks = scores_NOnn.flatten(0, 1).numpy()
        orders = torch.stack([torch.from_numpy(solve(block, maximize=True)[1]) for block in blocks])
        return Change({name: orders.view(len(scores_NOnn), *self.standing.action.shape(name))})

    def _blocks(self, name: str, values_NTK: Tensor) -> Tensor:
        count, _, values = values_NTK.shape
        return values_NTK.view(count, -1, self.standing.action.shape(name)[-1], values)


def _solver() -> Callable[..., Any]:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise SymmetryError("matching units needs scipy; install it by `pip install prepkit[train]`.") from None
    solve: Callable[..., Any] = linear_sum_assignment
    return solve


def _chosen(which: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the instances of the first tensor where `which` `[N]` says so, else those of the second."""
    return torch.where(which.view(-1, *[1] * (first.dim() - 1)), first, second)


def squares(tensor: Tensor) -> Tensor:
    """Return the sum of the squares of each instance's values, `[N]`."""
    return tensor.flatten(1).square().sum(1)


def _products(values_NOnK: Tensor, targets_ROnK: Tensor) -> Tensor:
    """Return the inner products of each unit of the reference and each of the instance, `[N, O, n, n]`."""
    return targets_ROnK @ values_NOnK.transpose(-1, -2)


def _sign(parity: tuple[int, ...], option: tuple[int, ...]) -> int:
    return -1 if sum(map(int.__mul__, parity, option)) % 2 else 1


def _turned(
    parts: Sequence[tuple[tuple[int, ...], float, Tensor, Tensor]], option: tuple[int, ...], bit: int
) -> tuple[Tensor, Tensor]:
    """Return the squared distance of each pair of units after the best number of half periods, and that number.

    bit: 1 for odd numbers, 0 for even ones
    """
    apart = [
        (step, targets[..., :, None, :] - _sign(parity, option) * values[..., None, :, :])
        for parity, step, values, targets in parts
    ]
    best = sum(step * each.sum(-1) for step, each in apart) / math.fsum(s * s * each.shape[-1] for s, each in apart)
    turns = 2 * torch.round((torch.as_tensor(best) - bit) / 2) + bit
    rest = sum((each - step * turns[..., None]).square().sum(-1) for step, each in apart)
    return torch.as_tensor(rest), turns


def _profiles(standing: Standing, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return what tells units apart whatever the order and signs of others: their sorted values `[N, T, K]`."""
    shifted = {tensor for scaling in standing.signs_of(name) for tensor in scaling.shifts}
    values = [site.values(tensors) for site in standing.sites[name] if site.tensor not in shifted]
    parts = [part.abs() if standing.signs else part for part in values]
    return torch.cat([part.sort(dim=-1).values for part in parts], dim=-1)
