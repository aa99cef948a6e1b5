"""LmdbValues: values of an LMDB data base in a folder, which is read without writing a lock into it.

The file is mapped, and a process is counted each page that it read there; so it is mapped anew from time to time.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError

DATA = "data.mdb"
MAPPED_AT_ONCE = 64 << 20  # bytes that are read before the file is mapped anew
PAGE = 1 << 16  # bytes; a multiple of the pages of all systems


class LmdbValues:
    """Values by name in the data base in a folder.

    raises ZooError if the package lmdb is missing, or the file is none of LMDB or not whole
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / DATA
        self._environment: Any = None
        self._read = 0
        self._opened()

    def get(self, key: str) -> bytes | None:
        """Return a value in memory of its own, None if there is none of that name.

        raises ZooError if the file is damaged where the value stands
        """
        lmdb = library()
        if self._read > MAPPED_AT_ONCE:
            self.close()
        try:
            with self._opened().begin() as transaction:
                value: bytes | None = transaction.get(key.encode())
        except lmdb.BadValsizeError:  # a name that is empty or too long for LMDB is in none of its files
            return None
        except lmdb.Error as error:
            raise ZooError(f"{self._file}, '{key}': cannot be read ({error}); fetch the file again.") from None
        self._read += len(value or b"")
        return value

    def close(self) -> None:
        """Give the mapping back; the next value maps the file again."""
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _opened(self) -> Any:
        if self._environment is not None:
            return self._environment
        lmdb = library()
        size = self._file.stat().st_size
        reason = "it is empty"
        if size:
            try:
                environment = lmdb.open(
                    str(self._file),
                    map_size=-(-size // PAGE) * PAGE,
                    subdir=False,
                    readonly=True,
                    lock=False,
                    create=False,
                    readahead=False,
                )
            except lmdb.Error as error:
                reason = str(error).rpartition(": ")[2]
            else:
                whole = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
                if size >= whole:  # LMDB would read beyond the end, which ends the process
                    self._environment, self._read = environment, 0
                    return environment
                environment.close()
                reason = f"it has {size:,} of {whole:,} bytes"
        raise ZooError(f"{self._file}: not a whole LMDB file ({reason}); fetch it again.")


def library() -> Any:
    """Import the package lmdb.

    raises ZooError if it is not installed
    """
    try:
        return import_module("lmdb")
    except ImportError:
        raise ZooError("reading LMDB needs the package lmdb; pip install 'prepkit[lmdb]'.") from None
