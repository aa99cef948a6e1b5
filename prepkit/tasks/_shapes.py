"""Signed distances of shapes: a task that trains each network on a shape of its own.

    {"kind": "shapes", "dataset": "procedural_chairs", "count": 1000, "seed": 0,
     "points": {"pool": 65536, "near_surface": 0.5, "sigma": 0.05},
     "split": {"seed": 0, "test": 4096, "validation": 4096},
     "steps_per_epoch": 100, "clamp": 0.1}

An instance's item is the number of the shape that it fits, 0 .. count - 1. prepkit.tasks._shape_record says what each
key means.

Shapes are as DeepSDF has them: bounding box centred on the origin, farthest point at 1 / 1.03 from it; distances are
negative inside. Points of sdf_files are taken as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prepkit.errors import ZooError, listed, nearest
from prepkit.tasks._shape_record import check as check
from prepkit.tasks._shape_sources import SOURCES, PointSource
from prepkit.tasks.randomness import generator
from prepkit.tasks.task import TaskBatch, task_text

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

CLOSE = 1e-2  # METHOD: an output within this of the true distance counts as right
EVALUATION_POINTS = 16_384


class ShapeTask:
    """A Task (prepkit.tasks.task) whose instances each fit the signed distance of a shape of their own.

    Points are made when a stack asks for them, and kept on the device for as many shapes as the largest stack had.
    Shapes: K instances, B points a step, P points of a shape in all its splits.
    """

    input_shape: tuple[int, ...] = (3,)
    num_outputs = 1

    def __init__(
        self,
        record: Mapping[str, Any],
        source: PointSource,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.checked = check(record)
        self.record: Mapping[str, Any] = {**record, **source.facts}
        self.splits: Mapping[str, int] = self.checked.sizes
        self._source = source
        self.device, self._dtype = torch.device(device), dtype
        self._slots: OrderedDict[int, int] = OrderedDict()  # item -> row of _rows
        self._rows = torch.empty(0, sum(self.splits.values()), 4, device=self.device)

    def __repr__(self) -> str:
        return task_text(self)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """The same task with its points on a device and its batches in a dtype, float32 if missing."""
        return type(self)(self.record, self._source, device, dtype or torch.float32)

    def num_batches(self, batch_size: int) -> int:
        """The number of steps of one epoch: `steps_per_epoch` of the record, whatever the batch size."""
        return self.checked.steps_per_epoch

    def batches(self, seeds: Sequence[int], items: Sequence[int], epoch: int, batch_size: int) -> Iterator[TaskBatch]:
        """`steps_per_epoch` batches; half of each instance's points are inside, one more outside if B is odd.

        Points are drawn from the shape's pool by a stream that depends on the instance's seed, the epoch and the kind
        of device: a GPU draws its own ones, so that nothing is copied to it in a step.
        """
        if batch_size < 1:
            raise ZooError(f"batch_size: a step needs at least one point, found {batch_size}.")
        drawn_on = self.device if self.device.type == "cuda" else torch.device("cpu")
        streams = [generator("points", seed, epoch, device=drawn_on) for seed in seeds]
        half = self.checked.points.pool // 2
        # [B]: the pool's second half is outside
        side = (torch.arange(batch_size, device=self.device) >= batch_size // 2) * half
        for _ in range(self.checked.steps_per_epoch):
            first = torch.tensor(self.prepare(items))[:, None] * self._rows.shape[1]  # [K, 1]
            draws = torch.empty(len(streams), batch_size, dtype=torch.int64, device=drawn_on)
            for row, stream in zip(draws, streams, strict=True):
                torch.randint(half, (batch_size,), generator=stream, out=row)
            places = draws.to(self.device) + side + first.to(self.device, non_blocking=True)
            points = self._rows.view(-1, 4).index_select(0, places.flatten()).view(*places.shape, 4).to(self._dtype)
            yield TaskBatch(*torch.split(points, [3, 1], dim=-1))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared errors `[K]` of outputs `[K, B, 1]`, in float32 at least (METHOD, Eq. 2)."""
        wide = torch.promote_types(outputs.dtype, torch.float32)
        return (outputs.to(wide) - targets.to(wide)).square().mean((1, 2))

    def evaluate(
        self,
        run: Callable[[Tensor], Tensor],
        items: Sequence[int],
        split: str,
        batch_size: int = EVALUATION_POINTS,
    ) -> dict[str, Tensor]:
        """The share of a split's points with an output within CLOSE of the distance, and the mean squared error."""
        part = self._part(split)
        chosen = self.prepare(items)
        right, squared = torch.zeros(2, len(items), dtype=torch.float64)
        for start in range(part.start, part.stop, batch_size):
            rows = self._rows[chosen, start : min(start + batch_size, part.stop)].to(self._dtype)  # [K, N, 4]
            with torch.no_grad():
                error = run(rows[..., :3])[..., 0].double() - rows[..., 3].double()
            right += (error.abs() <= CLOSE).sum(1).cpu()
            squared += error.square().sum(1).cpu()
        size = self.splits[split]
        return {"accuracy": right / size, "loss": squared / size}

    def points(self, item: int, split: str) -> tuple[Tensor, Tensor]:
        """Points `[N, 3]` of a shape's split and their signed distances `[N]`; the half inside comes first."""
        part = self._part(split)
        (row,) = self.prepare([item])
        rows = self._rows[row, part].to(self._dtype, copy=True)  # the row may become another shape's
        return rows[:, :3], rows[:, 3]

    def prepare(self, items: Sequence[int]) -> list[int]:
        """Bring the points of these shapes onto the device, and return the row of each item.

        raises ZooError for an item that is no shape of the data set
        """
        wanted = list(dict.fromkeys(items))
        missing = [item for item in wanted if item not in self._slots]
        if missing:
            self._check_items(missing)
            with torch.inference_mode(False):  # points are used again outside inference mode
                self._make_room(wanted, missing)
        for item in wanted:
            self._slots.move_to_end(item)
        return [self._slots[item] for item in items]

    def _check_items(self, items: Sequence[int]) -> None:
        count = self._source.count
        for item in items:
            if item < 0 or (count is not None and item >= count):
                known = "from 0" if count is None else f"0 to {count - 1}"
                raise ZooError(f"item {item}: the shapes of this task are numbered {known}.")

    def _make_room(self, wanted: Sequence[int], missing: Sequence[int]) -> None:
        """Fill rows with the missing shapes, in place of those whose last use is longest ago."""
        if len(wanted) > len(self._rows):
            more = torch.empty(len(wanted) - len(self._rows), *self._rows.shape[1:], device=self.device)
            self._rows = torch.cat([self._rows, more])
        idle = [item for item in self._slots if item not in wanted]
        for item in idle[: max(0, len(self._slots) + len(missing) - len(self._rows))]:
            del self._slots[item]
        free = sorted(set(range(len(self._rows))) - set(self._slots.values()))
        for item, row in zip(missing, free, strict=False):
            parts = self._source.rows(item)
            found = torch.from_numpy(np.concatenate([parts[split] for split in self.splits]))
            if self.checked.clamp is not None:
                found[:, 3].clamp_(-self.checked.clamp, self.checked.clamp)
            self._rows[row] = found.to(self.device)
            self._slots[item] = row

    def _part(self, split: str) -> slice:
        """The range of a split among a shape's points."""
        if not self.splits.get(split):
            names = [name for name, size in self.splits.items() if size]
            raise ZooError(f"split {split!r} has no points; splits are: {listed(names)}.{nearest(split, names)}")
        start = 0
        for name, size in self.splits.items():
            if name == split:
                break
            start += size
        return slice(start, start + size)


def load(record: Mapping[str, Any], data: Path | None = None) -> ShapeTask:
    """The task of a record.

    data: the folder of the files; not for procedural chairs
    raises ZooError if the record is wrong, or the files are not the ones it names
    raises DataMissing if the folder is not there
    """
    checked = check(record)
    return ShapeTask(record, SOURCES[checked.dataset](checked, data))
