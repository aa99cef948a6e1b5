"""Shapes in which a zoo's PReps are read."""

from __future__ import annotations

from prepkit.prep.shape import PRepShape
from prepkit.zoo.format.manifest import Manifest


def common_shape(manifest: Manifest, width: int, height: int | None) -> PRepShape:
    """Return the least shape of this width that holds every architecture with a ClassId, or the height given.

    raises InvalidShape if one does not fit
    """
    layouts = [stored.layout for stored in manifest.architectures if stored.class_id is not None]
    if not layouts:
        return PRepShape(height or 4, width)
    return max(layouts, key=lambda layout: layout.total).shape(width, height)
