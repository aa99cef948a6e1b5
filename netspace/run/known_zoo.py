"""The zoo that a run was trained on, and its instances, found again in a zoo that has grown since or got columns.

A run notes the sum of zoo.json, and a sum of the instances: of their ids, splits, ClassIds and what else training reads
of the table, and of the shards that hold their values, by sha256. Appending leaves all that as it is, so they are the
first instances of the zoo.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import prepkit
from netspace.data import START
from prepkit.errors import ZooChanged, counted
from prepkit.support.json_values import canonical_json
from prepkit.zoo.read.accuracy import ACCURACY, ITEM

COLUMNS = ("id", "split", "class_id", "row", "run", ITEM, START, ACCURACY)
INSTANCES = "instances"  # key of what a run notes of its zoo


def identity_of(zoo: prepkit.Zoo) -> dict[str, Any]:
    """Return what a run notes of its zoo, beside where it is."""
    columns = [name for name in COLUMNS if name in zoo.table.column_names]
    return {
        "name": zoo.name,
        "sha256": sum_of(zoo),
        "splits": {name: zoo.split(name).sha256 for name in zoo.manifest.splits},
        "split_rule": zoo.split_rule,
        INSTANCES: {"count": len(zoo), "columns": columns, "sha256": _sum(zoo, zoo.registry.class_ids, columns)},
    }


def sum_of(zoo: prepkit.Zoo) -> str:
    """Return the sum of zoo.json."""
    return str(zoo.manifest.to_dict()["sha256"])


def instances_of_run(zoo: prepkit.Zoo, recorded: Mapping[str, Any], architectures: Sequence[str]) -> prepkit.Zoo | None:
    """Return the instances that a run was trained on: the whole zoo, or a view of one that changed since.

    recorded:      what `identity_of` returned when the run began; runs of older versions noted no instances
    architectures: those of the run, in the order of their ClassIds
    returns None if it is another zoo, or the instances are not there as they were
    Warns, with ZooChanged, of a zoo that changed.
    """
    if sum_of(zoo) == recorded["sha256"]:
        return zoo
    noted: Any = recorded.get(INSTANCES)
    count, columns = (noted.get("count"), noted.get("columns")) if isinstance(noted, Mapping) else (None, None)
    if type(count) is not int or not isinstance(columns, list) or not 0 < count <= len(zoo):
        return None
    view = zoo[:count]
    if not set(columns) <= set(zoo.table.column_names) or _sum(view, architectures, columns) != noted.get("sha256"):
        return None
    more = len(zoo) - count
    came = f"; {counted(more, 'instance')} that came since {'is' if more == 1 else 'are'} left out" if more else ""
    warnings.warn(
        f"zoo '{zoo.name}' has changed since the run was begun, but its instances are as they were{came}.",
        ZooChanged,
        stacklevel=2,
    )
    return view


def why_not_found(zoo: prepkit.Zoo, recorded: Mapping[str, Any]) -> str:
    """Return what is said after "zoo X has sum Y" of a zoo in which a run's instances are not found, and what to do."""
    now, before = (str(rule).partition(",")[0] for rule in (zoo.split_rule, recorded.get("split_rule")))
    if zoo.name == recorded["name"] and now.startswith("drawn") and now != before:
        return (
            ". Its splits were dealt in another way since, so instances that were trained on may stand among those for "
            "testing; give a copy of the zoo as it was, or train anew."
        )
    if INSTANCES in recorded:
        return " and does not begin with its instances as they were. Give the zoo that it was trained on."
    return ". The run was begun by an older version, which noted no instances; give a copy of the zoo as it was."


def _sum(zoo: prepkit.Zoo, architectures: Iterable[str], columns: Sequence[str]) -> str:
    manifest, table = zoo.manifest, zoo.table
    layouts = {stored.name: [stored.class_id, stored.layout.sha256] for stored in manifest.architectures}
    whole = {
        "architectures": {name: layouts.get(name) for name in architectures},
        "dtype": manifest.dtype,
        "task": manifest.task,
        "teacher": None if manifest.teacher is None else manifest.teacher.sha256,
    }
    digest = hashlib.sha256(canonical_json(whole).encode())
    shards = [manifest.shards[number].sha256 for number in table["shard"].to_pylist()]
    for values in zip(shards, *(table[name].to_pylist() for name in columns), strict=True):
        digest.update(("\t".join(map(_text, values)) + "\n").encode())
    return digest.hexdigest()


def _text(value: Any) -> str:
    """Return a value as text, the same for 3 and 3.0: a column may come to hold fractions when a zoo grows."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(float(value))
    return "" if value is None else repr(value)
