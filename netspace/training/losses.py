"""The losses of NetSpace: Eq. 1 to 12 of Learning the Space of Deep Models.

    pairs, factors = boundary_pairs(class_ids, 4), gammas(4)
    latent_PGE = interpolate_embeddings(latent_NE, pairs, factors)
    ...                     # decode, run the predicted instances on the images
    loss = loss_multi(
        loss_kd(p_NBC, t_star_BC, y_B),
        loss_class(c_p_NA, c_t_N),
        loss_gamma(c_p_PGA, factors, p_PGBC, t_star_BC, y_B),
    )

Shapes: N instances, B samples, C classes of the task, D values of a signal, A architectures, E embedding values,
P pairs of boundary instances, G interpolation factors. Symbols are the paper's: p, t and t* are logits of the
predicted, the target and the teacher network, y labels; c_p logits and c_t ClassIds; A and B the boundaries.

Reduction: a function returns one value for each instance (or pair and factor), averaged over its samples; `loss_multi`
adds them up, and in the single-architecture setting the mean is taken. Teacher, targets and labels are given once for
all instances, `[B, ...]`, or for each of them, `[N, B, ...]`. The paper's CE(softmax(p), y) is the cross entropy of
probabilities; here logits are given, and softmax is taken once.

How Eq. 7 to 12 are read: the boundaries are the smallest and the largest ClassId of all A architectures, 0 and A - 1,
whatever the batch holds. Each instance of ClassId 0 is paired with each of ClassId A - 1. On the line from the first
(gamma = 0) to the second (gamma = 1) lie G = A - 2 points, gamma = i / (A - 1), where ClassId i is asked for: ClassIds
rise along the line, whether or not there are instances of those between. The ends have losses of their own (Eq. 3 to
6); a point between has no target instance, so it learns from its ClassId, the teacher and the labels. Gradients reach
both ends. For A = 2, or without a pair in the batch, there are no points and the sum is 0.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

import prepkit
from prepkit.support.device import constant

TEMPERATURE = 4.0  # T, supplementary IV
ALPHA = 0.9  # section IV
SHORTEST = 1e-12  # squared length of a boundary line whose ends are the same, as those of equal instances are
TOLERANCE = 1e-6  # how far an interpolated ClassId may be from a whole number, since gammas are rounded


class LossError(prepkit.PrepkitError, ValueError):
    """Tensors or ClassIds that were given to a loss do not fit each other."""


# Outputs of instances: Eq. 1 to 5 --------------------------------------------------------------------------------


def loss_pred(p_NBC: Tensor, t_NBC: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Eq. 1, L_pred: KL(softmax(t / T) || softmax(p / T)) T^2, averaged across samples.

    p_NBC:   logits of the predicted instances
    t_NBC:   logits of their target instances
    returns `[N]`
    The paper writes the arguments the other way round; this is the distillation divergence that its code computes.
    """
    return _distillation(p_NBC, t_NBC, temperature)


def loss_pred_signal(y_p_NBD: Tensor, y_t_NBD: Tensor) -> Tensor:
    """Eq. 2, L_pred of signals: MSE(y_p, y_t) over samples and their D values.

    y_p_NBD: outputs of the predicted instances
    y_t_NBD: outputs of their target instances for the same inputs
    returns `[N]`
    """
    _check("outputs", y_p_NBD, y_t_NBD)
    return (_precise(y_p_NBD) - _precise(y_t_NBD)).square().mean(dim=(-2, -1))


def loss_pred_star(p_NBC: Tensor, t_star_BC: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Eq. 3, L*_pred, and Eq. 8, L_pred^gamma: KL(softmax(t* / T) || softmax(p / T)) T^2, averaged across samples.

    p_NBC:     logits of the predicted instances; `[P, G, B, C]` for those at the interpolated embeddings (Eq. 8)
    t_star_BC: logits of the teacher
    returns   `[N]`, or `[P, G]`
    """
    return _distillation(p_NBC, t_star_BC, temperature)


def loss_task(p_NBC: Tensor, y_B: Tensor) -> Tensor:
    """Eq. 4, L_task, and Eq. 9, L_task^gamma: CE(softmax(p), y), averaged across samples.

    p_NBC:   logits of the predicted instances; `[P, G, B, C]` for those at the interpolated embeddings (Eq. 9)
    y_B:     labels, int64
    returns `[N]`, or `[P, G]`
    """
    return _cross_entropy(p_NBC, y_B).mean(dim=-1)


def loss_kd(
    p_NBC: Tensor, t_star_BC: Tensor, y_B: Tensor, temperature: float = TEMPERATURE, alpha: float = ALPHA
) -> Tensor:
    """Eq. 5, L_kd, and Eq. 10, L_kd^gamma: alpha L*_pred + (1 - alpha) L_task.

    p_NBC:     logits of the predicted instances; `[P, G, B, C]` for those at the interpolated embeddings (Eq. 10)
    t_star_BC: logits of the teacher
    y_B:       labels, int64
    returns   `[N]`, or `[P, G]`
    """
    return alpha * loss_pred_star(p_NBC, t_star_BC, temperature) + (1 - alpha) * loss_task(p_NBC, y_B)


def loss_weights(predicted_NHW: Tensor, target_NHW: Tensor) -> Tensor:
    """Mean squared error of the PReps themselves, `[N]`; the paper argues against it and has no equation for it."""
    _check("PReps", predicted_NHW, target_NHW)
    return (_precise(predicted_NHW) - _precise(target_NHW)).square().mean(dim=(-2, -1))


# ClassIds: Eq. 6 -------------------------------------------------------------------------------------------------


def loss_class(c_p_NA: Tensor, c_t_N: Tensor) -> Tensor:
    """Eq. 6, L_class: CE(softmax(c_p), c_t).

    c_p_NA:  logits of the ClassId classifier
    c_t_N:   ClassIds of the target instances, int64
    returns `[N]`
    """
    return _cross_entropy(c_p_NA, c_t_N)


# The line between boundaries: Eq. 7 to 12 ------------------------------------------------------------------------


def gammas(num_architectures: int) -> tuple[float, ...]:
    """Eq. 12: gamma = i / (A - 1) for i = 1 .. A - 2, so none for A = 2.

    raises LossError for fewer than 2 architectures
    """
    if num_architectures < 2:
        raise LossError(f"boundaries to interpolate between need 2 architectures at least, found {num_architectures}.")
    return tuple(i / (num_architectures - 1) for i in range(1, num_architectures - 1))


def boundary_pairs(class_ids: Sequence[int], num_architectures: int) -> list[tuple[int, int]]:
    """Positions (a, b) in the batch of all pairs of an instance of ClassId 0 and one of ClassId A - 1.

    class_ids: ClassIds of the N target instances, from the zoo's table, so that no device has to be waited for
    raises LossError for a ClassId that is not among 0 .. A - 1
    """
    for class_id in class_ids:
        if not 0 <= class_id < num_architectures:
            raise LossError(
                f"ClassId {class_id} is in the batch, but {num_architectures} architectures have ClassIds 0 to "
                f"{num_architectures - 1}; give the number of all architectures of the zoo's registry."
            )
    first = [position for position, class_id in enumerate(class_ids) if class_id == 0]
    last = [position for position, class_id in enumerate(class_ids) if class_id == num_architectures - 1]
    return [(a, b) for a in first for b in last]


def interpolate_embeddings(latent_NE: Tensor, pairs: Sequence[tuple[int, int]], factors: Sequence[float]) -> Tensor:
    """e^gamma = (1 - gamma) e^A + gamma e^B, for each pair (a, b) of positions and each factor: `[P, G, E]`."""
    if not pairs or not factors:
        return latent_NE.new_zeros(len(pairs), len(factors), latent_NE.shape[1])
    # Taken singly: a tensor of positions or factors would be copied to the device, and the host would wait for it.
    e_A_PE = torch.stack([latent_NE[a] for a, _ in pairs])
    e_B_PE = torch.stack([latent_NE[b] for _, b in pairs])
    return torch.stack([(1 - gamma) * e_A_PE + gamma * e_B_PE for gamma in factors], dim=1)


def interpolated_class_ids(factors: Sequence[float], num_architectures: int) -> tuple[int, ...]:
    """c_t^gamma = (1 - gamma) c^A + gamma c^B of the boundaries c^A = 0 and c^B = A - 1, for each factor.

    raises LossError for a factor that leads to no ClassId
    """
    class_ids = []
    for gamma in factors:
        class_id = gamma * (num_architectures - 1)
        if abs(class_id - round(class_id)) > TOLERANCE or not 0 <= round(class_id) < num_architectures:
            raise LossError(
                f"gamma {gamma:g} leads to ClassId {class_id:g}, which none of {num_architectures} architectures has; "
                f"use gammas({num_architectures})."
            )
        class_ids.append(round(class_id))
    return tuple(class_ids)


def loss_class_gamma(c_p_PGA: Tensor, factors: Sequence[float]) -> Tensor:
    """Eq. 7, L_class^gamma: CE(softmax(c_p^gamma), c_t^gamma).

    c_p_PGA: logits of the ClassId classifier at the interpolated embeddings
    factors: gamma for each of the G points, from `gammas`
    returns `[P, G]`
    raises LossError for a factor that leads to no ClassId
    """
    c_t_G = constant(interpolated_class_ids(factors, c_p_PGA.shape[-1]), torch.int64, c_p_PGA.device)
    return _cross_entropy(c_p_PGA, c_t_G)


def loss_gamma(
    c_p_PGA: Tensor,
    factors: Sequence[float],
    p_PGBC: Tensor,
    t_star_BC: Tensor,
    y_B: Tensor,
    temperature: float = TEMPERATURE,
    alpha: float = ALPHA,
) -> Tensor:
    """Eq. 11, L^gamma: L_class^gamma (Eq. 7) + L_kd^gamma (Eq. 10), with their arguments; returns `[P, G]`."""
    return loss_class_gamma(c_p_PGA, factors) + loss_kd(p_PGBC, t_star_BC, y_B, temperature, alpha)


def loss_line(latent_ALE: Tensor) -> Tensor:
    """Return how far the centres of architectures are from their places on the boundary line; not in the paper.

    |c^k - ((1 - gamma_k) c^0 + gamma_k c^(A - 1))|^2 / |c^(A - 1) - c^0|^2 for each architecture k between the
    boundaries, where c^k is the mean embedding of architecture k and gamma_k = k / (A - 1) as in Eq. 12. The line's
    length divides it, so that an encoder that makes all embeddings smaller gains nothing by that.

    latent_ALE: embeddings of L instances of each architecture, in ClassId order
    returns `[A - 2]`
    """
    c_AE = _precise(latent_ALE).mean(dim=1)
    length = (c_AE[-1] - c_AE[0]).square().sum().clamp(min=SHORTEST)
    factors = gammas(len(c_AE))
    places_GE = torch.stack([(1 - gamma) * c_AE[0] + gamma * c_AE[-1] for gamma in factors])
    return (c_AE[1:-1] - places_GE).square().sum(dim=-1) / length


def loss_multi(loss_kd_N: Tensor, loss_class_N: Tensor, loss_gamma_PG: Tensor) -> Tensor:
    """The final loss (after Eq. 12): the sum of L_kd and L_class over instances and of L^gamma over pairs and factors.

    loss_gamma_PG: may be empty
    returns a scalar
    """
    return loss_kd_N.sum() + loss_class_N.sum() + loss_gamma_PG.sum()


# What the equations share ----------------------------------------------------------------------------------------


def _precise(values: Tensor) -> Tensor:
    """Convert to float32 at least: in bfloat16, softmax and KL gave -0.088 for 0.003 and a gradient at cosine 0.92."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _distillation(predicted: Tensor, target: Tensor, temperature: float) -> Tensor:
    """KL(softmax(target / T) || softmax(predicted / T)) T^2 `[...]` of logits `[..., B, C]`, averaged over B."""
    _check("logits", predicted, target)
    log_predicted = log_softmax(_precise(predicted) / temperature, dim=-1)
    log_target = log_softmax(_precise(target) / temperature, dim=-1)
    divergence = (log_target.exp() * (log_target - log_predicted)).sum(dim=-1)
    # T^2 keeps soft-target gradients on the scale of the hard ones as T varies (Hinton et al., 2015).
    return divergence.mean(dim=-1) * temperature**2


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label] `[..., B]` of logits `[..., B, C]` and labels `[..., B]` or `[B]`."""
    if labels.dim() == 0 or labels.shape != logits.shape[:-1][-labels.dim() :]:
        raise LossError(
            f"labels of {list(labels.shape)} do not go with logits of {list(logits.shape)}; "
            f"give one for each row: {list(logits.shape[:-1])}, or its last axes."
        )
    labels = labels.expand(logits.shape[:-1])
    return -log_softmax(_precise(logits), dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _check(what: str, predicted: Tensor, target: Tensor) -> None:
    if target.dim() < 2 or target.shape != predicted.shape[-target.dim() :]:
        raise LossError(
            f"target {what} of {list(target.shape)} do not go with predicted {what} of {list(predicted.shape)}; "
            f"give {list(predicted.shape)}, or its last axes: {list(predicted.shape[-2:])}."
        )
