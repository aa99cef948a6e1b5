"""Evaluation of a NetSpace on a zoo: target and predicted accuracy, ClassIds, and closeness of signals.

    evaluation = evaluate(space, registry, zoo.split("test"), task, "test")
    evaluation.table                          # one row an instance
    evaluation.summary()                      # means over instances and by architecture

Instances of an architecture run together, in chunks of prepkit.zoo.read.accuracy.INSTANCES_AT_ONCE.
Shapes: N instances, H x W the PRep, E embedding values, P points of a shape.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import prepkit
from netspace.data import ZooMismatch
from netspace.space.network import NetSpace
from netspace.space.prediction import predict
from prepkit.errors import expect
from prepkit.running.groups import run_by_class_id
from prepkit.support.device import bf16_autocast
from prepkit.support.progress import Advance
from prepkit.support.statistics import grouped
from prepkit.support.text import Brief
from prepkit.zoo.read.accuracy import POINTS_AT_ONCE, accuracies_of, chunks, has_items, items_of, zoo_accuracies

if TYPE_CHECKING:
    import pyarrow as pa


ARCHITECTURE = "architecture"  # column with the name of each instance's architecture
PREPS_AT_ONCE = 8  # PReps encoded and decoded together, since the first layers put out more than all others
CLOSE = 1e-2  # an output this near to the target's counts as right (supplementary V)
NEAR = 0.1  # points this near to the surface count as near; DeepSDF cuts its targets at this distance


@dataclass(frozen=True, repr=False)
class Evaluation(Brief):
    """The result of `evaluate`.

    table: one row an instance of the zoo, in its order: `id`, `architecture`, `class_id`, `predicted_architecture`,
           `predicted_class_id`, and on the task's samples `target_accuracy` and `predicted_accuracy`; for signals also
           `closeness`, the share of outputs within 1e-2 of the target's, and `closeness_near`, the same share among
           points within 0.1 of the target's surface
    """

    table: pa.Table

    def column(self, name: str) -> Tensor:
        """Return a column of numbers as a tensor."""
        return torch.from_numpy(self.table[name].to_numpy().copy())

    def summary(self) -> dict[str, Any]:
        """Return means over all instances and over those of each target architecture, JSON-able."""
        names = self.table["architecture"].to_pylist()
        groups = grouped(range(len(names)), names.__getitem__)
        by_architecture = {name: self._means(torch.tensor(rows)) for name, rows in groups.items()}
        return {**self._means(torch.arange(len(self.table))), "by_architecture": by_architecture}

    def _means(self, rows: Tensor) -> dict[str, Any]:
        target, predicted = self.column("target_accuracy")[rows], self.column("predicted_accuracy")[rows]
        right = (self.column("class_id") == self.column("predicted_class_id"))[rows].double()
        means = {
            "instances": len(rows),
            "target_accuracy": float(target.mean()),
            "predicted_accuracy": float(predicted.mean()),
            "mean_difference": float((target - predicted).abs().mean()),
            "class_id_accuracy": float(right.mean()),
        }
        for name in ("closeness", "closeness_near"):
            if name in self.table.column_names:
                means[name] = float(self.column(name)[rows].nanmean())
        return means


def preps_of(space: NetSpace, zoo: prepkit.Zoo, rows: Sequence[int] | None = None) -> Tensor:
    """Read the PReps `[N, H, W]` of a zoo as a space encodes them: float32, on its device and, if it aligns, aligned.

    rows: rows of the zoo or view; all if missing
    raises AlignmentError for an architecture of which no instance was trained on, ZooMismatch for one that has the name
    of another
    """
    view = zoo if rows is None else zoo.select(rows)
    preps_NHW = view.preps().to(next(space.parameters()).device, torch.float32)
    if space.alignment is None:
        return preps_NHW
    names: list[str] = view.table[ARCHITECTURE].to_pylist()
    for name in dict.fromkeys(names):
        known = space.alignment.registry
        if name in known and zoo.registry[name].layout != known[name].layout:
            raise ZooMismatch(
                f"{name} of zoo '{zoo.name}' has other tensors than the {name} that the space was trained on, so its "
                "PReps cannot be aligned."
            )
    return space.align(preps_NHW, names)


def evaluate(
    space: NetSpace,
    registry: prepkit.Registry,
    zoo: prepkit.Zoo,
    task: Any,
    split: str,
    *,
    bf16: bool = False,
    targets: Sequence[float] | None = None,
    preps: Tensor | None = None,
    progress: Advance | None = None,
) -> Evaluation:
    """Encode, decode and judge every instance of a zoo or view.

    task:     the zoo's task, with its data on the space's device
    split:    split of the task's samples
    bf16:     compute convolutions and matrix products in bfloat16; accuracies move by some 0.1 points
    targets:  accuracies of the target instances, if they were computed before
    preps:    PReps `[N, H, W]` of the instances as `preps_of` gives them, if they were read before
    progress: called with the number of instances that were finished since the last call
    raises ZooMismatch if the zoo is empty, ZooError for an unknown split
    """
    import pyarrow as pa

    expect(space, NetSpace, "space", "a NetSpace, which netspace.load(run) gives")
    expect(registry, prepkit.Registry, "registry", "the registry of a run")
    expect(zoo, prepkit.Zoo, "zoo", "a Zoo, which prepkit.open_zoo gives")
    if not len(zoo):
        raise ZooMismatch(f"zoo '{zoo.name}': no instances to evaluate.")
    device = next(space.parameters()).device
    signals = has_items(zoo)
    class_ids: list[int] = []
    accuracies: list[float] = []
    closeness: list[tuple[float, float]] = []
    with torch.inference_mode():
        for rows in chunks(len(zoo)):
            view = zoo.select(rows)
            preps_NHW = preps_of(space, view) if preps is None else preps[rows].to(device, torch.float32)
            with bf16_autocast(device, bf16):
                parts = [predict(space, space.encoder(few), registry) for few in torch.split(preps_NHW, PREPS_AT_ONCE)]
            predicted_NHW = torch.cat([part.preps for part in parts])
            predicted_ids = [class_id for part in parts for class_id in part.class_ids]
            class_ids += predicted_ids
            accuracies += accuracies_of(registry, predicted_ids, predicted_NHW, view, task, split, bf16=bf16)
            if signals:
                closeness += _closeness(registry, predicted_ids, predicted_NHW, preps_NHW, view, task, split)
            if progress is not None:
                progress(len(rows))
    names = list(registry.class_ids)
    columns: dict[str, Any] = {
        "id": zoo.table["id"],
        "architecture": zoo.table["architecture"],
        "class_id": pa.array(zoo.class_ids().tolist(), pa.int64()),
        "predicted_architecture": pa.array([names[class_id] for class_id in class_ids]),
        "predicted_class_id": pa.array(class_ids, pa.int64()),
        "target_accuracy": pa.array(zoo_accuracies(zoo, task, split) if targets is None else list(targets)),
        "predicted_accuracy": pa.array(accuracies),
    }
    if signals:
        columns["closeness"] = pa.array([everywhere for everywhere, _ in closeness])
        columns["closeness_near"] = pa.array([near for _, near in closeness])
    return Evaluation(pa.table(columns))


def _closeness(
    registry: prepkit.Registry,
    class_ids: Sequence[int],
    predicted_NHW: Tensor,
    target_NHW: Tensor,
    zoo: prepkit.Zoo,
    task: Any,
    split: str,
) -> list[tuple[float, float]]:
    """The share of each instance's outputs within CLOSE of the target's, on all points and near the surface."""
    points_NP3 = torch.stack([task.points(item, split)[0] for item in items_of(zoo)])
    right, near = [], []
    for points in torch.split(points_NP3, POINTS_AT_ONCE, dim=1):
        target = run_by_class_id(registry, zoo.class_ids().tolist(), target_NHW, points)
        predicted = run_by_class_id(registry, class_ids, predicted_NHW, points)
        right.append(((predicted - target).abs() <= CLOSE).flatten(1))
        near.append((target.abs() <= NEAR).flatten(1))
    right_NP, near_NP = torch.cat(right, dim=1), torch.cat(near, dim=1)
    all_N = right_NP.double().mean(dim=1)
    near_N = (right_NP & near_NP).sum(dim=1).double() / near_NP.sum(dim=1)  # NaN without such points
    return list(zip(all_N.tolist(), near_N.tolist(), strict=True))
