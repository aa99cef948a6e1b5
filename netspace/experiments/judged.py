"""Instances of a split beside those that a NetSpace predicts for them: what several experiments look at.

Shapes: N instances, H x W the PRep, E embedding values, B inputs, V values of an architecture's PRep.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import prepkit
from netspace.data import TEST, ZooMismatch, items_of
from netspace.explore.embedding import encode
from netspace.space.evaluation import chunks
from netspace.space.prediction import Prediction, predict
from prepkit.running.groups import run_by_class_id
from prepkit.tasks.task import EVALUATION_BATCH

if TYPE_CHECKING:
    from netspace.run.run import Run
    from netspace.space.network import NetSpace


@dataclass(frozen=True)
class Judged:
    """Targets, where they stand, and what is predicted there; all on the device of the space.

    view:      of the zoo, the N instances
    preps:     `[N, H, W]` of the targets, float32
    latents:   `[N, E]`, their embeddings
    predicted: instances at these embeddings
    """

    view: prepkit.Zoo
    preps: Tensor
    latents: Tensor
    predicted: Prediction

    @property
    def ids(self) -> list[str]:
        """Of the instances."""
        found: list[str] = self.view.table["id"].to_pylist()
        return found

    @property
    def class_ids(self) -> list[int]:
        """Of the targets."""
        found: list[int] = self.view.class_ids().tolist()
        return found

    def groups(self) -> dict[str, list[int]]:
        """The instances of each architecture, in the order of the ClassIds."""
        return groups_of(self.view)

    def values(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The parameters `[n, V]` of targets and of predicted instances of one architecture, on the CPU in float64.

        Padding is left out. Predicted ones are read as the target's architecture, whatever their predicted ClassId.
        """
        total = self.predicted.registry.by_class_id(self.class_ids[rows[0]]).layout.total
        both = (self.preps, self.predicted.preps)
        target_NV, predicted_NV = (preps[list(rows)].flatten(1)[:, :total].cpu().double() for preps in both)
        return target_NV, predicted_NV

    def outputs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs `[N, B, ...]` on the CPU of targets, and of predicted instances by their predicted ClassIds."""
        registry = self.predicted.registry
        return (
            outputs_of(registry, self.class_ids, self.preps, inputs),
            outputs_of(registry, self.predicted.class_ids, self.predicted.preps, inputs),
        )


def judge(run: Run, space: NetSpace, zoo: prepkit.Zoo, split: str = TEST) -> Judged:
    """Encode and decode the instances of a split.

    raises ZooMismatch if it holds none, ZooError if the zoo has no such split
    """
    view = split_of(zoo, split)
    latent_NE = encode(space, view)
    preps_NHW = view.preps().to(latent_NE.device, torch.float32)
    with torch.no_grad():
        parts = [predict(space, latent_NE[rows], run.registry) for rows in chunks(len(view))]
    logits = [part.logits for part in parts if part.logits is not None]
    predicted = Prediction(
        torch.cat([part.preps for part in parts]),
        tuple(class_id for part in parts for class_id in part.class_ids),
        torch.cat(logits) if logits else None,
        run.registry,
    )
    return Judged(view, preps_NHW, latent_NE, predicted)


def split_of(zoo: prepkit.Zoo, split: str) -> prepkit.Zoo:
    """The instances of a split.

    raises ZooMismatch if it holds none, ZooError if the zoo has no such split
    """
    view = zoo.split(split)
    if not len(view):
        raise ZooMismatch(f"zoo '{zoo.name}' has no instances in the split '{split}'; `prepkit zoo split` deals them.")
    return view


def groups_of(view: prepkit.Zoo) -> dict[str, list[int]]:
    """The rows of each architecture of a zoo or view, in the order of the ClassIds."""
    class_ids = view.class_ids().tolist()
    names = list(view.registry.class_ids)
    return {
        names[class_id]: [row for row, one in enumerate(class_ids) if one == class_id]
        for class_id in sorted(set(class_ids))
    }


def inputs_of(run: Run, view: prepkit.Zoo, task: Any, split: str = TEST, limit: int | None = None) -> Tensor:
    """What instances are run on: images `[B, C, H, W]` that all share, or points `[N, B, 3]` of each one's own shape.

    limit: the largest B
    """
    if run.recipe.setting == "sdf":
        return torch.stack([task.points(item, split)[0][:limit] for item in items_of(view)])
    images: Tensor = task.normalised(split)[0][:limit]
    return images


def outputs_of(registry: prepkit.Registry, class_ids: Sequence[int], preps_NHW: Tensor, inputs: Tensor) -> Tensor:
    """Outputs `[N, B, ...]` on the CPU without gradient, some instances and inputs at a time.

    inputs: `[B, ...]` that all share, or `[N, B, ...]`
    """
    shared = inputs.dim() == len(registry.by_class_id(class_ids[0]).input_shape) + 1
    found = []
    with torch.no_grad():
        for rows in chunks(len(class_ids)):
            own = inputs if shared else inputs[rows]
            parts = torch.split(own, EVALUATION_BATCH, dim=0 if shared else 1)
            chosen = [class_ids[row] for row in rows]
            found.append(torch.cat([run_by_class_id(registry, chosen, preps_NHW[rows], part) for part in parts], dim=1))
    return torch.cat(found).cpu()


def distances(first_NV: Tensor, second_MV: Tensor) -> Tensor:
    """Euclidean distances `[N, M]`, without the cancellation of a matrix product."""
    return torch.cdist(first_NV, second_MV, compute_mode="donot_use_mm_for_euclid_dist")


def off_diagonal(values_NN: Tensor) -> Tensor:
    """What stands beside the diagonal, `[N * (N - 1)]`."""
    return values_NN[~torch.eye(len(values_NN), dtype=torch.bool, device=values_NN.device)]


def mean_or_nan(values: Tensor) -> float:
    """The mean; NaN of nothing."""
    return float(values.double().mean()) if values.numel() else float("nan")


def short(name: str) -> str:
    """An architecture's name without its data set, for titles."""
    return name.partition("@")[0]
