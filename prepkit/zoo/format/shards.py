"""The two shard formats behind one interface: the bytes around the values, and the offset of the values.

A shard holds one array `prep` `[rows, height, width]` of one architecture, contiguous and little-endian, so both
formats are the same three parts: some bytes before the values, the values row by row, some bytes after. The writer
appends values while they come, and the reader maps them, without knowing which format it has.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prepkit.checkpoint.safetensors_header import DTYPE_NAMES, HeaderError, read_header
from prepkit.errors import ZooError, counted, listed, nearest
from prepkit.tensors import BITS

VALUES = "prep"
SAFETENSORS_PREFIX_BYTES = 4096  # the header is padded, so that values begin at a page of the mapped file
SAFETENSORS_DTYPES = {name: code for code, name in DTYPE_NAMES.items()}
HDF5_DTYPES = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}  # HDF5 has no bfloat16
DTYPE_ATTRIBUTE = "dtype"
SYSTEM_ERRORS = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOENT}


@dataclass(frozen=True)
class Extent:
    """The array of a shard: `[rows, height, width]` of a dtype."""

    rows: int
    height: int
    width: int
    dtype: str

    @property
    def row_bytes(self) -> int:
        """The number of bytes of one PRep."""
        return self.height * self.width * BITS[self.dtype] // 8

    @property
    def num_bytes(self) -> int:
        """The number of bytes of all values."""
        return self.rows * self.row_bytes

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape `(rows, height, width)`."""
        return self.rows, self.height, self.width


@dataclass(frozen=True)
class Frame:
    """The bytes before and after the values; their lengths do not depend on the number of rows."""

    before: bytes
    after: bytes


@dataclass(frozen=True)
class ShardFormat:
    """A way to store shards.

    frame:  returns the frame of an extent
    locate: checks the header of a file against an extent, and returns the offset of the values; raises ValueError or
            OSError with the reason if the file does not hold that array alone
    """

    name: str
    suffix: str
    frame: Callable[[Extent], Frame]
    locate: Callable[[Path, Extent], int]


def shard_format(name: str) -> ShardFormat:
    """Return the shard format of this name.

    raises ZooError for an unknown name
    """
    if name not in FORMATS:
        raise ZooError(f"unknown shard format '{name}'; there are {listed(FORMATS)}.{nearest(name, FORMATS)}")
    return FORMATS[name]


def offset_of_values(file: Path, kind: ShardFormat, extent: Extent) -> int:
    """Check the header and the size of a shard against the manifest, and return the offset of its values.

    raises ZooError naming the file and what is wrong
    """
    try:
        offset = kind.locate(file, extent)
        size = file.stat().st_size
    except OSError as error:
        if error.errno not in SYSTEM_ERRORS:  # h5py has such errors for what is in a file, too
            raise ZooError(f"{file}: not the shard that the manifest describes: {error}") from None
        more = "; allow more by `ulimit -n`" if error.errno == errno.EMFILE else ""
        raise ZooError(f"{file}: cannot be read: {os.strerror(error.errno)}{more}.") from None
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ZooError(f"{file}: not the shard that the manifest describes: {error}") from None
    if offset + extent.num_bytes > size:
        raise ZooError(
            f"{file}: truncated, it has {counted(size, 'byte')} and its values end at {offset + extent.num_bytes:,}."
        )
    return offset


# safetensors --------------------------------------------------------------------------------------------------


def safetensors_frame(extent: Extent) -> Frame:
    """Return a header of length and JSON, which the format allows to be padded with spaces."""
    tensor = {
        "dtype": SAFETENSORS_DTYPES[extent.dtype],
        "shape": list(extent.shape),
        "data_offsets": [0, extent.num_bytes],
    }
    header = json.dumps({VALUES: tensor}, separators=(",", ":")).encode()
    length = SAFETENSORS_PREFIX_BYTES - 8
    return Frame(length.to_bytes(8, "little") + header.ljust(length), b"")


def locate_in_safetensors(file: Path, extent: Extent) -> int:
    """Return the offset of `prep`, which must be the only tensor of the file."""
    try:
        tensors = read_header(file).tensors
    except HeaderError as error:
        raise ValueError(f"it is no whole safetensors file: {error}.") from None
    if set(tensors) != {VALUES}:
        raise ValueError(f"it holds {listed(tensors)} instead of '{VALUES}' alone.")
    stored = tensors[VALUES]
    check_array((stored.shape, DTYPE_NAMES.get(stored.dtype, stored.dtype)), extent)
    return stored.offset


# HDF5 ---------------------------------------------------------------------------------------------------------


def hdf5_frame(extent: Extent) -> Frame:
    """Return the bytes that the HDF5 library writes around a contiguous dataset, without letting it write values."""
    import h5py
    import numpy as np

    # In a sparse file, not in memory, the space that HDF5 allocates for the values costs nothing.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.h5"
        with h5py.File(path, "w", libver="earliest") as file:
            settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            settings.set_layout(h5py.h5d.CONTIGUOUS)
            settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            settings.set_obj_track_times(False)  # the same input must give the same bytes
            kind = h5py.h5t.py_create(np.dtype(HDF5_DTYPES[extent.dtype]))
            dataset = h5py.Dataset(
                h5py.h5d.create(file.id, VALUES.encode(), kind, h5py.h5s.create_simple(extent.shape), settings)
            )
            dataset.attrs[DTYPE_ATTRIBUTE] = np.bytes_(extent.dtype)
            offset = dataset.id.get_offset()
        with open(path, "rb") as raw:
            before = raw.read(offset)
            raw.seek(offset + extent.num_bytes)
            return Frame(before, raw.read())


def locate_in_hdf5(file: Path, extent: Extent) -> int:
    """Return the offset of `prep`, a contiguous dataset without link, external file, filter or virtual source."""
    import h5py

    with h5py.File(file, "r", locking=False) as opened:
        if list(opened) != [VALUES] or not isinstance(opened.get(VALUES, getlink=True), h5py.HardLink):
            raise ValueError(f"it holds {listed(opened)} instead of '{VALUES}' alone.")
        dataset = opened[VALUES]
        if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual or dataset.chunks:
            raise ValueError(f"'{VALUES}' is not a contiguous dataset inside the file.")
        dtype = dataset.attrs.get(DTYPE_ATTRIBUTE, b"")
        dtype = dtype.decode() if isinstance(dtype, bytes) else str(dtype)
        if dataset.dtype.str != HDF5_DTYPES.get(dtype):
            raise ValueError(f"'{VALUES}' has dtype {dataset.dtype.str}, its attribute says {dtype!r}.")
        check_array((dataset.shape, dtype), extent)
        offset = dataset.id.get_offset()
        if offset is None:
            raise ValueError(f"'{VALUES}' has no values.")
        return int(offset)


def check_array(shape_and_dtype: tuple[tuple[int, ...], str], extent: Extent) -> None:
    """Raise ValueError unless a file's shape and dtype are the extent's."""
    shape, dtype = shape_and_dtype
    if (shape, dtype) != (extent.shape, extent.dtype):
        raise ValueError(f"'{VALUES}' is {list(shape)} {dtype}, the manifest says {list(extent.shape)} {extent.dtype}.")


FORMATS = {
    "safetensors": ShardFormat("safetensors", ".safetensors", safetensors_frame, locate_in_safetensors),
    "hdf5": ShardFormat("hdf5", ".h5", hdf5_frame, locate_in_hdf5),
}
