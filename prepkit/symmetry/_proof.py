"""The proof: a network with changed tensors returns what it returned before, in float64.

The tensors are filled with random values first, since equal ones can change places unseen. In each run, about half of
the changes are made, another half each time, so that every two of them part in some run: an error cannot be hidden by
another that undoes it. Where outputs differ, changes are tried one after another. Where the outputs do not depend on a
group at all, as behind rectifiers that let nothing through, other values are drawn; if none helps, nothing is proved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from prepkit.errors import SymmetryError
from prepkit.fusion.example import relative_error
from prepkit.symmetry.acting import KINDS, Action, Change
from prepkit.symmetry.spec import Fixed, Fixture, Product, Sum, Symmetries, Term, Units, units_in

# Relative error of outputs: rounding leaves about 1e-14 in float64 and 1e-5 in float32, and a wrong place about 1.
LIMITS = {torch.float64: 1e-8, torch.float32: 1e-3}


DRAWS = 4  # of random values, at most
SILENT = 1e-12  # relative change of the outputs by which they are taken not to depend on a tensor
UNSEEN = "the outputs do not depend on it, so that nothing is proved"


@torch.no_grad()
def spread(network: nn.Module, seed: int) -> None:
    """Fill the tensors of a network with random values that are about as large and have the signs of those there are.

    What is all of one small value gets others too; buffers with structure, such as tables of angles, keep most of it.
    seed: with another than 0, parameters are drawn whatever signs they had
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = {id(parameter) for parameter in network.parameters()}
    for tensor in network.state_dict(keep_vars=True).values():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        own = tensor.detach().double().cpu()
        noise = torch.randn(own.shape, generator=generator).double()  # float32 is drawn in half the time
        deviation = float(own.std()) if own.numel() > 1 else 0.0
        has_signs = float(own.min()) < 0
        if seed and id(tensor) in parameters:  # the first values were not enough
            own = (deviation or 0.5) * noise
        elif not deviation > 1e-9 and float(own.abs().max()) < 0.05:
            own = own + 0.1 * noise
        elif id(tensor) in parameters and has_signs and deviation > 1e-9:
            own = own.mean() + deviation * noise
        else:
            own = own * (1 + 0.3 * noise.tanh()) + (0.1 * deviation * noise if has_signs else 0)
        tensor.copy_(own)


Outputs = Callable[[nn.Module], Sequence[Tensor]]


def proved(
    symmetries: Symmetries, network: nn.Module, outputs_of: Outputs, quickly: Outputs | None, dtype: torch.dtype
) -> Symmetries:
    """Return the symmetries that hold; those that do not are fixed, with the reason.

    network:    a copy in `dtype` with random values, which are overwritten
    outputs_of: runs a network on an example
    quickly:    runs it on a smaller one; then only all changes together are made on the example itself
    raises SymmetryError if the network returns something else each time, or what is not finite
    """
    failed: dict[str, str] = {}
    unseen = {group.name for group in symmetries.movable}
    worst = 0.0
    action = Action(symmetries)
    for seed in range(DRAWS):
        if seed:
            spread(network, seed)
        try:
            trial = _Trial(action, network, quickly or outputs_of, LIMITS[dtype])
        except SymmetryError:
            if seed:  # these values do not suit the network
                continue
            raise
        worst = max(worst, trial.judge(failed))
        if quickly and not seed:
            whole = _Trial(action, network, outputs_of, LIMITS[dtype], trial.before)
            error = whole.error([name for name in whole.names if name not in failed])
            worst = max(worst, error if error <= whole.limit else whole.judge(failed))
        unseen = trial.unseen(unseen)
        if not unseen:
            break
    return replace(_without(symmetries, dict.fromkeys(unseen, UNSEEN) | failed), proof=worst)


class _Trial:
    """A network and its outputs, and changes of it to be tried.

    whole: a change of all groups and scalings
    limit: relative error of the outputs that is rounding
    before: the tensors' values, where they are known already
    """

    @torch.no_grad()
    def __init__(
        self,
        action: Action,
        network: nn.Module,
        outputs_of: Outputs,
        limit: float,
        before: dict[str, Tensor] | None = None,
    ) -> None:
        self.action, self.network, self.outputs_of, self.limit = action, network, outputs_of, limit
        self.whole = _moving(self.action)
        self.names = [*self.whole.sources, *self.whole.numbers]
        tensors = network.state_dict(keep_vars=True).items()
        self.state = {name: tensor.detach() for name, tensor in tensors if tensor.is_floating_point()}
        self.before = before or {name: tensor.clone() for name, tensor in self.state.items()}
        self.expected = [tensor.clone() for tensor in outputs_of(network)]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self.expected):
            raise SymmetryError(
                "the network's outputs are not finite for random tensors, so that nothing can be proved."
            )
        if not (error := relative_error(self.expected, outputs_of(network))) <= limit:
            raise SymmetryError(
                f"two runs of the network on the same input differ by {error:.1e}: it draws random numbers or keeps "
                "state in eval mode. Nothing can be proved of it; make it deterministic in eval mode."
            )

    @torch.no_grad()
    def judge(self, failed: dict[str, str]) -> float:
        """Note all changes that do not hold, with the reasons; return the largest error of those that do."""
        worst = 0.0
        for half in _halves(self.names):
            names = [name for name in half if name not in failed]
            error = self.error(names)
            if not error <= self.limit:
                failed |= self.culprits(names)
                error = self.error([name for name in names if name not in failed])
            worst = max(worst, error)
        return worst

    @torch.no_grad()
    def error(self, names: Sequence[str]) -> float:
        """Return how far the outputs are off after these changes."""
        moved = self.action.on_tensors(self.whole.only(names), self.before)
        for name, tensor in self.state.items():
            if moved[name] is not self.before[name]:
                tensor.copy_(moved[name])
        try:
            return relative_error(self.expected, self.outputs_of(self.network))
        finally:
            for name, tensor in self.state.items():
                if moved[name] is not self.before[name]:
                    tensor.copy_(self.before[name])

    def culprits(self, names: Sequence[str]) -> dict[str, str]:
        """Return the changes that do not hold, with the reasons, by making one after another."""
        failed: dict[str, str] = {}
        kept: list[str] = []
        for name in names:
            error = self.error([*kept, name])
            if not error <= self.limit:
                failed[name] = f"outputs differ by {error:.1e} when its units change places"
            else:
                kept.append(name)
        return failed

    def unseen(self, groups: Collection[str]) -> set[str]:
        """Return those groups whose tensors the outputs do not depend on.

        A gradient tells at once of nearly all on which they do; the others are asked by changing their tensors.
        """
        places = {name: self.action.symmetries.places_of(name)[0][0] for name in groups}
        known = self._with_gradients(set(places.values()))
        silent: dict[str, bool] = {}
        for tensor in sorted(set(places.values()) - known):
            before = self.state[tensor].clone()
            with torch.no_grad():
                self.state[tensor].mul_(torch.linspace(0.9, 1.1, before.numel(), dtype=before.dtype).view(before.shape))
                silent[tensor] = relative_error(self.expected, self.outputs_of(self.network)) <= SILENT
                self.state[tensor].copy_(before)
        return {name for name, tensor in places.items() if silent.get(tensor)}

    def _with_gradients(self, names: Collection[str]) -> set[str]:
        """Return those tensors for which the outputs have a gradient, as far as the network lets gradients through."""
        tensors = {name: tensor for name, tensor in self.network.state_dict(keep_vars=True).items() if name in names}
        asked = {id(tensor): tensor.requires_grad for tensor in tensors.values()}
        try:
            with torch.enable_grad():
                for tensor in tensors.values():
                    tensor.requires_grad_()
                outputs = [tensor for tensor in self.outputs_of(self.network) if tensor.requires_grad]
                weights = [torch.linspace(1, 2, tensor.numel(), dtype=tensor.dtype) for tensor in outputs]
                sums = [(o.flatten() * w.to(o.device)).sum() for o, w in zip(outputs, weights, strict=True)]
                found = torch.autograd.grad(sums, [*tensors.values()], allow_unused=True) if sums else ()
        except Exception:  # it writes into its tensors, or what it does has no gradient
            return set()
        finally:
            for tensor in tensors.values():
                tensor.requires_grad_(asked[id(tensor)])
        return {
            name
            for name, gradient in zip(tensors, found, strict=False)
            if gradient is not None and bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) > 0
        }


def _moving(action: Action) -> Change:
    """Return a change that moves the units of each group: a random order after one step to the left."""
    drawn = action.draw(torch.Generator().manual_seed(1), None, KINDS)
    sources = {
        name: torch.where((own == torch.arange(own.shape[-1])).all(-1, keepdim=True), own.roll(1, -1), own)
        for name, own in drawn.sources.items()
    }
    numbers = dict(drawn.numbers)
    for scaling in action.symmetries.scalings:
        flat = numbers[scaling.name].flatten()
        if scaling.kind == "sign":
            flat[0] = -1
        elif scaling.kind == "phase":
            flat[0] = 1
    return Change(sources, numbers)


def _halves(names: Sequence[str]) -> list[list[str]]:
    """Return sets of names such that each name is in one, and every two names are parted by one."""
    runs = math.ceil(math.log2(len(names) + 1))
    return [[name for number, name in enumerate(names, 1) if number >> bit & 1] for bit in range(runs)]


def _without(symmetries: Symmetries, failed: Mapping[str, str]) -> Symmetries:
    """Return symmetries without those that failed."""
    if not failed:
        return symmetries
    fixtures = list(symmetries.fixtures)
    for name, reason in failed.items():
        if name in symmetries.group:
            tensor, axis = symmetries.places_of(name)[0]
            fixtures.append(Fixture(tensor, axis, symmetries.group[name].size, reason))
    needed = {other for group in symmetries.groups if group.name not in failed for other in group.over}
    groups = tuple(
        replace(group, reason=group.reason or failed.get(group.name))
        for group in symmetries.groups
        if group.name not in failed or group.name in needed
    )
    gone = set(failed) - needed
    axes = {name: tuple(_still(term, gone) for term in terms) for name, terms in symmetries.axes.items()}
    scalings = tuple(
        scaling for scaling in symmetries.scalings if scaling.name not in failed and scaling.group not in failed
    )
    still = dict(symmetries.still)
    for name, terms in axes.items():
        for index, term in enumerate(terms):
            if term is None:
                still.setdefault((name, index), len(still))
    return replace(symmetries, groups=groups, axes=axes, scalings=scalings, still=still, fixtures=tuple(fixtures))


def _still(term: Term | None, gone: set[str]) -> Term | None:
    if term is None or not any(one.group in gone for one in units_in(term)):
        return term
    found = _fixed(term, gone)
    return None if not any(True for _ in units_in(found)) else found


def _fixed(term: Term, gone: set[str]) -> Term:
    if isinstance(term, Units):
        return Fixed(term.size) if term.group in gone else term
    if isinstance(term, Product):
        return Product(tuple(_fixed(factor, gone) for factor in term.factors))
    return Sum(tuple(_fixed(part, gone) for part in term.parts)) if isinstance(term, Sum) else term
