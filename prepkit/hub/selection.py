"""A choice among the instances of a zoo, and the record of where a pulled zoo came from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from prepkit.errors import WhereError, ZooError, counted, listed, nearest
from prepkit.support.files import replacing
from prepkit.zoo.read.where import parse_where

if TYPE_CHECKING:
    import pyarrow as pa

    from prepkit.zoo.format.manifest import Manifest

RECORD = Path(".cache") / "prepkit" / "pulled.json"  # the Hub's own client keeps its records in .cache too


@dataclass(frozen=True)
class Selection:
    """Conditions that instances must all meet; without any, the whole zoo is chosen.

    splits, architectures: names of which an instance has one
    """

    where: str | None = None
    splits: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()

    @classmethod
    def of(cls, where: str | None, split: str | Iterable[str] | None, architecture: str | Iterable[str] | None) -> Self:
        """Make a selection from a user's arguments, before anything is asked of the Hub.

        raises WhereError for a condition that no table can answer
        """
        if where is not None:
            parse_where(where, None)
        return cls(where, _names(split), _names(architecture))

    @property
    def is_whole(self) -> bool:
        """Whether every instance is chosen."""
        return self == Selection()

    def __str__(self) -> str:
        if self.is_whole:
            return "the whole zoo"
        parts = [f"split {listed(self.splits)}"] if self.splits else []
        parts += [f"architecture {listed(self.architectures)}"] if self.architectures else []
        parts += [f"where {self.where}"] if self.where is not None else []
        return "; ".join(parts)

    def chosen(self, manifest: Manifest, table: pa.Table) -> pa.Table:
        """Return the rows of a zoo's table that are chosen.

        raises ZooError for a split or architecture that the zoo does not have, or if no instance is chosen
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
            expression = parse_where(self.where, table.schema)
            try:
                rows = rows.filter(expression)
            except pa.ArrowException as error:
                raise WhereError(f"condition {self.where!r}: {str(error).splitlines()[0]}") from None
        if not len(rows):
            raise ZooError(f"none of the {counted(len(table), 'instance')} of '{manifest.name}' matches: {self}.")
        return rows


@dataclass(frozen=True)
class PullRecord:
    """Record of where the zoo in a folder came from.

    manifest: sha256 that stands in its zoo.json; None before that file is there
    """

    repo: str
    commit: str
    selection: Selection
    manifest: str | None = None


def write_record(record: PullRecord, file: Path) -> None:
    """Write a record, whole or not at all.

    raises OutputError
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, overwrite=True) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def read_record(file: Path) -> PullRecord | None:
    """Return a record, or None if there is none that can be read."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        data = json.loads(file.read_bytes())
        selection = data.pop("selection")
        lists = {key: tuple(selection[key]) for key in ("splits", "architectures")}
        return PullRecord(**data, selection=Selection(selection["where"], **lists))
    return None


def _names(names: str | Iterable[str] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(sorted(set(names)))


def _check_known(what: str, asked: tuple[str, ...], known: list[str], zoo: str) -> None:
    for name in asked:
        if name not in known:
            raise ZooError(f"'{zoo}' has no {what} '{name}'; it has {listed(known) or 'none'}.{nearest(name, known)}")
