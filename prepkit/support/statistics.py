"""Statistics of instances: correlations, ceilings of Kendall's tau, ridge regression, distances.

A statistic that does not exist, such as a correlation with numbers that are all equal, is NaN. scipy and scikit-learn
are in the extra `[train]`.
Shapes: N and M instances, F features, B samples, V values, P pairs, S steps of a line.
"""

# ruff: noqa: N803, N806 - names of arrays end in their axes

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from prepkit.errors import PrepkitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

RIDGE_STRENGTHS = np.logspace(-6, 6, 49)  # of the penalty, per training instance, for features of variance 1

T = TypeVar("T")
K = TypeVar("K")


class StatisticsMissing(PrepkitError, ImportError):
    """scipy or scikit-learn is not installed."""

    exit_code = 1


def library(name: str) -> Any:
    """Import a module of scipy or scikit-learn.

    raises StatisticsMissing if it is not installed
    """
    try:
        return import_module(name)
    except ImportError:
        package = "scikit-learn" if name.partition(".")[0] == "sklearn" else "scipy"
        raise StatisticsMissing(f"this needs {package}, which is missing; pip install 'prepkit[train]'.") from None


# Correlations -----------------------------------------------------------------------------------------------------


def pearson(first: Any, second: Any) -> Any:
    """Return Pearson's correlation over the last axis, `[..., N]` each -> `[...]`."""
    a, b = (np.asarray(values, np.float64) for values in (first, second))
    a, b = (values - values.mean(-1, keepdims=True) for values in (a, b))
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def spearman(first: Any, second: Any) -> Any:
    """Return Spearman's rank correlation over the last axis, `[..., N]` each -> `[...]`; equal values share a rank."""
    rankdata = library("scipy.stats").rankdata
    return pearson(rankdata(first, axis=-1), rankdata(second, axis=-1))


def kendall(first: Any, second: Any) -> float:
    """Return Kendall's tau-b of `[N]` and `[N]`: equal values neither agree nor disagree."""
    return float(library("scipy.stats").kendalltau(first, second).statistic) if len(first) > 1 else float("nan")


def r2(truth: Any, guess: Any) -> float:
    """Return 1 - squared error of the guess / squared error of guessing the mean of the truth."""
    return float(library("sklearn.metrics").r2_score(truth, guess)) if np.ptp(truth) > 0 else float("nan")


# Ceilings of tau --------------------------------------------------------------------------------------------------


def tau_of_halves(right_NB: Any, draws: int, seed: int) -> float:
    """Return the mean tau between accuracies on two halves of the samples: the rest is the luck of the samples.

    right_NB: whether each instance is right about each sample
    A half depends more on luck than all samples do, so accuracies on all of them can be guessed a little better.
    """
    right_NB = np.asarray(right_NB, np.float64)
    generator = np.random.default_rng(seed)
    taus = []
    for _ in range(draws):
        order = generator.permutation(right_NB.shape[1])
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        taus.append(kendall(*(right_NB[:, half].mean(1) for half in halves)))
    return finite_mean(taus)


def tau_of_perfect_ranker(tau: float) -> float:
    """Return the tau of a ranker that knows the true accuracies, with accuracies on all samples, from that of halves.

    tau: of accuracies on two halves of the samples, see `tau_of_halves`
    Correlations behind both are taken to be those of a normal distribution, r = sin(pi / 2 tau). Twice the samples have
    the reliability 2 r / (1 + r) (Spearman-Brown), and its root is the correlation of what is measured with what is
    true. NaN where halves do not rank the instances alike at all.
    """
    r = np.sin(np.pi / 2 * tau)
    return float(2 / np.pi * np.arcsin(np.sqrt(2 * r / (1 + r)))) if r > 0 else float("nan")


def tau_of_ties(truth: Any) -> float:
    """Return the largest tau-b with `[N]` values that a guess without equal values can have."""
    return kendall(truth, library("scipy.stats").rankdata(truth, method="ordinal"))


# Ridge regression -------------------------------------------------------------------------------------------------


def ridge_guess(
    train: tuple[Array, Array], validation: tuple[Array, Array], test_NF: Array, *, each: bool = True
) -> tuple[Array, float]:
    """Fit a ridge regression on training instances; validation instances choose the strength of its penalty.

    train, validation: features `[N, F]` and the true values `[N]`
    each:              scale every feature by its own deviation, not all by their common one
    returns guesses `[N]` for the test features, and the strength
    """
    scaler = library("sklearn.preprocessing").StandardScaler().fit(train[0])
    if not each:
        scaler.scale_ = np.full_like(scaler.var_, np.sqrt(scaler.var_.mean()))
    scaler.scale_[np.ptp(train[0], axis=0) == 0] = np.inf  # a feature that never changes says nothing
    # All principal components span the same features. They are as few as instances, so that 49 fits cost little.
    rotation = library("sklearn.decomposition").PCA(svd_solver="full").fit(scaler.transform(train[0]))
    known, chosen_by, asked = (rotation.transform(scaler.transform(x)) for x in (train[0], validation[0], test_NF))
    ridge = library("sklearn.linear_model").Ridge

    def fitted(strength: float) -> Any:
        return ridge(alpha=strength * len(known)).fit(known, train[1])

    errors = [((fitted(strength).predict(chosen_by) - validation[1]) ** 2).mean() for strength in RIDGE_STRENGTHS]
    best = float(RIDGE_STRENGTHS[int(np.argmin(errors))])
    return fitted(best).predict(asked), best


# Principal components ---------------------------------------------------------------------------------------------


def principal_components(values_NF: Tensor, count: int) -> tuple[Tensor, list[float]]:
    """Return places `[N, count]` along the principal components, and the share of the variance of each.

    Each component's largest entry is positive, so that the same values always give the same places.
    """
    centred = values_NF - values_NF.mean(0)
    _, sizes, directions_KF = torch.linalg.svd(centred, full_matrices=False)
    directions_KF = directions_KF[:count]
    largest = directions_KF.gather(1, directions_KF.abs().argmax(1, keepdim=True))
    places = centred @ (directions_KF * largest.sign()).T
    shares = sizes.square() / sizes.square().sum().clamp(min=1e-30)
    missing = max(0, count - places.shape[1])  # there may be fewer instances than components
    return torch.nn.functional.pad(places, (0, missing)), [*shares[:count].tolist(), *[0.0] * missing]


# Means and distances ----------------------------------------------------------------------------------------------


def finite_mean(values: Any) -> float:
    """Return the mean of the finite values; NaN if there are none."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def mean_or_nan(values: Tensor) -> float:
    """Return the mean; NaN if there are no values."""
    return float(values.double().mean()) if values.numel() else float("nan")


def distances(first_NV: Tensor, second_MV: Tensor) -> Tensor:
    """Return Euclidean distances `[N, M]`, without the cancellation of a matrix product."""
    return torch.cdist(first_NV, second_MV, compute_mode="donot_use_mm_for_euclid_dist")


def off_diagonal(values_NN: Tensor) -> Tensor:
    """Return the values beside the diagonal, `[N * (N - 1)]`."""
    return values_NN[~torch.eye(len(values_NN), dtype=torch.bool, device=values_NN.device)]


def variance_within(values_NKV: Tensor) -> float:
    """Return the variance around the mean of each group of K as a share of that around the mean of all."""
    within = (values_NKV - values_NKV.mean(1, keepdim=True)).square().sum()
    total = (values_NKV - values_NKV.mean((0, 1))).square().sum()
    return float(within / total) if total > 0 else float("nan")


def nearest_mean_is_own(known_NV: Tensor, class_ids_N: Tensor, asked_MV: Tensor, asked_ids_M: Tensor) -> float:
    """Return the share of the asked points that are nearest to the mean of the known points of their own class."""
    classes = torch.tensor(sorted(set(class_ids_N.tolist())))
    means = torch.stack([known_NV[class_ids_N == class_id].mean(0) for class_id in classes])
    return float((classes[torch.cdist(asked_MV, means).argmin(1)] == asked_ids_M).double().mean())


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return items by their keys, in the order in which the keys first appear."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def evenly(ordered: Sequence[T], count: int) -> list[T]:
    """Choose `count` items at equal steps, the first and the last among them; all where there are fewer."""
    count = min(count, len(ordered))
    return [ordered[round(place * (len(ordered) - 1) / max(1, count - 1))] for place in range(count)]


# Lines ------------------------------------------------------------------------------------------------------------


def along_line(points_MV: Tensor, start_V: Tensor, end_V: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions along a line, 0 at its start and 1 at its end, and distances off it, `[M]` each.

    Both are shares of the line's length.
    """
    line_V = end_V - start_V
    from_start_MV = points_MV - start_V
    position_M = from_start_MV @ line_V / line_V.square().sum()
    off_MV = from_start_MV - position_M[:, None] * line_V
    return position_M, off_MV.norm(dim=1) / line_V.norm()


def largest_fall(values_S: Tensor) -> Tensor:
    """Return how far values fall below an earlier one, at most: `[..., S]` -> `[...]`."""
    return (values_S.cummax(-1).values - values_S).amax(-1)


def from_straight_line(values_PS: Tensor, ends_P2: Tensor, places: Sequence[float]) -> float:
    """Return the mean distance from the straight lines between both ends, of values at S places from 0 to 1."""
    straight_PS = torch.lerp(ends_P2[:, :1], ends_P2[:, 1:], torch.tensor(places, dtype=values_PS.dtype))
    return float((values_PS - straight_PS).abs().mean())
