"""SGD and Adam over a whole stack: the parameters of K instances in one buffer, each with its own hyper-parameters.

    parameters = Parameters(tensors)          # leaves [K, *shape] that look into one buffer
    optimiser.count_step(parameters)
    ...                                       # add the gradients to parameters.gradients
    optimiser.step(parameters, rates)         # a CUDA graph may repeat this

The updates are those of torch.optim.SGD, Adam and AdamW, element by element, so that a stack equals its instances
trained alone. They are written out here because torch.optim has one learning rate a tensor, not one an instance, and
because one buffer takes a handful of calls a step where a list of tensors takes hundreds.
Shapes: K instances, N values of all their parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Parameters:
    """All parameters of K instances in one buffer `[N]`, tensor after tensor, and their gradients in another.

    leaves: by name `[K, *shape]`, views of the buffer
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.count = len(next(iter(tensors.values())))
        self.values = torch.cat([tensor.detach().reshape(-1) for tensor in tensors.values()])
        self.gradients = torch.zeros_like(self.values)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.leaves = self.tensors(self.values)

    def tensors(self, flat: Tensor) -> dict[str, Tensor]:
        """Views `[K, *shape]` of a buffer that is laid out as this one's values are."""
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        parts = zip(self.shapes.items(), torch.split(flat, sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    def rows(self, flat: Tensor, kept: Sequence[int]) -> Tensor:
        """The values of some instances out of a buffer, laid out for a stack of these alone."""
        index = torch.tensor(kept, device=flat.device)
        return torch.cat([part.index_select(0, index).reshape(-1) for part in self.tensors(flat).values()])

    def by_value(self, numbers: Sequence[float]) -> Tensor | float:
        """Spread one number per instance over its values, `[N]`; equal numbers give one plain number."""
        return numbers[0] if len(set(numbers)) == 1 else self.spread(numbers)

    def spread(self, numbers: Sequence[float]) -> Tensor:
        """Spread one number per instance over its values, `[N]`."""
        each = torch.tensor(numbers, dtype=self.values.dtype, device=self.values.device)
        return torch.cat([each.repeat_interleave(torch.Size(shape[1:]).numel()) for shape in self.shapes.values()])


class Optimiser(Protocol):
    """What updates the parameters of a stack.

    state: buffers `[N]` by name, laid out as the parameters are
    steps: number of steps that were taken
    """

    state: dict[str, Tensor]
    steps: int

    def count_step(self, parameters: Parameters) -> None:
        """Count a step that begins, and set what depends on its number; no graph repeats this."""
        ...

    def step(self, parameters: Parameters, rates: Rates) -> None:
        """Update the values from their gradients."""
        ...


class Rates:
    """The hyper-parameters of a stack's instances: one number each, a plain one where all are equal.

    weight_decay, momentum: K numbers, one per instance
    in_place:               whether the learning rate is a tensor that stays where it is, as a CUDA graph needs it
    """

    learning_rate: Tensor | float

    def __init__(
        self,
        parameters: Parameters,
        weight_decay: Sequence[float],
        momentum: Sequence[float],
        in_place: bool = False,
    ) -> None:
        self.parameters = parameters
        self.weight_decay = parameters.by_value(weight_decay)
        self.momentum = parameters.by_value(momentum)
        self._in_place = torch.zeros_like(parameters.values) if in_place else None

    def set_learning_rates(self, numbers: Sequence[float]) -> None:
        """Take other learning rates, one per instance."""
        if self._in_place is None:
            self.learning_rate = self.parameters.by_value(numbers)
        else:
            self.learning_rate = self._in_place.copy_(self.parameters.spread(numbers))


class Sgd:
    """Stochastic gradient descent with momentum and L2 weight decay, as torch.optim.SGD (Sutskever et al., 2013)."""

    def __init__(self, nesterov: bool = False) -> None:
        self.nesterov = nesterov
        self.state: dict[str, Tensor] = {}
        self.steps = 0

    def count_step(self, parameters: Parameters) -> None:
        """Count a step."""
        self.steps += 1

    @torch.no_grad()
    def step(self, parameters: Parameters, rates: Rates) -> None:
        """v = momentum v + g;  p = p - lr v, with g + momentum v in place of v for Nesterov."""
        gradients = with_decay(parameters, rates.weight_decay)
        if "momentum" not in self.state:
            self.state["momentum"] = torch.zeros_like(parameters.values)
        velocity = self.state["momentum"].mul_(rates.momentum).add_(gradients)
        if self.nesterov:
            velocity = gradients + velocity * rates.momentum
        descend(parameters.values, velocity, rates.learning_rate)


class Adam:
    """Adam (Kingma and Ba, 2015) as torch.optim.Adam; with `decoupled` weight decay AdamW (Loshchilov and Hutter)."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, decoupled: bool = False) -> None:
        self.betas, self.eps, self.decoupled = betas, eps, decoupled
        self.state: dict[str, Tensor] = {}
        self.steps = 0
        self._corrections: tuple[Tensor, Tensor] | None = None

    def count_step(self, parameters: Parameters) -> None:
        """Count a step, and set by what its averages are divided."""
        self.steps += 1
        first, second = self.betas
        if self._corrections is None:
            self._corrections = parameters.values.new_empty(()), parameters.values.new_empty(())
        self._corrections[0].fill_(1 - first**self.steps)
        self._corrections[1].fill_((1 - second**self.steps) ** 0.5)

    @torch.no_grad()
    def step(self, parameters: Parameters, rates: Rates) -> None:
        """p = p - lr m' / (sqrt(v') + eps): moving averages m of g, v of g squared; ' corrects the start's bias."""
        values = parameters.values
        if self.decoupled:
            values.mul_(1 - rates.learning_rate * rates.weight_decay)
            gradients = parameters.gradients
        else:
            gradients = with_decay(parameters, rates.weight_decay)
        if not self.state:
            self.state = {"mean": torch.zeros_like(values), "square": torch.zeros_like(values)}
        if self._corrections is None:
            raise ValueError("count_step comes before step")
        first, second = self.betas
        mean = self.state["mean"].lerp_(gradients, 1 - first)
        square = self.state["square"].mul_(second).addcmul_(gradients, gradients, value=1 - second)
        root = (square.sqrt() / self._corrections[1]).add_(self.eps)
        descend(values, mean / self._corrections[0] / root, rates.learning_rate)


def with_decay(parameters: Parameters, weight_decay: Tensor | float) -> Tensor:
    """The gradients plus weight decay times the values; the gradients' own buffer is overwritten."""
    if isinstance(weight_decay, Tensor):
        return parameters.gradients.addcmul_(parameters.values, weight_decay)
    return parameters.gradients.add_(parameters.values, alpha=weight_decay) if weight_decay else parameters.gradients


def descend(values: Tensor, direction: Tensor, learning_rate: Tensor | float) -> None:
    """values -= learning_rate * direction, in place."""
    if isinstance(learning_rate, Tensor):
        values.addcmul_(direction, learning_rate, value=-1)
    else:
        values.sub_(direction, alpha=learning_rate)
