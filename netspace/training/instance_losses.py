"""The losses of predicted instances, each with its gradient as soon as it is known.

    groups = apart(groups_of(registry, class_ids), inputs)
    loss_M, parts = instance_losses(groups, preps_MHW, judge)
    loss_M.sum().backward()                   # into whatever wrote the PReps

An instance's loss depends on its own PRep alone, so nothing of its layers has to be kept for the backward pass of the
others: each is run, judged and differentiated to its PRep before the next one is, which takes the memory of one at no
extra work. Instances that run at once (prepkit.running.instances) are one such group.
Shapes: M instances, k of a group, H x W the PRep.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from netspace.space.prediction import Group
from prepkit.running.instances import stacking_pays

Judge = Callable[[Group, Tensor], Mapping[str, Tensor]]


def apart(groups: Sequence[Group], inputs: Tensor, single: bool = False) -> list[Group]:
    """Groups that are run one after another: an architecture's instances together where they run at once, else alone.

    inputs: `[B, *input_shape]`, or `[M, B, *input_shape]`
    single: alone in any case, which takes the least memory
    """
    found = []
    for group in groups:
        batch = inputs.shape[-len(group.architecture.input_shape) - 1]
        if not single and stacking_pays(group.architecture, batch, inputs.device):
            found.append(group)
        else:
            found.extend(Group(group.architecture, (position,)) for position in group.positions)
    return found


def instance_losses(groups: Sequence[Group], preps_MHW: Tensor, judge: Judge) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of instances.

    preps_MHW: what they are differentiated by, once; nothing else that `judge` uses
    judge:     the losses `[k]` of a group by name, from the group and its PReps `[k, H, W]`
    returns their sum `[M]`, which is differentiable, and the losses `[M]` by name, which are not
    """
    names: list[str] = []
    sum_M, *parts = _Judged.apply(preps_MHW, tuple(groups), judge, names)  # type: ignore[no-untyped-call]
    return sum_M, dict(zip(names, parts, strict=True))


class _Judged(torch.autograd.Function):
    """Runs, judges and differentiates group after group; backward only weighs what was found."""

    @staticmethod
    def forward(
        ctx: Any, preps_MHW: Tensor, groups: tuple[Group, ...], judge: Judge, names: list[str]
    ) -> tuple[Tensor, ...]:
        wanted = ctx.needs_input_grad[0]
        gradient_MHW = torch.empty_like(preps_MHW) if wanted else None
        rows: dict[str, list[Tensor]] = {}
        for group in groups:
            found, gradient_kHW = _differentiated(judge, group, group.of(preps_MHW), wanted)
            for name, loss_k in found.items():
                row = rows.setdefault(name, [loss_k.new_empty(())] * len(preps_MHW))  # each is replaced
                for position, loss in zip(group.positions, loss_k.unbind(0), strict=True):
                    row[position] = loss
            if gradient_MHW is not None and gradient_kHW is not None:
                for position, own_HW in zip(group.positions, gradient_kHW.unbind(0), strict=True):
                    gradient_MHW[position] = own_HW
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
    judge: Judge, group: Group, preps_kHW: Tensor, wanted: bool
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The losses `[k]` of a group and, if wanted, their sum's gradient `[k, H, W]`; all else is forgotten."""
    with torch.set_grad_enabled(wanted):
        preps_kHW = preps_kHW.detach().requires_grad_(wanted)
        found = judge(group, preps_kHW)
        total = torch.stack(list(found.values())).sum()
    gradient_kHW = torch.autograd.grad(total, preps_kHW)[0] if wanted else None
    return {name: loss_k.detach() for name, loss_k in found.items()}, gradient_kHW
