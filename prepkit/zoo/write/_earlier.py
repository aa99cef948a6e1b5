"""Earlier: the finished zoo that a writer appends to, and what it asks of new instances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, listed
from prepkit.prep.shape import PRepShape
from prepkit.tensors import holds_exactly
from prepkit.zoo.format.columns import EXACT_INTEGERS, OWN_COLUMNS, Schema
from prepkit.zoo.format.common_type import common_type
from prepkit.zoo.format.manifest import Manifest, StoredArchitecture
from prepkit.zoo.format.networks import differing_facts
from prepkit.zoo.format.numbered_ids import first_number
from prepkit.zoo.format.sizes import check_sizes
from prepkit.zoo.write._settings import differences
from prepkit.zoo.write.joined_table import SourceZoo

if TYPE_CHECKING:
    import pyarrow as pa

CAST = "Cast each model first, by `prepkit pack MODEL --dtype {} -o FILE`, and append FILE"
OTHER_ZOO = "Write a zoo of their own, and make one zoo of both by `prepkit zoo merge`."


@dataclass(frozen=True, repr=False)
class Earlier:
    """A finished zoo, as it was when appending to it began.

    ids:   of its instances
    kinds: types of the user's columns
    long:  columns with whole numbers that no float64 holds exactly
    """

    root: Path
    manifest: Manifest
    ids: frozenset[str]
    kinds: Mapping[str, pa.DataType]
    long: frozenset[str]

    @cached_property
    def first_number(self) -> int:
        """The number of the first new instance that is given no id; no instance of the zoo has or had one as high."""
        return first_number(self.ids, len(self.ids), self.manifest.provenance)

    @property
    def mark(self) -> dict[str, Any]:
        """What the manifest of appended instances says besides: equal ones that come again are another zoo."""
        return {"appended_to": self.manifest.to_dict()["sha256"]}

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the zoo's own width, height, name, format, dtype, task and license.

        given: what a writer was given for them; None where it is left to the zoo
        raises ZooError naming what is given otherwise
        """
        zoo = self.manifest
        own: dict[str, Any] = {
            "width": zoo.width,
            "height": zoo.height if zoo.shards else None,  # the first instances of an empty zoo choose it
            "name": zoo.name,
            "format": zoo.shard_format,
            "dtype": zoo.dtype,
            "task": zoo.task,
            "license": zoo.license,
        }
        asked = {key: value for key, value in given.items() if value is not None}
        other = [
            text
            for key, value in asked.items()
            if own[key] is not None or key != "height"
            for text in differences(key, own[key], value)
        ]
        if other:
            raise ZooError(
                f"'{self.root}' has {listed(other, 3)}. What is appended shares the zoo's settings: leave them out, or "
                "write another zoo."
            )
        return {**own, "height": own["height"] or asked.get("height")}

    def check_architecture(self, stored: StoredArchitecture, place: str) -> None:
        """Raise ZooError if an architecture is not what the zoo has under its name, or does not fit the zoo.

        It does not fit if it is too tall, or its values are of a dtype that the zoo's cannot hold exactly.
        """
        zoo = self.manifest
        own, theirs = zoo.dtype, stored.layout.dtype
        if zoo.shards and not holds_exactly(own, theirs):
            raise ZooError(
                f"{place}: its values are {theirs}, which the {own} of '{self.root}' would round, and a zoo keeps its "
                f"dtype when it grows. {CAST.format(own)}; or write a zoo of their own."
            )
        if zoo.shards and stored.height > zoo.height:
            shape = PRepShape(stored.height, zoo.width)
            raise ZooError(
                f"{place}: PReps of {stored.name} are {shape}, those of '{self.root}' {zoo.shape}, and a zoo keeps its "
                f"shape when it grows. {OTHER_ZOO}"
            )
        known = next((one for one in zoo.architectures if one.name == stored.name), None)
        differing = [] if known is None else differing_facts(known, stored)
        if known is not None and differing == ["layout"] and (known.layout.dtype != theirs):
            raise ZooError(
                f"{place}: its tensors are {theirs}, those of {stored.name} in '{self.root}' {known.layout.dtype}, and "
                f"tensors of an architecture have one dtype. {CAST.format(known.layout.dtype)}."
            )
        if differing:
            raise ZooError(
                f"{place}: {stored.name} is not the architecture that '{self.root}' has under this name: "
                f"{listed(differing)} differ. Register the new one under another name."
            )

    def check_ids(self, ids: list[str], place: str) -> None:
        """Raise ZooError if an id is one of the zoo's instances."""
        taken = [id for id in ids if id in self.ids]
        if taken:
            whose = "an instance" if len(taken) == 1 else "instances"
            raise ZooError(
                f"{place}: {listed(map(repr, taken))} {'is' if len(taken) == 1 else 'are'} the id of {whose} that "
                f"'{self.root}' has already; ids are unique. Give the new {'one' if len(taken) == 1 else 'ones'} "
                "another id."
            )

    def check_columns(self, schema: Schema, place: str) -> None:
        """Raise ZooError if a column of new instances cannot be joined to the zoo's column of its name."""
        for field in schema.arrow():
            old = self.kinds.get(field.name)
            if field.name in OWN_COLUMNS or old is None:
                continue
            kind = common_type(old, field.type)
            numbers = kind is not None and str(kind) == "double"
            is_long = numbers and (field.name in self.long or schema.kinds[field.name] == "long")
            if kind is not None and not is_long:
                continue
            what = "would hold whole numbers above 2^53 and fractions, which no type holds exactly"
            if kind is None:
                what = f"holds {field.type} here, and {old} in '{self.root}'"
            raise ZooError(
                f"{place}: the column '{field.name}' {what}; give one of them another name, here or by `prepkit zoo "
                "annotate DIR --rename OLD=NEW`."
            )


def earlier_zoo(root: Path, manifest: Manifest) -> Earlier:
    """Read what appending to a zoo needs to know of it.

    raises ZooError naming a file that is missing or damaged
    """
    check_sizes(root, manifest)
    table = SourceZoo(root, manifest).table()
    users = {field.name: field.type for field in table.schema if field.name not in OWN_COLUMNS}
    long = frozenset(name for name, kind in users.items() if _is_long(table[name], kind))
    return Earlier(root, manifest, frozenset(table["id"].to_pylist()), users, long)


def _is_long(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_integer(kind) or not len(column) or column.null_count == len(column):
        return False
    ends = pc.min_max(column).as_py()
    return bool(max(abs(ends["min"]), abs(ends["max"])) > EXACT_INTEGERS)
