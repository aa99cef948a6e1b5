"""The records of what was appended to a zoo: `provenance["appends"]` of the manifest, one for each time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prepkit.zoo.format.drawn_split import DRAWN_SPLIT
from prepkit.zoo.format.manifest import Manifest

APPENDS = "appends"  # key of the provenance


def append_record(time: str, appended: Manifest, drawn: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the record of one time that instances were appended.

    time:     when they became part of the zoo
    appended: the manifest of the zoo that they were written as; its sum tells whether it is part of the zoo already
    drawn:    the record of the zoo's drawn split, if the instances came with splits, so that it is no longer as drawn
    """
    return {
        "time": time,
        "instances": appended.table.rows,
        "splits": dict(appended.splits),
        "sha256": appended.to_dict()["sha256"],
        "provenance": dict(appended.provenance),
        **({} if drawn is None else {DRAWN_SPLIT: dict(drawn)}),
    }


def appends_in(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the records in a provenance, the oldest first."""
    records = provenance.get(APPENDS)
    return [record for record in records if isinstance(record, Mapping)] if isinstance(records, list) else []


def was_appended(sha256: str, manifest: Manifest) -> bool:
    """Return whether the zoo whose manifest has this sum is part of a zoo already."""
    return any(record.get("sha256") == sha256 for record in appends_in(manifest.provenance))


def before_appends(provenance: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
    """Return the provenance that tells how a zoo's splits were made, and how many instances joined them since then."""
    if DRAWN_SPLIT in provenance:
        return provenance, 0
    joined = 0
    for record in reversed(appends_in(provenance)):
        splits = record.get("splits")
        joined += sum(splits.values()) if isinstance(splits, Mapping) else 0
        if DRAWN_SPLIT in record:
            return {**provenance, DRAWN_SPLIT: record[DRAWN_SPLIT]}, joined
    return provenance, joined
