"""The view `statistics`: seven numbers of each tensor, the baseline that many networks do not beat.

Shapes: N instances, T tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prepkit.errors import LayoutMismatch, PrepkitError
from prepkit.prep.layout import PRepShape
from prepkit.views._view import View
from prepkit.views.slot_statistics import NUM_STATISTICS, QUANTILES, Spread, slot_statistics
from prepkit.views.source import Source


def statistics(of: Any, spread: Spread = "variance") -> Statistics:
    """Return the view of seven statistics of each tensor, `[N, T, 7]`.

    of:     a zoo, an architecture, its name, a network or a layout
    spread: the second statistic: "variance", as in Unterthiner et al., or "deviation", its square root. Both divide
            by the number of values, not by one less.

    They are mean, spread, and the quantiles at 0, 25, 50, 75 and 100 %, interpolated linearly. Weights and biases are
    tensors of their own. A tensor with NaN has NaN for all seven.

    >>> view = prepkit.views.statistics("lenet_like@digits")
    >>> view
    <Statistics of lenet_like@digits: statistics [N, 10, 7]>
    """
    return Statistics(Source.of(of), spread)


class Statistics(View):
    """Seven statistics of each tensor; they are float32, or float64 where the PReps are. There is no inverse.

    names:      the names of the tensors; those without values are left out
    statistics: the names of the seven
    """

    name = "statistics"

    def __init__(self, source: Source, spread: Spread) -> None:
        super().__init__(source)
        if spread not in ("variance", "deviation"):
            raise PrepkitError(f"spread is 'variance' or 'deviation'; found {spread!r}.")
        self.spread = spread
        self.statistics = ("mean", spread, *(f"{round(100 * quantile)} %" for quantile in QUANTILES))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors."""
        return tuple(slot.name for slot in self.source.layout if slot.size)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The number of tensors, and 7."""
        return {"statistics": (len(self.names), NUM_STATISTICS)}

    def forward(self, preps: Tensor) -> Tensor:
        """Return the statistics `[N, T, 7]`; no gradient goes through them."""
        flat = self._flat(preps).detach()
        found = slot_statistics(flat, self.source.layout, self.spread)
        return found.to(torch.promote_types(flat.dtype, torch.float32))

    def inverse(self, values: Tensor, shape: PRepShape | tuple[int, int] | None = None) -> Tensor:
        """Raise LayoutMismatch: there is no inverse."""
        raise LayoutMismatch("statistics do not tell the values of a network, so this view has no inverse.")
