"""Latent space optimisation (section IV, Table I): embeddings move to better networks; the space stays as it is.

    optimised = optimize(run, zoo, ["resnet8-3", "resnet8-7"])
    optimised.table                       # accuracy before and after, one row for each start point
    optimised.predicted.network(0)        # the best instance on the way from the first, ready to use

Images: L_kd (Eq. 5), with several architectures also L_class (Eq. 6); signals: Eq. 2 towards the true distances. As in
the paper (Suppl. V), a start point moves until the accuracy of its instance does not improve any more.
Shapes: N start points, n of them that still move, E embedding values, B samples, C classes, A architectures.
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
from netspace.explore._start_points import asked_class_ids_of, check_numbers, shapes_of, teacher_of
from netspace.explore.sampling import PointError, Points, check_samples, points_of, resolve_task
from netspace.run.run import run_and_zoo
from netspace.space.network import NetSpace
from netspace.space.prediction import Prediction, predict
from netspace.training import losses
from prepkit.errors import counted
from prepkit.support.progress import Advance
from prepkit.support.statistics import finite_mean, grouped
from prepkit.support.text import Brief
from prepkit.tasks.randomness import generator
from prepkit.zoo.read.accuracy import POINTS_AT_ONCE as SIGNALS_AT_ONCE
from prepkit.zoo.read.accuracy import accuracies_of

if TYPE_CHECKING:
    import pyarrow as pa

    from netspace.run.run import Run

STEPS = 10_000  # at most; the stop rule comes first, but for a learning rate that is far too small
PATIENCE = 10  # validations
VALIDATE_EVERY = 25
POINTS_AT_ONCE = 16  # start points whose activations are in memory together
VALIDATION, TEST = "validation", "test"


@dataclass(frozen=True, repr=False)
class Optimisation(Brief):
    """The result of optimising from N start points.

    table:     one row for each start point: `start`, `asked_class_id`, `asked_architecture`; the predicted
               `initial_class_id` and `initial_architecture` at the start, `class_id` and `architecture` at the best
               point on the way;
               `initial_validation_accuracy` and the best `validation_accuracy`, which was reached after `best_step`;
               `last_step`, after which the point did not move any more, and whether it `stopped` by itself;
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
        """Warnings about start points whose loss was not finite, or that had not come to an end."""
        starts = self.table["start"].to_pylist()
        notes: dict[int, str] = {}
        for row in self.history.to_pylist():
            if row["loss"] is not None and not math.isfinite(row["loss"]):
                text = f"the loss is {row['loss']} at step {row['step']}; the best point before that is kept."
                notes.setdefault(row["point"], f"{starts[row['point']]}: {text} Use a lower learning rate.")
        moving = [row["last_step"] for row in self.table.to_pylist() if not row["stopped"]]
        if moving:
            points = counted(len(moving), "start point")
            return [*notes.values(), f"{points} of {len(starts)} still moved after {counted(max(moving), 'step')}."]
        return list(notes.values())

    def summary(self) -> dict[str, Any]:
        """Return what became of the start points of each architecture that was asked for, JSON-able.

        A point whose instance was of another architecture at first has no accuracy to improve: coming to the right
        one is no gain. Accuracies are means over the others, NaN if there are none.
        in_class: number of points that were of the asked architecture from the start
        reached:  number of points that came to it on the way
        improved: number of points `in_class` whose accuracy on the test samples rose
        """
        groups = grouped(self.table.to_pylist(), itemgetter("asked_architecture"))
        return {group: _summary(rows) for group, rows in groups.items()}


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    in_class = [row for row in rows if row["initial_class_id"] == row["asked_class_id"]]
    others = [row for row in rows if row["initial_class_id"] != row["asked_class_id"]]
    names = ("initial_validation_accuracy", "validation_accuracy", "initial_accuracy", "accuracy")
    return {
        "start_points": len(rows),
        "in_class": len(in_class),
        "reached": sum(row["class_id"] == row["asked_class_id"] for row in others),
        "improved": sum(row["accuracy"] > row["initial_accuracy"] for row in in_class),
        **{name: finite_mean(row[name] for row in in_class) for name in names},
    }


def optimize(
    run: Run | str | os.PathLike[str],
    zoo: prepkit.Zoo | str | os.PathLike[str],
    start: str | Sequence[str] | Tensor,
    *,
    steps: int = STEPS,
    patience: int = PATIENCE,
    learning_rate: float | None = None,
    alpha: float | None = None,
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
    """Move each embedding with Adam until it is no more improved; keep its best point on the validation samples.

    start:      ids of instances, or embeddings `[E]` or `[N, E]`
    steps:      number of steps at most
    patience:   number of validations without a better accuracy after which a start point stops
    learning_rate, alpha: Adam's step size, and the share of the teacher in Eq. 5 (1 is the divergence alone); the
                recipe's `[latent]` if missing
    class_ids:  ClassIds that Eq. 6 asks for, one for all or one each; if missing, that of each instance, or the one
                predicted at a given embedding
    items:      for signals: numbers of the shapes whose distances are learnt; those of the instances if missing
    noise:      length of a random disturbance of each start, as a share of the embedding's own length
    batch_size: samples per step; the recipe's if missing
    seed:       seed for the disturbance and the order of samples
    space:      the run's NetSpace if it is loaded already; else that of the best validation is loaded, on the CPU
    task:       the zoo's task if it is loaded already; else it is loaded with its data in the folder `data`
    progress:   called with 1 after each step of each group of POINTS_AT_ONCE start points
    An instance of another class than was asked for never counts as better than one of that class. Without validation
    samples, training samples are used.
    raises PointError for settings that make no sense, ZooMismatch without a teacher, ZooError for unknown ids
    """
    run, zoo = run_and_zoo(run, zoo)
    check_numbers(
        steps=steps,
        patience=patience,
        learning_rate=learning_rate,
        alpha=alpha,
        validate_every=validate_every,
        noise=noise,
        batch_size=batch_size,
    )
    if alpha is not None and run.recipe.setting == "sdf":
        raise PointError("`alpha` is the share of a teacher; the networks of this run learn distances, without one.")
    space = run.space() if space is None else space
    teacher = teacher_of(run, zoo, next(space.parameters()).device)
    points = points_of(space, zoo, start)
    asked = asked_class_ids_of(run, zoo, space, points, class_ids)
    chosen = shapes_of(run, zoo, points, items)
    task = resolve_task(zoo, space, task, data)
    split = VALIDATION if task.splits.get(VALIDATION) else "train"
    check_samples(task, TEST)
    batch_size = batch_size or run.recipe.batch.samples
    settings = run.recipe.latent
    pace = _Pace(steps, patience, validate_every, settings.learning_rate if learning_rate is None else learning_rate)
    if alpha is None:
        alpha = run.recipe.loss.alpha if settings.alpha is None else settings.alpha
    walks = []
    frozen = [parameter.requires_grad for parameter in space.parameters()]
    space.requires_grad_(False)
    try:
        initial_NE = disturbed(points.latents, noise, seed)
        for first in range(0, len(points), POINTS_AT_ONCE):
            part = slice(first, first + POINTS_AT_ONCE)
            walk = _Walk(first, run, space, task, teacher, initial_NE[part], asked[part], chosen[part], split, alpha)
            walk.go(pace, batch_size, seed, progress)
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


@dataclass(frozen=True)
class _Pace:
    """How long and how fast start points move; see `optimize`."""

    steps: int
    patience: int
    validate_every: int
    learning_rate: float


@dataclass
class _Walk:
    """The way of a group of start points through the space.

    offset: number of the group's first point among all
    alpha:  share of the teacher in Eq. 5
    moving: the points that have not stopped yet
    first:  the rows of the history at step 0
    best:   the rows of the history at the best step of each point
    last:   the rows of the history at the last step of each point
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
    alpha: float
    history: list[dict[str, Any]] = field(default_factory=list)
    first: list[dict[str, Any]] = field(default_factory=list)
    best: list[dict[str, Any]] = field(default_factory=list)
    last: list[dict[str, Any]] = field(default_factory=list)
    moving: list[int] = field(init=False)
    latents: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.moving = list(range(len(self.initial)))

    def go(self, pace: _Pace, batch_size: int, seed: int, progress: Advance | None) -> None:
        """Move the points until they stop; `latents` are their best embeddings after that."""
        latent_NE = nn.Parameter(self.initial.clone())
        optimiser = torch.optim.Adam([latent_NE], lr=pace.learning_rate)
        self._validate(0, latent_NE, None)
        sum_N, count = torch.zeros(len(latent_NE), device=latent_NE.device), 0
        batches = self._batches(batch_size, seed)
        for step in range(1, pace.steps + 1):
            loss_n = self.loss(latent_NE[self.moving], *next(batches))
            optimiser.zero_grad()
            torch.autograd.backward(loss_n.sum())  # with a mean, gradients would depend on the number of points
            optimiser.step()  # a point that has stopped may drift on, but nothing looks at it any more
            sum_N[self.moving] += loss_n.detach()
            count += 1
            if step % pace.validate_every == 0 or step == pace.steps:
                self._validate(step, latent_NE, (sum_N / count).tolist())
                sum_N, count = torch.zeros_like(sum_N), 0
                self._stop(step, pace)
            if progress is not None:
                progress(1)
            if not self.moving:
                return

    def _stop(self, step: int, pace: _Pace) -> None:
        """Leave out the points whose last validations, as many as the patience, brought nothing better."""
        without = pace.patience * pace.validate_every
        self.moving = [point for point in self.moving if step - self.best[point]["step"] < without]

    def loss(self, latent_nE: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the losses `[n]`: Eq. 5, with Eq. 6 where there are ClassIds; Eq. 2 for signals."""
        predicted = predict(self.space, latent_nE, self.run.registry)
        outputs = predicted.outputs(inputs)
        if self.teacher is None:
            return losses.loss_pred_signal(outputs, targets)
        with torch.no_grad():
            t_star_BC = self.teacher(inputs)
        loss_n = losses.loss_kd(outputs, t_star_BC, targets, self.run.recipe.loss.temperature, self.alpha)
        if predicted.logits is not None:
            c_t_n = torch.tensor([self.asked[point] for point in self.moving], device=latent_nE.device)
            loss_n = loss_n + losses.loss_class(predicted.logits, c_t_n)
        return loss_n

    def _batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of training samples without end: images for all points, or points of each one's shape."""
        signals = self.teacher is None
        epoch = 0
        while True:
            seeds, items = ([seed] * len(self.items), self.items) if signals else ([seed], [0])
            for batch in self.task.batches(seeds, items, epoch, size):
                places = self.moving if signals else 0
                yield batch.inputs[places], batch.targets[places]
            epoch += 1

    def _validate(self, step: int, latent_NE: Tensor, losses_N: Sequence[float] | None) -> None:
        latent_nE = latent_NE.detach()[self.moving]
        with torch.no_grad():
            predicted = predict(self.space, latent_nE, self.run.registry)
        items = [self.items[point] for point in self.moving]
        accuracies = _accuracies(self.run, predicted, self.task, items, self.split)
        rows: list[dict[str, Any]] = [
            {
                "point": self.offset + point,
                "step": step,
                "loss": None if losses_N is None else losses_N[point],
                "validation_accuracy": accuracies[place],
                "class_id": predicted.class_ids[place],
            }
            for place, point in enumerate(self.moving)
        ]
        self.history += rows
        if step == 0:
            self.first, self.best, self.last, self.latents = rows, list(rows), list(rows), latent_nE.clone()
            return
        for place, (point, row) in enumerate(zip(self.moving, rows, strict=True)):
            self.last[point] = row
            finite = bool(latent_nE[place].isfinite().all())
            if finite and self._rank(point, row) > self._rank(point, self.best[point]):
                self.best[point], self.latents[point] = row, latent_nE[place]

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
    last = [row for walk in walks for row in walk.last]
    moving = {walk.offset + point for walk in walks for point in walk.moving}
    names = run.recipe.architectures
    table = pa.table(
        {
            "start": pa.array(points.names),
            "asked_class_id": pa.array(asked, pa.int64()),
            "asked_architecture": pa.array([names[class_id] for class_id in asked]),
            "initial_class_id": pa.array([row["class_id"] for row in first], pa.int64()),
            "initial_architecture": pa.array([names[row["class_id"]] for row in first]),
            "class_id": pa.array([row["class_id"] for row in best], pa.int64()),
            "architecture": pa.array([names[row["class_id"]] for row in best]),
            "best_step": pa.array([row["step"] for row in best], pa.int64()),
            "last_step": pa.array([row["step"] for row in last], pa.int64()),
            "stopped": pa.array([point not in moving for point in range(len(points))]),
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
