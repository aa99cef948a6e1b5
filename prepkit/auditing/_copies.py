"""Which networks are copies of each other: byte by byte, or nearly and perhaps with hidden units in another order."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from prepkit.auditing._order import Reordering, distance
from prepkit.auditing._outputs import Outputs, Sketch
from prepkit.auditing._values import Measured, OneLayout, candidates
from prepkit.errors import PrepkitError, counted
from prepkit.symmetry.aligning import Aligner
from prepkit.symmetry.balancing import distance_of_forms

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.symmetry.spec import Symmetries
    from prepkit.zoo.read.zoo import Zoo

MAX_DIFFERENT = 2_000  # comparisons of an architecture in another order that find no copy; the rest is left then
LEAST_DIFFERENT = 10
MAX_VALUES = 2e8  # that these may have in all, unless they are fewer than LEAST_DIFFERENT
KEPT_BYTES = 64 << 20  # of networks that are kept between comparisons
# Networks whose outputs are so near, by the tolerance of weights, may be one function in two forms.
REACH, LEAST_REACH = 20.0, 1e-4
# Pairs of one architecture that are compared with other signs and scales, and those of them that find no copy.
MAX_FORMS, MAX_OTHER_FORMS, FORMS_AT_ONCE = 512, 128, 32
VALUES_AT_ONCE = 1 << 22
MAX_WAITING = 4_096  # pairs that are known if others turn out to be copies
ORDER, FORM = "order", "form"
Label = Callable[[int, bool], int]
Side = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Pair:
    """Two networks that were compared value by value.

    first, second: their rows; the second is one of the other zoo where there is one
    share:         their distance, as a share of the larger norm
    how:           "" if they were compared as they stand; "order" if hidden units of the second were put in another
                   order for it; "form" if they also got other signs and scales
    """

    first: int
    second: int
    share: float
    how: str


@dataclass
class Copies:
    """What was found.

    equal:   groups of rows whose bytes are equal
    near:    pairs, each of which joins two networks that no others join so far
    checked: sentences on what was compared
    left:    sentences on what could not be compared
    """

    equal: list[list[int]] = field(default_factory=list)
    near: list[Pair] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def groups(self) -> list[list[int]]:
        """Return the rows that near pairs join, directly or over others."""
        joined = Joined()
        for pair in self.near:
            joined.join(pair.first, pair.second)
        return joined.groups()


class Joined:
    """Numbers that belong together (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def root(self, number: int) -> int:
        """Return the number that stands for all that belong together with this one."""
        parent = self._parent
        while (above := parent.get(number, number)) != number:
            parent[number] = parent.get(above, above)
            number = parent[number]
        return number

    def join(self, first: int, second: int) -> None:
        """Note that two numbers belong together."""
        low, high = sorted((self.root(first), self.root(second)))
        self._parent.setdefault(low, low)
        self._parent[high] = low

    def groups(self) -> list[list[int]]:
        """Return all that belong together, in order."""
        found: dict[int, list[int]] = {}
        for number in sorted(self._parent):
            found.setdefault(self.root(number), []).append(number)
        return list(found.values())


def copies_within(zoo: Zoo, measured: Measured, outputs: Outputs, tolerance: float) -> Copies:
    """Find copies among the networks of one zoo, with the help of what they answered."""
    found = Copies()
    by_digest: dict[bytes, list[int]] = {}
    for row, digest in enumerate(measured.digests):
        by_digest.setdefault(digest, []).append(row)
    found.equal = [rows for rows in by_digest.values() if len(rows) > 1]
    alone = np.ones(len(zoo), dtype=bool)  # one of each group of equal networks is compared with others
    alone[[row for rows in found.equal for row in rows[1:]]] = False
    for key, own in measured.layouts.items():
        joined = Joined()
        layer = _only(own, alone[own.rows])
        comparer = Comparer(own, (zoo, zoo), tolerance)

        def label(row: int, second: bool, joined: Joined = joined) -> int:
            return joined.root(row)

        sketches = [one for one in outputs.sketches.get(key, ()) if alone[one.row]]
        for pair in chain(comparer.near(layer, layer, label), comparer.other_forms(sketches, sketches, label)):
            joined.join(pair.first, pair.second)
            found.near.append(pair)
        found.left += comparer.left()
    _say(found, measured.layouts.values(), "within")
    return found


def copies_against(
    zoo: Zoo, other: Zoo, measured: tuple[Measured, Measured], outputs: tuple[Outputs, Outputs], tolerance: float
) -> Copies:
    """Find networks of one zoo whose copies are in another; each is in one pair.

    measured, outputs: of both zoos
    """
    found = Copies()
    there: dict[bytes, int] = {}
    for row, digest in enumerate(measured[1].digests):
        there.setdefault(digest, row)
    found.near = [Pair(row, there[d], 0.0, "") for row, d in enumerate(measured[0].digests) if d in there]
    known = {pair.first for pair in found.near}

    def label(row: int, second: bool) -> int:
        return -1 if second or row in known else row

    for key, own in measured[0].layouts.items():
        theirs = measured[1].layouts.get(key)
        if theirs is None:
            found.left.append(
                f"The other zoo has no network with the tensors of {own.architecture}, so that none of its "
                f"{counted(len(own.rows), 'network')} was compared with it."
            )
            continue
        comparer = Comparer(own, (zoo, other), tolerance)
        layer = _only(own, np.array([row not in known for row in own.rows.tolist()], dtype=bool))
        sketches, others = (each.sketches.get(key, []) for each in outputs)
        for pair in chain(comparer.near(layer, theirs, label), comparer.other_forms(sketches, others, label)):
            known.add(pair.first)
            found.near.append(pair)
        found.left += comparer.left()
    return found


def _say(found: Copies, layouts: Iterable[OneLayout], how: str) -> None:
    total = sum(len(own.rows) for own in layouts)
    found.checked.append(
        "The bytes of all networks were compared, and the values of those without NaN and infinity: "
        f"{counted(total, 'network')}."
    )


def _only(own: OneLayout, keep: np.ndarray) -> OneLayout:
    return OneLayout(
        own.layout, own.architecture, own.rows[keep], own.plain_NF[keep], own.sorted_NF[keep], own.norms_N[keep]
    )


class Comparer:
    """Compares networks of one layout, whose candidates their features name.

    zoos: the zoo of the first and of the second network of each pair
    """

    def __init__(self, own: OneLayout, zoos: tuple[Zoo, Zoo], tolerance: float) -> None:
        self._own, self._zoos, self._tolerance = own, zoos, tolerance
        self._kept: OrderedDict[tuple[int, int], dict[str, Tensor]] = OrderedDict()
        self._num_kept = max(2, KEPT_BYTES // max(1, 8 * own.layout.total))
        self._reordering: Reordering | None = None
        self._why_none = ""
        self._symmetries: Symmetries | None = None
        self._different, self._stopped = 0, False
        self._num_forms, self._forms_stopped, self._why_no_forms = 0, False, ""

    def near(self, first: OneLayout, second: OneLayout, label: Label) -> Iterator[Pair]:
        """Yield pairs of near networks: first those that are near as they stand, then those that are when reordered.

        label: a number for a row of the first network (False) or the second (True); pairs of equal numbers are known
        """
        for a, b in self._candidates(first, second, label, first.plain_NF, second.plain_NF):
            share = self._share(a, b, distance)
            if share <= self._tolerance:
                yield Pair(a, b, share, "")
        allowed = min(MAX_DIFFERENT, max(LEAST_DIFFERENT, int(MAX_VALUES // max(1, self._own.layout.total))))
        for a, b in self._candidates(first, second, label, first.sorted_NF, second.sorted_NF):
            reordering = self._found_reordering() if allowed else None
            if reordering is None:
                self._stopped = True
                break
            share = self._share(a, b, reordering.distance)
            if share <= self._tolerance:
                yield Pair(a, b, share, ORDER)
            else:
                self._different += 1
                allowed -= 1

    def other_forms(self, first: list[Sketch], second: list[Sketch], label: Label) -> Iterator[Pair]:
        """Yield pairs of networks that answer alike and are near with other orders, signs and scales of hidden units.

        first, second: what the networks answered; the same list twice for one zoo
        """
        rows, others = (np.array([one.row for one in each], dtype=np.int64) for each in (first, second))
        if not len(rows) or not len(others):
            return
        a = np.stack([one.features for one in first])
        b = a if first is second else np.stack([one.features for one in second])
        norms, other_norms = (np.array([one.norm for one in each]) for each in (first, second))
        reach = max(LEAST_REACH, REACH * self._tolerance)
        pairs = self._pairs((rows, a, norms), (others, b, other_norms), reach, label)
        size = max(1, self._own.layout.total)
        allowed = min(MAX_FORMS, max(LEAST_DIFFERENT, int(MAX_VALUES // size)))
        at_once, different = max(1, min(FORMS_AT_ONCE, VALUES_AT_ONCE // size)), MAX_OTHER_FORMS
        waiting: list[tuple[int, int]] = []
        while batch := _apart(pairs, waiting, label, min(at_once, allowed, max(0, different))):
            shares = self._shares_of_forms(batch)
            if shares is None:
                break
            allowed -= len(batch)
            different -= sum(share > self._tolerance for share in shares)
            self._num_forms += len(batch)
            for (one, other), share in zip(batch, shares, strict=True):
                if share <= self._tolerance and label(one, False) != label(other, True):
                    yield Pair(one, other, share, FORM)
        self._forms_stopped = allowed == 0 or different <= 0

    def _shares_of_forms(self, pairs: Sequence[tuple[int, int]]) -> list[float] | None:
        """Return the distances of some pairs; None where it is not known how forms differ."""
        if self._found_reordering() is None or self._symmetries is None:
            return None
        aligner = Aligner(self._symmetries, self._own.layout)
        sides = [self._zoos[side].values([pair[side] for pair in pairs]).double().unsqueeze(1) for side in (0, 1)]
        try:
            shares: list[float] = distance_of_forms(aligner, *sides).tolist()
        except PrepkitError as error:
            self._why_no_forms = str(error).splitlines()[0].rstrip(".")
            return None
        return shares

    def left(self) -> list[str]:
        """Return what could not be compared."""
        name, sentences = self._own.architecture, []
        if self._why_none:
            sentences.append(
                f"{name}: networks with much the same sorted values were not compared in another order of their hidden "
                f"units, as it is not known which of these may change places: {self._why_none}."
            )
        elif self._stopped:
            sentences.append(
                f"{name}: of the pairs with much the same sorted values, some were not compared in another order of "
                f"their hidden units, after {counted(self._different, 'comparison')} that found no copy."
            )
        if self._why_no_forms:
            sentences.append(
                f"{name}: networks that answer alike were not compared with other signs and scales of their hidden "
                f"units: {self._why_no_forms}."
            )
        elif self._forms_stopped:
            sentences.append(
                f"{name}: of the pairs that answer alike, only {self._num_forms:,} were compared with other signs and "
                "scales of their hidden units."
            )
        if self._reordering is not None and self._reordering.left:
            sentences.append(
                f"{name}: the units of {', '.join(self._reordering.left)} were left in their order, since they stand "
                "along axes of several parts."
            )
        return sentences

    def _candidates(
        self, first: OneLayout, second: OneLayout, label: Label, a: np.ndarray, b: np.ndarray
    ) -> Iterator[tuple[int, int]]:
        """Yield the rows of pairs that are not known yet and whose features are near."""
        sides = (first.rows, a, first.norms_N), (second.rows, b, second.norms_N)
        return self._pairs(*sides, self._tolerance, label)

    def _pairs(self, first: Side, second: Side, tolerance: float, label: Label) -> Iterator[tuple[int, int]]:
        """Yield the rows of pairs that are not known yet and whose features are near.

        first, second: rows, features and norms of the networks on each side
        """

        def labels(i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            own = ((first[0][i].tolist(), False), (second[0][j].tolist(), True))
            of_i, of_j = (np.array([label(row, which) for row in rows], dtype=np.int64) for rows, which in own)
            return of_i, of_j

        for i, j in candidates(first[1], first[2], second[1], second[2], tolerance, labels):
            row, other = int(first[0][i]), int(second[0][j])
            if label(row, False) != label(other, True):
                yield row, other

    def _share(self, a: int, b: int, measure: Callable[[dict[str, Tensor], dict[str, Tensor]], float]) -> float:
        first, second = self._tensors(0, a), self._tensors(1, b)
        found = measure(first, second)
        norm = max(math.sqrt(sum(float(x.square().sum()) for x in each.values())) for each in (first, second))
        return found / norm if norm else 0.0 if found == 0 else math.inf

    def _tensors(self, side: int, row: int) -> dict[str, Tensor]:
        side = 0 if self._zoos[0] is self._zoos[1] else side
        key = side, row
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        tensors = {name: x.double() for name, x in self._zoos[side][row][0].tensors().items()}
        self._kept[key] = tensors
        if len(self._kept) > self._num_kept:
            self._kept.popitem(last=False)
        return tensors

    def _found_reordering(self) -> Reordering | None:
        if self._reordering is None and not self._why_none:
            from prepkit.symmetry.derive import symmetries

            try:
                source = self._zoos[0].select([int(self._own.rows[0])]).view_source()
                if source.architecture is None:
                    self._why_none = "the zoo knows only its layout"
                else:
                    self._symmetries = symmetries(source.architecture, keep_batch_norm=not source.folded)
                    self._reordering = Reordering(self._symmetries)
            except (PrepkitError, RuntimeError) as error:
                self._why_none = str(error).splitlines()[0].rstrip(".")
        return self._reordering


def _apart(
    pairs: Iterator[tuple[int, int]], waiting: list[tuple[int, int]], label: Label, count: int
) -> list[tuple[int, int]]:
    """Take pairs none of which would be known if the others of them turned out to be copies.

    waiting: pairs that would be, which are asked first the next time; it is changed
    """
    taken, joined, left = list[tuple[int, int]](), Joined(), list[tuple[int, int]]()
    earlier = iter(list(waiting))
    source = chain(earlier, pairs)
    while len(taken) < count and len(left) < MAX_WAITING:
        pair = next(source, None)
        if pair is None:
            break
        one, other = label(pair[0], False), label(pair[1], True)
        if one == other:
            continue
        if other >= 0 and joined.root(one) == joined.root(other):
            left.append(pair)
            continue
        if other >= 0:
            joined.join(one, other)
        taken.append(pair)
    waiting[:] = [*left, *earlier]
    return taken
