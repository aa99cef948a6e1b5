"""Sharded models: the index that places each tensor in a file, and its parts, none of which is a network.

model.safetensors.index.json, pytorch_model.bin.index.json     {"weight_map": {tensor name: file beside the index}}
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any

from prepkit.checkpoint.opening import FETCH_AGAIN, explained, opened, quoted
from prepkit.errors import CheckpointError, UnsafeCheckpoint
from prepkit.support.files import is_zoo

HEAD_BYTES = 512  # enough to see whether a file is JSON
INDEX_BYTES = 10_000_000  # an index is metadata; huggingface_hub refuses larger ones too
INDEX_SUFFIX = ".index.json"
# An index of safetensors is preferred: libraries that write both formats write the same tensors.
INDEX_PATTERNS = ("*.safetensors.index.json", "*.bin.index.json")
PART = re.compile(r"-(\d{5,})-of-(\d{5,})\.\w+$")  # ends the names of parts, as transformers writes them


def model_file(path: Path) -> Path:
    """Return the file to read for a path: the index of a sharded model in place of its folder, else the path itself."""
    if not os.path.isdir(path) or is_zoo(path):  # Path.is_dir raises for a name that is too long
        return path
    for pattern in INDEX_PATTERNS:
        if indexes := list(path.glob(pattern)):
            return indexes[0] if len(indexes) == 1 else path
    return path


def check_not_a_part(path: Path) -> None:
    """Raise CheckpointError for a part of a sharded model: its tensors are some layers, not a network.

    An index beside the file names its parts. Where there is none, the file's name may still say that it is a part.
    """
    folder = path.parent
    with suppress(OSError):
        index, count = _parts_in(folder, os.stat(folder).st_mtime_ns).get(path.name, (None, 0))
        if index is not None:
            raise CheckpointError(
                f"{path} is one of the {count} parts of a sharded model, not a network of its own; pass its index "
                f"{folder / index}."
            )
    number = PART.search(path.name)
    if number and int(number[2]) > 1:
        raise CheckpointError(
            f"{path} is by its name part {int(number[1])} of {int(number[2])} of a sharded model, and no index beside "
            "it names the others; fetch the whole model and pass its index (a file that ends in .index.json)."
        )


@lru_cache(maxsize=8)
def _parts_in(folder: Path, modified: int) -> dict[str, tuple[str, int]]:
    """Return, for each part of a model in a folder, the index that names it and how many parts the index has.

    modified: when the folder was changed last, so that a later change is seen
    """
    parts: dict[str, tuple[str, int]] = {}
    for name in sorted(entry for entry in os.listdir(folder) if entry.endswith(INDEX_SUFFIX)):
        with suppress(CheckpointError):  # it is judged when it is read itself
            if is_index(folder / name):
                shards = shards_of(folder / name)
                if len(shards) > 1:
                    parts |= {shard: (name, len(shards)) for shard in shards if shard not in parts}
    return parts


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; raises ValueError if a name stands twice, which JSON itself allows."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise ValueError(f"{quoted(twice)} stands twice")
    return entries


def shards_of(index: Path) -> dict[str, set[str]]:
    """Return the names of the tensors in each shard, shards in ascending order.

    raises CheckpointError, or UnsafeCheckpoint, if the index is not sound
    """
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map(index).items():
        shards.setdefault(shard, set()).add(name)
    outside = [shard for shard in shards if leaves_folder(shard)]
    if outside:
        raise UnsafeCheckpoint(f"{index} names shards outside its folder: {quoted(outside)}; keep them beside it.")
    return dict(sorted(shards.items()))


def weight_map(index: Path) -> dict[str, str]:
    """Return the index's `weight_map` from tensor names to shards; raises CheckpointError if it is not sound."""
    with opened(index) as file, explained(index, "is no valid JSON", FETCH_AGAIN):
        text = file.read(INDEX_BYTES + 1)
        if len(text) > INDEX_BYTES:
            raise CheckpointError(f"{index} is JSON of over {INDEX_BYTES} bytes, too large for an index of shards.")
        entries = json.loads(text.decode("utf-8-sig"), object_pairs_hook=unique)
    names = entries.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(shard, str) for shard in names.values()):
        raise CheckpointError(f"{index}, weight_map: not an object from tensor names to file names; {FETCH_AGAIN}.")
    return names


def leaves_folder(shard: str) -> bool:
    """Whether a name could lie outside the index's folder on some system; the rules of Windows are the strictest."""
    windows = PureWindowsPath(shard)
    return "\\" in shard or bool(windows.drive or windows.root) or ".." in windows.parts


def is_index(path: Path) -> bool:
    """Whether a file is a JSON object with a `weight_map`, sound or not."""
    with opened(path) as file:
        text = file.read(HEAD_BYTES)
        if not text.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            return False
        return b'"weight_map"' in text + file.read(INDEX_BYTES)
