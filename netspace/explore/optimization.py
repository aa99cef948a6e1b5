"""Latent space optimisation (section IV, Table I): embeddings move to better networks; the space stays as it is.

    optimised = optimize(run, zoo, ["resnet8-3", "resnet8-7"], steps=150, learning_rate=1e-2)
    optimised.table                       # accuracy before and after, one row for each start point
    optimised.predicted.network(0)        # the best instance on the way from the first, ready to use

Images: L_kd (Eq. 5), with several architectures also L_class (Eq. 6); signals: Eq. 2 towards the true distances.
Shapes: N start points, E embedding values, B samples, C classes, A architectures.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import prepkit
from netspace.data import ZooMismatch
from netspace.explore.sampling import PointError, Points, check_samples, class_ids_of, points_of, resolve_task
from netspace.run.run import run_and_zoo
from netspace.space.network import NetSpace
from netspace.space.prediction import Prediction, predict
from netspace.training import losses
from prepkit.errors import counted, listed
from prepkit.support.progress import Advance
from prepkit.support.statistics import grouped
from prepkit.support.text import Brief
from prepkit.tasks.randomness import generator
from prepkit.zoo.read.accuracy import POINTS_AT_ONCE as SIGNALS_AT_ONCE
from prepkit.zoo.read.accuracy import accuracies_of, items_of

if TYPE_CHECKING:
    import pyarrow as pa

    from netspace.run.run import Run

STEPS = 300
LEARNING_RATE = 1e-4  # as in the paper; use 1e-2 for small spaces
VALIDATE_EVERY = 25
POINTS_AT_ONCE = 16  # start points whose activations are in memory together
VALIDATION, TEST = "validation", "test"


@dataclass(frozen=True, repr=False)
class Optimisation(Brief):
    """The result of optimising from N start points.

    table:     one row for each start point: `start`, `asked_class_id`, `asked_architecture`; the predicted
               `initial_class_id` at the start, `class_id` and `architecture` at the best point on the way;
               `initial_validation_accuracy` and the best `validation_accuracy`, which was reached after `best_step`;
               and on the test samples, which choose nothing, `initial_accuracy` and `accuracy`
    history:   one row for each validation: `point` (a row of the table), `step`, `loss` (mean over the steps since the
               last validation; missing at step 0), `validation_accuracy`, `class_id`
    initial:   embeddings `[N, E]` at the start, disturbance included
    latents:   the best embeddings `[N, E]`
    predicted: the N instances at the best embeddings
    """

    table: pa.Table
    history: pa.Table
    initial: Tensor
    latents: Tensor
    predicted: Prediction

    @property
    def notes(self) -> list[str]:
        """Warnings about start points whose loss was not finite."""
        starts = self.table["start"].to_pylist()
        notes: dict[int, str] = {}
        for row in self.history.to_pylist():
            if row["loss"] is not None and not math.isfinite(row["loss"]):
                text = f"the loss is {row['loss']} at step {row['step']}; the best point before that is kept."
                notes.setdefault(row["point"], f"{starts[row['point']]}: {text} Use a lower learning rate.")
        return list(notes.values())

    def summary(self) -> dict[str, Any]:
        """Return means over the start points of each architecture that was asked for, JSON-able."""
        groups = grouped(self.table.to_pylist(), itemgetter("asked_architecture"))
        names = ("initial_validation_accuracy", "validation_accuracy", "initial_accuracy", "accuracy")
        return {
            group: {
                "start_points": len(chosen),
                "improved": sum(row["best_step"] > 0 for row in chosen),
                **{name: sum(row[name] for row in chosen) / len(chosen) for name in names},
            }
            for group, chosen in groups.items()
        }


def optimize(
    run: Run | str | os.PathLike[str],
    zoo: prepkit.Zoo | str | os.PathLike[str],
    start: str | Sequence[str] | Tensor,
    *,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    validate_every: int = VALIDATE_EVERY,
    class_ids: int | Sequence[int] | None = None,
    items: Sequence[int] | None = None,
    noise: float = 0.0,
    batch_size: int | None = None,
    seed: int = 0,
    space: NetSpace | None = None,
    task: Any = None,
    data: Path | None = None,
    progress: Advance | None = None,
) -> Optimisation:
    """Move each embedding with Adam, and keep the point on its way that is best on the validation samples.

    start:      ids of instances, or embeddings `[E]` or `[N, E]`
    class_ids:  ClassIds that Eq. 6 asks for, one for all or one each; if missing, that of each instance, or the one
                predicted at a given embedding
    items:      for signals: numbers of the shapes whose distances are learnt; those of the instances if missing
    noise:      length of a random disturbance of each start, as a share of the embedding's own length
    batch_size: samples per step; the recipe's if missing
    seed:       seed for the disturbance and the order of samples
    space:      the run's NetSpace if it is loaded already; else that of the best validation is loaded, on the CPU
    task:       the zoo's task if it is loaded already; else it is loaded with its data in the folder `data`
    progress:   called after each step of each group of POINTS_AT_ONCE start points
    An instance of another class than was asked for never counts as better than one of that class. Without validation
    samples, training samples are used.
    raises PointError for settings that make no sense, ZooMismatch without a teacher, ZooError for unknown ids
    """
    run, zoo = run_and_zoo(run, zoo)
    _check_numbers(steps, learning_rate, validate_every, noise, batch_size)
    space = run.space() if space is None else space
    teacher = _teacher(run, zoo, next(space.parameters()).device)
    points = points_of(space, zoo, start)
    asked = _asked_class_ids(run, zoo, space, points, class_ids)
    chosen = _items(run, zoo, points, items)
    task = resolve_task(zoo, space, task, data)
    split = VALIDATION if task.splits.get(VALIDATION) else "train"
    check_samples(task, TEST)
    batch_size = batch_size or run.recipe.batch.samples
    walks = []
    frozen = [parameter.requires_grad for parameter in space.parameters()]
    space.requires_grad_(False)
    try:
        initial_NE = disturbed(points.latents, noise, seed)
        for first in range(0, len(points), POINTS_AT_ONCE):
            part = slice(first, first + POINTS_AT_ONCE)
            walk = _Walk(first, run, space, task, teacher, initial_NE[part], asked[part], chosen[part], split)
            walk.go(steps, learning_rate, validate_every, batch_size, seed, progress)
            walks.append(walk)
    finally:
        for parameter, wanted in zip(space.parameters(), frozen, strict=True):
            parameter.requires_grad_(wanted)
    return _result(run, space, task, points, initial_NE, asked, chosen, walks)


def disturbed(latent_NE: Tensor, noise: float, seed: int) -> Tensor:
    """Move each embedding in a random direction by `noise` times its own length."""
    if not noise:
        return latent_NE.clone()
    moves = []
    for number in range(len(latent_NE)):
        move_E = torch.randn(latent_NE.shape[1], generator=generator("disturbance", seed, number)).to(latent_NE.device)
        moves.append(move_E / move_E.norm() * latent_NE[number].norm() * noise)
    return latent_NE + torch.stack(moves)


@dataclass
class _Walk:
    """The way of a group of start points through the space.

    offset: number of the group's first point among all
    first:  the rows of the history at step 0
    best:   the rows of the history at the best step of each point
    """

    offset: int
    run: Run
    space: NetSpace
    task: Any
    teacher: nn.Module | None
    initial: Tensor
    asked: Sequence[int]
    items: Sequence[int]
    split: str
    history: list[dict[str, Any]] = field(default_factory=list)
    first: list[dict[str, Any]] = field(default_factory=list)
    best: list[dict[str, Any]] = field(default_factory=list)
    latents: Tensor = field(init=False)

    def go(
        self,
        steps: int,
        learning_rate: float,
        validate_every: int,
        batch_size: int,
        seed: int,
        progress: Advance | None,
    ) -> None:
        """Take all steps; `latents` are the best embeddings of the points after that."""
        moving_NE = nn.Parameter(self.initial.clone())
        optimiser = torch.optim.Adam([moving_NE], lr=learning_rate)
        self._validate(0, moving_NE, None)
        sum_N, count = torch.zeros(len(moving_NE), device=moving_NE.device), 0
        batches = self._batches(batch_size, seed)
        for step in range(1, steps + 1):
            loss_N = self.loss(moving_NE, *next(batches))
            optimiser.zero_grad()
            torch.autograd.backward(loss_N.sum())  # with a mean, gradients would depend on the number of points
            optimiser.step()
            sum_N, count = sum_N + loss_N.detach(), count + 1
            if step % validate_every == 0 or step == steps:
                self._validate(step, moving_NE, (sum_N / count).tolist())
                sum_N, count = torch.zeros_like(sum_N), 0
            if progress is not None:
                progress(1)

    def loss(self, latent_NE: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the losses `[N]`: Eq. 5, with Eq. 6 where there are ClassIds; Eq. 2 for signals."""
        predicted = predict(self.space, latent_NE, self.run.registry)
        outputs = predicted.outputs(inputs)
        if self.teacher is None:
            return losses.loss_pred_signal(outputs, targets)
        settings = self.run.recipe.loss
        with torch.no_grad():
            t_star_BC = self.teacher(inputs)
        loss_N = losses.loss_kd(outputs, t_star_BC, targets, settings.temperature, settings.alpha)
        if predicted.logits is not None:
            c_t_N = torch.tensor(self.asked, device=latent_NE.device)
            loss_N = loss_N + losses.loss_class(predicted.logits, c_t_N)
        return loss_N

    def _batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of training samples without end: images for all points, or points of each one's shape."""
        signals = self.teacher is None
        epoch = 0
        while True:
            seeds, items = ([seed] * len(self.items), self.items) if signals else ([seed], [0])
            for batch in self.task.batches(seeds, items, epoch, size):
                yield (batch.inputs, batch.targets) if signals else (batch.inputs[0], batch.targets[0])
            epoch += 1

    def _validate(self, step: int, moving_NE: Tensor, losses_N: Sequence[float] | None) -> None:
        latent_NE = moving_NE.detach()
        with torch.no_grad():
            predicted = predict(self.space, latent_NE, self.run.registry)
        accuracies = _accuracies(self.run, predicted, self.task, self.items, self.split)
        rows: list[dict[str, Any]] = [
            {
                "point": self.offset + point,
                "step": step,
                "loss": None if losses_N is None else losses_N[point],
                "validation_accuracy": accuracies[point],
                "class_id": class_id,
            }
            for point, class_id in enumerate(predicted.class_ids)
        ]
        self.history += rows
        if step == 0:
            self.first, self.best, self.latents = rows, list(rows), latent_NE.clone()
            return
        for point, row in enumerate(rows):
            finite = bool(latent_NE[point].isfinite().all())
            if finite and self._rank(point, row) > self._rank(point, self.best[point]):
                self.best[point], self.latents[point] = row, latent_NE[point]

    def _rank(self, point: int, row: dict[str, Any]) -> tuple[bool, float]:
        return row["class_id"] == self.asked[point], row["validation_accuracy"]


def _accuracies(run: Run, predicted: Prediction, task: Any, items: Sequence[int], split: str) -> list[float]:
    """The accuracy of each predicted instance on a split of the task's samples; for signals on those of its shape."""
    if run.recipe.setting != "sdf":
        return accuracies_of(run.registry, predicted.class_ids, predicted.preps, None, task, split)
    accuracies: list[float] = task.evaluate(predicted.outputs, items, split, SIGNALS_AT_ONCE)["accuracy"].tolist()
    return accuracies


def _result(
    run: Run,
    space: NetSpace,
    task: Any,
    points: Points,
    initial_NE: Tensor,
    asked: Sequence[int],
    items: Sequence[int],
    walks: Sequence[_Walk],
) -> Optimisation:
    """Join all walks to one result, and judge start and end on the test samples."""
    import pyarrow as pa

    latent_NE = torch.cat([walk.latents for walk in walks])
    tested: list[list[float]] = []
    for embeddings_NE in (initial_NE, latent_NE):
        accuracies: list[float] = []
        for start in range(0, len(points), POINTS_AT_ONCE):
            part = slice(start, start + POINTS_AT_ONCE)
            with torch.no_grad():
                predicted = predict(space, embeddings_NE[part], run.registry)
            accuracies += _accuracies(run, predicted, task, items[part], TEST)
        tested.append(accuracies)
    first = [row for walk in walks for row in walk.first]
    best = [row for walk in walks for row in walk.best]
    names = run.recipe.architectures
    table = pa.table(
        {
            "start": pa.array(points.names),
            "asked_class_id": pa.array(asked, pa.int64()),
            "asked_architecture": pa.array([names[class_id] for class_id in asked]),
            "initial_class_id": pa.array([row["class_id"] for row in first], pa.int64()),
            "class_id": pa.array([row["class_id"] for row in best], pa.int64()),
            "architecture": pa.array([names[row["class_id"]] for row in best]),
            "best_step": pa.array([row["step"] for row in best], pa.int64()),
            "initial_validation_accuracy": pa.array([row["validation_accuracy"] for row in first], pa.float64()),
            "validation_accuracy": pa.array([row["validation_accuracy"] for row in best], pa.float64()),
            "initial_accuracy": pa.array(tested[0], pa.float64()),
            "accuracy": pa.array(tested[1], pa.float64()),
        }
    )
    history = [row for walk in walks for row in walk.history]
    with torch.no_grad():
        predicted = predict(space, latent_NE, run.registry)
    return Optimisation(table, pa.Table.from_pylist(history), initial_NE, latent_NE, predicted)


# Checks of the settings -----------------------------------------------------------------------------------------


def _check_numbers(steps: int, learning_rate: float, validate_every: int, noise: float, batch_size: int | None) -> None:
    for name, value, least in (
        ("steps", steps, 1),
        ("validate_every", validate_every, 1),
        ("batch_size", batch_size, 1),
        ("noise", noise, 0),
        ("learning_rate", learning_rate, 0),
    ):
        if value is not None and not least <= value < float("inf"):  # NaN is out of range too
            raise PointError(f"{name} {value:g} is out of range; use at least {least}.")


def _teacher(run: Run, zoo: prepkit.Zoo, device: torch.device) -> nn.Module | None:
    """Load the zoo's teacher; None for signals, whose targets are the distances themselves."""
    if run.recipe.setting == "sdf":
        return None
    if zoo.teacher is None:
        raise ZooMismatch(
            f"zoo '{zoo.name}' has no teacher, which Eq. 5 learns from; `ZooWriter.set_teacher` adds one, or "
            f"`prepkit zoo train {run.recipe.zoo} DIR` makes a zoo that has one."
        )
    return zoo.teacher.to(device).requires_grad_(False)


def _asked_class_ids(
    run: Run, zoo: prepkit.Zoo, space: NetSpace, points: Points, class_ids: int | Sequence[int] | None
) -> list[int]:
    count = len(run.recipe.architectures)
    if class_ids is None:
        own = class_ids_of(zoo, points)
        if own is not None:
            return own
        with torch.no_grad():
            predicted = None if space.num_architectures is None else space.classify(points.latents)
        return [0] * len(points) if predicted is None else predicted.argmax(1).tolist()
    asked = [class_ids] * len(points) if isinstance(class_ids, int) else list(class_ids)
    if len(asked) != len(points):
        given, starts = counted(len(asked), "ClassId"), counted(len(points), "start point")
        raise PointError(f"{given} for {starts}; give one for all or one each.")
    for class_id in asked:
        if not 0 <= class_id < count:
            known = listed(f"{number} ({name})" for number, name in enumerate(run.recipe.architectures))
            raise PointError(f"ClassId {class_id} is not in this run; it has {known}.")
    return asked


def _items(run: Run, zoo: prepkit.Zoo, points: Points, items: Sequence[int] | None) -> list[int]:
    """The number of the shape that each start point shall fit; 0 where all points see the same samples."""
    if run.recipe.setting != "sdf":
        if items is not None:
            raise PointError("`items` are shapes; the networks of this run all classify the same images.")
        return [0] * len(points)
    if items is None and points.rows is None:
        raise PointError("an embedding does not say which shape it is to fit; give `items`, one each.")
    shapes = items_of(zoo.select(list(points.rows or ()))) if items is None else list(items)
    if len(shapes) != len(points):
        given, starts = counted(len(shapes), "item"), counted(len(points), "start point")
        raise PointError(f"{given} for {starts}; give one each.")
    return shapes
