"""zoo.json: what a zoo says of itself, format "prepkit-zoo/1". Its presence means that the zoo is whole.

The manifest is checked once, where it is read; each error names the file and the place in it. Keys that this version
does not know are kept. Importing this module imports neither torch nor pyarrow: `prepkit zoo info` reads no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prepkit.errors import InvalidShape, LayoutMismatch, ZooError, listed
from prepkit.files import replacing
from prepkit.prep.layout import Layout, PRepShape, canonical_json
from prepkit.tensors import BITS
from prepkit.zoo.format.paths import check_part, check_relative

FORMAT = "prepkit-zoo/1"
MANIFEST = "zoo.json"
MAX_MANIFEST_BYTES = 256 << 20
KEPT_BATCH_NORM = "+bn"  # after the name of an architecture whose BatchNorm was not folded
SHA256 = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")


@dataclass(frozen=True)
class StoredArchitecture:
    """An architecture as a zoo stores it.

    height: least height of its PRep at the zoo's width; its shards have this height
    fused:  True if BatchNorm was folded or never there
    config: what builds the network again (see Architecture.config), None where only the layout is known
    """

    class_id: int | None
    name: str
    layout: Layout
    height: int
    fused: bool
    family: str | None = None
    input_shape: tuple[int, ...] | None = None
    num_trainable: int | None = None
    config: Mapping[str, Any] | None = None

    @property
    def trained_name(self) -> str:
        """The name under which the architecture is registered."""
        return self.name if self.fused else self.name.removesuffix(KEPT_BATCH_NORM)


@dataclass(frozen=True)
class StoredFile:
    """A file of the zoo: relative path, number of rows in it, size in bytes, sha256 of its content."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard(StoredFile):
    """A file with the PReps `[rows, height_of_architecture, width]` of one architecture."""

    architecture: str


@dataclass(frozen=True)
class Teacher:
    """The PRep file of the network that teaches: relative path, architecture, sha256 of its content."""

    path: str
    architecture: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All of zoo.json but its own checksum."""

    name: str
    width: int
    height: int
    dtype: str
    shard_format: str
    architectures: tuple[StoredArchitecture, ...]
    shards: tuple[Shard, ...]
    table: StoredFile
    splits: Mapping[str, int]
    task: Mapping[str, Any] | None = None
    teacher: Teacher | None = None
    license: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    created_by: str = ""
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> PRepShape:
        """The shape that holds any instance."""
        return PRepShape(self.height, self.width)

    def architecture(self, name: str) -> StoredArchitecture:
        """The stored architecture of this name."""
        return next(stored for stored in self.architectures if stored.name == name)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form with `sha256`, that of the canonical JSON of all the rest."""
        data: dict[str, Any] = {
            **self.unknown,
            "format": FORMAT,
            "name": self.name,
            "width": self.width,
            "height": self.height,
            "dtype": self.dtype,
            "shard_format": self.shard_format,
            "architectures": [architecture_to_dict(stored) for stored in self.architectures],
            "shards": [dict(vars(shard)) for shard in self.shards],
            "table": dict(vars(self.table)),
            "splits": dict(self.splits),
            "task": self.task,
            "teacher": None if self.teacher is None else dict(vars(self.teacher)),
            "license": self.license,
            "provenance": dict(self.provenance),
            "created_by": self.created_by,
        }
        data["sha256"] = checksum(data)
        return data


def write_manifest(manifest: Manifest, root: Path, *, overwrite: bool) -> None:
    """Write zoo.json, whole and durably or not at all.

    raises OutputError if it exists and `overwrite` is false or cannot be written
    """
    with replacing(root / MANIFEST, overwrite=overwrite) as temporary:
        temporary.write_bytes(manifest_bytes(manifest))


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of zoo.json."""
    return (json.dumps(manifest.to_dict(), indent=1, sort_keys=True) + "\n").encode()


def read_manifest(root: str | os.PathLike[str]) -> Manifest:
    """Read and check the manifest of a zoo folder.

    raises ZooError naming the file and the place
    """
    path = Path(root) / MANIFEST
    if not path.is_file():
        raise ZooError(_why_no_manifest(Path(root)))
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ZooError(f"{path}: {path.stat().st_size:,} bytes are more than a manifest has.")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{path}: damaged, it is not JSON ({error}). Fetch it again.") from None
    except OSError as error:
        raise ZooError(f"{path}: cannot be read: {error.strerror}.") from None
    return manifest_from_dict(data, str(path))


def manifest_from_dict(data: object, place: str) -> Manifest:
    """The manifest in parsed JSON, checked.

    raises ZooError naming the place
    """
    _check_format(data, place)
    try:
        found = checksum(data)
    except ValueError:  # NaN or infinity, which we never write
        found = None
    if found != _get(data, "sha256", str, place):
        raise ZooError(f"{place}: damaged, its content does not match its sha256. Fetch it again.")
    try:
        shape = PRepShape(_get(data, "height", int, place), _get(data, "width", int, place))
    except InvalidShape as error:
        raise ZooError(f"{place}: {error}") from None
    architectures = tuple(
        architecture_from_dict(item, shape.width, f"{place}, architectures[{index}]")
        for index, item in enumerate(_get(data, "architectures", list, place))
    )
    _check_class_ids(architectures, place)
    dtype = _get(data, "dtype", str, place)
    if dtype not in BITS:
        raise ZooError(f"{place}, dtype: expected one of {listed(BITS)}, found {dtype!r}.")
    names = {stored.name for stored in architectures}
    manifest = Manifest(
        name=_get(data, "name", str, place),
        width=shape.width,
        height=shape.height,
        dtype=dtype,
        shard_format=_get(data, "shard_format", str, place),
        architectures=architectures,
        shards=tuple(
            _shard(item, names, f"{place}, shards[{index}]")
            for index, item in enumerate(_get(data, "shards", list, place))
        ),
        table=StoredFile(*_file(_get(data, "table", dict, place), f"{place}, table")),
        splits=_counts(_get(data, "splits", dict, place), f"{place}, splits"),
        task=_optional(data, "task", dict, place),
        teacher=_teacher(_optional(data, "teacher", dict, place), names, f"{place}, teacher"),
        license=_optional(data, "license", str, place),
        provenance=_get(data, "provenance", dict, place),
        created_by=_get(data, "created_by", str, place),
        unknown={key: value for key, value in data.items() if key not in KNOWN_KEYS},  # type: ignore[attr-defined]
    )
    _check_rows(manifest, place)
    return manifest


def checksum(data: object) -> str:
    """sha256 of the canonical JSON of a manifest without its own `sha256`."""
    rest = {key: value for key, value in data.items() if key != "sha256"} if isinstance(data, dict) else data
    return hashlib.sha256(canonical_json(rest).encode()).hexdigest()


KNOWN_KEYS = frozenset(
    ("format", "name", "width", "height", "dtype", "shard_format", "architectures", "shards", "table", "splits")
    + ("task", "teacher", "license", "provenance", "created_by", "sha256")
)


def _why_no_manifest(root: Path) -> str:
    if not root.exists():
        return f"'{root}' does not exist."
    if not root.is_dir():
        return f"'{root}' is not a folder; a zoo is a folder with a {MANIFEST}."
    if (root / ".writing").is_dir():
        return f"'{root}' is an unfinished zoo: writing it was interrupted. Run the command that wrote it again."
    if (root / ".pulling").is_dir():
        return f"'{root}' is an unfinished zoo: pulling it was interrupted. Run the same `prepkit pull` again."
    return f"'{root}' is not a zoo: it has no {MANIFEST}."


def _check_format(data: object, place: str) -> None:
    found = data.get("format") if isinstance(data, dict) else None
    if found == FORMAT:
        return
    if isinstance(found, str) and found.startswith("prepkit-zoo/"):
        raise ZooError(f"{place}: format {found!r} is newer than {FORMAT!r}; upgrade prepkit.")
    raise ZooError(f"{place}: not a prepkit zoo, its format is {found!r}.")


def architecture_to_dict(stored: StoredArchitecture) -> dict[str, Any]:
    """JSON-able form of a stored architecture."""
    return {
        "class_id": stored.class_id,
        "name": stored.name,
        "layout": stored.layout.to_dict(),
        "num_parameters": stored.layout.num_parameters,
        "height": stored.height,
        "fused": stored.fused,
        "family": stored.family,
        "input_shape": None if stored.input_shape is None else list(stored.input_shape),
        "num_trainable": stored.num_trainable,
        "config": None if stored.config is None else dict(stored.config),
    }


def architecture_from_dict(item: object, width: int, place: str) -> StoredArchitecture:
    """The stored architecture that `architecture_to_dict` wrote, checked.

    raises ZooError naming the place
    """
    try:
        layout = Layout.from_dict(_get(item, "layout", dict, place), f"{place}, layout")
    except LayoutMismatch as error:
        raise ZooError(str(error)) from None
    height = _get(item, "height", int, place)
    least = layout.shape(width).height
    if height != least:
        raise ZooError(f"{place}, height: {height} is not {least}, the least height of its layout.")
    input_shape = _optional(item, "input_shape", list, place)
    if input_shape is not None and not all(type(size) is int and size > 0 for size in input_shape):
        raise ZooError(f"{place}, input_shape: expected whole numbers, found {input_shape!r}.")
    name = _get(item, "name", str, place)
    check_part(name, f"{place}, name")  # it stands in file names
    return StoredArchitecture(
        class_id=_optional(item, "class_id", int, place),
        name=name,
        layout=layout,
        height=height,
        fused=_get(item, "fused", bool, place),
        family=_optional(item, "family", str, place),
        input_shape=None if input_shape is None else tuple(input_shape),
        num_trainable=_optional(item, "num_trainable", int, place),
        config=_optional(item, "config", dict, place),
    )


def _check_class_ids(architectures: tuple[StoredArchitecture, ...], place: str) -> None:
    names = [stored.name for stored in architectures]
    if len(set(names)) != len(names):
        raise ZooError(f"{place}, architectures: a name stands twice.")
    class_ids = sorted(stored.class_id for stored in architectures if stored.class_id is not None)
    if class_ids != list(range(len(class_ids))):
        raise ZooError(f"{place}, architectures: the ClassIds are {class_ids}, not 0, 1, 2 ...")


def _file(item: object, place: str) -> tuple[str, int, int, str]:
    path = check_relative(_get(item, "path", str, place), f"{place}, path")
    rows, num_bytes = _get(item, "rows", int, place), _get(item, "bytes", int, place)
    if rows < 0 or num_bytes <= 0:
        raise ZooError(f"{place}: {rows} rows in {num_bytes} bytes cannot be.")
    return path, rows, num_bytes, _sha256(item, place)


def _shard(item: object, names: set[str], place: str) -> Shard:
    architecture = _get(item, "architecture", str, place)
    if architecture not in names:
        raise ZooError(f"{place}, architecture: '{architecture}' is not among the zoo's architectures.")
    return Shard(*_file(item, place), architecture)


def _teacher(item: object, names: set[str], place: str) -> Teacher | None:
    if item is None:
        return None
    path = check_relative(_get(item, "path", str, place), f"{place}, path")
    architecture = _get(item, "architecture", str, place)
    if architecture not in names:
        raise ZooError(f"{place}, architecture: '{architecture}' is not among the zoo's architectures.")
    return Teacher(path, architecture, _sha256(item, place))


def _sha256(item: object, place: str) -> str:
    sha256 = _get(item, "sha256", str, place)
    if not SHA256.fullmatch(sha256):
        raise ZooError(f"{place}, sha256: expected 64 hex digits, found {sha256!r}.")
    return sha256


def _counts(data: dict[str, Any], place: str) -> dict[str, int]:
    if not all(type(count) is int and count >= 0 for count in data.values()):
        raise ZooError(f"{place}: expected a number of rows for each split, found {data!r}.")
    return data


def _check_rows(manifest: Manifest, place: str) -> None:
    stored = sum(shard.rows for shard in manifest.shards)
    if manifest.table.rows != stored:
        raise ZooError(f"{place}: the table has {manifest.table.rows:,} rows, the shards {stored:,}.")
    if sum(manifest.splits.values()) > stored:
        raise ZooError(f"{place}, splits: they hold more than the zoo's {stored:,} instances.")
    tallest = max((stored.height for stored in manifest.architectures if stored.class_id is not None), default=0)
    if manifest.height < tallest:
        raise ZooError(f"{place}, height: {manifest.height} is less than the {tallest} of an architecture.")


def _get(data: object, key: str, kind: type[T], place: str) -> T:
    """`data[key]`, checked to be of this type."""
    if not isinstance(data, dict):
        raise ZooError(f"{place}: expected an object, found {str(data)[:80]!r}.")
    if key not in data:
        raise ZooError(f"{place}: {key} is missing.")
    value = data[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ZooError(f"{place}, {key}: expected {kind.__name__}, found {str(value)[:80]!r}.")
    return value


def _optional(data: object, key: str, kind: type[T], place: str) -> T | None:
    """`data[key]` if it is there and not null, checked to be of this type."""
    if isinstance(data, dict) and data.get(key) is None:
        return None
    return _get(data, key, kind, place)
