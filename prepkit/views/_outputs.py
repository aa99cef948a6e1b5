"""The view `outputs`: what the networks answer on given inputs, called probes.

Shapes: N instances, B probes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prepkit.errors import LayoutMismatch, PrepkitError
from prepkit.prep.layout import PRepShape
from prepkit.running.instances import run_instances, runner, stacking_pays
from prepkit.tensors import as_tensor
from prepkit.views._view import View
from prepkit.views.source import Source, described


def outputs(of: Any, probes: Any) -> Outputs:
    """Return the view of outputs `[N, B, ...]` on given inputs, computed for all instances of a batch at once.

    of:     a zoo, an architecture or its name
    probes: inputs `[B, *input_shape]` that all instances are given
    raises LayoutMismatch for probes of another shape, PrepkitError where no architecture is known

    >>> view = prepkit.views.outputs("lenet_like@digits", torch.randn(16, 1, 8, 8))
    >>> view(preps).shape
    torch.Size([2, 16, 10])
    """
    return Outputs(Source.of(of), probes)


class Outputs(View):
    """Outputs of networks in evaluation, differentiable in the PReps. There is no inverse.

    probes: the inputs `[B, *input_shape]`
    """

    name = "outputs"

    def __init__(self, source: Source, probes: Any) -> None:
        super().__init__(source)
        if source.architecture is None:
            raise PrepkitError(
                f"only the tensors of {source.name} are known, so it cannot be run; give an architecture, such as "
                "prepkit.architecture('resnet8@digits')."
            )
        self.architecture = source.architecture
        self.probes = as_tensor(probes, "probes")
        expected = self.architecture.input_shape
        if tuple(self.probes.shape[1:]) != expected or not len(self.probes):
            shape = ", ".join(map(str, expected))
            raise LayoutMismatch(f"probes of {source.name} have shape [B, {shape}]; found {described(self.probes)}.")
        self._shape: tuple[int, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """There are no names for outputs."""
        return ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The number of probes, and the shape of one output, which running one instance tells."""
        if self._shape is None:
            height, width = self.source.shape.height, self.source.shape.width
            with torch.no_grad():
                self._shape = tuple(self.forward(torch.zeros(1, height, width)).shape[1:])
        return {"outputs": self._shape}

    def forward(self, preps: Tensor) -> Tensor:
        """Return the outputs `[N, B, ...]`."""
        self._flat(preps)
        probes = self.probes.to(preps.device)
        if self.source.folded:
            return run_instances(self.architecture, preps, probes)
        probes = probes.to(preps.dtype) if probes.is_floating_point() else probes
        stacked = stacking_pays(self.architecture, len(probes), preps.device, folded=False)
        run = runner(self.architecture, False, stacked, preps.device, dense=False)
        return run(self.source.layout.unpack(preps), probes).to(preps.dtype)

    def inverse(self, values: Tensor, shape: PRepShape | tuple[int, int] | None = None) -> Tensor:
        """Raise LayoutMismatch: there is no inverse."""
        raise LayoutMismatch("outputs do not tell the values of a network, so this view has no inverse.")
