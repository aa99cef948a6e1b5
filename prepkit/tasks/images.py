"""Image classification: a task that trains and evaluates many instances on the same images.

    {"kind": "images", "dataset": "digits", "mean": [0.3053], "std": [0.3761],
     "split": {"seed": 0, "test": 360, "validation": 180},
     "augmentation": {"crop_padding": 1, "horizontal_flip": False}}

    {"kind": "images", "dataset": "uoft-cs/cifar10", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
     "split": {"seed": 0, "test": "test", "validation": 10000},
     "augmentation": {"crop_padding": 4, "horizontal_flip": True}}

prepkit.tasks._image_record says what each key means, and which ones loading adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, listed, nearest
from prepkit.tasks._augmentation import Images, Normalisation, draw
from prepkit.tasks._image_record import Augmentation, ImageRecord, Split, check, per_channel, split_indices
from prepkit.tasks._image_set import ImageSet, Part, averaged
from prepkit.tasks.task import EVALUATION_BATCH, TaskBatch, task_text

if TYPE_CHECKING:
    from typing import Self

    import torch
    from torch import Tensor

TRAIN, VALIDATION, TEST = "train", "validation", "test"


def load(record: Mapping[str, Any], data: Path | None = None) -> ImageTask:
    """The task of a record, its images on the CPU.

    data: the folder of images, for the data set "folder"; a copy of the repository, for a set of the Hub
    raises ZooError naming the place in the record that is wrong, or in which the data at hand differ from it
    raises DataMissing with the command that gets the data
    """
    from prepkit.tasks._image_sources import image_set

    asked = check(record)
    found = image_set(asked, data)
    if asked.gray:
        found = averaged(found)
    parts = deal(found, asked.split)
    channels = found.image_shape[0]
    mean, std = per_channel(asked.mean, "mean", 0.0, channels), per_channel(asked.std, "std", 1.0, channels)
    resolved = _resolved(record, asked, found, {name: len(part) for name, part in parts.items()})
    return ImageTask(resolved, parts, found.classes, Normalisation(found.levels, mean, std), asked.augmentation)


def deal(images: ImageSet, split: Split) -> dict[str, Dealt]:
    """The training, validation and test images of a set: taken from its training part, or parts of their own.

    raises ZooError if more images are to be taken than there are
    """
    import torch

    pool = images.parts[split.train]
    wanted = {TEST: split.test, VALIDATION: split.validation}
    drawn = {name: size for name, size in wanted.items() if isinstance(size, int)}
    chosen = split_indices(len(pool.labels), split.seed, drawn.get(TEST, 0), drawn.get(VALIDATION, 0))
    dealt = {}
    for name in (TRAIN, VALIDATION, TEST):
        own = wanted.get(name)
        if isinstance(own, str):
            dealt[name] = Dealt(images.parts[own])
        else:
            dealt[name] = Dealt(pool, torch.from_numpy(chosen[name]))
    return dealt


@dataclass(frozen=True)
class Dealt:
    """The images of a split: those of a part at some indices, or all of it; `take` copies them."""

    part: Part
    indices: Tensor | None = None

    def __len__(self) -> int:
        return len(self.part.labels if self.indices is None else self.indices)

    def take(self) -> Part:
        """The images and labels of the split."""
        if self.indices is None:
            return self.part
        return Part(self.part.images.index_select(0, self.indices), self.part.labels[self.indices])


class ImageTask:
    """A Task (prepkit.tasks.task) whose instances all classify the same images, so that `items` are not used.

    parts: the images of "train", "validation" and "test", on the CPU
    """

    def __init__(
        self,
        record: Mapping[str, Any],
        parts: Mapping[str, Dealt],
        num_classes: int,
        normalisation: Normalisation,
        augmentation: Augmentation,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        import torch

        self.record = record
        self.num_outputs = num_classes
        self.input_shape: tuple[int, ...] = tuple(parts[TRAIN].part.images.shape[1:])
        self.splits: Mapping[str, int] = {name: len(part) for name, part in parts.items()}
        self.device = torch.device(device)
        self.dtype = dtype or torch.float32
        self._parts = parts
        self._normalisation = normalisation
        self._augmentation = augmentation
        self._held: dict[str, tuple[Images, Tensor]] = {}  # splits that were used so far, on the device

    def __repr__(self) -> str:
        return task_text(self)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """The same task with its data on a device and its batches in a floating-point dtype, float32 if missing."""
        return type(self)(
            self.record, self._parts, self.num_outputs, self._normalisation, self._augmentation, device, dtype
        )

    def num_batches(self, batch_size: int) -> int:
        """The number of steps of one epoch; the last batch may be smaller."""
        return -(-self.splits[TRAIN] // batch_size)

    def batches(self, seeds: Sequence[int], items: Sequence[int], epoch: int, batch_size: int) -> Iterator[TaskBatch]:
        """The batches of one epoch: every training image once, cropped and mirrored in each instance's own way.

        raises ZooError for a batch size below 1
        """
        if batch_size < 1:
            raise ZooError(f"batch_size: {batch_size} is no number of images; use 1 or more.")
        images, labels = self._on_device(TRAIN)
        crop, flip = self._augmentation.crop_padding, self._augmentation.horizontal_flip
        draws = draw(seeds, epoch, self.splits[TRAIN], crop, flip)
        starts = images.starts(draws.order, draws.corners).to(self.device)
        order = draws.order.to(self.device)
        flips = None if draws.flips is None else draws.flips.to(self.device)
        for first in range(0, self.splits[TRAIN], batch_size):
            step = slice(first, first + batch_size)
            mirrored = None if flips is None else flips[:, step]
            yield TaskBatch(images.gather(starts[:, step], mirrored), labels[order[:, step]])

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The cross entropy of each instance `[K]`, the mean over its batch, in float32 at least.

        outputs: `[K, B, classes]` logits
        targets: `[K, B]` class numbers
        """
        return _cross_entropy(outputs, targets).mean(1)

    def evaluate(
        self, run: Callable[[Tensor], Tensor], items: Sequence[int], split: str, batch_size: int = EVALUATION_BATCH
    ) -> dict[str, Tensor]:
        """The share of images classified correctly and the mean cross entropy, each `[K]` float64 on the CPU.

        run:   takes images `[B, C, H, W]` and gives logits `[K, B, classes]`
        items: one per instance; only their number counts
        raises ZooError for an unknown split, or one without images
        """
        import torch

        images, labels = self._on_device(self._known(split))
        hits, losses = (torch.zeros(len(items), dtype=torch.float64, device=self.device) for _ in range(2))
        with torch.no_grad():
            for first in range(0, len(labels), batch_size):
                index = torch.arange(first, min(first + batch_size, len(labels)), device=self.device)
                outputs = run(images.gather(images.starts(index, None)))
                expected = (len(items), len(index), self.num_outputs)
                if outputs.shape != expected:
                    shapes = f"{list(outputs.shape)}, not {list(expected)}"
                    raise ZooError(f"outputs are {shapes}: [instances, images, classes of the task].")
                targets = labels[index].expand(len(items), -1)
                hits += (outputs.argmax(-1) == targets).sum(1)
                losses += _cross_entropy(outputs, targets).double().sum(1)
        return {"accuracy": hits.cpu() / len(labels), "loss": losses.cpu() / len(labels)}

    def normalised(self, split: str) -> tuple[Tensor, Tensor]:
        """All images of a split, `[N, C, H, W]`, normalised but not augmented, and their labels `[N]`, on the device.

        raises ZooError for an unknown split, or one without images
        """
        import torch

        images, labels = self._on_device(self._known(split))
        return images.gather(images.starts(torch.arange(len(labels), device=self.device), None)), labels

    def _known(self, split: str) -> str:
        if split not in self.splits:
            raise ZooError(f"unknown split {split!r}; a task has {listed(self.splits)}.{nearest(split, self.splits)}")
        if not self.splits[split]:
            raise ZooError(f"task, split: no images are set aside for {split}.")
        return split

    def _on_device(self, split: str) -> tuple[Images, Tensor]:
        if split not in self._held:
            part = self._parts[split].take()
            padding = self._augmentation.crop_padding if split == TRAIN else 0
            images = Images(part.images, self._normalisation, padding, self.device, self.dtype)
            self._held[split] = (images, part.labels.to(self.device))
        return self._held[split]


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropies `[K, B]` in float32 at least: in bfloat16 a softmax is too coarse to be a loss."""
    import torch

    logits = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return loss.view(targets.shape)


def _resolved(
    record: Mapping[str, Any], asked: ImageRecord, found: ImageSet, samples: Mapping[str, int]
) -> dict[str, Any]:
    """The record with the facts about the data that loading adds.

    raises ZooError if the record has other facts
    """
    facts: dict[str, Any] = {
        "input_shape": list(found.image_shape),
        "classes": found.classes,
        "samples": dict(samples),
        "sha256": found.sha256,
    }
    if found.class_names is not None:
        facts["class_names"] = list(found.class_names)
    for key, value in facts.items():
        if key in record and record[key] != value:
            raise ZooError(
                f"task, {key}: the data of '{asked.dataset}' at hand are not those of the record, which says "
                f"{record[key]!r}; here it is {value!r}. Use the recorded data, or leave out '{key}' for a new task."
            )
    return {**record, **facts} | ({"revision": found.revision} if found.revision else {})
