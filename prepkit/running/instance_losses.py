"""Losses of many instances in the memory of one: each instance's gradient is computed as soon as its loss is known.

    groups = groups_to_run(group_by_architecture(registry, class_ids), inputs)
    loss_M, parts = instance_losses(groups, preps_MHW, losses_of)
    loss_M.sum().backward()                   # goes on into the network that wrote the PReps

An instance's loss depends only on its own PRep, so its activations need not be kept while other instances run. Each
instance is run and differentiated with respect to its PRep before the next one starts, which costs no extra work.
Instances that run at once (prepkit.running.instances) are differentiated together, as one group.
Shapes: M instances, k in a group, H x W the PRep.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prepkit.running.groups import ArchitectureGroup
from prepkit.running.instances import pack_size, stacking_pays

LossesOf = Callable[[ArchitectureGroup, Tensor], Mapping[str, Tensor]]


def groups_to_run(groups: Sequence[ArchitectureGroup], inputs: Tensor, single: bool = False) -> list[ArchitectureGroup]:
    """Return groups to run one after another: an architecture's instances stay together only if they run at once.

    inputs: `[B, *input_shape]`, or `[M, B, *input_shape]`
    single: split every group into single instances, which takes the least memory
    """
    result = []
    for group in groups:
        batch = inputs.shape[-len(group.architecture.input_shape) - 1]
        size = 1
        if not single and stacking_pays(group.architecture, batch, inputs.device):
            size = pack_size(group.architecture, inputs.device)
        for first in range(0, len(group.positions), size):
            result.append(ArchitectureGroup(group.architecture, group.positions[first : first + size]))
    return result


def instance_losses(
    groups: Sequence[ArchitectureGroup], preps_MHW: Tensor, losses_of: LossesOf
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the losses of instances, differentiable once with respect to their PReps and to nothing else.

    losses_of: returns the losses `[k]` of a group by name, given the group and its PReps `[k, H, W]`
    returns their sum `[M]`, which is differentiable, and the losses `[M]` by name, which are not
    """
    names: list[str] = []
    sum_M, *parts = _InstanceLosses.apply(preps_MHW, tuple(groups), losses_of, names)  # type: ignore[no-untyped-call]
    return sum_M, dict(zip(names, parts, strict=True))


class _InstanceLosses(torch.autograd.Function):
    """Runs and differentiates group after group in forward; backward only scales the gradients from there."""

    @staticmethod
    def forward(
        ctx: Any, preps_MHW: Tensor, groups: tuple[ArchitectureGroup, ...], losses_of: LossesOf, names: list[str]
    ) -> tuple[Tensor, ...]:
        wanted = ctx.needs_input_grad[0]
        gradient_MHW = torch.empty_like(preps_MHW) if wanted else None
        rows: dict[str, list[Tensor]] = {}
        for group in groups:
            losses, gradient_kHW = _differentiated(losses_of, group, group.select(preps_MHW), wanted)
            for name, loss_k in losses.items():
                row = rows.setdefault(name, [loss_k.new_empty(())] * len(preps_MHW))  # these are placeholders
                for position, loss in zip(group.positions, loss_k.unbind(0), strict=True):
                    row[position] = loss
            if gradient_MHW is not None and gradient_kHW is not None:
                for position, gradient_HW in zip(group.positions, gradient_kHW.unbind(0), strict=True):
                    gradient_MHW[position] = gradient_HW
        if gradient_MHW is not None:
            ctx.save_for_backward(gradient_MHW)
        names.extend(rows)
        parts = [torch.stack(row) for row in rows.values()]
        ctx.mark_non_differentiable(*parts)
        return torch.stack(parts).sum(0), *parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight_M: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_MHW,) = ctx.saved_tensors
        weighted: Tensor = gradient_MHW * weight_M.to(gradient_MHW.dtype)[:, None, None]
        return weighted, None, None, None


def _differentiated(
    losses_of: LossesOf, group: ArchitectureGroup, preps_kHW: Tensor, wanted: bool
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the losses `[k]` of a group and, if wanted, the gradient `[k, H, W]` of their sum; keep nothing else."""
    with torch.set_grad_enabled(wanted):
        preps_kHW = preps_kHW.detach().requires_grad_(wanted)
        losses = losses_of(group, preps_kHW)
        total = torch.stack(list(losses.values())).sum()
    gradient_kHW = torch.autograd.grad(total, preps_kHW)[0] if wanted else None
    return {name: loss_k.detach() for name, loss_k in losses.items()}, gradient_kHW
