"""Lines between instances: through the embedding space, and directly from weight to weight (Fig. 3 to 5).

    lines = interpolate(run, zoo, "resnet8-3", "resnet8-7", steps=11)
    lines.table                        # one row for each line, pair and step: gamma, accuracy, predicted ClassId
    lines.summary()                    # mean and spread over pairs
    lines.predicted(0).network(5)      # the instance in the middle of the first pair's line, ready to use

Shapes: P pairs, S steps, M = P S points, E embedding values, H x W the PRep.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import prepkit
from netspace.explore.sampling import PointError, Points, check_samples, points_of, resolve_task
from netspace.run.run import run_and_zoo
from netspace.space.evaluation import preps_of
from netspace.space.network import NetSpace
from netspace.space.prediction import Prediction, predict
from netspace.training import losses
from prepkit.errors import counted
from prepkit.running.groups import distance_grids
from prepkit.support.progress import Advance
from prepkit.support.statistics import from_straight_line, largest_fall
from prepkit.support.text import Brief
from prepkit.tasks.distance_grid import has_surface, volumes
from prepkit.zoo.read.accuracy import accuracies_of, chunks, has_items

if TYPE_CHECKING:
    import pyarrow as pa

    from netspace.run.run import Run

EMBEDDING, WEIGHTS = "embedding", "weights"
TEST = "test"
GRID = 32  # grid points along an axis, enough for volumes

Asked = str | Sequence[str] | Tensor


@dataclass(frozen=True, repr=False)
class Interpolation(Brief):
    """The instances along the lines of P pairs.

    table:   `pair`, `first`, `second`, `line` ("embedding" or "weights"), `step`, `gamma`; `class_id` and
             `architecture` of the network that runs there (along an embedding line, the predicted one); and `accuracy`
             on the task's samples; for signals instead `volume` inside the surface, `has_surface`, and `accuracy_first`
             and `accuracy_second`, the share of outputs within 1e-2 of the true distances to either end's shape
    latents: embeddings `[P, S, E]`
    gammas:  gamma of each of the S steps, 0 at the first end and 1 at the second
    notes:   reasons why pairs have no line of weights
    """

    table: pa.Table
    latents: Tensor
    gammas: tuple[float, ...]
    first: Points
    second: Points
    notes: tuple[str, ...]
    space: NetSpace = field(repr=False)
    registry: prepkit.Registry = field(repr=False)

    @property
    def value(self) -> str:
        """Name of the column that is followed along a line: accuracy, or volume for signals."""
        return "accuracy" if "accuracy" in self.table.column_names else "volume"

    def predicted(self, pair: int = 0) -> Prediction:
        """Predict the S instances along a pair's embedding line."""
        with torch.no_grad():
            return predict(self.space, self.latents[pair], self.registry)

    def values(self, line: str = EMBEDDING) -> Tensor:
        """Return the column `value` of all pairs that have such a line, `[pairs, S]` float64."""
        import pyarrow.compute as pc

        chosen = self.table.filter(pc.equal(self.table["line"], line))
        return torch.tensor(chosen[self.value].to_pylist(), dtype=torch.float64).view(-1, len(self.gammas))

    def class_ids(self) -> Tensor:
        """Return the predicted ClassIds along the embedding lines, `[P, S]` int64."""
        import pyarrow.compute as pc

        chosen = self.table.filter(pc.equal(self.table["line"], EMBEDDING))
        return torch.tensor(chosen["class_id"].to_pylist()).view(-1, len(self.gammas))

    def summary(self) -> dict[str, Any]:
        """Return means and spread over pairs, JSON-able.

        Each line has, by step, the mean and the deviation over pairs (None for one pair). Averaged over pairs it has
        `largest_fall`, how far the value falls below an earlier one, and `from_straight_line`, the mean distance from
        the straight line between its ends. `class_ids_in_order` is the share of pairs whose predicted ClassIds never
        fall on the way.
        """
        lines: dict[str, Any] = {}
        for line in (EMBEDDING, WEIGHTS):
            values_PS = self.values(line)
            if not len(values_PS):
                continue
            spread = values_PS.std(dim=0).tolist() if len(values_PS) > 1 else [None] * len(self.gammas)
            lines[line] = {
                "pairs": len(values_PS),
                "mean": values_PS.mean(dim=0).tolist(),
                "deviation": spread,
                "largest_fall": float(largest_fall(values_PS).mean()),
                "from_straight_line": from_straight_line(values_PS, values_PS[:, [0, -1]], self.gammas),
            }
        rising_P = (self.class_ids().diff(dim=1) >= 0).all(dim=1)
        return {
            "pairs": len(self.first),
            "value": self.value,
            "gammas": list(self.gammas),
            "lines": lines,
            "class_ids_in_order": float(rising_P.double().mean()),
            "notes": list(self.notes),
        }


def interpolate(
    run: Run | str | os.PathLike[str],
    zoo: prepkit.Zoo | str | os.PathLike[str],
    first: Asked,
    second: Asked,
    steps: int = 11,
    *,
    samples: str = TEST,
    space: NetSpace | None = None,
    task: Any = None,
    data: Path | None = None,
    resolution: int = GRID,
    progress: Advance | None = None,
) -> Interpolation:
    """Walk from each first point to its second one and judge the instances at all steps.

    first, second: ids of instances, or embeddings `[E]` or `[P, E]`; as many of one as of the other
    steps:         number of points along a line, both ends included; at least 2
    samples:       split of the task's samples that accuracy is measured on
    space:         the run's NetSpace if it is loaded already; else that of the best validation is loaded, on the CPU
    task:          the zoo's task if it is loaded already; else it is loaded with its data in the folder `data`
    resolution:    for signals: points along an axis of the grid that volumes are counted on
    progress:      called with the number of points that were finished since the last call
    Weights are interpolated between the instances' own PReps, aligned if the run aligns, where both have the same
    architecture.
    raises PointError for less than 2 steps or points that are not there, ZooError for unknown ids
    """
    run, zoo = run_and_zoo(run, zoo)
    if steps < 2:
        raise PointError(f"{counted(steps, 'step')}: a line has at least its 2 ends.")
    space = run.space() if space is None else space
    a, b = points_of(space, zoo, first), points_of(space, zoo, second)
    if len(a) != len(b):
        raise PointError(
            f"{len(a)} first and {len(b)} second points are no pairs; give as many of one as of the other."
        )
    task = resolve_task(zoo, space, task, data)
    judge = _Judge(run.registry, zoo, task, check_samples(task, samples), resolution, progress)
    gammas = tuple(step / (steps - 1) for step in range(steps))
    pairs = [(pair, len(a) + pair) for pair in range(len(a))]
    latent_PSE = losses.interpolate_embeddings(torch.cat([a.latents, b.latents]), pairs, gammas)

    flat_ME = latent_PSE.flatten(0, 1)
    ends = [(pair, step) for pair in range(len(a)) for step in range(steps)]
    with torch.no_grad():
        for places in chunks(len(ends)):
            predicted = predict(space, flat_ME[places[0] : places[-1] + 1], run.registry)
            judge.add(EMBEDDING, [ends[place] for place in places], a, b, predicted.class_ids, predicted.preps)
        same, notes = _pairs_of_one_architecture(run, zoo, a, b)
        ends = [(pair, step) for pair in same for step in range(steps)]
        for places in chunks(len(ends)):
            chosen = [ends[place] for place in places]
            class_ids, preps_MHW = weights_between(space, zoo, a, b, chosen, gammas, task.device)
            judge.add(WEIGHTS, chosen, a, b, class_ids, preps_MHW)
    return Interpolation(judge.table(gammas), latent_PSE, gammas, a, b, notes, space, run.registry)


def _pairs_of_one_architecture(run: Run, zoo: prepkit.Zoo, a: Points, b: Points) -> tuple[list[int], tuple[str, ...]]:
    """List the pairs whose weights can be interpolated, and notes that say why others cannot."""
    if a.rows is None or b.rows is None:
        return [], ("an embedding that was given has no weights of its own, so there is no line of weights.",)
    ids = list(zip(zoo.class_ids(list(a.rows)).tolist(), zoo.class_ids(list(b.rows)).tolist(), strict=True))
    same = [pair for pair, (first, second) in enumerate(ids) if first == second]
    different = Counter(pair for pair in ids if pair[0] != pair[1])
    names = list(run.registry.class_ids)
    notes = tuple(
        f"{count} of {counted(len(ids), 'pair')} {'has' if count == 1 else 'have'} no line of weights: "
        f"{names[first]} and {names[second]} differ in their layers."
        for (first, second), count in different.items()
    )
    return same, notes


def weights_between(
    space: NetSpace,
    zoo: prepkit.Zoo,
    a: Points,
    b: Points,
    chosen: Sequence[tuple[int, int]],
    gammas: Sequence[float],
    device: torch.device,
) -> tuple[list[int], Tensor]:
    """ClassIds and PReps `[M, H, W]` of the instances on lines of weights, whose ends are aligned if the space aligns.

    a, b:   points that are instances; both of a pair have the same architecture
    chosen: pair and step of each of the M instances
    """
    rows_a, rows_b = a.rows or (), b.rows or ()
    pairs = list(dict.fromkeys(pair for pair, _ in chosen))
    ends_NHW = preps_of(space, zoo, [rows[pair] for rows in (rows_a, rows_b) for pair in pairs]).to(device)
    places = [pairs.index(pair) for pair, _ in chosen]
    start_MHW, stop_MHW = ends_NHW[places], ends_NHW[len(pairs) :][places]
    gamma_M11 = torch.tensor([gammas[step] for _, step in chosen], device=device).view(-1, 1, 1)
    class_ids: list[int] = zoo.class_ids([rows_a[pair] for pair, _ in chosen]).tolist()
    return class_ids, (1 - gamma_M11) * start_MHW + gamma_M11 * stop_MHW


@dataclass
class _Judge:
    """Judges instances and collects the rows of an Interpolation's table."""

    registry: prepkit.Registry
    zoo: prepkit.Zoo
    task: Any
    samples: str
    resolution: int
    progress: Advance | None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        line: str,
        chosen: Sequence[tuple[int, int]],
        a: Points,
        b: Points,
        class_ids: Sequence[int],
        preps_MHW: Tensor,
    ) -> None:
        """Judge the instances of these pairs and steps."""
        names = list(self.registry.class_ids)
        columns = self._columns([pair for pair, _ in chosen], a, b, class_ids, preps_MHW)
        for place, (pair, step) in enumerate(chosen):
            row = {"pair": pair, "first": a.names[pair], "second": b.names[pair], "line": line, "step": step}
            row |= {"class_id": class_ids[place], "architecture": names[class_ids[place]]}
            self.rows.append(row | {name: values[place] for name, values in columns.items()})
        if self.progress is not None:
            self.progress(len(chosen))

    def _columns(
        self, pairs: Sequence[int], a: Points, b: Points, class_ids: Sequence[int], preps_MHW: Tensor
    ) -> dict[str, Sequence[Any]]:
        if not has_items(self.zoo):
            return {"accuracy": accuracies_of(self.registry, class_ids, preps_MHW, None, self.task, self.samples)}
        grids = distance_grids(self.registry, class_ids, preps_MHW, self.resolution)
        columns: dict[str, Sequence[Any]] = {"volume": volumes(grids), "has_surface": has_surface(grids)}
        for name, end in (("accuracy_first", a), ("accuracy_second", b)):
            if end.rows is None:
                columns[name] = [None] * len(pairs)
                continue
            view = self.zoo.select([end.rows[pair] for pair in pairs])
            columns[name] = accuracies_of(self.registry, class_ids, preps_MHW, view, self.task, self.samples)
        return columns

    def table(self, gammas: Sequence[float]) -> pa.Table:
        """Return all rows as a table, with `gamma` after `step`."""
        import pyarrow as pa

        table = pa.Table.from_pylist(self.rows)
        place = table.column_names.index("step") + 1
        return table.add_column(place, "gamma", pa.array([gammas[step] for step in table["step"].to_pylist()]))
