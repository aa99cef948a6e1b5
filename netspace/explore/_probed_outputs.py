"""What a probe compares of a zoo's instances: class scores on images of the task, or shapes on a grid.

Shapes: N instances, M unseen ones, V = B C values of B images and C classes, or V = R^3 of a grid; P pairs.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import prepkit
from netspace.data import TEST, ZooMismatch, task_of
from netspace.space.evaluation import CLOSE, NEAR
from prepkit.errors import listed
from prepkit.running.groups import distance_grids, outputs_by_class_id
from prepkit.running.likeness import compare, shares_paired_rightly
from prepkit.support.statistics import evenly, mean_or_nan, off_diagonal, spearman
from prepkit.tasks.chairs import chair_between
from prepkit.tasks.distance_grid import grid_points
from prepkit.tasks.shape_measures import overlaps
from prepkit.zoo.read.accuracy import has_items, items_of

MOST_IMAGES, MOST_VALUES = 512, 100_000  # images, and values that an instance puts out
RESOLUTION = 32  # points along an axis of the grid

Halfway = Mapping[str, float]
PrepsAt = Callable[[Sequence[int]], Tensor]  # rows of the zoo -> `[N, H, W]` float32


class ImageOutputs:
    """Logits of classifiers on images of the task, without their mean over classes, which says nothing."""

    def __init__(self, zoo: prepkit.Zoo, device: torch.device, data: Path | None) -> None:
        images_BCHW, labels_B = task_of(zoo, device, data).normalised(TEST)
        most = min(MOST_IMAGES, max(1, MOST_VALUES // int(labels_B.max() + 1)))
        places = evenly(range(len(labels_B)), most)
        self.registry, self.inputs, self.labels_B = zoo.registry, images_BCHW[places], labels_B[places].cpu()

    @property
    def about(self) -> dict[str, Any]:
        """What was run, for JSON."""
        return {"kind": "images", "images": len(self.labels_B)}

    def of(self, class_ids: Sequence[int], preps_NHW: Tensor) -> Tensor:
        """Return outputs `[N, V]` float64 on the CPU."""
        logits_NBC = outputs_by_class_id(self.registry, class_ids, preps_NHW, self.inputs).double()
        return (logits_NBC - logits_NBC.mean(-1, keepdim=True)).flatten(1)

    def measures(self, guess_MV: Tensor, target_MV: Tensor) -> tuple[dict[str, float], Tensor]:
        """Return measures of guessed outputs, and the share of pairs of nearest accuracy told apart by each, `[M]`.

        own, others:       mean divergence KL(target || guess) of an instance's own guess, and of those for others, nats
        accuracy, guessed: mean accuracy of the instances, and of their guessed outputs
        points_off:        mean difference of both; `spearman` their rank correlation
        """
        guess_MBC, target_MBC = self._scores(guess_MV), self._scores(target_MV)
        divergence_MM = compare(guess_MBC, target_MBC)[1]
        accuracy_M, guessed_M = self.accuracies(target_MV), self.accuracies(guess_MV)
        found = {
            "own": mean_or_nan(divergence_MM.diagonal()),
            "others": mean_or_nan(off_diagonal(divergence_MM)),
            "accuracy": float(accuracy_M.mean()),
            "guessed": float(guessed_M.mean()),
            "points_off": float((accuracy_M - guessed_M).abs().mean()),
            "spearman": float(spearman(accuracy_M, guessed_M)),
        }
        return found, shares_paired_rightly(-divergence_MM, accuracy_M)

    def accuracies(self, outputs_NV: Tensor) -> Tensor:
        """Return accuracies `[N]` float64 on the images."""
        right_NB: Tensor = self._scores(outputs_NV).argmax(-1) == self.labels_B
        return right_NB.double().mean(1)

    def _scores(self, outputs_NV: Tensor) -> Tensor:
        """Return outputs as `[N, B, C]`."""
        return outputs_NV.view(len(outputs_NV), len(self.labels_B), -1)

    def halfway(self, zoo: prepkit.Zoo, ends: tuple[Sequence[int], Sequence[int]], preps_at: PrepsAt) -> Halfway:
        """Return mean accuracies `halfway` between the weights of pairs, and of both `ends`."""
        class_ids = zoo.class_ids(ends[0]).tolist()
        first_PHW, second_PHW = map(preps_at, ends)
        runs = [self.of(class_ids, preps) for preps in (first_PHW, second_PHW, (first_PHW + second_PHW) / 2)]
        first, second, half = (float(self.accuracies(outputs).mean()) for outputs in runs)
        return {"pairs": len(class_ids), "halfway": half, "ends": (first + second) / 2}


class ShapeOutputs:
    """Signed distances on a grid of the cube, cut at 0.1 from the surface, as DeepSDF cuts them."""

    def __init__(self, zoo: prepkit.Zoo, device: torch.device, data: Path | None) -> None:
        self.registry = zoo.registry

    @property
    def about(self) -> dict[str, Any]:
        """What was run, for JSON."""
        return {"kind": "shapes", "resolution": RESOLUTION}

    def of(self, class_ids: Sequence[int], preps_NHW: Tensor) -> Tensor:
        """Return outputs `[N, V]` float64 on the CPU."""
        return (
            distance_grids(self.registry, class_ids, preps_NHW, RESOLUTION).flatten(1).clamp(-NEAR, NEAR).double().cpu()
        )

    def measures(self, guess_MV: Tensor, target_MV: Tensor) -> tuple[dict[str, float], Tensor]:
        """Return measures of guessed outputs, and the share of pairs that are told apart by each, `[M]`.

        own, others:             mean overlap (IoU) of an instance's own guess, and of those for others, with its shape
        close_own, close_others: mean share of outputs within 1e-2 of the instance's, of those within 0.1 of its surface
        """
        count = len(target_MV)
        overlap_MM = torch.stack([overlaps(guess_MV, target_V.expand(count, -1)) for target_V in target_MV], dim=1)
        close_MM = torch.stack(
            [
                ((guess_MV - target_V).abs() <= CLOSE)[:, target_V.abs() < NEAR].double().mean(1)
                for target_V in target_MV
            ],
            dim=1,
        )
        found = {
            "own": mean_or_nan(overlap_MM.diagonal()),
            "others": mean_or_nan(off_diagonal(overlap_MM)),
            "close_own": mean_or_nan(close_MM.diagonal()),
            "close_others": mean_or_nan(off_diagonal(close_MM)),
        }
        return found, shares_paired_rightly(overlap_MM)

    def halfway(self, zoo: prepkit.Zoo, ends: tuple[Sequence[int], Sequence[int]], preps_at: PrepsAt) -> Halfway:
        """Return mean overlaps (IoU) of the shapes half-way between the weights of pairs.

        halfway: with the shape whose distances are the mean of both ends'
        ends:    of both ends with each other
        true:    with the chair half-way between both ends' parameters, and `true_blended`, that of the mean distances;
                 for procedural chairs alone
        """
        class_ids = zoo.class_ids(ends[0]).tolist()
        first_PHW, second_PHW = map(preps_at, ends)

        def grids(preps_PHW: Tensor) -> Tensor:
            return distance_grids(self.registry, class_ids, preps_PHW, RESOLUTION).flatten(1).cpu()

        first_PV, second_PV, half_PV = map(grids, (first_PHW, second_PHW, (first_PHW + second_PHW) / 2))
        blended_PV = (first_PV + second_PV) / 2
        found = {
            "pairs": len(class_ids),
            "halfway": float(overlaps(half_PV, blended_PV).mean()),
            "ends": float(overlaps(first_PV, second_PV).mean()),
        }
        true_PV = _true_chairs(zoo, ends)
        if true_PV is not None:
            found["true"] = float(overlaps(half_PV, true_PV).mean())
            found["true_blended"] = float(overlaps(blended_PV, true_PV).mean())
        return found


def _true_chairs(zoo: prepkit.Zoo, ends: tuple[Sequence[int], Sequence[int]]) -> Tensor | None:
    """Return distances `[P, V]` to the chairs half-way between pairs; None where shapes are not procedural chairs."""
    task = zoo.task or {}
    if task.get("dataset") != "procedural_chairs" or not has_items(zoo):
        return None
    points = grid_points(RESOLUTION).double().numpy()
    pairs = zip(*(items_of(zoo.select(list(rows))) for rows in ends), strict=True)
    chairs = [chair_between(first, second, 0.5, task["seed"]).distance(points) for first, second in pairs]
    return torch.stack([torch.from_numpy(distances) for distances in chairs])


Outputs = ImageOutputs | ShapeOutputs
KINDS: dict[str, type[ImageOutputs] | type[ShapeOutputs]] = {"images": ImageOutputs, "shapes": ShapeOutputs}


def outputs_of(zoo: prepkit.Zoo, device: torch.device, data: Path | None) -> Outputs:
    """Return what is compared of a zoo's instances.

    raises ZooMismatch for a zoo without a task, and what loading the task raises
    """
    if zoo.task is None:
        raise ZooMismatch(
            f"zoo '{zoo.name}' does not record its task, so its networks cannot be run; `prepkit zoo create --task` "
            "records one."
        )
    kind = zoo.task.get("kind")
    if kind not in KINDS:
        raise ZooMismatch(f"zoo '{zoo.name}': a probe knows tasks of the kinds {listed(KINDS)}; this one is {kind!r}.")
    return KINDS[kind](zoo, device, data)
