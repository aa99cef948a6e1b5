"""What one training step minimises: the losses of a batch, for each of the four settings.

Shapes: N instances of the joint batch, n of this process, E embedding values, B samples, P pairs of boundary instances,
G gammas of this process, M = n + P G predicted instances, k of a group, A architectures, C classes or D values.

Nothing waits for the device, except for the predicted ClassIds, which choose the networks that run: they are copied to
the host while teacher and decoder work.
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
from netspace.space.network import NetSpace
from netspace.training import losses
from prepkit.running.groups import ArchitectureGroup, group_by_architecture, run_by_class_id
from prepkit.running.instance_losses import LossesOf, groups_to_run, instance_losses
from prepkit.support.device import HostCopy, bf16_autocast
from prepkit.support.processes import Ranks


@dataclass(frozen=True)
class Losses:
    """This process's share of the losses of one batch.

    total: the scalar that is minimised
    parts: the terms of the total, detached scalars by name
    """

    total: Tensor
    parts: dict[str, Tensor]


class Objective:
    """The losses of a recipe, as a function of a batch.

    teacher: needed in the settings with several architectures
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
        self.signals = recipe.setting == "sdf"
        self.gammas = losses.gammas(len(recipe.architectures)) if recipe.has_classes else ()

    def __call__(self, batch: Batch) -> Losses:
        """The losses of a batch; `total` is differentiable."""
        return self._several_architectures(batch) if self.recipe.has_classes else self._one_architecture(batch)

    def _one_architecture(self, batch: Batch) -> Losses:
        """Eq. 1, for signals Eq. 2, or the ablation that compares weights: the mean over the joint batch."""
        count, own = len(batch.preps), self.ranks.block(len(batch.preps))
        preps_nHW, class_ids = batch.preps[own], batch.class_ids[own]
        inputs = batch.inputs[own] if self.signals else batch.inputs
        with self._autocast():
            latent_nE = self.space.encode(preps_nHW)
        predicted_nHW = self._decode(latent_nE)
        if self.recipe.loss.weights:
            total = losses.loss_weights(predicted_nHW, preps_nHW).sum() / count
            return Losses(total, {"loss": total.detach()})
        with torch.no_grad(), self._instance_autocast():
            targets = run_by_class_id(self.registry, class_ids, preps_nHW, inputs)

        def losses_of(group: ArchitectureGroup, preps_kHW: Tensor) -> dict[str, Tensor]:
            if self.signals:
                y_p_kBD = self._run(group, preps_kHW, group.select(inputs))
                return {"loss": losses.loss_pred_signal(y_p_kBD, group.select(targets))}
            p_kBC = self._run(group, preps_kHW, inputs)
            return {"loss": losses.loss_pred(p_kBC, group.select(targets), self.recipe.loss.temperature)}

        loss_n, _ = self._instance_losses(class_ids, inputs, predicted_nHW, losses_of)
        total = loss_n.sum() / count
        return Losses(total, {"loss": total.detach()})

    def _several_architectures(self, batch: Batch) -> Losses:
        """The final loss (after Eq. 12): Eq. 5 and 6 summed over instances, and Eq. 11 over pairs and gammas."""
        y_B, settings = batch.labels, self.recipe.loss
        if y_B is None or self.teacher is None:
            raise ZooMismatch("several architectures are trained on labels and with a teacher; this zoo has none.")
        own = self.ranks.block(len(batch.preps))
        pairs = losses.boundary_pairs(batch.class_ids, len(self.recipe.architectures)) if settings.interpolation else []
        gammas = tuple(self.ranks.share(self.gammas)) if pairs else ()
        c_t_n = torch.tensor(batch.class_ids[own], device=batch.preps.device)  # made before the device is busy

        # Embeddings of the n targets, then of the P G points between boundary instances, and their ClassIds.
        with self._autocast():
            latent_nE = self.space.encode(batch.preps[own])
            latent_NE = self.ranks.gather(latent_nE)
            latent_PGE = losses.interpolate_embeddings(latent_NE, pairs, gammas)
            latent_ME = torch.cat([latent_nE, latent_PGE.flatten(0, 1)])
            logits_MA = self.space.classify(latent_ME)
        class_ids_M = HostCopy(logits_MA.detach().argmax(1))

        # What the predicted instances shall put out, and the instances themselves.
        with torch.no_grad(), self._autocast():
            t_star_BC = self.teacher(_channels_last(batch.inputs))
            t_nBC = None
            if settings.identity:
                t_nBC = run_by_class_id(self.registry, batch.class_ids[own], batch.preps[own], batch.inputs)
        preps_MHW = self._decode(latent_ME)

        def losses_of(group: ArchitectureGroup, preps_kHW: Tensor) -> dict[str, Tensor]:
            p_kBC = self._run(group, preps_kHW, batch.inputs)
            terms = {"loss_kd": losses.loss_kd(p_kBC, t_star_BC, y_B, settings.temperature, settings.alpha)}
            if t_nBC is not None:
                terms["loss_identity"] = settings.identity * self._identity(group, p_kBC, t_nBC)
            return terms

        loss_M, terms_M = self._instance_losses(class_ids_M.wait(), batch.inputs, preps_MHW, losses_of)

        # The losses of the n instances and of the P G points.
        count, points = len(latent_nE), (len(pairs), len(gammas))
        loss_class_n = losses.loss_class(logits_MA[:count], c_t_n)
        loss_gamma_PG = loss_M[count:].view(points)  # L_kd^gamma (Eq. 10)
        if gammas:
            logits_PGA = torch.unflatten(logits_MA[count:], 0, points)
            loss_gamma_PG = loss_gamma_PG + losses.loss_class_gamma(logits_PGA, gammas)
        total = losses.loss_multi(loss_M[:count], loss_class_n, loss_gamma_PG)
        parts = {"loss_kd": terms_M["loss_kd"][:count], "loss_class": loss_class_n, "loss_gamma": loss_gamma_PG}
        if settings.identity:
            parts["loss_identity"] = terms_M["loss_identity"][:count]
        sums = {"loss": total.detach()} | {name: part.detach().sum() for name, part in parts.items()}
        if pairs and self.ranks.size > 1:
            total = total + 0 * latent_NE.sum()  # every process takes part in the backward of `gather`
        return Losses(total, sums)

    def _identity(self, group: ArchitectureGroup, p_kBC: Tensor, t_nBC: Tensor) -> Tensor:
        """Eq. 1 against the targets' own outputs, `[k]`; 0 for instances between the boundaries, which have none."""
        rows = [
            losses.loss_pred(p_BC[None], t_nBC[position][None], self.recipe.loss.temperature)[0]
            if position < len(t_nBC)
            else p_BC.new_zeros((), dtype=torch.promote_types(p_BC.dtype, torch.float32))
            for position, p_BC in zip(group.positions, p_kBC.unbind(0), strict=True)
        ]
        return torch.stack(rows)

    def _decode(self, latent_ME: Tensor) -> Tensor:
        """PReps `[M, H, W]`; with the recipe's `recompute` singly, and computed again in backward."""

        def decode(latent_ME: Tensor) -> Tensor:
            with self._autocast():
                return self.space.decode(latent_ME)

        if not self.recipe.training.recompute:
            return decode(latent_ME)
        return torch.cat([checkpoint(decode, row_1E, use_reentrant=False) for row_1E in torch.split(latent_ME, 1)])

    def _instance_losses(
        self, class_ids: Sequence[int], inputs: Tensor, preps_MHW: Tensor, losses_of: LossesOf
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run each instance by its ClassId's architecture: the sum `[M]` of its losses, and each loss `[M]` by name."""
        groups = group_by_architecture(self.registry, class_ids)
        return instance_losses(groups_to_run(groups, inputs, self.recipe.training.recompute), preps_MHW, losses_of)

    def _run(self, group: ArchitectureGroup, preps_kHW: Tensor, inputs: Tensor) -> Tensor:
        """Outputs `[k, B, ...]` of the instances of a group."""
        with self._instance_autocast():
            return prepkit.run_instances(group.architecture, preps_kHW, inputs)

    def _autocast(self) -> AbstractContextManager[object]:
        """The recipe's precision."""
        device = next(self.space.parameters()).device
        return bf16_autocast(device, self.recipe.training.precision == "bfloat16")

    def _instance_autocast(self) -> AbstractContextManager[object]:
        """The recipe's precision, but float32 for signals: sin(30 x) has no digits to spare."""
        device = next(self.space.parameters()).device
        return bf16_autocast(device, self.recipe.training.precision == "bfloat16" and not self.signals)


def _channels_last(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
