"""The score that decides which state of a training is the best, for each of the four settings.

Shapes: N instances, H x W the PRep, E embedding values, P pairs, G interpolation factors, M = P G.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

import torch
from torch import Tensor

import prepkit
from netspace.alignment import Alignment
from netspace.data import TRAIN, VALIDATION, Data
from netspace.recipe import Recipe
from netspace.space.evaluation import evaluate
from netspace.space.network import NetSpace
from netspace.space.prediction import predict
from netspace.training import losses
from netspace.training._aligning import aligned_preps
from prepkit.support.device import bf16_autocast
from prepkit.zoo.read.accuracy import accuracies_of, zoo_accuracies

PAIRS = 8  # pairs of boundary instances whose lines are judged


class Validation:
    """Judges a NetSpace by a score; higher is better.

    single: minus the mean difference between target and predicted accuracy on the validation instances
    multi:  the mean accuracy of the predicted validation instances and of those along the lines of boundary pairs;
            an instance of another class than was asked for counts 0: for the first few hundred steps one class is
            predicted for all and only its network learns, so that plain accuracy looks like success
    unseen: as multi, but only the boundary architectures have instances
    sdf:    the share of outputs within 1e-2 of the target's, on the training instances (supplementary V)
    On a GPU it computes in the recipe's precision, in which accuracies move by some 0.1 points; a CPU uses float32.
    """

    def __init__(self, recipe: Recipe, zoo: prepkit.Zoo, data: Data, alignment: Alignment | None = None) -> None:
        self.recipe, self.registry, self.task = recipe, data.registry, data.task
        self.zoo = zoo.split(TRAIN if recipe.setting == "sdf" else VALIDATION)
        self.split = VALIDATION
        if not self.task.splits.get(VALIDATION):
            self.split = "train" if recipe.setting == "sdf" else "test"
        self.targets = zoo_accuracies(self.zoo, self.task, self.split)
        self.device = data.device
        self.bf16 = data.device.type == "cuda" and recipe.training.precision == "bfloat16"
        self.preps: Tensor | None = None  # they are aligned once, not at each validation
        if alignment is not None:
            self.preps = data.preps_NHW if recipe.setting == "sdf" else aligned_preps(alignment, self.zoo)

    def __call__(self, space: NetSpace) -> dict[str, float]:
        """Evaluate a space; returns `score` and the measures that it is made of."""
        space.eval()
        judged, bf16 = (self.zoo, self.task, self.split), self.bf16
        evaluation = evaluate(space, self.registry, *judged, bf16=bf16, targets=self.targets, preps=self.preps)
        space.train()
        means = {name: value for name, value in evaluation.summary().items() if isinstance(value, float)}
        if self.recipe.setting == "single":
            return {"score": -means["mean_difference"], **means}
        if self.recipe.setting == "sdf":
            return {"score": means["closeness"], **means}
        right = evaluation.column("class_id") == evaluation.column("predicted_class_id")
        credited = [evaluation.column("predicted_accuracy") * right]
        line = self._line(space)
        if line is not None:
            accuracy, class_ids = line
            means["line_accuracy"] = float(accuracy.mean())
            means["line_class_id_accuracy"] = float(class_ids.double().mean())
            credited.append(accuracy * class_ids)
        return {"score": float(torch.cat(credited).mean()), **means}

    def _line(self, space: NetSpace) -> tuple[Tensor, Tensor] | None:
        """Accuracies `[P G]` along the lines of boundary pairs, and whether the predicted ClassIds are right."""
        count = len(self.recipe.architectures)
        factors = losses.gammas(count)
        class_ids = self.zoo.class_ids().tolist()
        first = [row for row, class_id in enumerate(class_ids) if class_id == 0][:PAIRS]
        last = [row for row, class_id in enumerate(class_ids) if class_id == count - 1][:PAIRS]
        ends = list(zip(first, last, strict=False))
        if not factors or not ends:
            return None
        rows = [row for pair in ends for row in pair]
        pairs = [(2 * pair, 2 * pair + 1) for pair in range(len(ends))]
        with torch.inference_mode():
            preps_NHW = self._preps(rows)
            with bf16_autocast(self.device, self.bf16):
                latent_PGE = losses.interpolate_embeddings(space.encoder(preps_NHW), pairs, factors)
                predicted = predict(space, latent_PGE.flatten(0, 1), self.registry)
            named, preps_MHW, samples = predicted.class_ids, predicted.preps, (self.task, self.split)
            accuracies = accuracies_of(self.registry, named, preps_MHW, None, *samples, bf16=self.bf16)
        asked = losses.interpolated_class_ids(factors, count) * len(pairs)
        return torch.tensor(accuracies), torch.tensor(predicted.class_ids) == torch.tensor(asked)

    def _preps(self, rows: list[int]) -> Tensor:
        """PReps `[N, H, W]` of some rows, as they are encoded."""
        preps_NHW = self.zoo.select(rows).preps() if self.preps is None else self.preps[rows]
        return preps_NHW.to(self.device, torch.float32)

    def pictures(self, space: NetSpace) -> tuple[Tensor, Tensor]:
        """The first instance and its prediction, each `[H, W]`."""
        with torch.inference_mode():
            target_NHW = self._preps([0])
            predicted_NHW = space.decode(space.encoder(target_NHW))
        return target_NHW[0], predicted_NHW[0]
