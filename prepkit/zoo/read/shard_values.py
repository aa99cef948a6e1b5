"""The values of one shard: mapped into memory, or read from its open file where a mapping is not safe.

A mapping is private (copy on write): writing into a tensor that was read changes nothing on the disk. It needs no open
file, since a zoo may have more shards than a process may open files. A shard that another program truncates ends a
process that has it mapped (SIGBUS), as on a network disk; one that is read from its file raises ZooError.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union
from weakref import finalize

import numpy as np

from prepkit.errors import ZooError, counted
from prepkit.tensors import torch_dtype
from prepkit.zoo.format.shards import Extent

if TYPE_CHECKING:
    from torch import Tensor

ShardValues = Union["MappedShard", "FileShard"]
Words = np.ndarray[Any, np.dtype[Any]]
Item = TypeVar("Item")

MAX_OPEN = 64  # open files a zoo, as in the writer
POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14 maps all pages at once


class OpenFile:
    """A file that is open for reading until `close` is called, or nothing uses it any more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.close = finalize(self, os.close, self.descriptor)
        self.close.atexit = False  # a thread may still read


class Latest(OrderedDict[int, Item]):
    """Items by the number of their shard, of which those put in last are kept; without a lock, which a fork could copy.

    bound: how many are kept, all if None
    """

    def __init__(self, bound: int | None = None) -> None:
        super().__init__()
        self.bound = bound

    def put(self, number: int, item: Item) -> list[Item]:
        """Keep an item, and return those that are kept no longer."""
        self[number] = item
        left = []
        while self.bound is not None and len(self) > self.bound:
            with suppress(KeyError):  # another thread has just let it go
                left.append(self.popitem(last=False)[1])
        return left


class MappedShard:
    """A shard's file as memory, which lives as long as tensors use it.

    values: `[rows, height * width]`
    kept:   an object that lives as long as that memory, such as a lock on the file
    """

    def __init__(self, file: Path, offset: int, extent: Extent, kept: object = None) -> None:
        import torch

        dtype, size = torch_dtype(extent.dtype), (extent.rows, extent.height * extent.width)
        self._memory = _mapped(file, offset + extent.num_bytes)
        begin = offset // dtype.itemsize
        values = self._memory
        if offset % dtype.itemsize:  # another library wrote the file
            begin, values = 0, values[offset:]
        self.values = torch.empty(0, dtype=dtype).set_(values, begin, size, (size[1], 1))
        self.values.untyped_storage().kept = kept  # type: ignore[attr-defined] # one object for all tensors of the storage

    def row(self, row: int) -> Tensor:
        """Return a view of one instance's values, `[height * width]`."""
        return self.values[row]

    def populate(self) -> None:
        """Map all pages now; an older kernel goes on mapping each page when it is touched."""
        if sys.platform == "linux":
            address, size = ctypes.c_void_p(self._memory.data_ptr()), ctypes.c_size_t(self._memory.nbytes())
            ctypes.CDLL(None).madvise(address, size, POPULATE_READ)


class FileShard:
    """A shard that is read from its open file, each time into new memory."""

    def __init__(self, opened: OpenFile, offset: int, extent: Extent) -> None:
        self.file = opened.path
        self.offset = offset
        self.extent = extent
        self.cells = extent.height * extent.width
        self._opened = opened

    @property
    def values(self) -> Tensor:
        """All values, read anew.

        raises ZooError
        """
        return self._new(0, (self.extent.rows, self.cells))

    def row(self, row: int) -> Tensor:
        """Read one instance.

        raises ZooError
        """
        return self._new(row, (1, self.cells))[0]

    def populate(self) -> None:
        """Have the system read the whole file ahead, where it can."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self._opened.descriptor, self.offset, self.extent.num_bytes, os.POSIX_FADV_WILLNEED)

    def read(self, row: int, target: Words) -> None:
        """Read rows from this one on into `target` `[count, cells]`, cut or padded with zeros to its length.

        raises ZooError
        """
        if target.shape[1] == self.cells:
            self._fill(row, target)
            return
        common = min(target.shape[1], self.cells)
        target[:, common:] = 0
        for number in range(len(target)):
            self._fill(row + number, target[number, :common])

    def read_part(self, row: int, start: int, target: Words) -> None:
        """Read the values of one row from number `start` on into `target` `[count]`.

        raises ZooError
        """
        self._fill(row, target, start)

    def _new(self, row: int, size: tuple[int, int]) -> Tensor:
        import torch

        values = torch.empty(size, dtype=torch_dtype(self.extent.dtype))
        self._fill(row, values.view(torch.uint8).numpy())
        return values

    def _fill(self, row: int, target: Words, start: int = 0) -> None:
        """Fill contiguous memory with what stands in the file from number `start` of a row's values on."""
        left = memoryview(target).cast("B")  # type: ignore[arg-type]
        place = self.offset + row * self.extent.row_bytes + start * (self.extent.row_bytes // self.cells)
        try:
            while len(left):
                count = _read_at(self._opened, left, place)
                if not count:
                    size = os.fstat(self._opened.descriptor).st_size
                    raise ZooError(
                        f"{self.file}, row {(place - self.offset) // self.extent.row_bytes}: truncated while the zoo "
                        f"is open, it has {counted(size, 'byte')} and its values end at "
                        f"{self.offset + self.extent.num_bytes:,}; fetch it again."
                    )
                left, place = left[count:], place + count
        except OSError as error:
            raise ZooError(f"{self.file}, row {row}: cannot be read: {error.strerror}.") from error


def _mapped(file: Path, size: int) -> Any:
    """Map the beginning of a file copy on write, and keep no file open.

    raises ZooError
    """
    import torch

    try:
        try:
            return torch.UntypedStorage.from_file(str(file), False, size)
        except UnicodeEncodeError:  # torch asks for a name that is text
            opened = OpenFile(file)
            return torch.UntypedStorage.from_file(f"/dev/fd/{opened.descriptor}", False, size)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rpartition(": ")[2]
        raise ZooError(f"{file}: cannot be mapped: {reason}. PREPKIT_MMAP=0 reads it instead.") from error


def _read_at(opened: OpenFile, target: memoryview, place: int) -> int:
    """Read bytes at a place of a file into memory, and return how many came."""
    if hasattr(os, "preadv"):
        return os.preadv(opened.descriptor, [target], place)
    with open(opened.path, "rb", buffering=0) as file:  # a system whose open files have one position for all threads
        file.seek(place)
        return file.readinto(target) or 0
