"""View: what all views have in common.

Shapes: N instances, H x W the PRep, P values of an architecture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prepkit.errors import LayoutMismatch, listed
from prepkit.prep.contents import refuse_others
from prepkit.prep.layout import PRepShape, flat_view
from prepkit.tensors import as_tensor
from prepkit.views.source import Source, described


class View(ABC):
    """A form of the PReps of one architecture. Calling it makes the form of a batch, and `inverse` the PReps again.

    source: the architecture
    notes:  sentences that tell what is not as one might expect
    """

    name = "view"

    def __init__(self, source: Source) -> None:
        self.source = source
        self.notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        parts = [f"{name} {_spelled(shape)}" for name, shape in self.shapes.items()]
        return f"<{type(self).__name__} of {self.source.name}: {listed(parts, 2)}>"

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """What the entries of the view are called."""

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor of the view, without the axis N of instances."""

    @abstractmethod
    def forward(self, preps: Tensor) -> Any:
        """Return the form of PReps `[N, H, W]`."""

    @abstractmethod
    def inverse(self, values: Any, shape: PRepShape | tuple[int, int] | None = None) -> Tensor:
        """Return the PReps `[N, H, W]`, zeros after the last value.

        shape: height and width; those of the zoo if missing, or the least height at width 512 where there is no zoo
        """

    def __call__(self, preps: Tensor) -> Any:
        """Return the form of PReps `[N, H, W]`, in their dtype and on their device."""
        return self.forward(preps)

    def _flat(self, preps: Tensor) -> Tensor:
        """Return PReps `[N, H, W]` as `[N, H * W]`.

        raises LayoutMismatch if they are not PReps of this architecture
        """
        preps = as_tensor(preps, "preps")
        if preps.dim() != 3:
            hint = " For one instance, give prep[None]." if preps.dim() == 2 else ""
            raise LayoutMismatch(f"expected PReps [N, H, W], found {described(preps)}.{hint}")
        refuse_others(preps, self.source.layout.slot_shapes)
        flat = flat_view(preps)
        if flat.shape[1] < self.source.layout.total:
            raise LayoutMismatch(
                f"PReps of {described(preps)} are too small for {self.source.name}, which has "
                f"{self.source.layout.total:,} values."
            )
        return flat

    def _prep_shape(self, shape: PRepShape | tuple[int, int] | None) -> PRepShape:
        """Return the shape of PReps to make; raises InvalidShape if the values do not fit."""
        if shape is None:
            return self.source.shape
        wanted = shape if isinstance(shape, PRepShape) else PRepShape(*shape)
        return self.source.layout.shape(wanted.width, wanted.height)

    def _expect(self, values: object, shape: tuple[int, ...], what: str) -> Tensor:
        """Return a tensor `[N, *shape]`; raises LayoutMismatch for another one."""
        tensor = as_tensor(values, what)
        if tuple(tensor.shape[1:]) != shape or tensor.dim() != len(shape) + 1:
            raise LayoutMismatch(
                f"{what} of {self.source.name} have shape {_spelled(shape)}; found {described(values)}."
            )
        return tensor


def _spelled(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, ('N', *shape)))}]"
