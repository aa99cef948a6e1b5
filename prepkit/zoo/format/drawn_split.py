"""The record of a split that `zoo split` drew: `provenance["drawn_split"]` of the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prepkit.zoo.format.manifest import Manifest

DRAWN_SPLIT = "drawn_split"  # key of the provenance
EARLIER_SPLIT = "split."  # begins the names of columns with splits that were replaced


def split_record(seed: int, shares: Mapping[str, float], group: str | None, kept: str | None) -> dict[str, Any]:
    """Return the record of a draw.

    group: column whose equal values stayed together
    kept:  column with the split that was replaced
    """
    return {"seed": seed, "shares": dict(shares), "group": group, "kept": kept}


def drawn_split(manifest: Manifest) -> Mapping[str, Any] | None:
    """Return the record of the zoo's split, None if `zoo split` did not draw it."""
    return drawn_in(manifest.provenance)


def drawn_in(provenance: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the record of a drawn split in a provenance, None if there is none."""
    record = provenance.get(DRAWN_SPLIT)
    if not isinstance(record, dict) or record.keys() != split_record(0, {}, None, None).keys():
        return None
    return record if isinstance(record["shares"], dict) else None
