"""Networks of one architecture as rows of values, from zoos and from PReps that a generator made.

Shapes: N networks, V values of a network, H x W the PRep.
"""

# ruff: noqa: N803, N806, N815 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prepkit.errors import PrepkitError, counted
from prepkit.families.registry import Registry
from prepkit.running.groups import group_by_architecture
from prepkit.support.text import readable_bytes
from prepkit.views.source import Source
from prepkit.zoo.read.memory import available_bytes

if TYPE_CHECKING:
    from prepkit.zoo.read.zoo import Zoo

COPIES = 8  # of all values in float32 that comparing them holds at once, about


@dataclass(frozen=True, eq=False)
class Stack:
    """Networks whose tensors have the same names and shapes.

    source:    their layout and, where it is known, their architecture
    values_NV: their values in float32, as they lie in a PRep
    ids:       their names
    runs:      the training run of each, or what else tells which networks come from one training
    """

    source: Source
    values_NV: Tensor
    ids: tuple[str, ...]
    runs: tuple[Hashable, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def key(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes of the tensors: networks that differ in them cannot be compared value by value."""
        return tuple((slot.name, tuple(slot.shape)) for slot in self.source.layout)

    def select(self, rows: Sequence[int]) -> Stack:
        """Return some of the networks."""
        chosen = list(rows)
        ids = tuple(self.ids[row] for row in chosen)
        return Stack(self.source, self.values_NV[chosen], ids, tuple(self.runs[row] for row in chosen))

    def with_values(self, values_NV: Tensor, ids: Sequence[str]) -> Stack:
        """Return other networks of the same architecture, each of a run of its own."""
        return Stack(self.source, values_NV, tuple(ids), tuple(ids))


def joined(stacks: Sequence[Stack]) -> Stack:
    """Return the networks of several stacks of one architecture as one."""
    values_NV = torch.cat([stack.values_NV for stack in stacks])
    ids = tuple(id_ for stack in stacks for id_ in stack.ids)
    return Stack(stacks[0].source, values_NV, ids, tuple(run for stack in stacks for run in stack.runs))


def stacks_of_zoo(zoo: Zoo) -> list[Stack]:
    """Return the networks of a zoo or view, a stack for each architecture.

    raises PrepkitError if memory does not hold them, or values are not finite
    """
    _check_memory(zoo)
    table = zoo.table
    class_ids = zoo.class_ids().numpy()
    ids = table["id"].to_pylist()
    runs = table["run"].to_pylist() if "run" in table.column_names else [None] * len(ids)
    stacks = []
    for class_id in np.unique(class_ids).tolist():
        rows = np.flatnonzero(class_ids == class_id)
        view = zoo.select(rows)
        own = rows.tolist()
        stacks.append(
            Stack(
                view.view_source(),
                view.values().float(),
                tuple(ids[row] for row in own),
                tuple(("network", ids[row]) if runs[row] is None else ("run", runs[row]) for row in own),
            )
        )
    for stack in stacks:
        check_finite(stack, f"zoo '{zoo.name}'")
    return stacks


def stacks_of_preps(registry: Registry, class_ids: Sequence[int], preps: Tensor, ids: Sequence[str]) -> list[Stack]:
    """Return networks `[N, H, W]` that a generator made, a stack for each architecture.

    raises PrepkitError if values are not finite
    """
    flat_NV, stacks = preps.detach().cpu().float().flatten(1), []
    for group in group_by_architecture(registry, class_ids):
        rows, names = list(group.positions), tuple(ids[row] for row in group.positions)
        values_NV = flat_NV[rows, : group.architecture.layout.total]
        stacks.append(Stack(Source.of(group.architecture), values_NV, names, names))
        check_finite(stacks[-1], "the generated networks")
    return stacks


def check_finite(stack: Stack, where: str) -> None:
    """Raise PrepkitError if there is NaN or infinity among the values."""
    broken = [id_ for id_, fine in zip(stack.ids, stack.values_NV.isfinite().all(1).tolist(), strict=True) if not fine]
    if broken:
        more = f" and {len(broken) - 1:,} more" if len(broken) > 1 else ""
        raise PrepkitError(
            f"{where}: there is NaN or infinity in '{broken[0]}'{more}, so that no distance exists; leave these "
            "networks out. `prepkit zoo audit` lists them."
        )


def _check_memory(zoo: Zoo) -> None:
    totals = {stored.class_id: stored.layout.total for stored in zoo.manifest.architectures}
    needed = COPIES * 4 * sum(totals[class_id] for class_id in zoo.class_ids().tolist())
    free = available_bytes()
    if free and needed > free:
        raise PrepkitError(
            f"comparing {counted(len(zoo), 'network')} of '{zoo.name}' takes about {readable_bytes(needed)} of memory, "
            f"and {readable_bytes(free)} are free; compare fewer of them: where='...' chooses."
        )


def rows_evenly(count: int, most: int) -> list[int]:
    """Return at most so many of the rows 0 .. count - 1, at equal steps."""
    return sorted(set(torch.linspace(0, count - 1, min(count, most)).round().int().tolist())) if count else []
