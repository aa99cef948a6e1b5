"""What a new zoo keeps of a zoo that it was made of."""

from __future__ import annotations

from typing import Any

from prepkit.zoo.format.manifest import Manifest


def origin_of(manifest: Manifest) -> dict[str, Any]:
    """Return name, sum of the manifest, number of instances, licence and provenance of a zoo, for a provenance."""
    return {
        "name": manifest.name,
        "sha256": manifest.to_dict()["sha256"],
        "instances": manifest.table.rows,
        "license": manifest.license,
        "provenance": dict(manifest.provenance),
    }
