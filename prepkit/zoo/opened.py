"""The zoo that `open_zoo` returns: that of `prepkit.zoo.read.zoo`, whose columns can also be changed.

It is a class of its own because reading knows nothing of writing, of cards and of locks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from prepkit.errors import ZooError
from prepkit.zoo.read import zoo
from prepkit.zoo.read.store import LocalStore


class Zoo(zoo.Zoo):
    """An open zoo, or a view of some of its instances; indices count within the view."""

    def with_columns(
        self,
        columns: Any,
        *,
        on: str | Sequence[str] | Mapping[str, str] | None = None,
        types: Mapping[str, str | type] | None = None,
    ) -> Self:
        """Write columns into the zoo's table, and return the same instances of the zoo as it is then.

        The folder is changed, under its lock and in one step, and its provenance tells what was added when; this object
        stays as it is. The command `prepkit zoo annotate` does the same, and also renames and drops columns.

        columns: a pandas, polars or pyarrow table, a mapping of names to values, or the path of a CSV, TSV, JSON or
                 JSONL file. A column that the zoo has gets the new values where there is one; an instance without a
                 row, or with a missing value in its row, keeps what it has.
        on:      column by which rows are found, or several, or zoo's column -> given column: {"epoch": "step"}; `id`
                 if missing. A row counts for all instances of its key.
        types:   types of a text file's columns; the narrowest that fits all cells if missing
        raises ZooError for a zoo that is not a local folder, names or values that do not fit, or if no row is of any
        instance; ZooLocked; OutputError

        >>> zoo = zoo.with_columns({"id": ["run0", "run1"], "robustness": [0.42, 0.5]})
        >>> zoo.where("robustness > 0.45").table["id"].to_pylist()
        ['run1']
        """
        from prepkit.zoo.change.annotating import annotate

        if not isinstance(self._store, LocalStore):
            if not self._store.is_remote:
                raise ZooError(f"'{self.name}' is still written; give its columns when it is finished.")
            raise ZooError(
                f"'{self.name}' is not in a folder on this machine, and nothing is changed elsewhere. `prepkit pull` "
                "brings a zoo of the Hub here; copy one of another store."
            )
        annotate(self._store.root, columns, on=on, types=types)
        whole = type(self)(self._store.reopened(), None, self.shape, trust_code=self._trust_code)
        return whole if self._instances is None else whole.select(self.table["id"].to_pylist())
