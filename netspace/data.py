"""The data of a training: the zoo on the device, its task's samples, its teacher, and which instances form a batch.

All that is drawn is a function of the recipe's seed and the number of the batch, so a resumed run sees the batches that
it would have seen. Shapes: N instances of a batch, H x W the PRep, B samples.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import prepkit
from prepkit.errors import counted, listed
from prepkit.tasks.randomness import generator
from prepkit.zoo.read.accuracy import ITEM, has_items, items_of

if TYPE_CHECKING:
    from netspace.recipe import Recipe

TRAIN, VALIDATION, TEST = "train", "validation", "test"
START, OWN = "start", "own"  # the column of a zoo's table that says how instances began, and its word for no other's


class ZooMismatch(prepkit.PrepkitError, ValueError):
    """A zoo cannot be used with a recipe or a run."""


@dataclass(frozen=True)
class Batch:
    """The data of one step.

    preps:     `[N, H, W]` float32, the target instances
    class_ids: ClassIds of the N instances
    indices:   rows of the N instances in the split of the zoo
    inputs:    images `[B, *input_shape]` that all instances see, or points `[N, B, 3]` of each
    labels:    `[B]` int64; None for signals
    line:      `[A L, H, W]`, L instances of each architecture in ClassId order, for the line loss; None without it, and
               before it begins
    """

    preps: Tensor
    class_ids: tuple[int, ...]
    indices: tuple[int, ...]
    inputs: Tensor
    labels: Tensor | None
    line: Tensor | None = None


def split_sizes(zoo: prepkit.Zoo) -> dict[str, int]:
    """Number of instances in each split that is not empty, of the zoo or of the view that it is."""
    return dict(sorted(Counter(split for split in zoo.table["split"].to_pylist() if split is not None).items()))


def shares_starts(zoo: prepkit.Zoo) -> bool:
    """Whether the zoo's table says that no training instance has a start of its own."""
    table = zoo.split(TRAIN).table
    if START not in table.column_names:
        return False
    starts = table[START].to_pylist()
    return bool(starts) and not {None, "", OWN} & set(starts)


def remedy_of(recipe: Recipe) -> str:
    """Say what to do about a zoo that does not fit."""
    return f"`prepkit zoo train {recipe.zoo} DIR` makes one that fits."


def check_architectures(recipe: Recipe, zoo: prepkit.Zoo) -> None:
    """Raise ZooMismatch if the zoo's architectures are not the recipe's."""
    names = tuple(zoo.registry.class_ids)
    if names != recipe.architectures:
        raise ZooMismatch(
            f"recipe '{recipe.name}' is for {listed(recipe.architectures)} with ClassIds from 0 in this order; zoo "
            f"'{zoo.name}' has {listed(names)}. {remedy_of(recipe)}"
        )


def check_zoo(recipe: Recipe, zoo: prepkit.Zoo) -> None:
    """Raise ZooMismatch if the recipe cannot be trained on the zoo."""
    remedy = remedy_of(recipe)
    check_architectures(recipe, zoo)
    network = recipe.network
    if zoo.shape != prepkit.PRepShape(network.height, network.width):
        raise ZooMismatch(
            f"recipe '{recipe.name}' has PReps of {network.height} x {network.width}; zoo '{zoo.name}' is read at "
            f"{zoo.shape}. Open it with width={network.width}, height={network.height}."
        )
    if zoo.task is None:
        raise ZooMismatch(
            f"zoo '{zoo.name}' does not record its task, so there are no samples to run its instances on; "
            f"`prepkit zoo create --task` records one, or {remedy}"
        )
    signals = recipe.setting == "sdf"
    kind, wanted = zoo.task["kind"], "shapes" if signals else "images"
    if kind != wanted:
        raise ZooMismatch(
            f"recipe '{recipe.name}' has the setting '{recipe.setting}', which needs a task of {wanted}; that of zoo "
            f"'{zoo.name}' is of {kind}. {remedy}"
        )
    splits = (TRAIN,) if signals else (TRAIN, VALIDATION)
    sizes = split_sizes(zoo)
    for split in splits:
        if split not in sizes:
            raise ZooMismatch(
                f"zoo '{zoo.name}' has no instances in the split '{split}'; it has {listed(sizes) or 'none'}. "
                f"`prepkit zoo split` deals them, or {remedy}"
            )
    if signals and not (has_items(zoo) and all(None not in zoo.split(name).table[ITEM].to_pylist() for name in sizes)):
        raise ZooMismatch(
            f"zoo '{zoo.name}' does not say of each instance which shape it is of; `prepkit zoo annotate` adds a "
            f"column `{ITEM}` of their numbers, or {remedy}"
        )
    if recipe.has_classes and zoo.manifest.teacher is None:
        raise ZooMismatch(
            f"zoo '{zoo.name}' has no teacher, which Eq. 3 needs; `ZooWriter.set_teacher` gives one, or {remedy}"
        )


def task_of(zoo: prepkit.Zoo, device: torch.device, data: Path | None = None) -> Any:
    """Load the zoo's task, with its data on the device.

    raises ZooMismatch if none is recorded, and what prepkit.load_task raises
    """
    if zoo.task is None:
        raise ZooMismatch(f"zoo '{zoo.name}' does not record its task; `prepkit zoo create --task` records one.")
    return prepkit.load_task(zoo.task, data).to(device)


def runs_of(view: prepkit.Zoo) -> list[str]:
    """Return the training run of each instance, which belongs together; its id where none is recorded."""
    names = view.table.column_names
    ids, runs = (view.table[name].to_pylist() if name in names else [None] * len(view) for name in ("id", "run"))
    return [str(id if run is None else run) for id, run in zip(ids, runs, strict=True)]


def ready_teacher(teacher: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """Move a teacher to a device in the form that is run: on a GPU, its layers are cast once, not in each step."""
    teacher = copy.deepcopy(teacher)  # the zoo's own one stays as it is
    teacher = teacher.to(device).to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    return cast_layers(teacher) if device.type == "cuda" and recipe.training.precision == "bfloat16" else teacher


def cast_layers(teacher: nn.Module) -> nn.Module:
    """Cast the layers whose factors autocast would cast at each use; a BatchNorm keeps its statistics in float32."""
    for layer in teacher.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            layer.to(torch.bfloat16)
    return teacher


class Data:
    """Batches for the training of a recipe. The whole training split, the samples and the teacher are on the device.

    raises ZooMismatch if the zoo does not fit the recipe
    """

    def __init__(self, recipe: Recipe, zoo: prepkit.Zoo, device: torch.device, data: Path | None = None) -> None:
        check_zoo(recipe, zoo)
        self.recipe, self.device = recipe, device
        self.zoo = zoo
        self.registry = zoo.registry
        self.train = zoo.split(TRAIN)
        self.task = task_of(zoo, device, data)
        self.preps_NHW: Tensor = self.train.to(device).preps().float()
        self.class_ids: list[int] = self.train.class_ids().tolist()
        self.items = items_of(self.train)
        self.signals = recipe.setting == "sdf"
        teacher = zoo.teacher if recipe.has_classes else None
        self.teacher = None if teacher is None else ready_teacher(teacher, recipe, device)
        if self.signals:
            self.task.prepare(sorted(set(self.items)))  # keep all shapes on the device, or they would be rebuilt often
        self.order = order_of(recipe, self.class_ids)
        self.line_order = line_order_of(recipe, self.class_ids) if recipe.loss.line > 0 else None

    def batches(self, first: int) -> Iterator[Batch]:
        """Yield batch number `first` and all that follow, without end."""
        samples = self._points(first) if self.signals else self._images(first)
        for number, (inputs, labels) in enumerate(samples, first):
            indices = self.order.indices(number)
            class_ids = tuple(self.class_ids[index] for index in indices)
            yield Batch(self._preps(indices), class_ids, tuple(indices), inputs, labels, self._line(number))

    def _line(self, number: int) -> Tensor | None:
        """Return the PReps for the line loss of batch `number`; None before it begins, and without it."""
        training, settings = self.recipe.training, self.recipe.loss
        step = number // self.recipe.batch.accumulate
        if self.line_order is None or step < settings.line_from * training.steps:
            return None
        return self._preps(self.line_order.indices(number))

    def _preps(self, indices: Sequence[int]) -> Tensor:
        # Taken singly: a tensor of indices would be copied to the device, and the host would wait for it.
        return torch.stack([self.preps_NHW[index] for index in indices])

    def _images(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        size, seed = self.recipe.batch.samples, self.recipe.training.seed
        epoch, skipped = divmod(first, self.task.num_batches(size))
        while True:
            for position, batch in enumerate(self.task.batches([seed], [0], epoch, size)):
                if position >= skipped:
                    yield batch.inputs[0], batch.targets[0]
            epoch, skipped = epoch + 1, 0

    def _points(self, first: int) -> Iterator[tuple[Tensor, None]]:
        size, seed = self.recipe.batch.samples, self.recipe.training.seed
        number = first
        while True:
            items = [self.items[index] for index in self.order.indices(number)]
            seeds = [seed + position for position in range(len(items))]
            yield next(iter(self.task.batches(seeds, items, number, size))).inputs, None
            number += 1


# Which instances form a batch -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class InTurn:
    """All instances in a random order, then all in another order: for all settings but those of pairs.

    A batch may hold the last instances of one order and the first of the next, so every batch has the same size.
    """

    count: int
    size: int
    seed: int

    def indices(self, number: int) -> list[int]:
        """Rows of the instances of batch `number`."""
        places = range(number * self.size, (number + 1) * self.size)
        return [permutation(self.count, self.seed, place // self.count)[place % self.count] for place in places]


@dataclass(frozen=True)
class AtRandom:
    """Pairs of boundary architectures with probability `boundary_share`, else distinct instances drawn at random."""

    count: int
    size: int
    seed: int
    first: tuple[int, ...]
    last: tuple[int, ...]
    boundary_share: float

    def indices(self, number: int) -> list[int]:
        """Rows of the instances of batch `number`."""
        stream = generator("instances", self.seed, number)
        if float(torch.rand((), generator=stream)) >= self.boundary_share:
            return torch.randperm(self.count, generator=stream)[: self.size].tolist()
        firsts = torch.randint(len(self.first), (self.size // 2,), generator=stream).tolist()
        lasts = torch.randint(len(self.last), (self.size // 2,), generator=stream).tolist()
        return [index for a, b in zip(firsts, lasts, strict=True) for index in (self.first[a], self.last[b])]


@dataclass(frozen=True)
class Pairs:
    """Pairs of the two boundary architectures and pairs of the instances left over: for unseen architectures.

    All pairs are shown in a random order, then all in another order.
    fixed: whether the pairs are always those of the zoo's order; else each pass pairs the instances anew
    """

    size: int
    seed: int
    first: tuple[int, ...]
    last: tuple[int, ...]
    fixed: bool = False

    def indices(self, number: int) -> list[int]:
        """Rows of the instances of batch `number`."""
        each = self.size // 2
        per_epoch = (len(self.first) + len(self.last)) // 2
        rows: list[int] = []
        for place in range(number * each, (number + 1) * each):
            epoch, position = divmod(place, per_epoch)
            rows.extend(self._epoch(epoch)[position])
        return rows

    def _epoch(self, epoch: int) -> list[tuple[int, int]]:
        a, b = list(self.first), list(self.last)
        if not self.fixed:
            a = [a[index] for index in permutation(len(a), self.seed, 2 * epoch)]
            b = [b[index] for index in permutation(len(b), self.seed, 2 * epoch + 1)]
        both = min(len(a), len(b))
        left = [*a[both:], *b[both:]]
        pairs = [*zip(a[:both], b[:both], strict=True), *zip(left[::2], left[1::2], strict=False)]
        return [pairs[index] for index in permutation(len(pairs), self.seed + 1, epoch)]


@dataclass(frozen=True)
class OfEach:
    """As many instances of each architecture, in ClassId order: for the line loss.

    rows:  rows of the instances of each architecture
    size:  number of instances of each in a batch; those of a small zoo may come twice in it
    """

    rows: tuple[tuple[int, ...], ...]
    size: int
    seed: int

    def indices(self, number: int) -> list[int]:
        """Rows of the instances of batch `number`."""
        return [own[place] for own in self.rows for place in InTurn(len(own), self.size, self.seed).indices(number)]


def line_order_of(recipe: Recipe, class_ids: Sequence[int]) -> OfEach:
    """Return which instances the line loss takes.

    class_ids: ClassIds of the training instances
    raises ZooMismatch if there is none of an architecture
    """
    rows = [
        tuple(row for row, own in enumerate(class_ids) if own == class_id)
        for class_id in range(len(recipe.architectures))
    ]
    missing = [name for name, own in zip(recipe.architectures, rows, strict=True) if not own]
    if missing:
        raise ZooMismatch(
            f"the zoo has no training instance of {listed(missing)}, so loss.line cannot put it on the boundary line; "
            f"use loss.line=0, or a zoo such as {recipe.zoo}."
        )
    return OfEach(tuple(rows), recipe.batch.line_instances, recipe.training.seed)


def order_of(recipe: Recipe, class_ids: Sequence[int]) -> InTurn | AtRandom | Pairs:
    """Choose how instances are put together in batches, by the recipe's setting.

    class_ids: ClassIds of the training instances
    raises ZooMismatch if there are too few instances
    """
    size, seed = recipe.batch.instances, recipe.training.seed
    if recipe.setting != "unseen" and size > len(class_ids):
        raise ZooMismatch(
            f"recipe '{recipe.name}' takes batches of {counted(size, 'instance')}; the zoo has {len(class_ids)} to "
            "train on. Use a smaller batch.instances."
        )
    if not recipe.has_classes:
        return InTurn(len(class_ids), size, seed)
    last_id = len(recipe.architectures) - 1
    first = tuple(index for index, class_id in enumerate(class_ids) if class_id == 0)
    last = tuple(index for index, class_id in enumerate(class_ids) if class_id == last_id)
    for boundary, rows in ((0, first), (last_id, last)):
        if not rows:
            raise ZooMismatch(
                f"the zoo has no training instance of the boundary architecture {recipe.architectures[boundary]} "
                f"(ClassId {boundary}), so nothing can be interpolated."
            )
    if recipe.setting == "unseen":
        between = sorted(
            {recipe.architectures[class_id] for class_id in class_ids}
            - {recipe.architectures[0], recipe.architectures[-1]}
        )
        if between:
            raise ZooMismatch(
                f"setting 'unseen' trains on the boundary architectures alone; the zoo also has training instances of "
                f"{listed(between)}. Use setting 'multi', or a zoo such as {recipe.zoo}."
            )
        return Pairs(size, seed, first, last, recipe.batch.fixed_pairs)
    if recipe.batch.boundary_share == 0:
        return InTurn(len(class_ids), size, seed)
    return AtRandom(len(class_ids), size, seed, first, last, recipe.batch.boundary_share)


@lru_cache(maxsize=8)
def permutation(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """A random order of 0 .. count - 1, the same for the same seed and epoch."""
    return tuple(torch.randperm(count, generator=generator("instances in turn", seed, epoch)).tolist())
