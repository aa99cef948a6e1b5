"""zoo.json: the manifest of a zoo, in the format "prepkit-zoo/1". A folder that has it holds a whole zoo.

The manifest is checked once, where it is read; each error names the file and the place in it. Keys that this version
does not know are kept. Importing this module imports neither torch nor pyarrow: `prepkit zoo info` reads no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from prepkit.errors import InvalidShape, LayoutMismatch, ZooError, counted
from prepkit.prep.layout import Layout, PRepShape, canonical_json
from prepkit.support.files import ZOO_MANIFEST, like_in_folder, replacing
from prepkit.support.json_values import broken_text
from prepkit.support.reading import (
    NOT_A_KEY,
    TEXT,
    Key,
    Place,
    Reader,
    checked,
    choice,
    keys_of,
    list_of,
    read,
    read_keys,
    unknown,
    whole,
    wrong,
)
from prepkit.support.text import Brief
from prepkit.tensors import BITS
from prepkit.zoo.format.function import Function
from prepkit.zoo.format.paths import WORKING_FOLDERS, check_part, check_relative

FORMAT = "prepkit-zoo/1"
MANIFEST = ZOO_MANIFEST
MAX_MANIFEST_BYTES = 256 << 20
MAX_FILE_BYTES = 1 << 60  # so that all numbers of rows and bytes fit 64 bits
MAX_CELLS = 1 << 36  # values of one PRep; the memory for a single larger one would be a quarter of a tebibyte
KEPT_BATCH_NORM = "+bn"  # follows the name of an architecture whose BatchNorm was not folded


def _layout(value: Any, place: Place) -> Layout:
    try:
        return Layout.from_dict(value, str(place))
    except LayoutMismatch as error:
        raise ZooError(str(error)) from None


LAYOUT = Reader("a layout", _layout)
SIZES = list_of(whole(1), "whole numbers")
PATH = Reader("a path inside the zoo", lambda value, place: check_relative(TEXT(value, place), place))
FILE_NAME = Reader("a name", lambda value, place: check_part(TEXT(value, place), place))
HEX_DIGITS = re.compile(r"[0-9a-f]{64}")
SHA256 = checked("64 hex digits", lambda value: isinstance(value, str) and HEX_DIGITS.fullmatch(value))
COUNTS = checked(
    "a number of rows for each split",
    lambda value: isinstance(value, dict) and all(type(count) is int and count >= 0 for count in value.values()),
)


@dataclass(frozen=True, kw_only=True, repr=False)
class StoredArchitecture(Brief):
    """An architecture as a zoo stores it."""

    IGNORES_UNKNOWN: ClassVar[bool] = True

    class_id: int | None = None
    name: Annotated[str, FILE_NAME, "name; it stands in file names"]
    layout: Annotated[Layout, LAYOUT, "slots of its PReps"]
    height: Annotated[int, "least height of its PRep at the zoo's width; its shards have this height"]
    fused: Annotated[bool, "true if BatchNorm was folded or never there"]
    family: str | None = None
    input_shape: Annotated[tuple[int, ...] | None, SIZES, "shape of one input"] = None
    num_trainable: int | None = None
    config: Annotated[
        Mapping[str, Any] | None,
        "what builds the network again (see Architecture.config); null if only the layout is known",
    ] = None

    @property
    def trained_name(self) -> str:
        """The name under which the architecture is registered."""
        return self.name if self.fused else self.name.removesuffix(KEPT_BATCH_NORM)


@dataclass(frozen=True, repr=False)
class StoredFile(Brief):
    """A file of the zoo."""

    IGNORES_UNKNOWN: ClassVar[bool] = True

    path: Annotated[str, PATH, "relative path"]
    rows: Annotated[int, whole(0), "number of rows in it"]
    bytes: Annotated[int, whole(1, MAX_FILE_BYTES), "its size"]
    sha256: Annotated[str, SHA256, "sha256 of its content"]


@dataclass(frozen=True, repr=False)
class Shard(StoredFile):
    """A file with the PReps `[rows, height_of_architecture, width]` of one architecture."""

    architecture: Annotated[str, "name of the architecture"]


@dataclass(frozen=True)
class Teacher:
    """The PRep file of the network that teaches."""

    IGNORES_UNKNOWN: ClassVar[bool] = True

    path: Annotated[str, PATH, "relative path"]
    architecture: Annotated[str, "name of the architecture"]
    sha256: Annotated[str, SHA256, "sha256 of its content"]


@dataclass(frozen=True, repr=False)
class StoredPreprocessing(Brief):
    """The file with the means and deviations that PReps are normalised by."""

    IGNORES_UNKNOWN: ClassVar[bool] = True

    path: Annotated[str, PATH, "relative path"]
    sha256: Annotated[str, SHA256, "sha256 of its content, which names the preprocessing"]
    per: Annotated[str, choice("cell", "slot"), "what has a mean and a deviation: each value, or each tensor"]
    split: Annotated[str | None, "split whose instances they were computed from; null for all"]
    rows: Annotated[int, whole(1), "number of these instances"]
    ids_sha256: Annotated[str, SHA256, "sha256 of their ids, see `prepkit.zoo.format.ids`"]

    def __str__(self) -> str:
        return f"per {self.per} over {self.split or 'all'} ({counted(self.rows, 'instance')}), {self.sha256[:12]}"


@dataclass(frozen=True, repr=False)
class Manifest(Brief):
    """The content of zoo.json, without its own checksum."""

    IGNORES_UNKNOWN: ClassVar[bool] = True

    name: str
    width: int
    height: int
    dtype: Annotated[str, choice(*BITS), "dtype of the PReps"]
    shard_format: str
    architectures: tuple[StoredArchitecture, ...]
    shards: tuple[Shard, ...]
    table: StoredFile
    splits: Annotated[Mapping[str, int], COUNTS, "number of rows of each split"]
    task: Mapping[str, Any] | None = None
    teacher: Teacher | None = None
    license: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    created_by: str = ""
    function: Function | None = None
    preprocessing: StoredPreprocessing | None = None
    unknown: Annotated[Mapping[str, Any], NOT_A_KEY] = field(default_factory=dict)

    @property
    def shape(self) -> PRepShape:
        """The shape that holds any instance."""
        return PRepShape(self.height, self.width)

    @property
    def paths(self) -> frozenset[str]:
        """The paths of the files that it names."""
        return frozenset((self.table.path, *(shard.path for shard in self.shards), *self.beside))

    @property
    def beside(self) -> dict[str, str]:
        """The paths of the files beside shards and table, with their sha256: the teacher's and the preprocessing's."""
        stored = [file for file in (self.teacher, self.preprocessing) if file is not None]
        return {file.path: file.sha256 for file in stored}

    def key_of(self, path: str) -> str:
        """Return the key of zoo.json that names a file of `beside`."""
        return "teacher" if self.teacher is not None and path == self.teacher.path else "preprocessing"

    def architecture(self, name: str) -> StoredArchitecture:
        """Return the stored architecture of this name."""
        return next(stored for stored in self.architectures if stored.name == name)

    @property
    def bytes_of_rows(self) -> list[int]:
        """How many bytes the values in the rows of each shard take."""
        heights = {stored.name: stored.height for stored in self.architectures}
        return [shard.rows * heights[shard.architecture] * self.width * BITS[self.dtype] // 8 for shard in self.shards]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form, with the sha256 of the canonical JSON of all other keys."""
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
            **({} if self.function is None else {"function": self.function.to_dict()}),
            **({} if self.preprocessing is None else {"preprocessing": dict(vars(self.preprocessing))}),
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
    """Return the bytes of zoo.json."""
    return (json.dumps(manifest.to_dict(), indent=1, sort_keys=True) + "\n").encode()


def read_manifest(root: str | os.PathLike[str]) -> Manifest:
    """Read and check the manifest of a zoo folder.

    raises ZooError naming the file and the place
    """
    path = Path(root) / MANIFEST
    try:
        if not path.is_file():
            raise ZooError(_why_no_manifest(Path(root)))
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ZooError(f"{path}: {path.stat().st_size:,} bytes are more than a manifest has.")
        data = json.loads(path.read_bytes())
    except ZooError:
        raise
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{path}: damaged, it is not JSON ({error}). Fetch it again.") from None
    except OSError as error:
        raise ZooError(f"{path}: cannot be read: {error.strerror}.") from None
    return manifest_from_dict(data, str(path))


def manifest_from_dict(data: object, file: str) -> Manifest:
    """Check parsed JSON, and return its manifest.

    file: name of the file in errors
    raises ZooError naming the place
    """
    place = Place(file)
    _check_format(data, place)
    try:
        sha256 = checksum(data)
    except ValueError:  # it holds NaN or infinity, which prepkit never writes
        sha256 = ""
    if read_keys({"sha256": Key(TEXT)}, data, place, strict=False)["sha256"] != sha256:
        raise ZooError(f"{place}: damaged, its content does not match its sha256. Fetch it again.")
    broken = broken_text(data)
    if broken is not None:
        raise ZooError(f"{file}, {broken or 'a key'}: the text is not Unicode, it holds half of a surrogate pair.")
    manifest = read(Manifest, data, place)
    known = {*keys_of(Manifest), "format", "sha256"}
    manifest = replace(manifest, unknown={key: value for key, value in data.items() if key not in known})  # type: ignore[attr-defined]
    _check_architectures(manifest, place)
    _check_rows(manifest, place)
    return manifest


def checksum(data: object) -> str:
    """Return the sha256 of the canonical JSON of a manifest without its own `sha256`."""
    rest = {key: value for key, value in data.items() if key != "sha256"} if isinstance(data, dict) else data
    return hashlib.sha256(canonical_json(rest).encode()).hexdigest()


def _holder_of(lock: Path) -> str | None:
    from prepkit.support.lock import holder_of  # only who finds no zoo needs it

    return holder_of(lock)


def _why_no_manifest(root: Path) -> str:
    if not root.exists():
        is_address = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(root))
        hint = " This takes a local folder; `prepkit pull` brings a zoo from hf://user/zoo." if is_address else ""
        return f"'{root}' does not exist.{hint or like_in_folder(root)}"
    if not root.is_dir():
        return f"'{root}' is not a folder; a zoo is a folder with a {MANIFEST}."
    for folder in WORKING_FOLDERS:
        if holder := _holder_of(root / folder / "lock"):
            return f"'{root}' is an unfinished zoo: {holder} is writing it. Open it when that is done."
    if (root / ".writing").is_dir():
        return f"'{root}' is an unfinished zoo: writing it was interrupted. Run the command that wrote it again."
    if (root / ".pulling").is_dir():
        return f"'{root}' is an unfinished zoo: pulling it was interrupted. Run the same `prepkit pull` again."
    inside = sorted(path.parent.name for path in root.glob(f"*/{MANIFEST}"))
    hint = f"'{root / inside[0]}' is one." if inside else "`prepkit zoo create` makes a zoo of checkpoints."
    return f"'{root}' is not a zoo: it has no {MANIFEST}. {hint}"


def _check_format(data: object, place: Place) -> None:
    format = data.get("format") if isinstance(data, dict) else None
    if format == FORMAT:
        return
    if isinstance(format, str) and format.startswith("prepkit-zoo/"):
        raise ZooError(f"{place}: format {format!r} is newer than {FORMAT!r}; upgrade prepkit.")
    raise ZooError(f"{place}: not a prepkit zoo, its format is {format!r}.")


def architecture_to_dict(stored: StoredArchitecture) -> dict[str, Any]:
    """Return the JSON-able form of a stored architecture."""
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


def architecture_from_dict(data: object, width: int, place: str) -> StoredArchitecture:
    """Check what `architecture_to_dict` wrote, and return the stored architecture.

    raises ZooError naming the place
    """
    stored = read(StoredArchitecture, data, Place(place))
    _check_height(stored, width, Place(place))
    return stored


def _check_height(stored: StoredArchitecture, width: int, place: Place) -> None:
    least = stored.layout.shape(width).height
    if stored.height != least:
        raise wrong(place["height"], f"{least}, the least height of its layout", stored.height)


def _check_architectures(manifest: Manifest, place: Place) -> None:
    """Raise ZooError unless shape, names and ClassIds fit each other."""
    try:
        width = manifest.shape.width
    except InvalidShape as error:
        raise ZooError(f"{place}: {error}") from None
    for index, stored in enumerate(manifest.architectures):
        _check_height(stored, width, place["architectures"][index])
    names = [stored.name for stored in manifest.architectures]
    if len(set(names)) != len(names):
        raise ZooError(f"{place['architectures']}: a name stands twice.")
    class_ids = sorted(stored.class_id for stored in manifest.architectures if stored.class_id is not None)
    if class_ids != list(range(len(class_ids))):
        raise ZooError(f"{place['architectures']}: the ClassIds are {class_ids}, not 0, 1, 2 ...")
    for index, shard in enumerate(manifest.shards):
        if shard.architecture not in names:
            raise unknown(place["shards"][index]["architecture"], "architecture", shard.architecture, names)
    if manifest.teacher is not None and manifest.teacher.architecture not in names:
        raise unknown(place["teacher"]["architecture"], "architecture", manifest.teacher.architecture, names)
    tallest = max((stored.height for stored in manifest.architectures if stored.class_id is not None), default=0)
    if manifest.height < tallest:
        raise ZooError(f"{place['height']}: {manifest.height} is less than the {tallest} of an architecture.")
    if manifest.shape.cells > MAX_CELLS:
        raise ZooError(f"{place['height']}: PReps of {manifest.shape} are refused; {MAX_CELLS:,} values are the most.")


def _check_rows(manifest: Manifest, place: Place) -> None:
    """Raise ZooError unless the numbers of rows agree, and each shard has enough bytes for its rows.

    Reading a table takes memory for each row, even if a small file says that all of them are equal.
    """
    for index, (shard, needed) in enumerate(zip(manifest.shards, manifest.bytes_of_rows, strict=True)):
        if needed > shard.bytes:
            raise ZooError(
                f"{place['shards'][index]['rows']}: {counted(shard.rows, 'row')} would take {counted(needed, 'byte')}, "
                f"but the shard has {shard.bytes:,}."
            )
    stored = sum(shard.rows for shard in manifest.shards)
    if manifest.table.rows != stored:
        raise ZooError(f"{place}: the table has {counted(manifest.table.rows, 'row')}, the shards {stored:,}.")
    if sum(manifest.splits.values()) > stored:
        raise ZooError(f"{place['splits']}: they hold more than the zoo's {counted(stored, 'instance')}.")
