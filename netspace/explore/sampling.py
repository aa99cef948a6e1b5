"""Points of a space: instances, embeddings of the user's, and points on lines between boundary architectures.

    points = points_of(space, zoo, ["resnet8-3", "resnet8-7"])      # or a tensor [N, E]
    drawn = sample(run, zoo, gammas=(1 / 3,), pairs=8)              # unseen architectures, Eq. 12
    prepkit.save_state_dict(drawn.predicted.tensors(0), "model.pt") # plain PyTorch reads it

Shapes: N points, P pairs, G interpolation factors, E embedding values, H x W the PRep.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import prepkit
from netspace.data import TRAIN, task_of
from netspace.explore.embedding import encode
from netspace.run.run import run_and_zoo
from netspace.space.network import NetSpace
from netspace.space.prediction import Prediction, predict
from netspace.training import losses
from prepkit.errors import counted, expect, nearest
from prepkit.support.text import Brief
from prepkit.tasks.randomness import generator

if TYPE_CHECKING:
    from netspace.run.run import Run


class PointError(prepkit.PrepkitError, ValueError):
    """A point or a pair of points does not exist, or a setting makes no sense."""


@dataclass(frozen=True)
class Points:
    """Points of a space.

    names:   ids of the instances, or `embedding 0`, `embedding 1`, ...
    latents: embeddings `[N, E]`
    rows:    rows of the instances in the zoo; None for embeddings that were given
    """

    names: tuple[str, ...]
    latents: Tensor
    rows: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.names)


def points_of(space: NetSpace, zoo: prepkit.Zoo, asked: str | Sequence[str] | Tensor) -> Points:
    """Return the points that were asked for.

    asked: the id of an instance of the zoo, several ids, or embeddings `[E]` or `[N, E]`
    raises ZooError for an unknown id, PointError for embeddings of another size and where nothing was asked for
    """
    if isinstance(asked, Tensor):
        device = next(space.parameters()).device
        latent_NE = asked.detach().to(device, torch.float32)
        latent_NE = latent_NE.unsqueeze(0) if latent_NE.dim() == 1 else latent_NE
        if latent_NE.dim() != 2 or latent_NE.shape[1] != space.embedding_size or not len(latent_NE):
            raise PointError(
                f"embeddings of {list(asked.shape)} are no points of this space, which has "
                f"[{space.embedding_size}] or [N, {space.embedding_size}]."
            )
        if not latent_NE.isfinite().all():
            raise PointError("the embeddings hold values that are not finite; give others.")
        return Points(tuple(f"embedding {number}" for number in range(len(latent_NE))), latent_NE, None)
    expect(asked, Iterable, "points", "ids of instances, or embeddings [E] or [N, E]")
    ids = (asked,) if isinstance(asked, str) else tuple(asked)
    if not ids:
        raise PointError("no instance was named; give at least one id.")
    rows = tuple(zoo.index(id) for id in ids)
    return Points(ids, encode(space, zoo, rows), rows)


# Pairs ----------------------------------------------------------------------------------------------------------


def random_pairs(
    run: Run, zoo: prepkit.Zoo, count: int, *, seed: int = 0, accuracies: Sequence[float] | None = None
) -> tuple[list[str], list[str]]:
    """Draw `count` different pairs of a zoo's or view's instances; returns the ids of their first and second ends.

    With one architecture, a pair is any two instances; with several, one of the smallest ClassId and one of the
    largest, in this order.
    accuracies: accuracies of all instances of the view; with one architecture, the worse instance of each pair comes
                first then, so that lines can be averaged
    raises PointError if there are fewer pairs
    """
    ids: list[str] = zoo.table["id"].to_pylist()
    first, second = _boundary_rows(run, zoo)
    possible, what = num_pairs(run, zoo), "pairs of the boundary architectures" if run.recipe.has_classes else "pairs"
    if not possible:
        raise PointError(f"there are no {what} among the {counted(len(ids), 'instance')} of '{zoo.name}' to draw from.")
    if not 1 <= count <= possible:
        raise PointError(f"{count} {what} were asked for; '{zoo.name}' has {possible} here. Use a number up to it.")
    stream = generator("pairs", seed)
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < count:
        if run.recipe.has_classes:
            a, b = (group[int(torch.randint(len(group), (), generator=stream))] for group in (first, second))
        else:
            a, b = sorted(torch.randperm(len(ids), generator=stream)[:2].tolist())
            if accuracies is not None and accuracies[b] < accuracies[a]:
                a, b = b, a
        pairs[a, b] = None
    return [ids[a] for a, _ in pairs], [ids[b] for _, b in pairs]


def num_pairs(run: Run, zoo: prepkit.Zoo) -> int:
    """Return how many different pairs `random_pairs` can draw of a zoo's or view's instances."""
    if run.recipe.has_classes:
        return math.prod(map(len, _boundary_rows(run, zoo)))
    return math.comb(len(zoo), 2)


def _boundary_rows(run: Run, zoo: prepkit.Zoo) -> tuple[list[int], list[int]]:
    """Return the rows of the smallest ClassId and those of the largest."""
    class_ids, last = zoo.class_ids().tolist(), len(run.recipe.architectures) - 1
    first, second = ([row for row, own in enumerate(class_ids) if own == boundary] for boundary in (0, last))
    return first, second


def random_instances(zoo: prepkit.Zoo, each: int, seed: int = 0) -> list[str]:
    """Draw the ids of `each` instances of every architecture of a zoo or view, or of all where there are fewer."""
    ids, class_ids = zoo.table["id"].to_pylist(), zoo.class_ids().tolist()
    drawn: list[str] = []
    for class_id in sorted(set(class_ids)):
        own = [id for id, other in zip(ids, class_ids, strict=True) if other == class_id]
        order = torch.randperm(len(own), generator=generator("start points", seed, class_id)).tolist()
        drawn += [own[place] for place in order[:each]]
    return drawn


# Sampling -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Samples(Brief):
    """Instances on the lines between boundary instances: all gammas of the first pair, then of the second, ...

    first, second: ids of the ends of the P pairs
    gammas:        the G gammas
    latents:       embeddings `[P G, E]`
    predicted:     the P G instances
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    gammas: tuple[float, ...]
    latents: Tensor
    predicted: Prediction


def sample(
    run: Run | str | os.PathLike[str],
    zoo: prepkit.Zoo | str | os.PathLike[str],
    gammas: Sequence[float] | None = None,
    *,
    pairs: int = 1,
    split: str = TRAIN,
    seed: int = 0,
    space: NetSpace | None = None,
) -> Samples:
    """Sample instances on lines from the smallest ClassId's instances (gamma = 0) to the largest's (gamma = 1).

    gammas: numbers from 0 to 1; those of Eq. 12, where ClassIds 1 to A - 2 are asked for, if missing
    pairs:  number of pairs that are drawn from a split of the zoo
    space:  the run's NetSpace if it is loaded already; else that of the best validation is loaded, on the CPU
    raises PointError in the single-architecture setting, for gammas outside of 0 .. 1, and for too many pairs
    """
    run, zoo = run_and_zoo(run, zoo)
    if not run.recipe.has_classes:
        raise PointError(
            f"the run '{run.path}' knows one architecture, {run.recipe.architectures[0]}: there are no boundaries to "
            "sample between. Interpolate between two of its instances."
        )
    factors = losses.gammas(len(run.recipe.architectures)) if gammas is None else tuple(gammas)
    if not factors or not all(0 <= gamma <= 1 for gamma in factors):
        raise PointError(f"gammas {list(factors)}: use one or more from 0 to 1.")
    space = run.space() if space is None else space
    first, second = random_pairs(run, zoo.split(split), pairs, seed=seed)
    ends = points_of(space, zoo, [*first, *second])
    with torch.no_grad():
        places = [(pair, pairs + pair) for pair in range(pairs)]
        latent_NE = losses.interpolate_embeddings(ends.latents, places, factors).flatten(0, 1)
        predicted = predict(space, latent_NE, run.registry)
    return Samples(tuple(first), tuple(second), factors, latent_NE, predicted)


def sample_class_id(
    run: Run | str | os.PathLike[str],
    zoo: prepkit.Zoo | str | os.PathLike[str],
    class_id: int,
    *,
    tries: int = 64,
    split: str = TRAIN,
    seed: int = 0,
    space: NetSpace | None = None,
) -> Samples:
    """Sample one instance of a ClassId at the gamma where Eq. 12 asks for it, from the first line that predicts it.

    tries: largest number of lines between boundary instances that are searched
    raises PointError for a ClassId that the run does not have, or one that none of the lines predicts
    """
    run, zoo = run_and_zoo(run, zoo)
    count = len(run.recipe.architectures)
    if not 0 <= class_id < count or not run.recipe.has_classes:
        known = ", ".join(f"{number} {name}" for number, name in enumerate(run.recipe.architectures))
        known = known if run.recipe.has_classes else f"one architecture, {run.recipe.architectures[0]}"
        raise PointError(f"ClassId {class_id} cannot be sampled; the run '{run.path}' has {known}.")
    space = run.space() if space is None else space
    gamma = class_id / (count - 1)
    tries = min(tries, num_pairs(run, zoo.split(split)))
    drawn = sample(run, zoo, (gamma,), pairs=max(1, tries), split=split, seed=seed, space=space)
    right = [place for place, predicted_id in enumerate(drawn.predicted.class_ids) if predicted_id == class_id]
    if not right:
        others = sorted({run.registry.by_class_id(other).name for other in drawn.predicted.class_ids})
        raise PointError(
            f"at gamma {gamma:g} of {tries} lines between boundary instances, ClassId {class_id} "
            f"({run.recipe.architectures[class_id]}) was never predicted, but {', '.join(others)}; the space has not "
            "learnt it. Train longer, or use `gamma`."
        )
    place = right[0]
    only = slice(place, place + 1)
    logits_NA = drawn.predicted.logits
    predicted = Prediction(
        drawn.predicted.preps[only], (class_id,), None if logits_NA is None else logits_NA[only], run.registry
    )
    return Samples(drawn.first[only], drawn.second[only], drawn.gammas, drawn.latents[only], predicted)


# Arguments that all explorations have ----------------------------------------------------------------------------


def resolve_task(zoo: prepkit.Zoo, space: NetSpace, task: Any, data: Path | None) -> Any:
    """Return the task that was given; without one, load the zoo's with its data on the space's device."""
    if task is None:
        return task_of(zoo, next(space.parameters()).device, data)
    if not hasattr(task, "splits"):
        expect(task, (), "task", "a task with its data, which prepkit.load_task(zoo.task) gives")
    return task


def check_samples(task: Any, split: str) -> str:
    """Check that a task has samples of a split, and return the split's name.

    raises PointError if the task has no samples of it
    """
    known = [name for name, count in task.splits.items() if count]
    if split not in known:
        raise PointError(f"the task has no samples '{split}'; it has {', '.join(known)}.{nearest(split, known)}")
    return split


def class_ids_of(zoo: prepkit.Zoo, points: Points) -> list[int] | None:
    """The ClassIds of points that are instances; None for given embeddings."""
    if points.rows is None:
        return None
    class_ids: list[int] = zoo.class_ids(list(points.rows)).tolist()
    return class_ids
