"""Instances of several architectures, run together where they have the same architecture.

    outputs = run_by_class_id(registry, class_ids, preps, inputs)      # [N, B, ...], row n by architecture class_ids[n]

Shapes: N instances, k of one architecture, H x W the PRep, B inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prepkit.families.registry import Architecture, Registry
from prepkit.running.instances import run_instances
from prepkit.tasks.task import EVALUATION_BATCH

INSTANCES_AT_ONCE = 64


@dataclass(frozen=True)
class ArchitectureGroup:
    """The k instances of one architecture among N.

    positions: where the k instances stand among the N
    """

    architecture: Architecture
    positions: tuple[int, ...]

    def select(self, rows: Tensor) -> Tensor:
        """The rows `[k, ...]` of these instances out of the rows of all, `[N, ...]`."""
        if self.positions == tuple(range(len(rows))):
            return rows
        # Taken singly: a tensor of positions would be copied to the device, and the host would wait for it.
        return torch.stack([rows[position] for position in self.positions])


def group_by_architecture(registry: Registry, class_ids: Sequence[int]) -> list[ArchitectureGroup]:
    """Instances grouped by their ClassIds, in the order in which the ClassIds first appear."""
    positions: dict[int, list[int]] = {}
    for position, class_id in enumerate(class_ids):
        positions.setdefault(class_id, []).append(position)
    return [ArchitectureGroup(registry.by_class_id(class_id), tuple(rows)) for class_id, rows in positions.items()]


def run_by_class_id(registry: Registry, class_ids: Sequence[int], preps: Tensor, inputs: Tensor) -> Tensor:
    """Outputs `[N, B, ...]` of instances of several architectures, differentiable; one run for each architecture.

    preps:  `[N, H, W]`
    inputs: `[B, *input_shape]` that all share, or `[N, B, *input_shape]`
    """
    shared = inputs.dim() == len(registry.by_class_id(class_ids[0]).input_shape) + 1
    rows: list[Tensor] = [preps] * len(class_ids)  # placeholders, all of which are replaced
    for group in group_by_architecture(registry, class_ids):
        group_inputs = inputs if shared else group.select(inputs)
        outputs = run_instances(group.architecture, group.select(preps), group_inputs)
        if len(group.positions) == len(rows):
            return outputs
        for position, row in zip(group.positions, outputs.unbind(0), strict=True):
            rows[position] = row
    return torch.stack(rows)


def outputs_by_class_id(registry: Registry, class_ids: Sequence[int], preps: Tensor, inputs: Tensor) -> Tensor:
    """Outputs `[N, B, ...]` as run_by_class_id gives them, but without gradient, on the CPU and in bounded memory.

    Only some instances run at a time, on some of the inputs.
    """
    shared = inputs.dim() == len(registry.by_class_id(class_ids[0]).input_shape) + 1
    outputs = []
    with torch.no_grad():
        for first in range(0, len(class_ids), INSTANCES_AT_ONCE):
            rows = slice(first, first + INSTANCES_AT_ONCE)
            parts = torch.split(inputs if shared else inputs[rows], EVALUATION_BATCH, dim=0 if shared else 1)
            done = [run_by_class_id(registry, class_ids[rows], preps[rows], part) for part in parts]
            outputs.append(torch.cat(done, dim=1))
    return torch.cat(outputs).cpu()
