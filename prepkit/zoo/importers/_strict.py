"""Strict splits, which let nothing leak: equal models are left out, and all models of a run are in one split.

Of models with equal weights only the first is kept. Runs, ordered by the sha256 of their names, are for testing (half),
training (four tenths) and validation (one tenth). Any Source may be split so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from prepkit.errors import ZooError, listed, nearest
from prepkit.zoo.format.drawn_split import EARLIER_SPLIT
from prepkit.zoo.importers._paper_split import strict_splits
from prepkit.zoo.write.adding import Model, Source, Told

PAPER, STRICT = "paper", "strict"
RUN = "run"
REPLACED = f"{EARLIER_SPLIT}original"  # column with the split that a path or a table told


def check_splits(splits: str | None, known: Sequence[str] = (STRICT,)) -> None:
    """Raise ZooError for a name of splits that an importer does not know."""
    if splits is not None and splits not in known:
        raise ZooError(f"`splits` is {' or '.join(known)}, not {splits!r}.{nearest(splits, known)}")


class StrictSource(Source):
    """The models of another source, split strictly.

    run_of: gives the run of a model by its index; the column `run` if missing
    raises ZooError if nothing tells a model's run
    """

    leaves_out_copies = True

    def __init__(self, source: Source, run_of: Callable[[int], str] | None = None) -> None:
        self._source = source
        self.ids, self.types, self.how_to_run = source.ids, source.types, source.how_to_run
        self.options, self.record = {**source.options, "splits": STRICT}, source.record
        self.has_mixed_tables, self.task = source.has_mixed_tables, source.task
        runs = [run_in_columns(source, index) if run_of is None else run_of(index) for index in range(len(self.ids))]
        by_run = strict_splits(runs)
        self._split = [by_run[run] for run in runs]

    def read(self, index: int) -> Model:
        """Read one model, with its split."""
        model = self._source.read(index)
        return replace(model, split=self._split[index], columns=_with_replaced(model.columns, model.split))

    def told(self, index: int) -> Told:
        """Return what paths and tables say of a model, with its split."""
        told = self._source.told(index)
        return Told(_with_replaced(told.columns, told.split), self._split[index])

    def sha256(self, index: int) -> str | None:
        """Return the sha256 of a model's file."""
        return self._source.sha256(index)

    def name(self, index: int) -> str:
        """Return what a message calls a model."""
        return self._source.name(index)

    def notes(self) -> Sequence[str]:
        """Return the sentences of the other source."""
        self._source.counts = self.counts
        return self._source.notes()


def run_in_columns(source: Source, index: int) -> str:
    """Return the run that paths and tables tell of a model.

    raises ZooError if they tell none
    """
    columns = source.told(index).columns
    if columns.get(RUN) is None:
        raise ZooError(
            f"{source.name(index)}: nothing tells its run, but `splits` {STRICT} keeps the models of a run together. "
            f"Give the pattern a field {{run}}, or a table a column '{RUN}'; there is {listed(columns) or 'no column'}."
        )
    return str(columns[RUN])


def _with_replaced(columns: Any, split: str | None) -> dict[str, Any]:
    return dict(columns) if split is None else {**columns, REPLACED: split}
