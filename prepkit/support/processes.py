"""Several processes that train one network, each on a device of its own: `torchrun --nproc-per-node G ...`.

    ranks = Ranks.join(device)
    own = batch[ranks.block(len(batch))]            # the rows of this process
    joint = ranks.gather(network(own))              # the rows of all, differentiable
    ranks.add_gradients(network.parameters())       # the loss of the joint batch is the sum of the processes' losses

A single process has the same interface, in which nothing is exchanged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from prepkit.errors import PrepkitError

Item = TypeVar("Item")
LONGEST_WAIT = timedelta(hours=2)  # the first process validates alone, and the others wait for it


class ParallelError(PrepkitError, ValueError):
    """A batch cannot be dealt to the processes, or they do not agree."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training.

    rank: number of this process
    size: number of processes
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """Meet the other processes that torchrun started; without torchrun there is a single one."""
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
        """Whether this process is the first, which writes files and reports progress."""
        return self.rank == 0

    def block(self, count: int) -> slice:
        """The slice of a batch of `count` instances that this process has; all processes have as many.

        raises ParallelError if they cannot be dealt evenly
        """
        if count % self.size:
            raise ParallelError(
                f"{count} instances a batch cannot be dealt evenly to {self.size} processes; use a batch of "
                f"{-(-count // self.size) * self.size}, or another --nproc-per-node."
            )
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every size-th item, beginning with the one at this process's rank."""
        return items[self.rank :: self.size]

    def gather(self, own: Tensor) -> Tensor:
        """Join the rows `[n, ...]` of all processes to `[size n, ...]`; gradients go back to the owners of the rows."""
        if self.size == 1:
            return own
        gathered: Tensor = _Gather.apply(own, self)  # type: ignore[no-untyped-call]
        return gathered

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all gradients, in one buffer."""
        if self.size == 1:
            return
        trained = list(parameters)
        gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in trained]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        for parameter, total in zip(trained, torch.split(flat, [value.numel() for value in trained]), strict=True):
            parameter.grad = total.view_as(parameter)

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def agree(self, value: Any) -> Any:
        """Give all processes the first one's value, which is pickled on the way."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=device)))


def is_first_process() -> bool:
    """Whether this is the first process, also before the processes have met and after they have parted."""
    return not _started_by_torchrun() or os.environ["RANK"] == "0"


def _started_by_torchrun() -> bool:
    # A cluster may set some of these variables without torchrun.
    started = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return started and os.environ["WORLD_SIZE"] != "1"


class _Gather(torch.autograd.Function):
    """Join the rows of all processes; backward gives each process the sum of all gradients of its own rows.

    torch.distributed.nn.functional.all_gather does the same, but warns of its own removal since torch 2.13.
    """

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
