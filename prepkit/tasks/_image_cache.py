"""Decoded images in the cache folder, so that only the first start decodes them."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from prepkit.errors import OutputError
from prepkit.support.cache import cache_folder
from prepkit.support.files import replacing
from prepkit.tasks._image_set import ImageSet, Part, count_classes, fingerprint

FORMAT = "prepkit-images/1"


def load_cached(name: str) -> ImageSet | None:
    """The set that `store_cached` kept under this name; None if there is none or it is damaged.

    Images are mapped from the file, not read into memory.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(_file(name), framework="pt") as opened:
            about = json.loads((opened.metadata() or {})["prepkit"])
            parts = {
                part: Part(opened.get_tensor(f"{part}.images"), opened.get_tensor(f"{part}.labels"))
                for part in about["parts"]
            }
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    if about["format"] != FORMAT or fingerprint(parts) != about["sha256"]:
        return None
    names = None if about["class_names"] is None else tuple(about["class_names"])
    return ImageSet(parts, names, count_classes(parts, names), about["sha256"], revision=about["revision"])


def store_cached(name: str, images: ImageSet) -> None:
    """Keep a set for the next start, whole or not at all; nothing is kept if the cache folder cannot be written."""
    from safetensors.torch import save_file

    about: dict[str, Any] = {
        "format": FORMAT,
        "parts": list(images.parts),
        "class_names": images.class_names,
        "sha256": images.sha256,
        "revision": images.revision,
    }
    tensors = {f"{part}.images": held.images for part, held in images.parts.items()}
    tensors |= {f"{part}.labels": held.labels for part, held in images.parts.items()}
    with suppress(OSError, OutputError):
        _file(name).parent.mkdir(parents=True, exist_ok=True)
        with replacing(_file(name), overwrite=True) as temporary:
            save_file(tensors, temporary, {"prepkit": json.dumps(about)})


def _file(name: str) -> Path:
    return cache_folder() / "images" / f"{name}.safetensors"
