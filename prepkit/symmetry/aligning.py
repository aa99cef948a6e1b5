"""Alignment: networks of the same functions, with their hidden units in the order in which a reference has them.

    aligned = prepkit.align("resnet8@cifar10", preps, reference)       # preps [N, H, W], reference [H, W]
    aligned.preps, aligned.before, aligned.after                       # [N, H, W], distances [N], [N]
    prepkit.orbit_distance("resnet8@cifar10", preps, others)           # [N]

Instances are aligned in float64 and come back in their own dtype. See _matching.py for the method.
Shapes: N instances, H x W the PRep.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prepkit.errors import LayoutMismatch, SymmetryError, counted, listed
from prepkit.families.registry import Architecture
from prepkit.prep.layout import Layout
from prepkit.support.progress import Advance
from prepkit.support.text import Brief
from prepkit.symmetry._matching import Matching, squares
from prepkit.symmetry._standing import Standing
from prepkit.symmetry.acting import Action
from prepkit.symmetry.derive import symmetries
from prepkit.symmetry.spec import Symmetries

UPDATES = 5  # of a centroid, at most
SETTLED = 1e-6  # of a centroid's size: it moves no more
CHUNK_BYTES = 64 << 20  # that are worked on at once
CAME_BACK = 1e-4  # of the distance that scrambling moved a copy; float32 gives phases no more digits
KINDS = ("permute", "sign", "phase")  # what alignment undoes

Network = Architecture | str | Symmetries


@dataclass(frozen=True, eq=False, repr=False)
class Aligned(Brief):
    """Instances that were aligned.

    preps:     `[N, H, W]`, the same functions
    reference: `[H, W]`, what they were aligned to
    before:    distance of each instance's parameters to the reference as it was given, `[N]` in float64
    after:     the same after alignment
    """

    preps: Tensor
    reference: Tensor
    before: Tensor
    after: Tensor


def align(
    network: Network, preps: Tensor, reference: Tensor | None = None, *, seed: int = 0, updates: int = UPDATES
) -> Aligned:
    """Put the hidden units of instances into the order of a reference, with their signs and phases.

    network:   an architecture, the name of a registered one, or its `prepkit.symmetries`
    preps:     `[N, H, W]`, PReps of this architecture without BatchNorm, or as its symmetries have it
    reference: `[H, W]`; if missing, the centroid: the mean of the instances, aligned to the first one at first and
               then to their mean, `updates` times at most
    seed:      decides in which order groups of units are dealt with
    raises LayoutMismatch for another shape, SymmetryError for values that are not finite or where scipy is missing

    Each function stays as it is, but for rounding. Scales of units, behind rectifiers, stay as they are, too. Two
    networks with the same function, whose units are in another order, become one, unless some units are equal to each
    other in part; `scrambled_copies` tells how many do.

    >>> aligned = prepkit.align("resnet8@digits", preps, preps[0])
    >>> bool((aligned.after <= aligned.before).all())
    True
    """
    aligner = Aligner.of(network)
    checked(aligner, preps)
    if reference is None:
        reference = centroid(aligner, lambda: [preps], seed, updates)
    elif reference.dim() != 2 or reference.shape != preps.shape[1:]:
        raise LayoutMismatch(f"the reference is {list(reference.shape)}, not {list(preps.shape[1:])} as the PReps are.")
    checked(aligner, reference[None], "the reference")
    aligned = aligner.aligned(preps, reference[None], seed)
    before, after = (aligner.distances(own, reference[None]) for own in (preps, aligned))
    return Aligned(aligned, reference, before, after)


def orbit_distance(network: Network, preps: Tensor, others: Tensor, *, seed: int = 0) -> Tensor:
    """Return how far apart the functions' nearest forms are: the distance after alignment, `[N]` in float64.

    preps, others: `[N, H, W]` each, compared row by row; `others` may be one PRep `[H, W]`
    Each is aligned to the other, and the smaller distance counts, as does that without alignment. It is an upper bound
    of the true one, since matching may end in a local optimum. For two orders of one network it is 0 if its units
    differ.
    raises as `align` does

    >>> prepkit.orbit_distance("resnet8@digits", preps, scrambled)
    tensor([0., 0., 0.], dtype=torch.float64)
    """
    aligner = Aligner.of(network)
    others = others[None].expand(len(preps), -1, -1) if others.dim() == 2 else others
    if others.shape != preps.shape:
        raise LayoutMismatch(f"PReps {list(preps.shape)} and {list(others.shape)} cannot be compared row by row.")
    checked(aligner, preps)
    checked(aligner, others, "the others")
    there = aligner.distances(aligner.aligned(preps, others, seed), others)
    back = aligner.distances(aligner.aligned(others, preps, seed), preps)
    return torch.stack([there, back, aligner.distances(preps, others)]).amin(0)


class Aligner:
    """The symmetries of a network, ready to align PReps that lie in a layout.

    layout: the PReps' layout; that of the symmetries if missing
    raises LayoutMismatch if a layout has other tensors than the symmetries
    """

    def __init__(self, found: Symmetries, layout: Layout | None = None) -> None:
        self.standing = Standing(found)
        self.layout = found.layout if layout is None else layout
        own, other = ({slot.name: slot.shape for slot in one} for one in (found.layout, self.layout))
        if own != other:
            name = next(name for name in {**own, **other} if own.get(name) != other.get(name))
            raise LayoutMismatch(f"the PReps have other tensors than the network whose symmetries are known: '{name}'.")

    @classmethod
    def of(cls, network: Network) -> Aligner:
        """Return the aligner of an architecture, its name, or its symmetries."""
        return cls(network if isinstance(network, Symmetries) else symmetries(network))

    @property
    def action(self) -> Action:
        """The symmetries, ready to act."""
        return self.standing.action

    def tensors(self, preps: Tensor) -> dict[str, Tensor]:
        """Return the tensors of PReps `[N, *shape]` in float64, on the CPU."""
        flat = preps.detach().cpu().flatten(1)
        return {s.name: flat[:, s.start : s.stop].double().view(len(flat), *s.shape) for s in self.layout}

    def write(self, tensors: Mapping[str, Tensor], out: Tensor) -> None:
        """Write tensors into PReps `[N, H, W]`, whose padding stays."""
        flat = out.view(len(out), -1)
        for slot in self.layout:
            flat[:, slot.start : slot.stop] = tensors[slot.name].flatten(1)

    def aligned(self, preps: Tensor, references: Tensor, seed: int = 0) -> Tensor:
        """Return PReps `[N, H, W]` aligned to one reference `[1, H, W]`, or each to its own `[N, H, W]`."""
        moved = preps.detach().clone(memory_format=torch.contiguous_format)
        one = Matching(self.standing, self.tensors(references), seed) if len(references) == 1 else None
        for rows in self.chunks(len(preps)):
            matching = one or Matching(self.standing, self.tensors(references[rows]), seed)
            self.write(matching(self.tensors(preps[rows])), moved[rows])
        return moved

    def distances(self, preps: Tensor, references: Tensor) -> Tensor:
        """Return distances of parameters `[N]` in float64 to one reference or to each one's own."""
        total = torch.zeros(len(preps), dtype=torch.float64)
        for slot in self.layout:
            if slot.kind == "parameter":
                own, other = (t.detach().cpu().flatten(1)[:, slot.start : slot.stop] for t in (preps, references))
                total += squares(own.double() - other.double())
        return total.sqrt()

    def scrambled(self, preps: Tensor, generator: torch.Generator, kinds: Collection[str] = KINDS) -> Tensor:
        """Return copies of instances with their units in random order, with random signs and phases.

        kinds: which of these changes are made
        """
        moved = preps.detach().clone(memory_format=torch.contiguous_format)
        change = self.action.draw(generator, count=len(preps), kinds=kinds)
        self.write(self.action.on_tensors(change, self.tensors(preps)), moved)
        return moved

    def chunks(self, count: int) -> Iterator[slice]:
        """Yield rows that are worked on at once."""
        size = max(1, CHUNK_BYTES // self.bytes_an_instance)
        for first in range(0, count, size):
            yield slice(first, first + size)

    @property
    def bytes_an_instance(self) -> int:
        """How much memory aligning one instance takes, about: values several times, and scores of pairs of units."""
        pairs = 0
        for name in self.standing.names:
            *over, size = self.action.shape(name)
            pairs = max(pairs, int(torch.tensor([*over, size, size]).prod()) << len(self.standing.signs_of(name)))
        return 8 * (4 * self.layout.total + 3 * pairs)


def centroid(
    aligner: Aligner,
    passes: Callable[[], Iterable[Tensor]],
    seed: int = 0,
    updates: int = UPDATES,
    progress: Advance | None = None,
) -> Tensor:
    """Return the mean `[H, W]` of instances that are aligned to it, in their dtype.

    passes:   yields the instances `[n, H, W]` piece by piece, and does so again each time it is called
    progress: called with numbers of instances that were aligned, whose sum is `updates` times all instances
    """
    reference, count, done = next(iter(passes()))[0].detach(), 0, 0
    for _ in range(updates):
        total, count = torch.zeros((), dtype=torch.float64), 0
        for preps in passes():
            total = total + aligner.aligned(preps, reference[None], seed).double().sum(0)
            count, done = count + len(preps), done + len(preps)
            if progress is not None:
                progress(len(preps))
        mean = total / count
        moved = float((mean - reference.double()).norm())
        reference = mean.to(reference.dtype)
        if moved <= SETTLED * float(mean.norm()):
            break
    if progress is not None and done < updates * count:
        progress(updates * count - done)
    return reference


@dataclass(frozen=True)
class Scrambled:
    """How many scrambled copies of instances came back to where the instances themselves are aligned to.

    copies:   number of copies
    returned: number of those that came back
    """

    copies: int
    returned: int


def scrambled_copies(
    aligner: Aligner, preps: Tensor, reference: Tensor, generator: torch.Generator, seed: int = 0
) -> Scrambled:
    """Scramble a copy of each instance, align it, and compare it with the instance, aligned.

    preps: `[N, H, W]`; reference: `[H, W]`
    """
    copies = aligner.scrambled(preps, generator)
    own, theirs = (aligner.aligned(each, reference[None], seed) for each in (preps, copies))
    moved, left = aligner.distances(preps, copies), aligner.distances(own, theirs)
    return Scrambled(len(preps), int((left <= CAME_BACK * moved).sum()))


def checked(aligner: Aligner, preps: Tensor, what: str = "the instances") -> None:
    """Raise LayoutMismatch or SymmetryError for PReps that cannot be aligned."""
    total = aligner.layout.total
    if preps.dim() != 3 or preps.shape[1] * preps.shape[2] < total or not preps.is_floating_point():
        raise LayoutMismatch(f"expected PReps [N, H, W] of {total:,} values, found {list(preps.shape)} {preps.dtype}.")
    if not len(preps):
        raise LayoutMismatch("there are no PReps to align: found [0, H, W].")
    broken = [row for row, own in enumerate(preps) if not own.flatten()[:total].isfinite().all()]
    if broken:
        where = f"row {broken[0]}" if len(broken) == 1 else f"{counted(len(broken), 'row')}: {listed(broken, 3)}"
        raise SymmetryError(f"there is NaN or infinity in {what} ({where}), which cannot be matched; leave these out.")
