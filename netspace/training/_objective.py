"""What one training step minimises: the losses of a batch, for each of the four settings.

Shapes: N instances of the joint batch, n of this process, E embedding values, B samples, P pairs of boundary instances,
G gammas of this process, M = n + P G predicted instances, k of a group, A architectures, C classes or D values.

Nothing waits for the device, except for the predicted ClassIds, which choose the networks that run: they are copied to
the host while teacher and decoder work.
"""

# ruff: noqa: N803, N806, N815 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

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
from prepkit.support.device import HostCopy, bf16_autocast, constant
from prepkit.support.processes import Ranks


@dataclass(frozen=True)
class Losses:
    """This process's share of the losses of one batch.

    total: the scalar that is minimised
    parts: the terms of the total, detached scalars by name
    """

    total: Tensor
    parts: dict[str, Tensor]


class Embedded(NamedTuple):
    """Embeddings `[M, E]`, the logits `[M, A]` of their ClassIds, the predicted ClassIds `[M]`, and the line loss."""

    latent_ME: Tensor
    logits_MA: Tensor
    class_ids_M: Tensor
    loss_line: Tensor | None


class Predicted(NamedTuple):
    """Predicted PReps `[M, H, W]`, and what they are compared with: the teacher's and the targets' outputs."""

    preps_MHW: Tensor
    t_star_BC: Tensor
    t_nBC: Tensor | None


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
        targets = self._targets(class_ids, preps_nHW, inputs)

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
        embedded = self.embed(batch.preps, batch.class_ids, batch.line)
        class_ids_M = HostCopy(embedded.class_ids_M)
        predicted = self.predict(embedded, batch.preps, batch.inputs, batch.class_ids)
        return self.judge(embedded.logits_MA, predicted, batch, class_ids_M.wait(), embedded.loss_line)

    def embed(self, preps_NHW: Tensor, class_ids: tuple[int, ...], line: Tensor | None = None) -> Embedded:
        """Encode the n targets, interpolate to the P G points between boundary instances, and predict ClassIds.

        line: see Batch
        """
        pairs, gammas = self._points(class_ids)
        with self._autocast():
            latent_nE = self.space.encode(preps_NHW[self.ranks.block(len(preps_NHW))])
            latent_NE = self.ranks.gather(latent_nE)
            latent_PGE = losses.interpolate_embeddings(latent_NE, pairs, gammas)
            latent_ME = torch.cat([latent_nE, latent_PGE.flatten(0, 1)])
            if pairs and self.ranks.size > 1:
                latent_ME = latent_ME + 0 * latent_NE.sum()  # every process takes part in the backward of `gather`
            logits_MA = self.space.classify(latent_ME)
        loss_line = None if line is None else self._line(line)
        return Embedded(latent_ME, logits_MA, logits_MA.detach().argmax(1), loss_line)

    def _line(self, line: Tensor) -> Tensor:
        """Return this process's share of the weighted line loss; each process encodes its share of the instances."""
        with self._autocast():
            latent = self.ranks.gather(self.space.encode(line[self.ranks.block(len(line))]))
        latent_ALE = latent.unflatten(0, (len(self.recipe.architectures), -1))  # type: ignore[no-untyped-call]
        # Every process computes the whole loss of all embeddings, so each counts for its share.
        return self.recipe.loss.line / self.ranks.size * losses.loss_line(latent_ALE).sum()

    def predict(self, embedded: Embedded, preps_NHW: Tensor, inputs: Tensor, class_ids: tuple[int, ...]) -> Predicted:
        """Decode the embeddings, and run what the predicted instances are compared with: nothing here asks ClassIds."""
        if self.teacher is None:
            raise ZooMismatch("several architectures are trained with a teacher; this zoo has none.")
        own, t_nBC = self.ranks.block(len(preps_NHW)), None
        with torch.no_grad(), self._autocast():
            t_star_BC = self.teacher(_channels_last(inputs))
        if self.recipe.loss.identity:
            t_nBC = self._targets(class_ids[own], preps_NHW[own], inputs)
        return Predicted(self._decode(embedded.latent_ME), t_star_BC, t_nBC)

    def judge(
        self,
        logits_MA: Tensor,
        predicted: Predicted,
        batch: Batch,
        class_ids_M: Sequence[int],
        loss_line: Tensor | None = None,
    ) -> Losses:
        """Run each predicted instance as the architecture of its predicted ClassId, and compute all losses."""
        y_B, settings, own = batch.labels, self.recipe.loss, self.ranks.block(len(batch.preps))
        if y_B is None:
            raise ZooMismatch("several architectures are trained on labels; this zoo's task has none.")
        pairs, gammas = self._points(batch.class_ids)
        t_star_BC, t_nBC = predicted.t_star_BC, predicted.t_nBC

        def losses_of(group: ArchitectureGroup, preps_kHW: Tensor) -> dict[str, Tensor]:
            p_kBC = self._run(group, preps_kHW, batch.inputs)
            terms = {"loss_kd": losses.loss_kd(p_kBC, t_star_BC, y_B, settings.temperature, settings.alpha)}
            if t_nBC is not None:
                terms["loss_identity"] = settings.identity * self._identity(group, p_kBC, t_nBC)
            return terms

        loss_M, terms_M = self._instance_losses(class_ids_M, batch.inputs, predicted.preps_MHW, losses_of)

        # The losses of the n instances and of the P G points.
        count, points = len(batch.class_ids[own]), (len(pairs), len(gammas))
        c_t_n = torch.cat([constant((c_t,), torch.int64, logits_MA.device) for c_t in batch.class_ids[own]])
        loss_class_n = losses.loss_class(logits_MA[:count], c_t_n)
        loss_gamma_PG = loss_M[count:].view(points)  # L_kd^gamma (Eq. 10)
        if gammas:
            logits_PGA = torch.unflatten(logits_MA[count:], 0, points)
            loss_gamma_PG = loss_gamma_PG + losses.loss_class_gamma(logits_PGA, gammas)
        total = losses.loss_multi(loss_M[:count], loss_class_n, loss_gamma_PG)
        parts = {"loss_kd": terms_M["loss_kd"][:count], "loss_class": loss_class_n, "loss_gamma": loss_gamma_PG}
        if settings.identity:
            parts["loss_identity"] = terms_M["loss_identity"][:count]
        if settings.line > 0:
            parts["loss_line"] = total.new_zeros(()) if loss_line is None else loss_line
            total = total + parts["loss_line"]
        return Losses(total, {"loss": total.detach()} | {name: part.detach().sum() for name, part in parts.items()})

    def _points(self, class_ids: Sequence[int]) -> tuple[list[tuple[int, int]], tuple[float, ...]]:
        """The P pairs of boundary instances, and this process's G gammas; both may be empty."""
        pairs = (
            losses.boundary_pairs(class_ids, len(self.recipe.architectures)) if self.recipe.loss.interpolation else []
        )
        return pairs, tuple(self.ranks.share(self.gammas)) if pairs else ()

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
        return torch.cat(
            [
                checkpoint(decode, row_1E, use_reentrant=False, preserve_rng_state=False)
                for row_1E in torch.split(latent_ME, 1)
            ]
        )

    def _instance_losses(
        self, class_ids: Sequence[int], inputs: Tensor, preps_MHW: Tensor, losses_of: LossesOf
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run each instance by its ClassId's architecture: the sum `[M]` of its losses, and each loss `[M]` by name."""
        groups = group_by_architecture(self.registry, class_ids)
        return instance_losses(groups_to_run(groups, inputs, self.recipe.training.recompute), preps_MHW, losses_of)

    def _targets(self, class_ids: tuple[int, ...], preps_nHW: Tensor, inputs: Tensor) -> Tensor:
        """Outputs `[n, B, ...]` of target instances."""
        with torch.no_grad(), self._instance_autocast():
            return run_by_class_id(self.registry, class_ids, self._cast(preps_nHW), inputs, dense=True)

    def _run(self, group: ArchitectureGroup, preps_kHW: Tensor, inputs: Tensor) -> Tensor:
        """Outputs `[k, B, ...]` of the instances of a group."""
        with self._instance_autocast():
            return prepkit.run_instances(group.architecture, self._cast(preps_kHW), inputs, dense=True)

    def _cast(self, preps_kHW: Tensor) -> Tensor:
        """Cast PReps once to what a GPU multiplies, which would cast each of their tensors."""
        return preps_kHW.bfloat16() if preps_kHW.is_cuda and self._instances_in_bf16 else preps_kHW

    def _autocast(self) -> AbstractContextManager[object]:
        """The recipe's precision."""
        device = next(self.space.parameters()).device
        return bf16_autocast(device, self.recipe.training.precision == "bfloat16")

    @property
    def _instances_in_bf16(self) -> bool:
        """Whether instances run in bfloat16: not for signals, as sin(30 x) has no digits to spare."""
        return self.recipe.training.precision == "bfloat16" and not self.signals

    def _instance_autocast(self) -> AbstractContextManager[object]:
        """The precision of instances."""
        return bf16_autocast(next(self.space.parameters()).device, self._instances_in_bf16)


def _channels_last(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
