"""Reading the header of a safetensors file without torch: names, dtypes, shapes and offsets, all checked.

The format is an unsigned 64-bit little-endian length N, then N bytes of JSON, then the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from prepkit.errors import counted

MAX_HEADER_BYTES = 100_000_000  # the safetensors library has this limit
DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
INTEGER_NAMES = {
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "C64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}


class HeaderError(ValueError):
    """A file is not safetensors, or its header does not describe its bytes; the caller names the file."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    dtype:     as the format writes it, such as `F32`
    offset:    index of its first byte in the file
    num_bytes: number of its bytes
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class Header:
    """What a file says of its content."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    data_offset: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a safetensors file.

    raises HeaderError if the file is not whole or its header is not sound, OSError if it cannot be read
    """
    size = Path(path).stat().st_size
    if size < 8:  # a pipe has no size either, and opening it would wait for a writer
        raise HeaderError(f"it has {counted(size, 'byte')} and no header")
    with open(path, "rb") as file:
        data_offset, text = _read_text(file, size)
    try:
        entries = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"its header is not JSON ({error})") from None
    if not isinstance(entries, dict):
        raise HeaderError("its header is not an object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError("its __metadata__ is not a map of text")
    tensors = {name: _stored_tensor(name, entry, data_offset) for name, entry in entries.items()}
    _check_cover(tensors, data_offset, size)
    return Header(tensors, metadata, data_offset)


def _read_text(file: IO[bytes], size: int) -> tuple[int, bytes]:
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES or 8 + length > size:
        raise HeaderError(f"its first 8 bytes give no header of a file of {counted(size, 'byte')}; it may be truncated")
    return 8 + length, file.read(length)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name stands twice")
    return entries


def _stored_tensor(name: str, entry: object, data_offset: int) -> StoredTensor:
    if not isinstance(entry, dict):
        raise HeaderError(f"tensor '{name}' has no description")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise HeaderError(f"tensor '{name}' has the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise HeaderError(f"tensor '{name}' has no shape or offsets")
    if not all(type(size) is int and size >= 0 for size in [*shape, *offsets]):
        raise HeaderError(f"tensor '{name}' has an unsound shape or offset")
    num_bytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != num_bytes:
        needed = counted(num_bytes, "byte")
        raise HeaderError(f"tensor '{name}' of shape {shape} needs {needed}, not its offsets' {offsets}")
    return StoredTensor(dtype, tuple(shape), data_offset + offsets[0], num_bytes)


def _check_cover(tensors: dict[str, StoredTensor], data_offset: int, size: int) -> None:
    end = data_offset
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        if tensor.offset != end:
            raise HeaderError("its tensors overlap or leave holes")
        end += tensor.num_bytes
    if end != size:
        raise HeaderError(f"it has {counted(size, 'byte')} where its header describes {end:,}; it may be truncated")
