"""Rows, the rows of a matrix in a file, and Matrix, those of a .npy file: read one at a time, in the memory of one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from prepkit.errors import ZooError, counted

FLOATS = tuple(np.dtype(f"{order}f{size}") for order in "<>" for size in (2, 4, 8))
CHUNK = 4 << 20  # bytes of neighbouring rows that are read at once


class Rows:
    """The rows of a matrix of numbers that stand in a file one after the other.

    offset: bytes of the file before the first row
    """

    def __init__(self, file: Path, rows: int, columns: int, dtype: np.dtype[Any], offset: int = 0) -> None:
        self.file, self.rows, self.columns, self.dtype = file, rows, columns, dtype
        self._offset, self._row_bytes = offset, columns * dtype.itemsize

    def row(self, number: int) -> np.ndarray:
        """Return a row in memory of its own, in the machine's byte order.

        raises ZooError if the file has become shorter
        """
        values = np.frombuffer(self._read(number, 1), self.dtype)
        return values.astype(self.dtype.newbyteorder("="))

    def digests(self, numbers: list[int]) -> list[bytes]:
        """Return a digest of each of these rows, which ascend, by reading neighbours together."""
        digests: list[bytes] = []
        at_once = max(CHUNK // max(self._row_bytes, 1), 1)
        place = 0
        while place < len(numbers):
            end = place + 1
            while end < len(numbers) and end - place < at_once and numbers[end] == numbers[end - 1] + 1:
                end += 1
            content = memoryview(self._read(numbers[place], end - place))
            digests += [
                hashlib.blake2b(content[start : start + self._row_bytes], digest_size=16).digest()
                for start in range(0, len(content), self._row_bytes)
            ]
            place = end
        return digests

    def _read(self, number: int, count: int) -> bytes:
        size = count * self._row_bytes
        try:
            with open(self.file, "rb") as opened:  # a mapping would count each page that was read as this process's
                opened.seek(self._offset + number * self._row_bytes)
                content = opened.read(size)
        except OSError as error:
            raise ZooError(f"{self.file}, row {number}: cannot be read ({error.strerror}).") from None
        if len(content) < size:
            raise ZooError(f"{self.file}: has become shorter than its {counted(self.rows, 'row')}; fetch it again.")
        return content


class Matrix(Rows):
    """The rows of a matrix of floating-point numbers in a .npy file.

    raises ZooError if it is none, or not whole
    """

    def __init__(self, file: Path) -> None:
        try:
            mapped = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ZooError(f"{file}: not a whole .npy file ({reason}); fetch it again.") from None
        if not isinstance(mapped, np.memmap) or mapped.ndim != 2 or mapped.dtype not in FLOATS:
            found = f"{mapped.dtype} {list(mapped.shape)}" if isinstance(mapped, np.ndarray) else "an archive"
            raise ZooError(f"{file}: expected a matrix of floating-point numbers, a model a row; found {found}.")
        if not mapped.flags.c_contiguous:
            raise ZooError(f"{file}: its columns stand one after the other; save it with its rows, in C order.")
        rows, columns = mapped.shape
        super().__init__(file, rows, columns, mapped.dtype, int(mapped.offset))
