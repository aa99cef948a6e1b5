"""Choosing instances of a zoo: views by condition, split, index, id or run, sorted and joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

import numpy as np

from prepkit.errors import ZooError, counted, listed, nearest
from prepkit.prep.layout import PRepShape
from prepkit.zoo.format.ids import sha256_of_ids
from prepkit.zoo.format.manifest import Manifest
from prepkit.zoo.format.tables import rows_at, rows_with
from prepkit.zoo.read._indices import number_of, numbers_of
from prepkit.zoo.read.store import Store
from prepkit.zoo.read.where import matching_rows

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from torch import Tensor

RUN = "run"
ORDERS = ("epoch", "step", "iteration", "training_iteration")  # columns that may tell how far a run was trained
SomeView = TypeVar("SomeView", bound="Selection")


class Selection:
    """The rows of an open zoo, or of a view of some of its instances; indices count within the view."""

    def __init__(
        self, store: Store, instances: np.ndarray | None, shape: PRepShape, *, trust_code: bool = False
    ) -> None:
        self._store = store
        self._instances = instances
        self.shape = shape
        self._trust_code = trust_code

    @property
    def manifest(self) -> Manifest:
        """The content of zoo.json."""
        return self._store.manifest

    @property
    def name(self) -> str:
        """The zoo's name."""
        return self.manifest.name

    @cached_property
    def table(self) -> pa.Table:
        """The table, one row an instance: id, architecture, class_id, split, shard, row, and the user's columns."""
        return self._store.table if self._instances is None else rows_at(self._store.table, self._instances)

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the ids, which names a split: `zoo.split("train").sha256`; see `prepkit.zoo.format.ids`."""
        return sha256_of_ids(self.table["id"].to_pylist())

    def __len__(self) -> int:
        return len(self._store.shard_of) if self._instances is None else len(self._instances)

    def to_pandas(self) -> pd.DataFrame:
        """Return the table as a pandas DataFrame, one row an instance.

        The types of its columns are those of the table and do not depend on values: whole numbers, booleans and text
        are pandas' nullable types, dates and lists those of Arrow (`frame["curve"].list[0]`), and in columns of
        float64 a missing number is NaN.
        raises ZooError if pandas is missing

        >>> zoo.where("accuracy > 0.9").to_pandas().groupby("run")["epoch"].min()
        """
        from prepkit.zoo.read._frames import data_frame

        return data_frame(self.table)

    # Views ----------------------------------------------------------------------------------------------------

    def where(self, condition: str) -> Self:
        """Return the instances that a condition on the table selects, as a view; see prepkit.zoo.read.where.

        A name that is not made of letters, digits and _ stands in backticks: zoo.where("`config.l2` < 1e-3").

        raises WhereError
        """
        return self.select(matching_rows(self.table, condition))

    def split(self, name: str) -> Self:
        """Return the instances of a split, as a view.

        raises ZooError if the zoo has no such split
        """
        if name not in self.manifest.splits:
            splits = self.manifest.splits
            raise ZooError(
                f"'{self.name}' has no split '{name}'; it has {listed(splits) or 'none'}.{nearest(name, splits)}"
            )
        return self.select(rows_with(self.table["split"], name))

    def select(self, indices: Sequence[int] | Sequence[str] | np.ndarray | Tensor | slice) -> Self:
        """Return these instances in this order, as a view; ids may stand in place of indices.

        raises IndexError, ZooError for an unknown id
        """
        numbers = self.numbers(indices)
        return self._view(numbers.copy() if self._instances is None else self._instances[numbers])

    def sort(self, *columns: str, descending: bool = False) -> Self:
        """Return the same instances in the order of columns, as a view; the first column counts most.

        Instances without a value come last, and equal ones stay in the order that they have.
        raises ZooError for no column, or one that is unknown or holds lists

        >>> zoo.sort("run", "epoch")
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        if not columns:
            raise ZooError("name a column to sort by, as in zoo.sort('epoch').")
        for name in columns:
            if pa.types.is_nested(self._column(name).type):
                raise ZooError(f"'{self.name}', column '{name}': it holds lists, which have no order.")
        direction = "descending" if descending else "ascending"
        order = pc.sort_indices(self.table, sort_keys=[(name, direction) for name in columns])
        return self.select(np.from_dlpack(order).astype(np.int64))

    def union(self, *others: Self) -> Self:
        """Return the instances of several views of one zoo, each once, as a view: first those of this one.

        raises ZooError for a view of another zoo

        >>> zoo.where("accuracy > 0.9").union(zoo.split("test"))
        """
        parts = [self._instances_of(None)]
        for other in others:
            if not isinstance(other, Selection) or other.manifest.to_dict() != self.manifest.to_dict():
                raise ZooError(f"only views of '{self.name}' can be joined to one; `prepkit zoo merge` joins zoos.")
            parts.append(other._instances_of(None))
        together = np.concatenate(parts)
        _, first = np.unique(together, return_index=True)
        return self._view(together[np.sort(first)])

    def runs(self, run: str = RUN, order: str | None = None) -> Runs[Self]:
        """Return the instances of each training run, from the first epoch to the last, as a view a run.

        run:   column that tells runs apart; instances without a value belong to none
        order: column that tells how far a run was trained; "epoch", "step", "iteration" or "training_iteration" if
               missing
        raises ZooError if there is no such column, or two instances of a run have the same epoch or none

        >>> for run, epochs in zoo.runs().items():
        ...     epochs.preps()    # [epochs, H, W], and epochs.table has their columns
        >>> zoo.runs().preps()    # [runs, epochs, H, W], all runs at once
        """
        return Runs(self, run, order)

    # Ids and indices ------------------------------------------------------------------------------------------

    def __contains__(self, id: object) -> bool:
        """Whether the zoo or view has an instance with this id."""
        if not isinstance(id, str):
            raise ZooError(f"`in` asks a zoo for an id, which is text; found {type(id).__name__}.")
        return id in self._ids

    def index(self, id: str) -> int:
        """Return the index of the instance with this id.

        raises ZooError if there is none
        """
        if not isinstance(id, str):
            raise ZooError(f"an id is text; found {type(id).__name__}.")
        try:
            return self._ids[id]
        except KeyError:
            raise ZooError(f"'{self.name}' has no instance '{id}'.{nearest(id, self._ids)}") from None

    def numbers(self, indices: Any) -> np.ndarray:
        """Return indices as an array of numbers from 0 to N - 1.

        indices: a number, several, a slice, or ids; negative numbers count from the end
        raises IndexError, ZooError for an unknown id
        """
        if isinstance(indices, list | tuple) and indices and all(isinstance(index, str) for index in indices):
            return np.array([self.index(id) for id in indices], dtype=np.int64)
        return numbers_of(indices, len(self))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {id: index for index, id in enumerate(self.table["id"].to_pylist())}

    def _view(self, instances: np.ndarray) -> Self:
        return type(self)(self._store, instances, self.shape, trust_code=self._trust_code)

    def _column(self, name: str) -> pa.ChunkedArray:
        if name not in self.table.column_names:
            names = self.table.column_names
            raise ZooError(f"'{self.name}' has no column '{name}'; it has {listed(names, 20)}.{nearest(name, names)}")
        return self.table[name]

    def _number(self, key: int | str) -> int:
        return self.index(key) if isinstance(key, str) else number_of(key, len(self))

    def _instance(self, number: int) -> int:
        return number if self._instances is None else int(self._instances[number])

    def _instances_of(self, indices: Any) -> np.ndarray:
        """Return the rows of the store's table for indices of this view."""
        if indices is None:
            return np.arange(len(self)) if self._instances is None else self._instances
        numbers = self.numbers(indices)
        return numbers if self._instances is None else self._instances[numbers]


class Runs(Mapping[Any, SomeView], Generic[SomeView]):
    """The runs of a zoo or view, in the order in which they first stand in its table: value of `run` -> view.

    Shapes: R runs, E the most instances that a run has, which are called its epochs here. Epoch e is the e-th instance
    of each run, whatever number `order` gives it: `column("epoch")` tells these.

    >>> runs = zoo.split("train").runs()
    >>> states, accuracies = runs.preps(), runs.column("accuracy")    # [R, E, H, W], [R, E]
    >>> is_there = runs.mask()                                        # [R, E], all True where runs are equally long
    """

    def __init__(self, zoo: SomeView, run: str, order: str | None) -> None:
        self.zoo = zoo
        self.run = run
        self.order = order or self._known_order()
        values = zoo._column(run).to_pylist()
        epochs = zoo._column(self.order).to_pylist()
        self._rows: dict[Any, list[int]] = {}
        for row, value in enumerate(values):
            if value is not None:
                self._rows.setdefault(value, []).append(row)
        for value, rows in self._rows.items():
            self._check(value, [epochs[row] for row in rows])
            rows.sort(key=epochs.__getitem__)

    def __getitem__(self, run: Any) -> SomeView:
        """Return a run's instances, from its first epoch to its last."""
        if run not in self._rows:
            hint = nearest(run, map(str, self._rows)) if isinstance(run, str) else ""
            raise KeyError(f"'{self.zoo.name}' has no run {run!r}; it has {counted(len(self), 'run')}.{hint}")
        return self.zoo.select(np.array(self._rows[run], dtype=np.int64))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'run')} of '{self.zoo.name}', in the order of '{self.order}'>"

    def mask(self) -> Tensor:
        """Return booleans `[R, E]`: True where a run has an epoch."""
        import torch

        return torch.from_numpy(self._places() >= 0)

    def preps(self) -> Tensor:
        """Return the PReps of all runs, `[R, E, H, W]`, zeros where a run has no such epoch."""
        places, zoo = self._places(), cast(Any, self.zoo)
        return self._spread(places, zoo.preps(places[places >= 0]))

    def column(self, name: str) -> Tensor:
        """Return a column of all runs, `[R, E]`, zeros where a run has no such epoch.

        Whole numbers become int64, booleans bool and other numbers float32, as in `zoo.loader(columns=...)`.
        raises ZooError for a column that is unknown or holds no numbers, or if an instance has no value
        """
        from prepkit.zoo.read._columns import column_tensors

        places = self._places()
        rows = self.zoo.select(places[places >= 0])
        return self._spread(places, column_tensors(rows.table, [name], rows.name)[name])

    def _places(self) -> np.ndarray:
        """Return the index of each epoch of each run in the zoo, `[R, E]`; -1 where there is none."""
        places = np.full((len(self), max(map(len, self._rows.values()), default=0)), -1)
        for run, rows in enumerate(self._rows.values()):
            places[run, : len(rows)] = rows
        return places

    @staticmethod
    def _spread(places: np.ndarray, values: Tensor) -> Tensor:
        """Return values `[N, ...]`, one for each place that is not -1, as `[R, E, ...]`."""
        import torch

        if (places >= 0).all():
            return values.view(*places.shape, *values.shape[1:])
        spread = values.new_zeros(*places.shape, *values.shape[1:])
        spread[torch.from_numpy(places >= 0)] = values
        return spread

    def _known_order(self) -> str:
        columns = self.zoo.table.column_names
        names = [name for name in ORDERS if name in columns]
        if not names:
            raise ZooError(
                f"'{self.zoo.name}' has no column {listed(ORDERS)}, so name the one that tells how far a run was "
                f"trained: zoo.runs(order=...). It has {listed(columns, 20)}."
            )
        return names[0]

    def _check(self, run: Any, epochs: Sequence[Any]) -> None:
        """Raise ZooError unless each instance of a run has an epoch of its own."""
        if None in epochs or len(set(epochs)) < len(epochs):
            fault = "one has none" if None in epochs else "two have the same"
            raise ZooError(
                f"'{self.zoo.name}', run {run!r}: its {counted(len(epochs), 'instance')} cannot be put in order by "
                f"'{self.order}', since {fault}; choose with zoo.where(...), or name another column with order=."
            )
