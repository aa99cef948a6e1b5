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
from netspace import losses
from netspace.config import Recipe
from netspace.data import Batch, ZooMismatch
from netspace.device import half
from netspace.network import NetSpace
from netspace.parallel import Ranks
from netspace.prediction import run_by_class_id


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
        self.bf16 = recipe.training.precision == "bf16"
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
            loss_n = losses.loss_weights(self._decode(latent_nE), preps)
            mean = loss_n.sum() / count
            return Losses(mean, {"loss": mean.detach()})
        with torch.no_grad():
            target = self._run(class_ids, preps, inputs)
        predicted = self._decode_and_run(latent_nE, class_ids, inputs)
        if self.recipe.setting == "sdf":
            loss_n = losses.loss_pred_signal(predicted, target)
        else:
            loss_n = losses.loss_pred(predicted, target, self.recipe.loss.temperature)
        mean = loss_n.sum() / count
        return Losses(mean, {"loss": mean.detach()})

    # Several: Eq. 3 to 12 ---------------------------------------------------------------------------------------------

    def _several(self, batch: Batch) -> Losses:
        y_B, settings = batch.labels, self.recipe.loss
        if y_B is None or self.teacher is None:
            raise ZooMismatch("several architectures are trained on labels and with a teacher; this zoo has none.")
        own = self.ranks.block(len(batch.preps))
        wanted = settings.interpolation
        pairs = losses.boundary_pairs(batch.class_ids, len(self.recipe.architectures)) if wanted else []
        factors = tuple(self.ranks.share(self.factors)) if pairs else ()
        with self._half(batch.preps):
            latent_nE = self.space.encode(batch.preps[own])
            joint_NE = self.ranks.gather(latent_nE)
            latent_PGE = losses.interpolate(joint_NE, pairs, factors)
            latent_ME = torch.cat([latent_nE, latent_PGE.flatten(0, 1)])  # M = n + P G
            logits_MA = self.space.classify(latent_ME)
        predicted_ids = _OnTheWay(logits_MA.detach().argmax(1))
        with torch.no_grad(), self._half(batch.inputs):
            t_star_BC = self.teacher(_channels_last(batch.inputs))
        p_MBC = self._decode_and_run(latent_ME, predicted_ids, batch.inputs)

        count, lines = len(latent_nE), (len(pairs), len(factors))
        c_t_n = logits_MA.new_tensor(batch.class_ids[own], dtype=torch.int64)
        loss_kd_n = losses.loss_kd(p_MBC[:count], t_star_BC, y_B, settings.temperature, settings.alpha)
        loss_class_n = losses.loss_class(logits_MA[:count], c_t_n)
        loss_gamma_PG = loss_kd_n.new_zeros(lines)
        if factors:
            c_p_PGA, p_PGBC = torch.unflatten(logits_MA[count:], 0, lines), torch.unflatten(p_MBC[count:], 0, lines)
            loss_gamma_PG = losses.loss_gamma(
                c_p_PGA, factors, p_PGBC, t_star_BC, y_B, settings.temperature, settings.alpha
            )
        total = losses.loss_multi(loss_kd_n, loss_class_n, loss_gamma_PG)
        parts = {"loss_kd": loss_kd_n, "loss_class": loss_class_n, "loss_gamma": loss_gamma_PG}
        if settings.identity:
            parts["loss_identity"] = self._identity(p_MBC[:count], batch, own)
            total = total + parts["loss_identity"].sum()
        told = {"loss": total.detach()} | {name: part.detach().sum() for name, part in parts.items()}
        if pairs and self.ranks.size > 1:
            total = total + 0 * joint_NE.sum()  # every process takes part in the gathering's backward
        return Losses(total, told)

    def _identity(self, p_nBC: Tensor, batch: Batch, own: slice) -> Tensor:
        """Eq. 1 towards the targets' own outputs, weighted, `[n]`."""
        with torch.no_grad():
            t_nBC = self._run(batch.class_ids[own], batch.preps[own], batch.inputs)
        return self.recipe.loss.identity * losses.loss_pred(p_nBC, t_nBC, self.recipe.loss.temperature)

    # What they share --------------------------------------------------------------------------------------------------

    def _decode_and_run(self, latent_ME: Tensor, class_ids: Sequence[int] | _OnTheWay, inputs: Tensor) -> Tensor:
        """Outputs `[M, B, ...]` of the instances that stand at embeddings."""
        if not self.recipe.training.recompute:
            preps_MHW = self._decode(latent_ME)
            return self._run(_host(class_ids), preps_MHW, inputs)
        known = _host(class_ids)
        shared = self.recipe.setting != "sdf"
        outputs = []
        for position, latent_E in enumerate(latent_ME.unbind(0)):
            one = inputs if shared else inputs[position : position + 1]
            ids = known[position : position + 1]

            def decode_and_run(latent_1E: Tensor, given: Tensor, ids: Sequence[int] = ids) -> Tensor:
                return self._run(ids, self._decode(latent_1E), given)

            outputs.append(checkpoint(decode_and_run, latent_E.unsqueeze(0), one, use_reentrant=False))
        return torch.cat(outputs)

    def _decode(self, latent_ME: Tensor) -> Tensor:
        with self._half(latent_ME):
            preps_MHW = self.space.decode(latent_ME)
        return preps_MHW

    def _run(self, class_ids: Sequence[int], preps_NHW: Tensor, inputs: Tensor) -> Tensor:
        """Outputs of instances. Signals always run in float32: sin(30 x) has no digits to spare."""
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
