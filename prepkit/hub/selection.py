"""Which instances of a zoo are pulled, and the record of where a pulled zoo came from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import WhereError, ZooError, listed, nearest
from prepkit.files import replacing
from prepkit.zoo.read.where import parse_where

if TYPE_CHECKING:
    import pyarrow as pa

    from prepkit.zoo.format.manifest import Manifest

RECORD = Path(".cache") / "prepkit" / "pulled.json"  # the Hub's own client keeps its records in .cache too


@dataclass(frozen=True)
class Selection:
    """Conditions that instances must meet, all of them; without any, the whole zoo is meant.

    splits, architectures: instances of any of these
    """

    where: str | None = None
    splits: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()

    @classmethod
    def of(cls, where: str | None, split: str | Iterable[str] | None, architecture: str | Iterable[str] | None) -> Any:
        """A selection of what a user gives."""
        return cls(where, _names(split), _names(architecture))

    @property
    def is_whole(self) -> bool:
        """Whether every instance is meant."""
        return self == Selection()

    def __str__(self) -> str:
        if self.is_whole:
            return "the whole zoo"
        parts = [f"split {listed(self.splits)}"] if self.splits else []
        parts += [f"architecture {listed(self.architectures)}"] if self.architectures else []
        parts += [f"where {self.where}"] if self.where is not None else []
        return "; ".join(parts)

    def chosen(self, manifest: Manifest, table: pa.Table) -> pa.Table:
        """The rows of a zoo's table that are meant.

        raises ZooError for a split or architecture that the zoo does not have, or if no instance is meant
        raises WhereError
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        rows = table
        names = [stored.name for stored in manifest.architectures]
        for column, asked, known in (
            ("split", self.splits, list(manifest.splits)),
            ("architecture", self.architectures, names),
        ):
            if asked:
                _check_known(column, asked, known, manifest.name)
                rows = rows.filter(pc.is_in(rows[column], pa.array(asked, pa.string())))
        if self.where is not None:
            expression = parse_where(self.where, table.column_names)
            try:
                rows = rows.filter(expression)
            except pa.ArrowException as error:
                raise WhereError(f"condition {self.where!r}: {str(error).splitlines()[0]}") from None
        if not len(rows):
            raise ZooError(f"none of the {len(table):,} instances of '{manifest.name}' is meant by: {self}.")
        return rows


@dataclass(frozen=True)
class Record:
    """Where a folder's zoo came from.

    manifest: sha256 that its zoo.json says of itself; None while it is not there yet
    """

    repo: str
    commit: str
    selection: Selection
    manifest: str | None = None


def write_record(record: Record, file: Path) -> None:
    """Keep a record, whole or not at all.

    raises OutputError
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, overwrite=True) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def read_record(file: Path) -> Record | None:
    """A record, None if there is none that can be read."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        data = json.loads(file.read_bytes())
        selection = data.pop("selection")
        lists = {key: tuple(selection[key]) for key in ("splits", "architectures")}
        return Record(**data, selection=Selection(selection["where"], **lists))
    return None


def _names(given: str | Iterable[str] | None) -> tuple[str, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(sorted(set(given)))


def _check_known(what: str, asked: tuple[str, ...], known: list[str], zoo: str) -> None:
    for name in asked:
        if name not in known:
            raise ZooError(f"'{zoo}' has no {what} '{name}'; it has {listed(known) or 'none'}.{nearest(name, known)}")
