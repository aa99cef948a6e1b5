"""What every task can do: give the batches of a whole stack of instances, their losses, and judge them.

K instances in a stack, B samples a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prepkit.errors import PrepkitError

if TYPE_CHECKING:
    from typing import Self

    import torch
    from torch import Tensor

EVALUATION_BATCH = 512


class DataMissing(PrepkitError):
    """Data of a task is not at hand; the message ends with the one command that gets it."""

    exit_code = 1


@dataclass(frozen=True)
class Batch:
    """One step's samples of every instance of a stack, on the task's device.

    inputs:  `[K, B, *input_shape]` floating point, normalised and augmented
    targets: `[K, B]` int64 class numbers, or `[K, B, outputs]` floating point
    """

    inputs: Tensor
    targets: Tensor


class Task(Protocol):
    """What instances are trained and judged on.

    record:      JSON-able; zoo.json stores it as `task`, and `load_task(record)` gives the same task back
    input_shape: of one input
    num_outputs: of a network for this task
    splits:      number of samples of "train", "validation" and "test"
    device:      where its data are
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
        """Steps of one epoch."""
        ...

    def batches(self, seeds: Sequence[int], items: Sequence[int], epoch: int, batch_size: int) -> Iterator[Batch]:
        """The batches of one epoch, for all instances of a stack at once.

        seeds, items: one of each an instance; `items[k]` is the number of its own data set where each has one
        Instance k's batches are a function of its seed, its item, the epoch and the batch size: of nothing else.
        """
        ...

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`[K]`: the loss of each instance, mean over its batch, differentiable, in float32 at least.

        outputs: `[K, B, outputs]`
        targets: of a Batch
        """
        ...

    def evaluate(
        self, run: Callable[[Tensor], Tensor], items: Sequence[int], split: str, batch_size: int = EVALUATION_BATCH
    ) -> dict[str, Tensor]:
        """`{"accuracy": [K], "loss": [K]}` float64 on the CPU: each instance on a whole split, without augmentation.

        run: of inputs `[B, *input_shape]` that all instances share, or `[K, B, *input_shape]` where each has its own,
             gives outputs `[K, B, outputs]`
        raises ZooError for a split that the task does not have
        """
        ...
