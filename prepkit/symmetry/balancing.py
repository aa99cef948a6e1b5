"""Balanced scales: of all positive scales that a network's units can have, those for which its values are smallest.

A unit behind a rectifier may have its inputs multiplied by a number and what reads it divided by the same. The sum of
squares of all values has one least value over all such numbers, which networks that differ in their scales share. The
scales of one group of units at a time are set where the sum is least, until none changes.
Shapes: N instances, T units of a group, K values of a unit.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prepkit.symmetry._standing import Standing
from prepkit.symmetry.acting import Change
from prepkit.symmetry.aligning import Aligner
from prepkit.symmetry.spec import Scaling

ROUNDS = 500  # at most; deep networks need about a hundred
SETTLED = 1e-6  # of a scale: it changes no more
POWERS = ({1, -1}, {1}, {-1})


def balanced(standing: Standing, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors `[N, *shape]` in float64 of the same functions, with balanced scales.

    Units of which some values are all 0 keep their scale, as do those whose values scale by other powers than 1 and -1.
    Where nothing is divided by what a unit is multiplied by, as before a normalisation, its values get norm 1.
    """
    found = dict(tensors)
    scalings = [
        one for one in standing.symmetries.scalings if one.kind == "scale" and set(one.powers.values()) in POWERS
    ]
    for _ in range(ROUNDS):
        moved = 0.0
        for scaling in scalings:
            numbers = _numbers(standing, scaling, found)
            moved = max(moved, float(numbers.log().abs().max()))
            touched = {name: found[name] for name in standing.tensors[scaling.group]}
            found.update(standing.action.on_tensors(Change(numbers={scaling.name: numbers}), touched))
        if moved <= SETTLED:
            break
    return found


def _numbers(standing: Standing, scaling: Scaling, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the scales that make the sum of squares least, `[N, *over, n]`, all else as it is."""
    sums = {1: torch.zeros((), dtype=torch.float64), -1: torch.zeros((), dtype=torch.float64)}
    for site in standing.sites[scaling.group]:
        power = scaling.powers.get((site.tensor, site.axis))
        if power is not None:
            sums[power] = sums[power] + site.values(tensors).square().sum(-1)
    up_NT, down_NT = sums[1] + 0 * sums[-1], sums[-1] + 0 * sums[1]  # both have the shape of that which has values
    powers = set(scaling.powers.values())
    if powers == {1, -1}:  # the least of s^2 up + down / s^2
        usable_NT, ratio_NT = (up_NT > 0) & (down_NT > 0), (down_NT / up_NT).sqrt().sqrt()
    elif powers == {1}:
        usable_NT, ratio_NT = up_NT > 0, up_NT.rsqrt()
    else:
        usable_NT, ratio_NT = down_NT > 0, down_NT.sqrt()
    numbers = torch.where(usable_NT & ratio_NT.isfinite(), ratio_NT, 1.0)
    return numbers.view(-1, *standing.action.shape(scaling.group))


def distance_of_forms(aligner: Aligner, preps: Tensor, others: Tensor) -> Tensor:
    """Return how far apart networks are with balanced scales, aligned to each other, `[N]` in float64.

    preps, others: `[N, H, W]` each, compared row by row
    The distance is a share of the larger norm. It is that of forms that were really made, so it is never less than that
    of the nearest forms, which are not searched.
    raises SymmetryError where scipy is missing
    """
    forms = []
    for each in (preps, others):
        form = each.detach().double().clone(memory_format=torch.contiguous_format)
        aligner.write(balanced(aligner.standing, aligner.tensors(each)), form)
        forms.append(form)
    first, second = forms
    apart = aligner.distances(aligner.aligned(second, first), first)
    norms = torch.stack([aligner.distances(form, torch.zeros_like(form)) for form in forms]).amax(0)
    return torch.where(apart == 0, 0.0, apart / norms)
