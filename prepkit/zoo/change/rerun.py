"""Run instances of a zoo again, and compare their accuracy on their task's test data with the stored accuracy.

Instances that are pictures are compared with their pictures, by PSNR.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prepkit.errors import ZooError
from prepkit.zoo.format.function import ACCURACY, PSNR, Function, HowToRun, Verified

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.tasks.task import Task
    from prepkit.zoo.read.zoo import Zoo

ITEM = "item"  # the column with the number of the data set that an instance was trained on
TEST = "test"


DECIBELS = 0.05  # difference of PSNR at which a run agrees, where the zoo says no other


@dataclass(frozen=True)
class Rerun:
    """An instance that was run again: what is stored, what was found now, and whether they agree.

    measure: what was compared, "accuracy" or "psnr"
    least:   what the run must reach as well, where prepkit measured what is stored; None if nothing
    """

    id: str
    stored: float | None
    found: float
    agrees: bool
    measure: str = ACCURACY
    least: float | None = None


def run_again(zoo: Zoo, count: int, data: str | os.PathLike[str] | None = None) -> tuple[Rerun, ...]:
    """Run `count` instances, spread evenly over the zoo, on the task's test data, or on the pictures that they are.

    data: the folder of the task's data or of the pictures, if it is one of the user's
    The classification of one sample may change where arithmetic differs from the machine that measured; two changes
    are a disagreement.
    raises ZooError if the data is not at hand or not that of the zoo, or the table has no column to compare with
    """
    how = HowToRun() if zoo.manifest.function is None else zoo.manifest.function.how
    if how.unverifiable is not None:
        raise ZooError(f"no run can prove '{zoo.name}': {how.unverifiable}.")
    if how.measure not in zoo.table.column_names:
        raise ZooError(f"'{zoo.name}' has no column '{how.measure}' to compare with. {_remedy(how.measure)}")
    folder = None if data is None else Path(data)
    run_one = _pictures(zoo, how, folder) if how.measure == PSNR else _task(zoo, how, folder)
    indices = _with_measure(zoo, how.measure)
    spread = [indices[index * len(indices) // count] for index in range(count)] if count < len(indices) else indices
    return tuple(run_one(index) for index in spread)


def _with_measure(zoo: Zoo, measure: str) -> Sequence[int]:
    """Return the instances to choose from: of an imported zoo those whose makers measured them, of others all.

    raises ZooError if none was measured
    """
    if zoo.manifest.function is None:
        return range(len(zoo))
    found = [index for index, value in enumerate(zoo.table[measure].to_pylist()) if value is not None]
    if not found:
        raise ZooError(f"'{zoo.name}' has no '{measure}' of any instance to compare with. {_remedy(measure)}")
    return found


def _remedy(measure: str) -> str:
    """Say where what is compared may come from."""
    if measure == PSNR:
        return (
            "It was imported without its pictures, and its makers stored no PSNR: with `prepkit zoo import siren "
            "SRC DST --data PICTURES` each model is measured, and `prepkit zoo annotate DIR --table FILE` adds a "
            "column 'psnr' that somebody else measured."
        )
    return f"`prepkit zoo annotate DIR --table FILE` adds the makers' column '{measure}'."


def proven(function: Function, runs: tuple[Rerun, ...]) -> Function:
    """Return what runs say of a zoo's function: it is verified if all of them agree."""
    differences = [abs(run.stored - run.found) for run in runs if run.stored is not None]
    if not runs or not all(run.agrees for run in runs):
        return Function(function.how_to_run)
    return Function(function.how_to_run, Verified(runs[0].measure, len(runs), max(differences)))


def _task(zoo: Zoo, how: HowToRun, data: Path | None) -> Callable[[int], Rerun]:
    """Return what runs an instance on the test data of the zoo's task."""
    from prepkit.tasks import load_task

    task = load_task(zoo.task, data)
    one_sample = 1.001 / task.splits[TEST]  # a little more than one sample, as the stored number is rounded
    tolerance = one_sample if how.tolerance is None else how.tolerance
    return lambda index: _rerun(zoo, index, ACCURACY, tolerance, _accuracy(zoo, index, task))


def _accuracy(zoo: Zoo, index: int, task: Task) -> float:
    row = zoo.metadata(index)
    network = zoo.network(index).float()
    shared = 1 + len(task.input_shape)  # number of axes if all instances share the inputs; else there is one more

    def run(inputs: Tensor) -> Tensor:
        outputs: Tensor = network(inputs if inputs.ndim == shared else inputs[0])
        return outputs[None]

    try:
        return float(task.evaluate(run, [row.get(ITEM) or 0], TEST)[ACCURACY].item())
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ZooError(f"instance '{row['id']}' does not run on the task's test data: {reason}") from None


def _pictures(zoo: Zoo, how: HowToRun, folder: Path | None) -> Callable[[int], Rerun]:
    """Return what compares an instance with its picture."""
    from prepkit.tasks.pictures import PICTURE, psnr, read_picture

    tolerance = DECIBELS if how.tolerance is None else how.tolerance

    def run_one(index: int) -> Rerun:
        row = zoo.metadata(index)
        try:
            picture = read_picture(folder, row.get(PICTURE))
            found = psnr(zoo.network(index).float(), picture, how.grid or "xy", how.mean, how.std)
        except (ZooError, RuntimeError, ValueError) as error:  # DataMissing is not of one instance
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ZooError(f"instance '{row['id']}' cannot be compared with its picture: {reason}") from None
        return _rerun(zoo, index, PSNR, tolerance, found, how.least)

    return run_one


def _rerun(zoo: Zoo, index: int, measure: str, tolerance: float, found: float, least: float | None = None) -> Rerun:
    row = zoo.metadata(index)
    stored = row[measure]
    agrees = isinstance(stored, int | float) and math.isfinite(stored) and abs(stored - found) <= tolerance
    return Rerun(row["id"], stored, found, agrees and (least is None or found >= least), measure, least)
