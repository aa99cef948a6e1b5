"""How alike networks are by their outputs, and whether each is more like its counterpart than like others.

    agreement_NN, divergence_NN = compare(outputs_NBC, counterparts_NBC)
    matching_measures(agreement_NN, accuracy_N)["paired"]         # 0.5 by chance, 1 if each matches its counterpart

Shapes: N and M networks, K of them, B images, C classes.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from prepkit.support.statistics import mean_or_nan, off_diagonal

ROUNDING = 1e-12  # more than the rounding of float64 sums near 1


def compare(predicted_NBC: Tensor, target_MBC: Tensor) -> tuple[Tensor, Tensor]:
    """Return agreement and divergence of each prediction and each target, both `[N, M]` in float64.

    predicted_NBC, target_MBC: logits
    Agreement is the share of images with the same largest output, divergence the mean KL(target || predicted) in nats.
    """
    predicted_NB, target_MB = predicted_NBC.argmax(-1), target_MBC.argmax(-1)
    log_p_NBC, log_t_MBC = log_softmax(predicted_NBC.double(), -1), log_softmax(target_MBC.double(), -1)
    t_MBC = log_t_MBC.exp()
    entropy_M = -(t_MBC * log_t_MBC).sum(-1).mean(1)
    cross_NM = -torch.einsum("nbc,mbc->nm", log_p_NBC, t_MBC) / predicted_NB.shape[1]
    # The rows are compared one at a time, because [N, M, B] of a large test set would not fit.
    agreement_NM = torch.stack([(row_B == target_MB).double().mean(1) for row_B in predicted_NB])
    return agreement_NM, cross_NM - entropy_M


def matching_measures(likeness_NN: Tensor, accuracy_N: Tensor, sign: int = 1) -> dict[str, float]:
    """Return how much better a prediction fits its own target than others; equal likeness counts half.

    likeness_NN:    likeness of each prediction (row) and target (column); larger means more alike
    accuracy_N:     accuracies of the targets
    sign:           -1 if the likeness is a negated measure; `own`, `others` and `nearest_in_accuracy` are then means of
                    the measure itself
    own_preferred:  share of comparisons with another target that the own target wins
    own_first:      share of predictions whose own target wins all of them
    paired:         share of pairs i, j that fit better rightly (i, i and j, j) than crosswise (i, j and j, i)
    paired_nearest: the same, of each i and the two j of nearest accuracy
    """
    count = len(likeness_NN)
    own_N = likeness_NN.diagonal()
    nearest_NK = _nearest(accuracy_N)
    others_NN = likeness_NN.clone().fill_diagonal_(-float("inf"))
    return {
        "own": sign * mean_or_nan(own_N),
        "others": sign * mean_or_nan(off_diagonal(likeness_NN)),
        "nearest_in_accuracy": sign * mean_or_nan(likeness_NN.gather(1, nearest_NK)),
        "own_preferred": mean_or_nan(shares_preferred(likeness_NN)),
        "paired": mean_or_nan(shares_paired_rightly(likeness_NN)),
        "paired_nearest": mean_or_nan(shares_paired_rightly(likeness_NN, accuracy_N)),
        "own_first": mean_or_nan((own_N > others_NN.amax(1)).double()) if count > 1 else float("nan"),
    }


def shares_preferred(likeness_NN: Tensor) -> Tensor:
    """Return, for each network, the share of the comparisons with another target that its own target wins, `[N]`.

    likeness_NN: see matching_measures
    """
    wins_NN = _wins(likeness_NN.diagonal()[:, None], likeness_NN)
    return off_diagonal(wins_NN).view(len(likeness_NN), -1).mean(1)


def shares_paired_rightly(likeness_NN: Tensor, accuracy_N: Tensor | None = None) -> Tensor:
    """Return, for each network, the share of its pairs with others that fit better rightly than crosswise, `[N]`.

    likeness_NN: see matching_measures
    accuracy_N:  accuracies, where only the two others of nearest accuracy are paired with each network
    """
    count, own_N = len(likeness_NN), likeness_NN.diagonal()
    paired_NN = _wins(own_N[:, None] + own_N, likeness_NN + likeness_NN.T)
    if accuracy_N is None:
        return off_diagonal(paired_NN).view(count, -1).mean(1)
    return paired_NN.gather(1, _nearest(accuracy_N)).mean(1)


def _nearest(accuracy_N: Tensor) -> Tensor:
    """Return the two others of nearest accuracy of each network, `[N, K]`; fewer where there are no two."""
    apart_NN = (accuracy_N[:, None] - accuracy_N).abs().fill_diagonal_(float("inf"))
    return apart_NN.argsort(dim=1, stable=True)[:, : min(2, len(accuracy_N) - 1)]


def _wins(first: Tensor, second: Tensor) -> Tensor:
    """Return 1 where the first is larger, and 0.5 where both are equal but for rounding."""
    difference = first - second
    return torch.where(difference.abs() <= ROUNDING, 0.5, (difference > 0).double())


def beyond_margins(values_NM: Tensor) -> Tensor:
    """Return each value without the means of its row and its column."""
    return values_NM - values_NM.mean(0) - values_NM.mean(1, keepdim=True) + values_NM.mean()
