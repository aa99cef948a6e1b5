"""Latent space optimisation (section IV, Table I): better networks by moving embeddings, encoder and decoder frozen.

    found = optimize(run, zoo, ["resnet8-3", "resnet8-7"], steps=150, learning_rate=1e-2)
    found.table                       # accuracy before and after, one row a start point
    found.predicted.network(0)        # the best instance on the way from the first, ready to use

Images: L_kd (Eq. 5), with several architectures also L_class (Eq. 6); signals: Eq. 2 towards the true distances.
Shapes: N start points, E embedding values, B samples, C classes, A architectures.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import prepkit
from netspace.data import ZooMismatch, items_of
from netspace.explore.sampling import PointError, Points, class_ids_of, own_task, points_of, samples_of
from netspace.space.evaluation import accuracy_of
from netspace.space.network import NetSpace
from netspace.space.prediction import Prediction, predict
from netspace.training import losses
from prepkit.errors import listed
from prepkit.progress import Advance
from prepkit.tasks.distance_grid import POINTS_AT_ONCE as SIGNALS_AT_ONCE
from prepkit.tasks.randomness import generator

if TYPE_CHECKING:
    import pyarrow as pa

    from netspace.run.run import Run

STEPS = 300
LEARNING_RATE = 1e-4  # the paper's; small spaces want 1e-2
VALIDATE_EVERY = 25
POINTS_AT_ONCE = 16  # start points whose activations are held together
VALIDATION, TEST = "validation", "test"


@dataclass(frozen=True)
class Optimisation:
    """What was found from N start points.

    table:     `start`, `asked_class_id`, `asked_architecture`; predicted there `initial_class_id`, and at the best
               point on the way `class_id` and `architecture`; on validation samples `initial_validation_accuracy` and
               the best, `validation_accuracy`, with the step it was found after, `best_step`; on test samples, which
               chose nothing, `initial_accuracy` and `accuracy`
    history:   `point` (the row of the table), `step`, `loss` (mean over the steps since the line before; missing at
               step 0), `validation_accuracy`, `class_id`
    initial:   `[N, E]` embeddings at the start, disturbance included
    latents:   `[N, E]` the best ones
    predicted: the N instances at the best embeddings
    """

    table: pa.Table
    history: pa.Table
    initial: Tensor
    latents: Tensor
    predicted: Prediction

    @property
    def notes(self) -> list[str]:
        """What did not go as it should: start points whose loss was not finite."""
        starts = self.table["start"].to_pylist()
        told: dict[int, str] = {}
        for row in self.history.to_pylist():
            if row["loss"] is not None and not math.isfinite(row["loss"]):
                text = f"the loss is {row['loss']} at step {row['step']}; what was best before is kept. "
                told.setdefault(row["point"], f"{starts[row['point']]}: {text}Use a lower learning rate.")
        return list(told.values())

    def summary(self) -> dict[str, Any]:
        """Means over the start points of each asked architecture, JSON-able."""
        rows = self.table.to_pylist()
        groups: dict[str, list[dict[str, Any]]] = {row["asked_architecture"]: [] for row in rows}
        for row in rows:
            groups[row["asked_architecture"]].append(row)
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
    run: Run,
    zoo: prepkit.Zoo,
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
    """Adam on embeddings, each on its own; the one that is best on the validation samples is kept.

    start:       ids of instances, or embeddings `[E]` or `[N, E]`
    class_ids:   what Eq. 6 asks for, one for all or one each; the start's own if missing: that of the instance, or the
                 one predicted at a given embedding
    items:       for signals: the shapes whose distances are learnt; those of the instances if missing
    noise:       length of a random disturbance of each start, as a share of the embedding's own length
    batch_size:  samples a step; the recipe's if missing
    seed:        of the disturbance and of the order of samples
    space, task: the run's NetSpace and the zoo's task, if they were loaded before; else that of its best validation on
                 the CPU, and the task with its data in the folder `data`
    progress:    told the number of steps that are finished, of each POINTS_AT_ONCE start points
    An instance of another class than was asked for is never better than one of that class. Without samples for
    validation the training samples choose.
    raises PointError for settings that cannot be, ZooMismatch without a teacher, ZooError for unknown ids
    """
    _check_numbers(steps, learning_rate, validate_every, noise, batch_size)
    space = run.space() if space is None else space
    teacher = _teacher(run, zoo, next(space.parameters()).device)
    points = points_of(space, zoo, start)
    asked = _asked_class_ids(run, zoo, space, points, class_ids)
    chosen = _items(run, zoo, points, items)
    task = own_task(zoo, space, task, data)
    split = VALIDATION if task.splits.get(VALIDATION) else "train"
    samples_of(task, TEST)
    batch_size = batch_size or run.recipe.batch.samples
    walks = []
    frozen = [parameter.requires_grad for parameter in space.parameters()]
    space.requires_grad_(False)
    try:
        initial_NE = disturbed(points.latents, noise, seed)
        for first in range(0, len(points), POINTS_AT_ONCE):
            part = slice(first, first + POINTS_AT_ONCE)
            walk = _Walk(run, space, task, teacher, initial_NE[part], asked[part], chosen[part], split)
            walk.go(steps, learning_rate, validate_every, batch_size, seed, progress)
            walks.append(walk)
    finally:
        for parameter, wanted in zip(space.parameters(), frozen, strict=True):
            parameter.requires_grad_(wanted)
    return _found(run, space, task, points, initial_NE, asked, chosen, walks)


def disturbed(latent_NE: Tensor, noise: float, seed: int) -> Tensor:
    """Each embedding, moved in a random direction by `noise` times its own length."""
    if not noise:
        return latent_NE.clone()
    moves = []
    for number in range(len(latent_NE)):
        move_E = torch.randn(latent_NE.shape[1], generator=generator("disturbance", seed, number)).to(latent_NE.device)
        moves.append(move_E / move_E.norm() * latent_NE[number].norm() * noise)
    return latent_NE + torch.stack(moves)


@dataclass
class _Walk:
    """The way of some start points through the space."""

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
        """Take the steps; `latents` are the best of each point then."""
        moving_NE = nn.Parameter(self.initial.clone())
        optimiser = torch.optim.Adam([moving_NE], lr=learning_rate)
        self._validate(0, moving_NE, None)
        sum_N, count = torch.zeros(len(moving_NE), device=moving_NE.device), 0
        batches = self._batches(batch_size, seed)
        for step in range(1, steps + 1):
            loss_N = self.loss(moving_NE, *next(batches))
            optimiser.zero_grad()
            torch.autograd.backward(loss_N.sum())  # the sum, so that no point's gradient depends on how many there are
            optimiser.step()
            sum_N, count = sum_N + loss_N.detach(), count + 1
            if step % validate_every == 0 or step == steps:
                self._validate(step, moving_NE, (sum_N / count).tolist())
                sum_N, count = torch.zeros_like(sum_N), 0
            if progress is not None:
                progress(1)

    def loss(self, latent_NE: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """`[N]`: Eq. 5, with Eq. 6 where there are ClassIds; Eq. 2 for signals."""
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
        """Images that all points see, or points of each one's shape; training samples without end."""
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
        found = [
            {"step": step, "class_id": class_id, "accuracy": accuracy}
            for class_id, accuracy in zip(predicted.class_ids, accuracies, strict=True)
        ]
        self.history += [
            {
                "point": point,
                "step": step,
                "loss": None if losses_N is None else losses_N[point],
                "validation_accuracy": one["accuracy"],
                "class_id": one["class_id"],
            }
            for point, one in enumerate(found)
        ]
        if step == 0:
            self.first, self.best, self.latents = found, list(found), latent_NE.clone()
            return
        for point, one in enumerate(found):
            finite = bool(latent_NE[point].isfinite().all())
            if finite and self._rank(point, one) > self._rank(point, self.best[point]):
                self.best[point], self.latents[point] = one, latent_NE[point]

    def _rank(self, point: int, found: dict[str, Any]) -> tuple[bool, float]:
        return found["class_id"] == self.asked[point], found["accuracy"]


def _accuracies(run: Run, predicted: Prediction, task: Any, items: Sequence[int], split: str) -> list[float]:
    """The accuracy of each predicted instance on a split of the task's samples; on its own shape's for signals."""
    if run.recipe.setting != "sdf":
        return accuracy_of(run.registry, predicted.class_ids, predicted.preps, None, task, split)
    found: list[float] = task.evaluate(predicted.outputs, items, split, SIGNALS_AT_ONCE)["accuracy"].tolist()
    return found


def _found(
    run: Run,
    space: NetSpace,
    task: Any,
    points: Points,
    initial_NE: Tensor,
    asked: Sequence[int],
    items: Sequence[int],
    walks: Sequence[_Walk],
) -> Optimisation:
    """All walks as one result, judged on the test samples."""
    import pyarrow as pa

    latent_NE = torch.cat([walk.latents for walk in walks])
    tested: list[list[float]] = []
    for embeddings_NE in (initial_NE, latent_NE):
        accuracies: list[float] = []
        for first in range(0, len(points), POINTS_AT_ONCE):
            part = slice(first, first + POINTS_AT_ONCE)
            with torch.no_grad():
                predicted = predict(space, embeddings_NE[part], run.registry)
            accuracies += _accuracies(run, predicted, task, items[part], TEST)
        tested.append(accuracies)
    before = [one for walk in walks for one in walk.first]
    best = [one for walk in walks for one in walk.best]
    names = run.recipe.architectures
    table = pa.table(
        {
            "start": pa.array(points.names),
            "asked_class_id": pa.array(asked, pa.int64()),
            "asked_architecture": pa.array([names[class_id] for class_id in asked]),
            "initial_class_id": pa.array([one["class_id"] for one in before], pa.int64()),
            "class_id": pa.array([one["class_id"] for one in best], pa.int64()),
            "architecture": pa.array([names[one["class_id"]] for one in best]),
            "best_step": pa.array([one["step"] for one in best], pa.int64()),
            "initial_validation_accuracy": pa.array([one["accuracy"] for one in before], pa.float64()),
            "validation_accuracy": pa.array([one["accuracy"] for one in best], pa.float64()),
            "initial_accuracy": pa.array(tested[0], pa.float64()),
            "accuracy": pa.array(tested[1], pa.float64()),
        }
    )
    history = [
        {**row, "point": number * POINTS_AT_ONCE + row["point"]}
        for number, walk in enumerate(walks)
        for row in walk.history
    ]
    with torch.no_grad():
        predicted = predict(space, latent_NE, run.registry)
    return Optimisation(table, pa.Table.from_pylist(history), initial_NE, latent_NE, predicted)


# What cannot be -------------------------------------------------------------------------------------------------


def _check_numbers(steps: int, learning_rate: float, validate_every: int, noise: float, batch_size: int | None) -> None:
    for name, value, least in (
        ("steps", steps, 1),
        ("validate_every", validate_every, 1),
        ("batch_size", batch_size, 1),
        ("noise", noise, 0),
        ("learning_rate", learning_rate, 0),
    ):
        if value is not None and not least <= value < float("inf"):  # false for nan too
            raise PointError(f"{name} {value:g} is out of range; use at least {least}.")


def _teacher(run: Run, zoo: prepkit.Zoo, device: torch.device) -> nn.Module | None:
    """The zoo's teacher; None for signals, whose targets are the distances themselves."""
    if run.recipe.setting == "sdf":
        return None
    if zoo.teacher is None:
        raise ZooMismatch(
            f"zoo '{zoo.name}' has no teacher, which Eq. 5 learns from; `ZooWriter.set_teacher` gives one, or "
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
    if len(asked) != len(points) or not all(0 <= class_id < count for class_id in asked):
        known = listed(f"{number} {name}" for number, name in enumerate(run.recipe.architectures))
        raise PointError(
            f"ClassIds {listed(asked)} for {len(points)} start points; give one for all or one each, of {known}."
        )
    return asked


def _items(run: Run, zoo: prepkit.Zoo, points: Points, items: Sequence[int] | None) -> list[int]:
    """The number of the shape that each start point is to fit; 0 where all share the samples."""
    if run.recipe.setting != "sdf":
        if items is not None:
            raise PointError("items (--item) are shapes; the networks of this run all classify the same images.")
        return [0] * len(points)
    if items is None and points.rows is None:
        raise PointError("an embedding does not say which shape it is to fit; give items (--item), one each.")
    found = items_of(zoo.select(list(points.rows or ()))) if items is None else list(items)
    if len(found) != len(points):
        raise PointError(f"{len(found)} items for {len(points)} start points; give one each.")
    return found
