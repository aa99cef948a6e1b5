"""Task: what instances are trained and evaluated on. It works on a whole stack of instances at once.

K instances in a stack, B samples a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prepkit.errors import PrepkitError
from prepkit.support.text import Brief

if TYPE_CHECKING:
    from typing import Self

    import torch
    from torch import Tensor

EVALUATION_BATCH = 512


class DataMissing(PrepkitError):
    """Data of a task is not at hand; the message ends with the one command that gets it."""

    exit_code = 1


@dataclass(frozen=True, repr=False)
class TaskBatch(Brief):
    """The samples of one step for every instance of a stack, on the task's device.

    inputs:  `[K, B, *input_shape]` floating point, normalised and augmented
    targets: `[K, B]` int64 class numbers, or `[K, B, outputs]` floating point
    """

    inputs: Tensor
    targets: Tensor


def task_text(task: Task) -> str:
    """Return the text by which a task is shown: its class, its data set and its numbers of samples."""
    counts = ", ".join(f"{name} {count:,}" for name, count in task.splits.items())
    return f"<{type(task).__name__} of {task.record.get('dataset')}: {counts}>"


class Task(Protocol):
    """What instances are trained and evaluated on.

    record:      JSON-able; zoo.json stores it as `task`, and `load_task(record)` gives the same task back
    input_shape: shape of one input, without the batch axis
    num_outputs: number of outputs of a network for this task
    splits:      number of samples in "train", "validation" and "test"
    device:      where the data are
    """

    @property
    def record(self) -> Mapping[str, Any]: ...  # noqa: D102  # see the class
    @property
    def input_shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def num_outputs(self) -> int: ...  # noqa: D102
    @property
    def splits(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """The same task with its data on a device and its batches in a dtype, float32 if missing."""
        ...

    def num_batches(self, batch_size: int) -> int:
        """The number of steps of one epoch."""
        ...

    def batches(self, seeds: Sequence[int], items: Sequence[int], epoch: int, batch_size: int) -> Iterator[TaskBatch]:
        """The batches of one epoch, for all instances of a stack at once.

        seeds, items: one per instance; where each has a data set of its own, `items[k]` is its number
        Instance k's batches depend on its seed, its item, the epoch, the batch size and the kind of device, and on
        nothing else.
        """
        ...

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each instance, `[K]`: the mean over its batch, differentiable, in float32 at least.

        outputs: `[K, B, outputs]`
        targets: those of a TaskBatch
        """
        ...

    def evaluate(
        self, run: Callable[[Tensor], Tensor], items: Sequence[int], split: str, batch_size: int = EVALUATION_BATCH
    ) -> dict[str, Tensor]:
        """Evaluate each instance on a whole split, without augmentation: `{"accuracy": [K], "loss": [K]}`.

        The values are float64 on the CPU.
        run: takes inputs `[B, *input_shape]` that all instances share, or `[K, B, *input_shape]` where each has its
             own, and gives outputs `[K, B, outputs]`
        raises ZooError for a split that the task does not have
        """
        ...
