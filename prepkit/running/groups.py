"""Running instances of several architectures; those of the same architecture run together.

    outputs = run_by_class_id(registry, class_ids, preps, inputs)      # [N, B, ...], row n by architecture class_ids[n]

Shapes: N instances, k of one architecture, H x W the PRep, B inputs, R grid points along an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prepkit.families.registry import Architecture, Registry
from prepkit.running.instances import run_instances
from prepkit.tasks.distance_grid import distances_on_grid
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
        """Return the rows `[k, ...]` of these instances from the rows `[N, ...]` of all."""
        if self.positions == tuple(range(len(rows))):
            return rows
        # Rows are taken one by one, since a tensor of positions would be copied to the device while the host waits.
        return torch.stack([rows[position] for position in self.positions])


def group_by_architecture(registry: Registry, class_ids: Sequence[int]) -> list[ArchitectureGroup]:
    """Group instances by their ClassIds, in the order in which the ClassIds first appear."""
    positions: dict[int, list[int]] = {}
    for position, class_id in enumerate(class_ids):
        positions.setdefault(class_id, []).append(position)
    return [ArchitectureGroup(registry.by_class_id(class_id), tuple(rows)) for class_id, rows in positions.items()]


def run_by_class_id(
    registry: Registry, class_ids: Sequence[int], preps: Tensor, inputs: Tensor, dense: bool = False
) -> Tensor:
    """Return the outputs `[N, B, ...]` of instances of several architectures, with one run for each architecture.

    preps:  `[N, H, W]`; the outputs are differentiable in them
    inputs: `[B, *input_shape]` shared by all, or `[N, B, *input_shape]`
    dense:  see run_instances
    """
    shared = inputs.dim() == len(registry.by_class_id(class_ids[0]).input_shape) + 1
    rows: list[Tensor] = [preps] * len(class_ids)  # these are placeholders, and all are replaced
    for group in group_by_architecture(registry, class_ids):
        group_inputs = inputs if shared else group.select(inputs)
        outputs = run_instances(group.architecture, group.select(preps), group_inputs, dense=dense)
        if len(group.positions) == len(rows):
            return outputs
        for position, row in zip(group.positions, outputs.unbind(0), strict=True):
            rows[position] = row
    return torch.stack(rows)


def outputs_by_class_id(registry: Registry, class_ids: Sequence[int], preps: Tensor, inputs: Tensor) -> Tensor:
    """Return outputs as run_by_class_id does, but without gradient, on the CPU and in bounded memory.

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


def distance_grids(registry: Registry, class_ids: Sequence[int], preps: Tensor, resolution: int) -> Tensor:
    """Return signed distances `[N, R, R, R]` of instances on a grid of the cube with R points along an axis.

    raises OutputError for a resolution below 2
    """
    return distances_on_grid(
        lambda points: run_by_class_id(registry, class_ids, preps, points), resolution, preps.device
    )
