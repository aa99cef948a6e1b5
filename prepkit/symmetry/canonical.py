"""Canonical form: the hidden units of a network in a fixed order, which all networks of its orbit share.

    prepkit.canonical("resnet8@cifar10", preps)                        # [N, H, W]: the same functions

Units are ordered by the norm of all their values, the largest first. The norm of a unit does not depend on the order or
the signs of any other, so each group has its order whatever the others do. Units of equal norm are ordered by their
values beside groups whose order is known, and then by their sorted values.
Shapes: N instances, T units of a group in O blocks of n, K values of a unit, H x W the PRep.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from prepkit.symmetry._standing import Standing
from prepkit.symmetry.acting import Change
from prepkit.symmetry.aligning import Aligner, Network, checked
from prepkit.symmetry.spec import Scaling

Tensors = dict[str, Tensor]


def canonical(network: Network, preps: Tensor) -> Tensor:
    """Return PReps `[N, H, W]` of the same functions, with their hidden units in a fixed order.

    network: an architecture, the name of a registered one, or its `prepkit.symmetries`
    preps:   `[N, H, W]`, PReps of this architecture without BatchNorm, or as its symmetries have it
    Copies of a network in any order of units have one canonical form, bit for bit; the canonical form of that is
    itself. Signs and phases of units are fixed as well: phases add at most half a half period, biases become positive.
    There, copies are equal but for rounding. Scales stay as they are. Small changes of the values may exchange units
    of nearly the same norm: to compare networks that differ, `align` them.
    raises LayoutMismatch for another shape, SymmetryError for values that are not finite

    >>> bool((prepkit.canonical("resnet8@digits", scrambled) == prepkit.canonical("resnet8@digits", preps)).all())
    True
    """
    aligner = Aligner.of(network)
    checked(aligner, preps)
    moved = preps.detach().clone(memory_format=torch.contiguous_format)
    for rows in aligner.chunks(len(preps)):
        aligner.write(_canonical(aligner.standing, aligner.tensors(preps[rows])), moved[rows])
    return moved


def _canonical(standing: Standing, tensors: Tensors) -> Tensors:
    found, unknown = dict(tensors), list(standing.names)
    for name in standing.names:
        scalings = standing.signs_of(name)
        turns = {one.name: _turns(standing, name, one, found) for one in scalings if one.kind == "phase"}
        _change(standing, name, found, Change(numbers=turns))
        signs = _signs(standing, name, [one for one in scalings if one.kind == "sign"], found, unknown)
        _change(standing, name, found, Change(numbers=signs))
        if standing.is_movable(name):
            _change(standing, name, found, Change({name: _order(standing, name, found, unknown)}))
        unknown.remove(name)
    return found


def _change(standing: Standing, name: str, found: Tensors, change: Change) -> None:
    touched = {tensor: found[tensor] for tensor in standing.tensors[name]}
    found.update(standing.action.on_tensors(change, touched))


def _turns(standing: Standing, name: str, scaling: Scaling, found: Tensors) -> Tensor:
    """Return the numbers of half periods that bring what they are added to nearest to 0, `[N, *over, n]`."""
    parts = [
        (scaling.shifts[site.tensor], site.values(found))
        for site in standing.sites[name]
        if site.tensor in scaling.shifts
    ]
    best = sum(step * values.sum(-1) for step, values in parts) / sum(s * s * v.shape[-1] for s, v in parts)
    return -torch.round(torch.as_tensor(best)).view(-1, *standing.action.shape(name))


def _signs(
    standing: Standing, name: str, scalings: Sequence[Scaling], found: Tensors, unknown: Sequence[str]
) -> dict[str, Tensor]:
    """Return signs that make biases positive, and the largest of several values beside groups that are known.

    Several signs of a unit may meet in one value, so all of them are tried together; what comes first decides.
    """
    sites = sorted(standing.told(name, unknown), key=lambda site: site.places.shape[1])
    parities = [[one.powers.get((site.tensor, site.axis), 0) % 2 for one in scalings] for site in sites]
    options = list(product((0, 1), repeat=len(scalings)))
    scores = []
    for option in options:
        score = torch.zeros(())
        for place, (site, parity) in enumerate(zip(sites, parities, strict=True)):
            if any(parity):
                values = site.values(found)
                largest = values.gather(-1, values.abs().argmax(-1, keepdim=True))[..., 0]
                sign = -1 if sum(map(int.__mul__, parity, option)) % 2 else 1
                score = score + sign * largest.sign() * 3.0**-place
        scores.append(score)
    if not scalings or not scores[0].dim():
        return {}
    chosen = torch.tensor(options)[torch.stack(scores).argmax(0)].double()  # [N, T, signs]
    shape = standing.action.shape(name)
    return {one.name: (1 - 2 * chosen[..., index]).view(-1, *shape) for index, one in enumerate(scalings)}


def _order(standing: Standing, name: str, found: Tensors, unknown: Sequence[str]) -> Tensor:
    """Return the order of units by norm, `[N, *over, n]`."""
    shape = standing.action.shape(name)
    parts = [site.values(found) for site in standing.sites[name]]
    profiles = torch.cat([(p.abs() if standing.signs else p).sort(dim=-1).values for p in parts], dim=-1)
    told = [site.values(found) for site in standing.told(name, unknown)]
    # numpy adds the values of each row in the same way, so that equal rows have equal sums.
    norms = np.square(profiles.numpy()).sum(-1).reshape(-1, shape[-1])
    keys = torch.cat([*told, profiles], dim=-1).numpy().reshape(len(norms), shape[-1], -1)
    orders = np.argsort(-norms, axis=-1, kind="stable")
    ordered = np.take_along_axis(norms, orders, axis=-1)
    for block in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(-1)):
        orders[block] = sorted(range(shape[-1]), key=lambda n: (-norms[block, n], *keys[block, n].tolist()))
    return torch.from_numpy(orders).view(-1, *shape)
