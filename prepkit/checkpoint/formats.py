"""The formats of files of weights, which are recognised by their first bytes and never by their names.

    zip with data.pkl                  torch zip           checked member by member, then mapped into memory
    pickle with torch's magic number   torch legacy        read into memory
    u64 and `{`                        safetensors         mapped into memory
    JSON with weight_map               safetensors index   each shard mapped into memory
                                       torch index         each shard read as the torch file that it is
    anything else                      refused by name, with what to do instead

No code in a file is run. A mapped file must keep its bytes while its tensors live: replace it by renaming another file
to its name, and never write into it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prepkit.checkpoint._torch_files import SAVE_WEIGHTS, check_kind_of_zip, read_torch_legacy, read_torch_zip
from prepkit.checkpoint.opening import CONVERT_DCP, FETCH_AGAIN, explained, opened, quoted
from prepkit.checkpoint.sharded import is_index, shards_of, unique
from prepkit.errors import CheckpointError, UnsafeCheckpoint

if TYPE_CHECKING:
    from torch import Tensor

Format = Literal["torch zip", "torch legacy", "safetensors", "safetensors index", "torch index"]

HEAD_BYTES = 512  # enough for every signature below, also that of a tar archive
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # this is 0x1950a86a20f9469cfc6c as pickle writes it

# Files that people pass by mistake: their first bytes, what they are, and what to do instead.
FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the weights it points to", "run `git lfs pull`"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", "load it with h5py or Keras and save it as .safetensors"),
    (rb"\x1f\x8b", "compressed by gzip", "decompress it with `gunzip`"),
    (rb"\x93NUMPY", "a numpy array without names", "save named tensors as .safetensors"),
    (rb"GGUF", "a GGUF file, whose tensors are in llama.cpp's own formats", "use the checkpoint it was made from"),
    (rb"\x08\x01\x12[\x80-\xff]{0,4}[\x00-\x7f]\x0a", "a SavedModel of TensorFlow", "save its weights as .safetensors"),
    (rb"\x08[\x01-\x20]\x12", "an ONNX model", "use the PyTorch checkpoint it was exported from"),
    (rb".{257}ustar", "a tar archive", "unpack it with `tar -xf` and pass the checkpoint inside"),
    (rb"\s*<(!doctype|html|\?xml)", "a web page, so the download went wrong", "download the file itself"),
    (rb"\x80[\x02-\x05].{0,30}" + re.escape(LEGACY_MAGIC), "saved with a pickle_protocol other than 2", SAVE_WEIGHTS),
    (rb"(\xef\xbb\xbf)?\s*\{", "JSON, but no index of shards (it has no `weight_map`)", "pass the file of the weights"),
    (rb"[\t\n\r\x20-\x7e]+\Z", "text", "pass the .pt, .pth or .safetensors file"),
)


@dataclass(frozen=True)
class Content:
    """What a file holds.

    format:     the format of the file
    value:      the object that was saved; for both safetensors formats a dict of names and CPU tensors
    data_bytes: the most bytes that its tensors may take together; None where the format guarantees their sizes
    metadata:   texts beside the tensors; a safetensors file that holds one of two tied names ties the other to it here
    """

    format: Format
    value: object
    data_bytes: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_content(path: Path) -> Content:
    """Read a file of weights in any of the formats.

    raises CheckpointError, or UnsafeCheckpoint, for a file that cannot be read
    """
    content = READERS[format_of(path)](path)
    return replace(content, value=with_aliases(content)) if content.metadata else content


def with_aliases(content: Content) -> dict[str, Tensor]:
    """Return the tensors under all their names: metadata such as `{"enc.weight": "dec.weight"}` names a tied one.

    safetensors.torch.save_model, and what transformers and huggingface_hub save, keep only one name of a tied tensor.
    """
    tensors = dict(tensors_in(content))
    ties = {alias: name for alias, name in content.metadata.items() if alias not in tensors and name in tensors}
    return tensors | {alias: tensors[name] for alias, name in ties.items() if alias != "format"}


def format_of(path: Path) -> Format:
    """Return which of the formats a file is in; every index counts as one of safetensors until it is read.

    raises CheckpointError with what the file is instead, and what to do
    """
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
    if head[4:9] == b"\0\0\0\0{":  # the header's length is far below 2^32, and the header follows it
        return "safetensors"
    if path.name.endswith(".distcp"):
        raise CheckpointError(f"{path} is a part of a distributed checkpoint; for its folder, {CONVERT_DCP}.")
    if head.startswith(b"PK\x03\x04"):
        check_kind_of_zip(path)
        return "torch zip"
    if head.startswith(b"\x80\x02" + LEGACY_MAGIC):
        return "torch legacy"
    if is_index(path):
        return "safetensors index"
    raise foreign(path, head)


def is_torch_file(path: Path) -> bool:
    """Whether torch.save wrote a file, in either of its formats."""
    try:
        return format_of(path) in ("torch zip", "torch legacy")
    except CheckpointError:
        return False


def foreign(path: Path, head: bytes) -> CheckpointError:
    """Return the error for a file in none of the formats."""
    if not head:
        return CheckpointError(f"{path} is empty (0 bytes); {FETCH_AGAIN}.")
    for pattern, kind, remedy in FOREIGN:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return CheckpointError(f"{path} is {kind}; {remedy}.")
    if re.match(rb"\x80[\x02-\x05]", head):
        return UnsafeCheckpoint(f"{path} is a plain pickle, which runs code when read; {SAVE_WEIGHTS}.")
    start = head[:8].hex(" ")
    return CheckpointError(f"{path} is no checkpoint: it begins with the bytes {start}; pass a .pt or .safetensors.")


# safetensors


def read_safetensors(path: Path) -> Content:
    """Map the tensors of a safetensors file. The library checks offsets and sizes, but not that names differ."""
    from safetensors import safe_open

    with explained(path, "is a truncated or damaged safetensors file", FETCH_AGAIN):
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = file.metadata() or {}
        with opened(path) as header:
            length = int.from_bytes(header.read(8), "little")  # safe_open has checked that it is at most 100 MB
            json.loads(header.read(length), object_pairs_hook=unique)
    return Content("safetensors", tensors, metadata=metadata)


def read_index(path: Path) -> Content:
    """Map all shards of a sharded model; each must hold exactly the tensors that the index places in it."""
    shards = shards_of(path)
    missing = [shard for shard in shards if not os.path.exists(path.parent / shard)]  # Path.exists may raise
    if missing:
        raise CheckpointError(f"{path} needs {quoted(missing)}, missing beside it; {FETCH_AGAIN}.")
    contents = {shard: read_shard(path, shard, names) for shard, names in shards.items()}
    tensors = {name: tensor for content in contents.values() for name, tensor in tensors_in(content).items()}
    metadata = {key: text for content in contents.values() for key, text in content.metadata.items()}
    if all(content.format == "safetensors" for content in contents.values()):
        return Content("safetensors index", tensors, metadata=metadata)
    sizes = [
        os.path.getsize(path.parent / shard) if content.data_bytes is None else content.data_bytes
        for shard, content in contents.items()
    ]
    return Content("torch index", tensors, sum(sizes), metadata)


def read_shard(index: Path, shard: str, names: set[str]) -> Content:
    """Read one shard; raises CheckpointError if it holds other names than the index says."""
    stored = format_of(index.parent / shard)
    if stored not in ("safetensors", "torch zip", "torch legacy"):
        raise CheckpointError(f"{index} names the shard {shard!r}, which is in format '{stored}'; {FETCH_AGAIN}.")
    content = READERS[stored](index.parent / shard)
    tensors = tensors_in(content)
    for wrong, what in ((names - tensors.keys(), "lacks"), (tensors.keys() - names, "has, unknown to the index,")):
        if wrong:
            raise CheckpointError(f"{index}: the shard {shard!r} {what} {quoted(sorted(wrong))}; {FETCH_AGAIN}.")
    return content


def tensors_in(content: Content) -> Mapping[str, Tensor]:
    """Return the state dict that a shard holds; empty if it holds something else."""
    return content.value if isinstance(content.value, Mapping) else {}


READERS: dict[Format, Callable[[Path], Content]] = {
    "torch zip": lambda path: Content("torch zip", *read_torch_zip(path)),
    "torch legacy": lambda path: Content("torch legacy", *read_torch_legacy(path)),
    "safetensors": read_safetensors,
    "safetensors index": read_index,
}
