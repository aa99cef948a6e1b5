"""One step of a training: the losses of its batches, their gradients, and the update of the network.

On a GPU the step is a few CUDA graphs (prepkit.support.graphs); elsewhere, and with several processes, the same
functions run as they are. Shapes: see _objective.py.
"""

# ruff: noqa: N803, N806, N815 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from netspace.data import Batch
from netspace.recipe import Recipe
from netspace.training._objective import Objective, Predicted
from prepkit.support.device import HostCopy
from prepkit.support.graphs import GraphedChain, GraphedStep
from prepkit.support.processes import Ranks

Parts = dict[str, Tensor]


class Outputs(NamedTuple):
    """What is computed before the predicted ClassIds are known; the first three need gradients."""

    preps_MHW: Tensor
    logits_MA: Tensor
    loss_line: Tensor | None
    class_ids_M: Tensor
    t_star_BC: Tensor
    t_nBC: Tensor | None


def adam(
    parameters: Sequence[nn.Parameter], learning_rate: float, device: torch.device, graphed: bool = True
) -> torch.optim.Adam:
    """Adam whose update can be recorded on a GPU, where its learning rate is a tensor.

    graphed: whether it will be recorded
    """
    graphed = graphed and device.type == "cuda"
    rate = torch.tensor(learning_rate, device=device) if graphed else learning_rate
    optimizer = torch.optim.Adam(parameters, lr=rate, fused=device.type in ("cpu", "cuda"), capturable=graphed)
    optimizer._warned_capturable_if_run_uncaptured = True  # its first steps are run
    return optimizer


class Step:
    """Takes steps: `step(batches, rate)` returns the losses' parts and `gradient_norm`, which a later step changes."""

    def __init__(self, objective: Objective, optimizer: torch.optim.Adam, ranks: Ranks, device: torch.device) -> None:
        # What is recorded does not know this object: without a circle, a graph's memory is freed with it at once.
        own = Operations(objective, optimizer, device)
        self.operations, self.ranks = own, ranks
        graphed = device if ranks.size == 1 else torch.device("cpu")  # processes talk to each other within a step
        self.accumulate: Callable[..., Parts] = GraphedStep(own.accumulate, graphed)
        if objective.recipe.has_classes and graphed.type == "cuda":
            self.accumulate = GraphedChain(own.forward, _class_ids, own.judge, _backward, graphed)
        self.update = GraphedStep(own.update, graphed)

    def __call__(self, batches: Iterable[Batch], rate: float) -> Parts:
        """Update the network by the gradients of these batches, which are taken one after another."""
        parts: Parts = {}
        for batch in batches:
            preps, class_ids = self._in_order(batch)
            found = self.accumulate(preps, batch.inputs, batch.labels, class_ids, batch.line)
            parts = {name: part + parts.get(name, 0.0) for name, part in found.items()}
        self.ranks.add_gradients(self.operations.parameters)
        self.operations.set_learning_rate(rate)
        weighted = {name: part * self.operations.batch_weight for name, part in parts.items()}
        return {**weighted, "gradient_norm": self.update()}

    def _in_order(self, batch: Batch) -> tuple[Tensor, tuple[int, ...]]:
        """The instances of a batch; for recordings in the order of ClassIds, so that fewer kinds of batches occur."""
        if not isinstance(self.accumulate, GraphedChain) or self.accumulate.failure is not None:
            return batch.preps, batch.class_ids
        order = sorted(range(len(batch.class_ids)), key=lambda place: batch.class_ids[place])
        return torch.stack([batch.preps[place] for place in order]), tuple(sorted(batch.class_ids))


class Operations:
    """What a step is made of; on a GPU each method is recorded."""

    def __init__(self, objective: Objective, optimizer: torch.optim.Adam, device: torch.device) -> None:
        recipe: Recipe = objective.recipe
        self.objective, self.optimizer, self.clip = objective, optimizer, recipe.optimizer.clip
        self.parameters: list[nn.Parameter] = optimizer.param_groups[0]["params"]
        # Losses of one architecture are means, which are averaged over accumulated batches; other losses are sums.
        self.batch_weight = 1.0 if recipe.has_classes else 1.0 / recipe.batch.accumulate
        self.on_gpu = device.type == "cuda"

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of the updates to come, in place where they are recorded."""
        (group,) = self.optimizer.param_groups
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate

    def accumulate(
        self,
        preps: Tensor,
        inputs: Tensor,
        labels: Tensor | None,
        class_ids: tuple[int, ...],
        line: Tensor | None = None,
    ) -> Parts:
        """Add the gradients of one batch."""
        losses = self.objective(Batch(preps, class_ids, (), inputs, labels, line))
        torch.autograd.backward(losses.total * self.batch_weight)
        return losses.parts

    def update(self) -> Tensor:
        """Clip the gradients as the recipe says, and update; returns the norm of all gradients before."""
        norm = get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        if self.clip is not None:
            clip_grads_with_norm_(self.parameters, self.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.on_gpu)  # recordings write to the same gradients
        return norm

    # The parts of a recorded batch with several architectures --------------------------------------------------------

    def forward(
        self, preps: Tensor, inputs: Tensor, labels: Tensor, class_ids: tuple[int, ...], line: Tensor | None = None
    ) -> Outputs:
        """Compute all that does not ask for the predicted ClassIds."""
        embedded = self.objective.embed(preps, class_ids, line)
        predicted = self.objective.predict(embedded, preps, inputs, class_ids)
        return Outputs(
            predicted.preps_MHW,
            embedded.logits_MA,
            embedded.loss_line,
            embedded.class_ids_M,
            predicted.t_star_BC,
            predicted.t_nBC,
        )

    def judge(
        self,
        outputs: Outputs,
        class_ids_M: tuple[int, ...],
        preps: Tensor,
        inputs: Tensor,
        labels: Tensor,
        class_ids: tuple[int, ...],
        line: Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], Parts]:
        """Return the gradients of what needs them, and the parts of the losses."""
        preps_MHW, logits_MA, *rest = leaves = [tensor.detach().requires_grad_() for tensor in _differentiable(outputs)]
        predicted = Predicted(preps_MHW, outputs.t_star_BC, outputs.t_nBC)
        batch = Batch(preps, class_ids, (), inputs, labels, line)
        losses = self.objective.judge(logits_MA, predicted, batch, class_ids_M, *rest)
        return torch.autograd.grad(losses.total * self.batch_weight, leaves), losses.parts


def _class_ids(outputs: Outputs) -> tuple[int, ...]:
    """The predicted ClassIds, which choose the networks that run."""
    return HostCopy(outputs.class_ids_M).wait()


def _backward(outputs: Outputs, gradients: tuple[Tensor, ...], again: bool) -> None:
    torch.autograd.backward(_differentiable(outputs), gradients, retain_graph=again)


def _differentiable(outputs: Outputs) -> tuple[Tensor, ...]:
    """Return the outputs that need gradients."""
    loss_line = () if outputs.loss_line is None else (outputs.loss_line,)
    return (outputs.preps_MHW, outputs.logits_MA, *loss_line)
