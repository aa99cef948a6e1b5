"""Several processes, one a device: `torchrun --nproc-per-node G -m netspace train ...`.

The instances of a batch are dealt to the processes; all see the same images. Embeddings are gathered, so that pairs of
boundary instances count which lie on different devices, and the points on their lines are dealt out too. The loss of
the joint batch is the sum of what the processes have, so gradients are summed, in one buffer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

import prepkit

Item = TypeVar("Item")
LONGEST_WAIT = timedelta(hours=2)  # for the first process, which validates alone


class ParallelError(prepkit.PrepkitError, ValueError):
    """A batch cannot be dealt to the processes, or they do not agree."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training.

    rank, size: this one's number, and how many there are
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """The processes that torchrun started, once they have met; a single one without torchrun."""
        if not _started_by_torchrun():
            return cls()
        if not distributed.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, timeout=LONGEST_WAIT)
        return cls(distributed.get_rank(), distributed.get_world_size())

    def leave(self) -> None:
        """Part from the other processes."""
        if self.size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the one process that writes."""
        return self.rank == 0

    def block(self, count: int) -> slice:
        """Which of `count` instances are this process's: as many for each, in order.

        raises ParallelError if they cannot be dealt evenly
        """
        if count % self.size:
            raise ParallelError(
                f"{count} instances a batch cannot be dealt evenly to {self.size} processes; use batch.instances of "
                f"{-(-count // self.size) * self.size}, or other --nproc-per-node."
            )
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every size-th item, beginning with the rank's own."""
        return items[self.rank :: self.size]

    def gather(self, own: Tensor) -> Tensor:
        """The rows `[n, ...]` of all processes in their order, `[size n, ...]`; gradients go back to their owners."""
        if self.size == 1:
            return own
        gathered: Tensor = _Gather.apply(own, self)  # type: ignore[no-untyped-call]
        return gathered

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all gradients, in one buffer."""
        if self.size == 1:
            return
        trained = list(parameters)
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        for one, total in zip(trained, torch.split(flat, [one.numel() for one in trained]), strict=True):
            one.grad = total.view_as(one)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def agree(self, value: Any) -> Any:
        """The first process's value, for all; it is pickled."""
        if self.size == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held)
        return held[0]

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=device)))


def is_first_process() -> bool:
    """Whether this is the one process that speaks, before others were met or after."""
    return not _started_by_torchrun() or os.environ["RANK"] == "0"


def _started_by_torchrun() -> bool:
    told = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))  # a cluster may tell some
    return told and os.environ["WORLD_SIZE"] != "1"


class _Gather(torch.autograd.Function):
    """Rows of all processes; backward gives each the sum of what all have for its own rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        parts = [torch.empty_like(own) for _ in range(ranks.size)]
        distributed.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        joint = gradients[0].contiguous().clone()
        distributed.all_reduce(joint)
        return joint[ctx.ranks.block(len(joint))], None
