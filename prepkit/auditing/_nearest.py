"""The nearest training network in weights, after the hidden units were brought into the order of that network's.

Each network is compared with a few candidates: those that are nearest as they stand, and those whose sorted values are
nearest, which a reordering of units does not change. So a copy is found whatever the order of its units; of networks
that are copies of none, the distance is that of the nearest candidate, which is never less than the least one.
Shapes: N networks, M training networks, K candidates of a network, P pairs of both, V values of a network.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from prepkit.auditing._stacks import Stack
from prepkit.errors import PrepkitError
from prepkit.symmetry.aligning import Aligner
from prepkit.symmetry.derive import symmetries

CANDIDATES = 2  # of each of the two kinds
AT_ONCE = 256  # networks that are compared with all training networks together


class Known:
    """The training networks of one architecture.

    why_in_order: why networks are compared as they stand only, in their own order of units; empty where they are not
    """

    def __init__(self, stack: Stack) -> None:
        self.stack, self.why_in_order = stack, ""
        self.norms_M = stack.values_NV.double().norm(dim=1)

    @cached_property
    def aligner(self) -> Aligner | None:
        """What brings units into another's order; None where it is not known which may change places."""
        source = self.stack.source
        if source.architecture is None:
            self.why_in_order = "the zoo knows only its layout"
            return None
        try:
            return Aligner(symmetries(source.architecture, keep_batch_norm=not source.folded), source.layout)
        except (PrepkitError, RuntimeError) as error:
            self.why_in_order = str(error).splitlines()[0].rstrip(".")
            return None

    def nearest(self, stack: Stack, *, other_runs: bool = False) -> tuple[Tensor, Tensor]:
        """Return for each network its least distance `[N]`, a share of the training network's norm, and its row `[N]`.

        other_runs: whether training networks of a network's own run are left out
        Where there is no training network, the distance is NaN and the row -1.
        """
        distance_N = torch.full((len(stack),), float("nan"), dtype=torch.float64)
        row_N = torch.full((len(stack),), -1)
        for first in range(0, len(stack), AT_ONCE):
            rows = list(range(first, min(first + AT_ONCE, len(stack))))
            part = stack.select(rows)
            left_out_NM = same_run(part.runs, self.stack.runs) if other_runs else None
            distance_N[rows], row_N[rows] = self._nearest(part, left_out_NM)
        return distance_N, row_N

    def _nearest(self, stack: Stack, left_out_NM: Tensor | None) -> tuple[Tensor, Tensor]:
        kinds = [(stack.values_NV, self.stack.values_NV)]
        if self.aligner is not None:
            kinds.append((self._sorted(stack.values_NV), self._sorted_values))
        candidates, allowed = [], []
        for own_NV, known_MV in kinds:
            share_NM = torch.cdist(own_NV.double(), known_MV.double()) / self.norms_M.clamp(min=1e-300)
            if left_out_NM is not None:
                share_NM[left_out_NM] = float("inf")
            value_NK, candidate_NK = share_NM.topk(min(CANDIDATES, share_NM.shape[1]), dim=1, largest=False)
            candidates.append(candidate_NK)
            allowed.append(value_NK.isfinite())
        candidate_NK, allowed_NK = torch.cat(candidates, dim=1), torch.cat(allowed, dim=1)
        own_P, place_P = allowed_NK.nonzero(as_tuple=True)
        share_NK = torch.full(candidate_NK.shape, float("inf"), dtype=torch.float64)
        share_NK[own_P, place_P] = self._shares(stack.values_NV[own_P], candidate_NK[own_P, place_P])
        best_N, place_N = share_NK.min(1)
        none_N = best_N.isinf()
        row_N = candidate_NK.gather(1, place_N[:, None])[:, 0]
        return torch.where(none_N, float("nan"), best_N), torch.where(none_N, -1, row_N)

    def _shares(self, own_NV: Tensor, row_N: Tensor) -> Tensor:
        """Return distances to one training network each, the smaller of those before and after alignment."""
        known_NV, norm_N = self.stack.values_NV[row_N], self.norms_M[row_N]
        shares = [_relative((own_NV.double() - known_NV.double()).norm(dim=1), norm_N)]
        if self.aligner is not None and len(own_NV):
            aligned_NV = self.aligner.aligned(own_NV[:, None], known_NV[:, None]).squeeze(1)
            shares.append(_relative((aligned_NV.double() - known_NV.double()).norm(dim=1), norm_N))
        return torch.stack(shares).amin(0)

    @cached_property
    def _sorted_values(self) -> Tensor:
        return self._sorted(self.stack.values_NV)

    def _sorted(self, values_NV: Tensor) -> Tensor:
        """Return the values of each tensor in order of size, and 0 for those that no order makes comparable."""
        found = torch.zeros_like(values_NV)
        scalings = [] if self.aligner is None else self.aligner.standing.signs
        shifted = {tensor for scaling in scalings for tensor in scaling.shifts}
        for slot in self.stack.source.layout:
            if slot.name not in shifted:
                own_NV = values_NV[:, slot.start : slot.stop]
                found[:, slot.start : slot.stop] = (own_NV.abs() if scalings else own_NV).sort(dim=1).values
        return found


def same_run(runs: Sequence[Hashable], known: Sequence[Hashable]) -> Tensor:
    """Return whether each network is of the same run as each training network, `[N, M]`."""
    number = {run: place for place, run in enumerate(dict.fromkeys((*runs, *known)))}
    own_N, known_M = (torch.tensor([number[run] for run in each], dtype=torch.int64) for each in (runs, known))
    return own_N[:, None] == known_M


def _relative(distance_N: Tensor, norm_N: Tensor) -> Tensor:
    """Return distances as shares of norms; a network of zeros is near itself alone."""
    return torch.where(distance_N == 0, 0.0, distance_N / norm_N)
