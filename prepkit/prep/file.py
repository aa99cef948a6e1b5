"""One PRep in one file: `.prep.safetensors`, format "prepkit-prep/1".

The file holds the tensor `prep` `[H, W]`, integer buffers as `buffer.<name>`, and one metadata key `prepkit` with
canonical JSON. There is only one key, because the safetensors library orders several at random, and the same input
must give the same bytes. The JSON carries two sums, because neither safetensors nor the Hub's client notices a flipped
bit: `content_sha256` covers the bytes of all tensors, and `sha256` covers the rest, so that a header can be trusted
without reading the tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.checkpoint.formats import is_torch_file
from prepkit.checkpoint.safetensors_header import DTYPE_NAMES, INTEGER_NAMES, Header, HeaderError, read_header
from prepkit.errors import InvalidShape, LayoutMismatch, PRepFileError, VerificationError, listed
from prepkit.prep.layout import Layout, PRepShape, canonical_json
from prepkit.support.files import is_zoo, like_in_folder, replacing
from prepkit.support.json_values import broken_text
from prepkit.support.text import Brief
from prepkit.tensors import dtype_name, modules_of, with_versions

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "prepkit-prep/1"
FORMAT_FAMILY = "prepkit-prep/"
METADATA_KEY = "prepkit"
VALUES_KEY = "prep"
BUFFER_PREFIX = "buffer."
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, repr=False)
class Origin(Brief):
    """Where a PRep comes from.

    architecture:  name of the network; None if it is unknown
    class_id:      its ClassId in the built-in registry; None if it has none
    source_sha256: sha256 of the checkpoint file that was packed
    folded:        names of the layers into which a BatchNorm was folded
    prefix:        text that stood before every name in the checkpoint, such as `module.`, often ""
    versions:      versions of modules that differ from 1, torch's default; empty where the checkpoint notes none
    options:       keyword arguments of `pack_checkpoint` that chose the values, such as {"key": "ema"}, often none
    """

    architecture: str | None = None
    class_id: int | None = None
    source_sha256: str | None = None
    folded: tuple[str, ...] = ()
    prefix: str = ""
    versions: Mapping[str, int] = field(default_factory=dict, hash=False)
    options: Mapping[str, str | bool] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class PRep:
    """A packed network: all its parameters in one matrix, and what is needed to get them back.

    values:  `[H, W]`, row-major, zero after the layout's last slot
    layout:  which tensor lies where
    origin:  where the values come from
    buffers: integer buffers by name, which do not belong in a matrix of floats
    """

    values: Tensor
    layout: Layout
    origin: Origin = Origin()
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        name = self.origin.architecture or "unknown architecture"
        return f"<PRep of {name}: {' x '.join(map(str, self.values.shape))} {dtype_name(self.values.dtype)}>"

    @property
    def shape(self) -> PRepShape:
        """Height and width."""
        return PRepShape(self.values.shape[0], self.values.shape[1])

    def tensors(self) -> dict[str, Tensor]:
        """Return the network's tensors: views of `values`, and the integer buffers."""
        return {**self.layout.unpack(self.values), **self.buffers}

    def state_dict(self, *, prefix: bool = True) -> dict[str, Tensor]:
        """Return the tensors as the checkpoint named them, with the versions of its modules if it notes some.

        prefix: whether the prefix of all names, which packing takes off, is put back
        """
        start = self.origin.prefix if prefix else ""
        named = {start + name: tensor for name, tensor in self.tensors().items()}
        if not self.origin.versions:
            return named
        noted = {(start + name).removesuffix("."): version for name, version in self.origin.versions.items()}
        return with_versions(named, dict.fromkeys(modules_of(named), 1) | noted)


@dataclass(frozen=True, repr=False)
class PRepHeader(Brief):
    """What a PRep file says of its content; it is read without torch and without the values.

    content_sha256: sha256 of all tensors' bytes, in the order of their names
    buffer_names:   names of the integer buffers
    """

    layout: Layout
    shape: PRepShape
    dtype: str
    origin: Origin
    content_sha256: str
    buffer_names: tuple[str, ...]


def save_prep(prep: PRep, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a PRep file whole or not at all. It is read back and compared before it gets its name.

    raises OutputError if the file exists and `overwrite` is false or cannot be written,
           InvalidShape if the values are fewer than the layout's,
           VerificationError if the disk gives other bytes back

    >>> network = torch.nn.Linear(20, 10)
    >>> layout = prepkit.Layout.of(network)
    >>> values = layout.pack(network.state_dict(), layout.shape(width=16))
    >>> prepkit.save_prep(prepkit.PRep(values, layout), "linear.prep.safetensors")
    """
    from safetensors.torch import save_file

    prep.layout.shape(prep.shape.width, prep.shape.height)
    buffers = {BUFFER_PREFIX + name: buffer for name, buffer in prep.buffers.items()}
    tensors = {VALUES_KEY: prep.values.detach().cpu().contiguous(), **_in_memory_of_their_own(buffers)}
    metadata = _metadata(prep, tensors)
    with replacing(path, overwrite=overwrite) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: canonical_json(metadata)})
        if _sha256_of_file(temporary, read_header(temporary)) != metadata["content_sha256"]:
            raise VerificationError(f"'{path}': the disk gave back other bytes than were written; nothing was kept.")


def _in_memory_of_their_own(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy buffers that share memory, such as one mask in several blocks: safetensors stores each tensor once."""
    owned: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, buffer in buffers.items():
        tensor = buffer.cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        owned[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return owned


def load_prep(path: str | os.PathLike[str], *, verify: bool = True, mmap: bool = True) -> PRep:
    """Read a PRep file. Its values are mapped, not copied; writing to them does not change the file.

    verify: whether the content is compared with the sha256 in the file (about 1 GB/s); the header always is
    mmap:   whether values are mapped; False reads them all, for files that another program may truncate
    raises PRepFileError if the file is damaged, foreign or of a newer format

    The values are read from the file when they are used, so do not write into the file meanwhile.

    >>> layout = prepkit.Layout.of_tensors({"weight": torch.ones(10)})
    >>> values = layout.pack({"weight": torch.ones(10)}, layout.shape(width=16))
    >>> prepkit.save_prep(prepkit.PRep(values, layout), "ones.prep.safetensors")
    >>> prepkit.load_prep("ones.prep.safetensors").tensors()["weight"].sum()
    tensor(10.)
    """
    from safetensors import safe_open

    header, data = _read(path)
    about = _checked(header, data, path)
    if verify and _sha256_of_file(path, header) != about.content_sha256:
        raise PRepFileError(f"'{path}' is damaged: its content does not match the sha256 it carries. Fetch it again.")
    if not mmap:
        tensors = _all_tensors(path)
        buffers = {name: tensors[BUFFER_PREFIX + name] for name in about.buffer_names}
        return PRep(tensors[VALUES_KEY], about.layout, about.origin, buffers)
    with safe_open(path, framework="pt") as file:
        buffers = {name: file.get_tensor(BUFFER_PREFIX + name) for name in about.buffer_names}
        return PRep(file.get_tensor(VALUES_KEY), about.layout, about.origin, buffers)


def read_prep_header(path: str | os.PathLike[str]) -> PRepHeader:
    """Read and check the header of a PRep file.

    raises PRepFileError with the file, the place and the reason
    """
    return _checked(*_read(path), path)


def is_prep_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is safetensors with prepkit's metadata, whatever its name and version."""
    try:
        return METADATA_KEY in read_header(path).metadata
    except (HeaderError, OSError):
        return False


def _read(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Any]]:
    if Path(path).is_dir():
        if is_zoo(Path(path)):
            raise PRepFileError(f"'{path}' is a zoo, not one PRep; `prepkit zoo info {path}` describes it.")
        raise PRepFileError(f"'{path}' is a directory, not a PRep file.")
    try:
        header = read_header(path)
        data = json.loads(header.metadata[METADATA_KEY])
    except FileNotFoundError:
        raise PRepFileError(f"'{path}' does not exist.{like_in_folder(path)}") from None
    except OSError as error:
        raise PRepFileError(f"'{path}' cannot be read: {error.strerror}.") from None
    except KeyError:
        raise _is_checkpoint(path, "a safetensors checkpoint") from None
    except (ValueError, RecursionError) as error:
        if is_torch_file(Path(path)):
            raise _is_checkpoint(path, "a PyTorch checkpoint") from None
        raise PRepFileError(f"'{path}' is no PRep file: {error}. `prepkit pack` makes one of a checkpoint.") from None
    format = data.get("format") if isinstance(data, dict) else None
    if format != FORMAT and isinstance(format, str) and format.startswith(FORMAT_FAMILY):
        raise PRepFileError(f"'{path}' has format {format!r}; this prepkit reads {FORMAT!r}. Upgrade prepkit.")
    if format != FORMAT:
        raise PRepFileError(f"'{path}' is no PRep file: its format is {format!r}, not {FORMAT!r}.")
    return header, data


def _all_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read all tensors of a file whose header was checked, without mapping it."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(Path(path).read_bytes())
    except OSError as error:
        raise PRepFileError(f"'{path}' cannot be read: {error.strerror}.") from None
    except SafetensorError as error:
        raise PRepFileError(f"'{path}' was truncated or damaged while it was read: {error}. Fetch it again.") from None


def _is_checkpoint(path: str | os.PathLike[str], kind: str) -> PRepFileError:
    return PRepFileError(f"'{path}' is {kind}, not a PRep; make one with `prepkit pack {path}`.")


def _checked(header: Header, data: dict[str, Any], path: object) -> PRepHeader:
    dtypes = DTYPE_NAMES | INTEGER_NAMES
    described = {name: (dtypes.get(t.dtype, t.dtype), t.shape) for name, t in header.tensors.items()}
    if data.get("sha256") != _sha256_of_header(data, described):
        raise PRepFileError(f"'{path}' is damaged: its header does not match the sha256 it carries. Fetch it again.")
    if broken_text([data, list(header.tensors)]) is not None:
        raise PRepFileError(f"'{path}': its header holds text that is not Unicode (half of a surrogate pair).")
    stored = header.tensors.get(VALUES_KEY)
    if stored is None or len(stored.shape) != 2 or stored.dtype not in DTYPE_NAMES:
        raise PRepFileError(f"'{path}': it has no matrix '{VALUES_KEY}' of floats.")
    others = [name for name in header.tensors if name != VALUES_KEY]
    strange = [n for n in others if not n.startswith(BUFFER_PREFIX) or header.tensors[n].dtype not in INTEGER_NAMES]
    if strange:
        raise PRepFileError(f"'{path}': beside '{VALUES_KEY}' stand {listed(strange)}, which are no integer buffers.")
    try:
        layout = Layout.from_dict(data.get("layout"))
        shape = PRepShape(*stored.shape)
        layout.shape(shape.width, shape.height)
    except (LayoutMismatch, InvalidShape, OverflowError) as error:
        raise PRepFileError(f"'{path}': {error}") from None
    names = tuple(name.removeprefix(BUFFER_PREFIX) for name in others)
    content = str(data.get("content_sha256"))
    return PRepHeader(layout, shape, DTYPE_NAMES[stored.dtype], _origin(data, path), content, names)


def _metadata(prep: PRep, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    data = {
        "format": FORMAT,
        "layout": prep.layout.to_dict(),
        "architecture": prep.origin.architecture,
        "class_id": prep.origin.class_id,
        "num_parameters": prep.layout.num_parameters,
        "source_sha256": prep.origin.source_sha256,
        "folded": list(prep.origin.folded),
        "content_sha256": _sha256_of_tensors(tensors),
    }
    described = {name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}
    if prep.origin.prefix:  # these keys are written where they say something, so that other files keep their bytes
        data["prefix"] = prep.origin.prefix
    if prep.origin.versions:
        data["versions"] = dict(prep.origin.versions)
    if prep.origin.options:
        data["options"] = dict(prep.origin.options)
    return {**data, "sha256": _sha256_of_header(data, described)}


def _origin(data: dict[str, Any], path: object) -> Origin:
    architecture, class_id = data.get("architecture"), data.get("class_id")
    source, folded = data.get("source_sha256"), data.get("folded", [])
    prefix, versions, options = data.get("prefix", ""), data.get("versions", {}), data.get("options", {})
    if (
        not isinstance(prefix, str)
        or not isinstance(versions, dict)
        or not all(type(version) is int for version in versions.values())
        or not isinstance(options, dict)
        or not all(isinstance(option, str | bool) for option in options.values())
    ):
        raise PRepFileError(f"'{path}': prefix, versions or options has the wrong type.")
    sound = (
        isinstance(architecture, str | None)
        and (class_id is None or type(class_id) is int)
        and isinstance(source, str | None)
        and isinstance(folded, list)
    )
    if not sound:
        raise PRepFileError(f"'{path}': architecture, class_id, source_sha256 or folded has the wrong type.")
    return Origin(architecture, class_id, source, tuple(map(str, folded)), prefix, versions, options)


def _sha256_of_header(data: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    """Return the sum over the metadata without the sum itself, and over the tensors' names, dtypes and shapes."""
    rest = {key: value for key, value in data.items() if key != "sha256"}
    try:
        return _sha256([canonical_json([rest, dict(tensors)]).encode()])
    except ValueError:  # the metadata holds NaN or infinity, which we never write
        return ""


def _sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    import torch

    # A 0-dimensional tensor cannot be viewed as bytes, so every tensor is viewed as a row first.
    return _sha256(tensors[name].reshape(-1).view(torch.uint8).numpy().data for name in sorted(tensors))


def _sha256_of_file(path: str | os.PathLike[str], header: Header) -> str:
    return _sha256(
        chunk for name in sorted(header.tensors) for chunk in _chunks(path, header.tensors[name].offset, header, name)
    )


def _chunks(path: str | os.PathLike[str], offset: int, header: Header, name: str) -> Iterable[bytes]:
    left = header.tensors[name].num_bytes
    with open(path, "rb") as file:  # it is not mapped: mapped pages would count as this process's memory
        file.seek(offset)
        while left and (chunk := file.read(min(left, CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk


def _sha256(chunks: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
