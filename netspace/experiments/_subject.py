"""Subject: a run with all that experiments need, and what NetSpace predicts for the instances of a split.

Shapes: N instances, H x W the PRep, E embedding values, B inputs, V values of an architecture's PRep.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import prepkit
from netspace.data import TEST, ZooMismatch
from netspace.data import runs_of as runs_of
from netspace.experiments.result import Picture
from netspace.space.evaluation import PREPS_AT_ONCE, preps_of
from netspace.space.prediction import Prediction, predict
from prepkit.figures import save_figure
from prepkit.running.groups import outputs_by_class_id
from prepkit.zoo.read.accuracy import chunks, items_of, recorded_accuracies, zoo_accuracies
from prepkit.zoo.read.groups import rows_by_architecture

if TYPE_CHECKING:
    from netspace.run.run import Run
    from netspace.space.network import NetSpace


@dataclass(frozen=True, eq=False)
class Subject:
    """A run, and all that an experiment on it needs.

    run:      the opened Run
    zoo:      the zoo that the run was trained on, with all splits
    task:     the zoo's task, with its data on the device
    device:   where networks are run
    folder:   where pictures are written
    seed:     decides all random choices
    progress: is called with a few words before each long step
    """

    run: Run
    zoo: prepkit.Zoo
    task: Any
    device: torch.device
    folder: Path
    seed: int = 0
    progress: Callable[[str], None] = lambda text: None

    @cached_property
    def space(self) -> NetSpace:
        """The NetSpace in its best state."""
        return self.run.space(device=self.device)

    @property
    def signals(self) -> bool:
        """Whether instances are networks of signed distances, each with a shape of its own, and not classifiers."""
        return self.run.recipe.setting == "sdf"

    def view(self, split: str) -> prepkit.Zoo:
        """Return the instances of a split.

        raises ZooMismatch if it holds none, ZooError if the zoo has no such split
        """
        view = self.zoo.split(split)
        if not len(view):
            raise ZooMismatch(
                f"zoo '{self.zoo.name}' has no instances in the split '{split}'; `prepkit zoo split` deals them."
            )
        return view

    def predicted(self, split: str = TEST) -> PredictedSplit:
        """Return the instances of a split beside those that the space predicts; they are computed once.

        raises ZooMismatch if it holds none, ZooError if the zoo has no such split
        """
        if split not in self._predicted:
            self._predicted[split] = predict_split(self.space, self.run.registry, self.view(split))
        return self._predicted[split]

    @cached_property
    def _predicted(self) -> dict[str, PredictedSplit]:
        return {}

    def inputs(self, view: prepkit.Zoo, limit: int | None = None) -> Tensor:
        """Return test inputs: images `[B, C, H, W]` that all instances share, or points `[N, B, 3]` of each shape.

        limit: the largest B
        """
        if self.signals:
            return torch.stack([self.task.points(item, TEST)[0][:limit] for item in items_of(view)])
        images: Tensor = self.task.normalised(TEST)[0][:limit]
        return images

    def accuracies(self, view: prepkit.Zoo) -> list[float]:
        """Return accuracies of the instances of a view: those that the zoo records.

        They are measured on the test samples where one is missing, or is no share, as one in per cent is.
        """
        recorded = recorded_accuracies(view)
        if all(0 <= accuracy <= 1 for accuracy in recorded):  # false for NaN too
            return recorded
        return zoo_accuracies(view, self.task, TEST)

    def labels(self) -> Tensor:
        """Return the true classes `[B]` of the test images, on the CPU."""
        labels: Tensor = self.task.normalised(TEST)[1].cpu()
        return labels

    def picture(self, title: str, file: str, figure: Any) -> Picture:
        """Write a matplotlib Figure into the folder.

        raises OutputError if it cannot be written
        """
        save_figure(figure, self.folder / file, overwrite=True)
        return Picture(title, file)


@dataclass(frozen=True)
class PredictedSplit:
    """The N instances of a split and those that are predicted for them, on the device of the space.

    view:        the part of the zoo
    preps:       their PReps `[N, H, W]`, float32, aligned if the space aligns
    latents:     their embeddings `[N, E]`
    predictions: the instances that are decoded from these embeddings
    """

    view: prepkit.Zoo
    preps: Tensor
    latents: Tensor
    predictions: Prediction

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the instances."""
        ids: list[str] = self.view.table["id"].to_pylist()
        return ids

    @cached_property
    def class_ids(self) -> list[int]:
        """ClassIds of the targets."""
        class_ids: list[int] = self.view.class_ids().tolist()
        return class_ids

    def groups(self) -> dict[str, list[int]]:
        """Return the rows of each architecture, in the order of the ClassIds."""
        return rows_by_architecture(self.view)

    def values(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the parameters `[n, V]` of targets and predictions of one architecture, on the CPU in float64.

        Padding is left out. Predictions are read as the target's architecture, whatever their predicted ClassId.
        """
        total = self.predictions.registry.by_class_id(self.class_ids[rows[0]]).layout.total
        both = (self.preps, self.predictions.preps)
        target_NV, predicted_NV = (preps[list(rows)].flatten(1)[:, :total].cpu().double() for preps in both)
        return target_NV, predicted_NV

    def outputs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs `[N, B, ...]` on the CPU of targets, and of predictions by their predicted ClassIds."""
        registry = self.predictions.registry
        return (
            outputs_by_class_id(registry, self.class_ids, self.preps, inputs),
            outputs_by_class_id(registry, self.predictions.class_ids, self.predictions.preps, inputs),
        )


def predict_split(space: NetSpace, registry: prepkit.Registry, view: prepkit.Zoo) -> PredictedSplit:
    """Encode and decode the instances of a view."""
    preps_NHW = preps_of(space, view)
    with torch.no_grad():
        latent_NE = torch.cat([space.encoder(few) for few in torch.split(preps_NHW, PREPS_AT_ONCE)])
        parts = [predict(space, latent_NE[rows], registry) for rows in chunks(len(view))]
    logits = [part.logits for part in parts if part.logits is not None]
    predicted = Prediction(
        torch.cat([part.preps for part in parts]),
        tuple(class_id for part in parts for class_id in part.class_ids),
        torch.cat(logits) if logits else None,
        registry,
    )
    return PredictedSplit(view, preps_NHW, latent_NE, predicted)
