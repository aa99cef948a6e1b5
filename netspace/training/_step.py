"""One step of a training: the losses of its batches, their gradients, and the update of the network.

On a GPU the step is a few CUDA graphs (prepkit.support.graphs); elsewhere, and with several processes, the same
functions run as they are. Shapes: see _objective.py.
"""

# ruff: noqa: N803, N806, N815 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """What is computed before the predicted ClassIds are known; the first two need gradients."""

    preps_MHW: Tensor
    logits_MA: Tensor
    class_ids_M: Tensor
    t_star_BC: Tensor
    t_nBC: Tensor | None


def adam(parameters: Sequence[nn.Parameter], learning_rate: float, device: torch.device) -> torch.optim.Adam:
    """Adam whose update can be recorded on a GPU, where its learning rate is a tensor."""
    on_gpu = device.type == "cuda"
    rate = torch.tensor(learning_rate, device=device) if on_gpu else learning_rate
    return torch.optim.Adam(parameters, lr=rate, fused=device.type in ("cpu", "cuda"), capturable=on_gpu)


class Step:
    """Takes steps: `step(batches, rate)` returns the losses' parts and `gradient_norm`, good until the next step."""

    def __init__(self, objective: Objective, optimizer: torch.optim.Adam, ranks: Ranks, device: torch.device) -> None:
        recipe: Recipe = objective.recipe
        self.objective, self.optimizer, self.ranks, self.clip = objective, optimizer, ranks, recipe.optimizer.clip
        self.parameters: list[nn.Parameter] = optimizer.param_groups[0]["params"]
        # Losses of one architecture are means, which are averaged over accumulated batches; other losses are sums.
        self.batch_weight = 1.0 if recipe.has_classes else 1.0 / recipe.batch.accumulate
        self.on_gpu = device.type == "cuda"
        graphed = device if ranks.size == 1 else torch.device("cpu")  # processes talk to each other within a step
        self.accumulate: Callable[..., Parts] = GraphedStep(self._accumulate, graphed)
        if recipe.has_classes and graphed.type == "cuda":
            self.accumulate = GraphedChain(self._forward, _class_ids, self._judge, _backward, graphed)
        self.update = GraphedStep(self._update, graphed)

    def __call__(self, batches: Sequence[Batch], rate: float) -> Parts:
        """Update the network by the gradients of these batches."""
        parts: Parts = {}
        for batch in batches:
            preps, class_ids = self._in_order(batch)
            found = self.accumulate(preps, batch.inputs, batch.labels, class_ids)
            parts = {name: part * self.batch_weight + parts.get(name, 0.0) for name, part in found.items()}
        self.ranks.add_gradients(self.parameters)
        learning_rate = self.optimizer.param_groups[0]["lr"]
        if isinstance(learning_rate, Tensor):
            learning_rate.fill_(rate)
        else:
            self.optimizer.param_groups[0]["lr"] = rate
        return {**parts, "gradient_norm": self.update()}

    def _in_order(self, batch: Batch) -> tuple[Tensor, tuple[int, ...]]:
        """The instances of a batch; for recordings in the order of ClassIds, so that fewer kinds of batches occur."""
        if not isinstance(self.accumulate, GraphedChain):
            return batch.preps, batch.class_ids
        order = sorted(range(len(batch.class_ids)), key=lambda place: batch.class_ids[place])
        return torch.stack([batch.preps[place] for place in order]), tuple(sorted(batch.class_ids))

    def _accumulate(self, preps: Tensor, inputs: Tensor, labels: Tensor | None, class_ids: tuple[int, ...]) -> Parts:
        """Add the gradients of one batch."""
        losses = self.objective(Batch(preps, class_ids, (), inputs, labels))
        torch.autograd.backward(losses.total * self.batch_weight)
        return losses.parts

    def _update(self) -> Tensor:
        """Clip the gradients as the recipe says, and update; returns the norm of all gradients before."""
        norm = get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        if self.clip is not None:
            clip_grads_with_norm_(self.parameters, self.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.on_gpu)  # recordings write to the same gradients
        return norm

    # The parts of a recorded batch with several architectures --------------------------------------------------------

    def _forward(self, preps: Tensor, inputs: Tensor, labels: Tensor, class_ids: tuple[int, ...]) -> Outputs:
        embedded = self.objective.embed(preps, class_ids)
        predicted = self.objective.predict(embedded, preps, inputs, class_ids)
        return Outputs(
            predicted.preps_MHW, embedded.logits_MA, embedded.class_ids_M, predicted.t_star_BC, predicted.t_nBC
        )

    def _judge(
        self,
        outputs: Outputs,
        class_ids_M: tuple[int, ...],
        preps: Tensor,
        inputs: Tensor,
        labels: Tensor,
        class_ids: tuple[int, ...],
    ) -> tuple[tuple[Tensor, ...], Parts]:
        preps_MHW, logits_MA = (tensor.detach().requires_grad_() for tensor in outputs[:2])
        predicted = Predicted(preps_MHW, outputs.t_star_BC, outputs.t_nBC)
        batch = Batch(preps, class_ids, (), inputs, labels)
        losses = self.objective.judge(logits_MA, predicted, batch, class_ids_M)
        return torch.autograd.grad(losses.total * self.batch_weight, (preps_MHW, logits_MA)), losses.parts


def _class_ids(outputs: Outputs) -> tuple[int, ...]:
    """The predicted ClassIds, which choose the networks that run."""
    return HostCopy(outputs.class_ids_M).wait()


def _backward(outputs: Outputs, gradients: tuple[Tensor, ...], again: bool) -> None:
    torch.autograd.backward((outputs.preps_MHW, outputs.logits_MA), gradients, retain_graph=again)
