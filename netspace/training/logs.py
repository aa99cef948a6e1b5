"""What a training tells while it goes on: metrics.jsonl, TensorBoard, and a Progress for whoever watches."""

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
from netspace.training.parallel import Ranks
from prepkit.progress import Progress

EVERY_STEPS = 10  # between looks at the losses: each look waits for the device


class NotFinite(prepkit.PrepkitError):
    """A loss or a gradient became infinite or not a number; the last good state is kept."""

    exit_code = 1


@dataclass
class Log:
    """Collects what steps put out, on the device, and writes it down every few of them.

    instances: of a step, over all processes
    """

    run: Run
    ranks: Ranks
    progress: Progress
    instances: int
    board: Any = None
    names: tuple[str, ...] = ()
    values: list[Tensor] = field(default_factory=list)  # one a step, `[parts]`
    batches: list[tuple[int, ...]] = field(default_factory=list)  # indices of the instances of each
    since: float = field(default_factory=time.monotonic)
    last_step: int = 0  # the last step that the progress heard of
    score: float | None = None  # of the last validation

    def step(self, step: int, parts: Mapping[str, Tensor], indices: Sequence[int], rate: float) -> None:
        """Note one step.

        parts: scalars on the device by name, this process's share of the sums; `gradient_norm` is of all
        raises NotFinite
        """
        self.names = tuple(parts)
        self.values.append(torch.stack([part.float() for part in parts.values()]))
        self.batches.append(tuple(indices))
        if len(self.values) == EVERY_STEPS:
            self.flush(step, rate)

    def look(self, step: int) -> list[list[float]]:
        """What the steps since the last line put out, one row each: kept with a state, for the line to come.

        raises NotFinite
        """
        if not self.values:
            return []
        table = torch.stack(self.values)  # [steps, parts]
        norm = self.names.index("gradient_norm")
        shared = torch.ones(table.shape[1], dtype=torch.bool, device=table.device)
        shared[norm] = False
        table = torch.where(shared, self.ranks.sum(table * shared), table).double().cpu()
        finite = torch.isfinite(table)
        if not finite.all():
            row, column = (int(index) for index in (~finite).nonzero()[0])
            found = float(table[row, column])
            instances = ", ".join(map(str, self.batches[row])) or "?"
            raise NotFinite(
                f"step {step - len(table) + row + 1}: {self.names[column]} is {found}, with the training instances "
                f"{instances}. The checkpoints of '{self.run.path}' are from before. A run "
                "goes on with its own recipe alone: train anew into another --out, with a lower "
                "optimizer.learning_rate, an optimizer.clip or training.precision=float32."
            )
        rows: list[list[float]] = table.tolist()
        return rows

    def restore(self, names: Sequence[str], rows: Sequence[Sequence[float]], device: torch.device) -> None:
        """Go on with the line that an interrupted training had begun, by the first process."""
        self.names = tuple(names)
        zero = [
            [
                value if name == "gradient_norm" or self.ranks.first else 0.0
                for name, value in zip(names, row, strict=True)
            ]
            for row in rows
        ]
        self.values = [torch.tensor(row, device=device) for row in zero]
        self.batches = [()] * len(rows)

    def flush(self, step: int, rate: float) -> None:
        """Write the means of the steps since the last line.

        raises NotFinite
        """
        rows = self.look(step)
        if not rows:
            return
        seconds = time.monotonic() - self.since
        self.values, self.batches, self.since = [], [], time.monotonic()
        means = dict(
            zip(self.names, (math.fsum(column) / len(rows) for column in zip(*rows, strict=True)), strict=True)
        )
        speed = self.instances * len(rows) / max(seconds, 1e-9)
        self._write({"step": step, **means, "learning_rate": rate, "instances_per_second": round(speed, 1)})
        if self.board is not None:
            for name, value in means.items():
                self.board.add_scalar(f"training/{name}", value, step)
            self.board.add_scalar("training/learning_rate", rate, step)
            self.board.add_scalar("training/instances_per_second", speed, step)
        if self.ranks.first:
            losses = [f"{name} {value:.3g}" for name, value in means.items() if name != "gradient_norm"]
            score = "" if self.score is None else f", score {self.score:.3f}"
            self.progress.advance(step - self.last_step, f"{' '.join(losses)}{score}, {speed:.0f} instances/s")
        self.last_step = step

    def validated(self, step: int, scores: Mapping[str, float], best: bool) -> None:
        """Write what a validation found; the time it took does not count as the steps'."""
        self._write({"step": step, "validation": dict(scores), "best": best})
        if self.board is not None:
            for name, value in scores.items():
                if math.isfinite(value):
                    self.board.add_scalar(f"validation/{name}", value, step)
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
        """Write what TensorBoard still holds."""
        if self.board is not None:
            self.board.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self.ranks.first:
            with self.run.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def board_of(run: Run, step: int, progress: Progress) -> Any:
    """A TensorBoard writer in the run's folder that forgets what lies after a step; None without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        progress.say(
            "note: TensorBoard is not installed, so only metrics.jsonl is written; pip install 'prepkit[train]'."
        )
        return None
    return SummaryWriter(str(run.path / TENSORBOARD), purge_step=step + 1 if step else None)
