"""The log of a training: metrics.jsonl, TensorBoard, and a Progress for whoever watches."""

# ruff: noqa: N803 - names of tensors end in their axes

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import prepkit
from netspace.run.run import TENSORBOARD, Run
from prepkit.support.processes import Ranks
from prepkit.support.progress import Progress

LINE_STEPS = 10  # steps between two lines of metrics, since reading the losses waits for the device
NORM = "gradient_norm"  # the one value that is not a sum over processes


class NotFinite(prepkit.PrepkitError):
    """A loss or a gradient became infinite or not a number; the last good state is kept."""

    exit_code = 1


@dataclass
class MetricsLog:
    """Collects the losses of steps on the device, and writes their means every LINE_STEPS steps.

    instances: number of instances of a step, over all processes
    values:    `[parts]` of each step since the last line
    batches:   indices of the training instances of each of these steps
    since:     time from which instances per second are counted
    earlier:   how many of `values` are of steps before that, which an interrupted training took
    last_step: the last step that the progress has heard of
    score:     that of the last validation
    """

    run: Run
    ranks: Ranks
    progress: Progress
    instances: int
    board: Any = None
    names: tuple[str, ...] = ()
    values: list[Tensor] = field(default_factory=list)
    batches: list[tuple[int, ...]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    earlier: int = 0
    last_step: int = 0
    score: float | None = None

    def step(self, step: int, parts: Mapping[str, Tensor], indices: Sequence[int], rate: float) -> None:
        """Note one step.

        parts: scalars on the device by name, this process's share of sums over all processes, except for NORM
        raises NotFinite
        """
        self.names = tuple(parts)
        self.values.append(torch.stack([part.float() for part in parts.values()]))
        self.batches.append(tuple(indices))
        if len(self.values) == LINE_STEPS:
            self.flush(step, rate)

    def pending(self, step: int) -> list[list[float]]:
        """The values of the steps since the last line, one row each, summed over processes.

        They are saved with a state, so that a resumed training can finish the line.
        raises NotFinite
        """
        if not self.values:
            return []
        table = torch.stack(self.values)  # [steps, parts]
        is_sum = torch.ones(table.shape[1], dtype=torch.bool, device=table.device)
        is_sum[self.names.index(NORM)] = False
        table = torch.where(is_sum, self.ranks.sum(table * is_sum), table).double().cpu()
        finite = torch.isfinite(table)
        if not finite.all():
            row, column = (int(index) for index in (~finite).nonzero()[0])
            instances = ", ".join(map(str, self.batches[row])) or "?"
            raise NotFinite(
                f"step {step - len(table) + row + 1}: {self.names[column]} is {float(table[row, column])}, with the "
                f"training instances {instances}. The checkpoints of '{self.run.path}' are from before. A run "
                "goes on with its own recipe alone: train anew into another folder, with a lower "
                "optimizer.learning_rate, an optimizer.clip or training.precision=float32."
            )
        rows: list[list[float]] = table.tolist()
        return rows

    def restore(self, names: Sequence[str], rows: Sequence[Sequence[float]], device: torch.device) -> None:
        """Take up the pending values of an interrupted training; only the first process holds the sums."""
        self.names = tuple(names)
        for row in rows:
            own = [value if name == NORM or self.ranks.first else 0.0 for name, value in zip(names, row, strict=True)]
            self.values.append(torch.tensor(own, device=device))
        self.batches, self.earlier = [()] * len(rows), len(rows)

    def flush(self, step: int, rate: float) -> None:
        """Write the means of the steps since the last line.

        raises NotFinite
        """
        rows = self.pending(step)
        if not rows:
            return
        seconds, timed = time.monotonic() - self.since, len(rows) - self.earlier
        self.values, self.batches, self.since, self.earlier = [], [], time.monotonic(), 0
        columns = zip(self.names, zip(*rows, strict=True), strict=True)
        means = {name: math.fsum(column) / len(rows) for name, column in columns}
        speed = self.instances * timed / max(seconds, 1e-9)
        self._write({"step": step, **means, "learning_rate": rate, "instances_per_second": round(speed, 1)})
        self._draw("training", {**means, "learning_rate": rate, "instances_per_second": speed}, step)
        if self.ranks.first:
            losses = [f"{name} {value:.3g}" for name, value in means.items() if name != NORM]
            score = "" if self.score is None else f", score {self.score:.3f}"
            self.progress.advance(step - self.last_step, f"{' '.join(losses)}{score}, {speed:.0f} instances/s")
        self.last_step = step

    def validated(self, step: int, scores: Mapping[str, float], best: bool) -> None:
        """Write the scores of a validation; the time it took does not count as time of steps."""
        self._write({"step": step, "validation": dict(scores), "best": best})
        self._draw("validation", {name: value for name, value in scores.items() if math.isfinite(value)}, step)
        if self.ranks.first:
            words = " ".join(f"{name} {value:.4g}" for name, value in scores.items())
            self.progress.say(f"step {step}: validation {words}{' (best so far)' if best else ''}")
        self.score = scores["score"]
        self.since = time.monotonic()

    def pictures(self, step: int, target_HW: Tensor, predicted_HW: Tensor) -> None:
        """Show a target PRep and its prediction, grey between the target's least and largest value."""
        if self.board is None:
            return
        low, high = target_HW.min(), target_HW.max()
        for name, prep in (("target", target_HW), ("predicted", predicted_HW)):
            grey = ((prep - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
            self.board.add_image(f"prep/{name}", grey.unsqueeze(0).cpu().numpy(), step)

    def close(self) -> None:
        """Let TensorBoard write what it still holds."""
        if self.board is not None:
            self.board.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self.ranks.first:
            with self.run.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _draw(self, group: str, values: Mapping[str, float], step: int) -> None:
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{group}/{name}", value, step)


def open_board(run: Run, step: int, progress: Progress) -> Any:
    """Open TensorBoard's writer in the run's folder, without what lies after a step; None without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        progress.say(
            "note: TensorBoard is not installed, so only metrics.jsonl is written; pip install 'prepkit[train]'."
        )
        return None
    return SummaryWriter(str(run.path / TENSORBOARD), purge_step=step + 1 if step else None)
