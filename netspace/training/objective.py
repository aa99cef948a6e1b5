"""What one step minimises: the losses of a batch, from PReps to a scalar, for each of the four settings.

Shapes: N instances of the joint batch, n of this process, E embedding values, B samples, P pairs of boundary instances,
G interpolation factors of this process, A architectures, C classes or D values.

Nothing waits for the device, except for the predicted ClassIds, which choose the networks that run: they are on their
way to the host while teacher and decoder work.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import prepkit
from netspace.data import Batch, ZooMismatch
from netspace.recipe import Recipe
from netspace.space.device import half
from netspace.space.network import NetSpace
from netspace.training import losses
from netspace.training.parallel import Ranks
from prepkit.running.groups import ArchitectureGroup, group_by_architecture, run_by_class_id
from prepkit.running.instance_losses import LossesOf, groups_to_run, instance_losses


@dataclass(frozen=True)
class Losses:
    """Of one batch, this process's share of the sum over all.

    total: what is minimised, a scalar
    parts: what it is made of, detached scalars by name
    """

    total: Tensor
    parts: dict[str, Tensor]


class Objective:
    """The losses of a recipe.

    teacher: for the settings with several architectures
    """

    def __init__(
        self,
        space: NetSpace,
        recipe: Recipe,
        registry: prepkit.Registry,
        teacher: nn.Module | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.space, self.recipe, self.registry, self.teacher = space, recipe, registry, teacher
        self.ranks = ranks or Ranks()
        self.bf16 = recipe.training.precision == "bfloat16"
        self.factors = losses.gammas(len(recipe.architectures)) if recipe.has_classes else ()

    def __call__(self, batch: Batch) -> Losses:
        """The losses of a batch; `total` is differentiable."""
        return self._several(batch) if self.recipe.has_classes else self._single(batch)

    # One architecture: Eq. 1 and 2 ------------------------------------------------------------------------------------

    def _single(self, batch: Batch) -> Losses:
        count = len(batch.preps)
        own = self.ranks.block(count)
        preps, class_ids = batch.preps[own], batch.class_ids[own]
        inputs = batch.inputs if batch.labels is not None else batch.inputs[own]
        with self._half(preps):
            latent_nE = self.space.encode(preps)
        if self.recipe.loss.weights:
            loss_n = losses.loss_weights(self._decoded(latent_nE), preps)
            mean = loss_n.sum() / count
            return Losses(mean, {"loss": mean.detach()})
        with torch.no_grad():
            target = self._run(class_ids, preps, inputs)
        loss, signal = self.recipe.loss, self.recipe.setting == "sdf"

        def judge(group: ArchitectureGroup, preps_kHW: Tensor) -> dict[str, Tensor]:
            given = group.select(inputs) if signal else inputs
            outputs, wanted = self._outputs(group, preps_kHW, given), group.select(target)
            if signal:
                return {"loss": losses.loss_pred_signal(outputs, wanted)}
            return {"loss": losses.loss_pred(outputs, wanted, loss.temperature)}

        loss_n, parts = self._judged(latent_nE, class_ids, inputs, judge)
        return Losses(loss_n.sum() / count, {"loss": parts["loss"].sum() / count})

    # Several: Eq. 3 to 12 ---------------------------------------------------------------------------------------------

    def _several(self, batch: Batch) -> Losses:
        y_B, settings = batch.labels, self.recipe.loss
        if y_B is None or self.teacher is None:
            raise ZooMismatch("several architectures are trained on labels and with a teacher; this zoo has none.")
        own = self.ranks.block(len(batch.preps))
        wanted = settings.interpolation
        pairs = losses.boundary_pairs(batch.class_ids, len(self.recipe.architectures)) if wanted else []
        factors = tuple(self.ranks.share(self.factors)) if pairs else ()
        c_t_n = torch.tensor(batch.class_ids[own], device=batch.preps.device)  # before the device has anything to do
        with self._half(batch.preps):
            latent_nE = self.space.encode(batch.preps[own])
            joint_NE = self.ranks.gather(latent_nE)
            latent_PGE = losses.interpolate_embeddings(joint_NE, pairs, factors)
            latent_ME = torch.cat([latent_nE, latent_PGE.flatten(0, 1)])  # M = n + P G
            logits_MA = self.space.classify(latent_ME)
        predicted_ids = _OnTheWay(logits_MA.detach().argmax(1))
        with torch.no_grad(), self._half(batch.inputs):
            t_star_BC = self.teacher(_channels_last(batch.inputs))
        count, lines = len(latent_nE), (len(pairs), len(factors))
        t_nBC = self._targets(batch, own) if settings.identity else None

        def judge(group: ArchitectureGroup, preps_kHW: Tensor) -> dict[str, Tensor]:
            p_kBC = self._outputs(group, preps_kHW, batch.inputs)
            found = {"loss_kd": losses.loss_kd(p_kBC, t_star_BC, y_B, settings.temperature, settings.alpha)}
            if t_nBC is not None:
                found["loss_identity"] = settings.identity * self._identity(group, p_kBC, t_nBC)
            return found

        loss_M, parts_M = self._judged(latent_ME, predicted_ids, batch.inputs, judge)
        loss_class_n = losses.loss_class(logits_MA[:count], c_t_n)
        loss_gamma_PG = loss_M[count:].view(lines)  # L_kd^gamma (Eq. 10)
        told_gamma_PG = parts_M["loss_kd"][count:].view(lines)
        if factors:
            loss_class_gamma_PG = losses.loss_class_gamma(torch.unflatten(logits_MA[count:], 0, lines), factors)
            loss_gamma_PG, told_gamma_PG = loss_gamma_PG + loss_class_gamma_PG, told_gamma_PG + loss_class_gamma_PG
        total = losses.loss_multi(loss_M[:count], loss_class_n, loss_gamma_PG)
        parts = {"loss_kd": parts_M["loss_kd"][:count], "loss_class": loss_class_n, "loss_gamma": told_gamma_PG}
        if settings.identity:
            parts["loss_identity"] = parts_M["loss_identity"][:count]
        told = {"loss": total.detach()} | {name: part.detach().sum() for name, part in parts.items()}
        if pairs and self.ranks.size > 1:
            total = total + 0 * joint_NE.sum()  # every process takes part in the gathering's backward
        return Losses(total, told)

    def _targets(self, batch: Batch, own: slice) -> Tensor:
        """Outputs `[n, B, C]` of the target instances."""
        with torch.no_grad():
            return self._run(batch.class_ids[own], batch.preps[own], batch.inputs)

    def _identity(self, group: ArchitectureGroup, p_kBC: Tensor, t_nBC: Tensor) -> Tensor:
        """Eq. 1 towards the targets' own outputs, `[k]`; 0 for instances between the boundaries, which have none."""
        rows = [
            losses.loss_pred(p_BC[None], t_nBC[position][None], self.recipe.loss.temperature)[0]
            if position < len(t_nBC)
            else p_BC.new_zeros((), dtype=torch.promote_types(p_BC.dtype, torch.float32))
            for position, p_BC in zip(group.positions, p_kBC.unbind(0), strict=True)
        ]
        return torch.stack(rows)

    # What they share --------------------------------------------------------------------------------------------------

    def _judged(
        self, latent_ME: Tensor, class_ids: Sequence[int] | _OnTheWay, inputs: Tensor, judge: LossesOf
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses `[M]` of the instances that stand at embeddings: their sum, and each by name."""
        preps_MHW = self._decoded(latent_ME)
        groups = group_by_architecture(self.registry, _host(class_ids))
        return instance_losses(groups_to_run(groups, inputs, self.recipe.training.recompute), preps_MHW, judge)

    def _outputs(self, group: ArchitectureGroup, preps_kHW: Tensor, inputs: Tensor) -> Tensor:
        """Outputs `[k, B, ...]` of a group. Signals always run in float32: sin(30 x) has no digits to spare."""
        with half(preps_kHW.device, self.bf16 and self.recipe.setting != "sdf"):
            return prepkit.run_instances(group.architecture, preps_kHW, inputs)

    def _decoded(self, latent_ME: Tensor) -> Tensor:
        """PReps `[M, H, W]`; one by one, to be made again in backward, if the recipe says so."""
        if not self.recipe.training.recompute:
            return self._decode(latent_ME)
        rows = [checkpoint(self._decode, row_1E, use_reentrant=False) for row_1E in torch.split(latent_ME, 1)]
        return torch.cat(rows)

    def _decode(self, latent_ME: Tensor) -> Tensor:
        with self._half(latent_ME):
            preps_MHW = self.space.decode(latent_ME)
        return preps_MHW

    def _run(self, class_ids: Sequence[int], preps_NHW: Tensor, inputs: Tensor) -> Tensor:
        """Outputs of instances, as `_outputs` of all groups together."""
        with half(preps_NHW.device, self.bf16 and self.recipe.setting != "sdf"):
            return run_by_class_id(self.registry, class_ids, preps_NHW, inputs)

    def _half(self, tensor: Tensor) -> AbstractContextManager[object]:
        return half(tensor.device, self.bf16)


class _OnTheWay:
    """Numbers of the device on their way to the host; whoever needs them first waits, for them alone."""

    def __init__(self, numbers: Tensor) -> None:
        self.event: torch.cuda.Event | None = None
        self.numbers = numbers
        if numbers.is_cuda:
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record()

    def arrived(self) -> tuple[int, ...]:
        """The numbers."""
        if self.event is not None:
            self.event.synchronize()
        return tuple(self.numbers.tolist())


def _host(class_ids: Sequence[int] | _OnTheWay) -> Sequence[int]:
    return class_ids.arrived() if isinstance(class_ids, _OnTheWay) else class_ids


def _channels_last(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
