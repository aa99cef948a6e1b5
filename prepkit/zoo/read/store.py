"""Store: how an open zoo reads its files. LocalStore has all of them in a folder; the Hub has a store of its own."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.errors import ZooError
from prepkit.support.files import sha256_of_file
from prepkit.zoo.format.manifest import MANIFEST, Manifest, StoredArchitecture, checksum, read_manifest
from prepkit.zoo.format.paths import inside
from prepkit.zoo.format.shards import Extent, offset_of_values, shard_format
from prepkit.zoo.format.sizes import check_sizes
from prepkit.zoo.format.tables import read_table, whole_numbers
from prepkit.zoo.read.shard_values import MAX_OPEN, FileShard, Latest, MappedShard, OpenFile, ShardValues

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from prepkit.families.registry import Architecture

VERIFY = "PREPKIT_VERIFY"
MMAP = "PREPKIT_MMAP"


class Store(ABC):
    """An open zoo. Instance `i` is row `i` of the table.

    A subclass brings manifest and table into `root`, and gives the values of shards from wherever they are. Its stores
    can be pickled, and used after a fork.

    is_mapped: whether shards are mapped into memory, or read from their files each time
    is_remote: whether shards come from another machine when they are first touched
    raises ZooError if manifest and table cannot be read or do not agree
    """

    is_remote = True

    def __init__(self, root: Path, is_mapped: bool, manifest: Manifest | None = None) -> None:
        self.root = root
        self.is_mapped = is_mapped
        self._shards = Latest[ShardValues](None if is_mapped else MAX_OPEN)
        self._populated: set[int] = set()
        self.manifest: Manifest = manifest or read_manifest(root)
        self._check_files()
        self.table: pa.Table = self._read_table()
        self.shard_of: np.ndarray = whole_numbers(self.table["shard"])
        self.row_of: np.ndarray = whole_numbers(self.table["row"])
        self._check_rows()
        self._shard_format = shard_format(self.manifest.shard_format)
        self._stored = {stored.name: stored for stored in self.manifest.architectures}
        self.architectures: dict[tuple[str, bool], Architecture] = {}  # those built so far, by name and trust in code

    @abstractmethod
    def shard(self, number: int) -> ShardValues:
        """Return a shard, opened and checked.

        raises ZooError if the file is not the shard that the manifest describes
        """

    def values(self, number: int) -> Tensor:
        """Return the values of a shard: `[rows, height * width]` in the zoo's dtype.

        raises ZooError if the file is not the shard that the manifest describes
        """
        return self.shard(number).values

    def populate(self, number: int) -> None:
        """Read a shard as a whole now, once; otherwise a shuffled pass pays for each page when it touches it."""
        if number not in self._populated:
            self.shard(number).populate()
            self._populated.add(number)

    @abstractmethod
    def file(self, path: str) -> Path:
        """Return the file on the disk that the manifest gives this path."""

    def need(self, numbers: Collection[int]) -> None:  # noqa: B027  # a store that has all its shards does nothing
        """Prepare for the values of these shards to be asked for next, as by fetching them all at once."""

    def ahead(self, numbers: Iterable[int]) -> AbstractContextManager[None]:
        """While inside, prepare shards in this order in the background."""
        return nullcontext()

    def _check_files(self) -> None:  # noqa: B027  # shards that are fetched later are checked then
        """Compare the sizes of the shards with the manifest before the table is read, whose rows they bound."""

    def architecture_of_shard(self, number: int) -> StoredArchitecture:
        """Return the architecture whose instances a shard holds."""
        return self._stored[self.manifest.shards[number].architecture]

    @cached_property
    def class_ids(self) -> np.ndarray:
        """The ClassId of each instance; -1 where its architecture has none."""
        ids = [self.architecture_of_shard(number).class_id for number in range(len(self.manifest.shards))]
        by_shard = np.array([-1 if class_id is None else class_id for class_id in ids], dtype=np.int64)
        class_ids: np.ndarray = by_shard[self.shard_of]
        return class_ids

    @cached_property
    def totals(self) -> np.ndarray:
        """The number of parameters in a PRep of each shard."""
        shards = range(len(self.manifest.shards))
        return np.array([self.architecture_of_shard(number).layout.total for number in shards], dtype=np.int64)

    @cached_property
    def contents(self) -> list[tuple[str, list[tuple[int, ...]]]]:
        """The architecture of each shard, and the shapes of its tensors in order."""
        shapes = {name: [slot.shape for slot in stored.layout.slots] for name, stored in self._stored.items()}
        return [(shard.architecture, shapes[shard.architecture]) for shard in self.manifest.shards]

    def _open_shard(self, number: int, file: Path, opened: OpenFile | None = None) -> ShardValues:
        """Open the file of a shard after its header was checked against the manifest.

        opened: the same file, kept open for as long as the shard
        """
        height = self.architecture_of_shard(number).height
        extent = Extent(self.manifest.shards[number].rows, height, self.manifest.width, self.manifest.dtype)
        offset = offset_of_values(file, self._shard_format, extent)
        if self.is_mapped:
            return MappedShard(file, offset, extent, opened)
        try:
            return FileShard(opened or OpenFile(file), offset, extent)
        except OSError as error:
            raise ZooError(f"{file}: cannot be read: {error.strerror}.") from error

    def _read_table(self) -> pa.Table:
        """Read the table, and begin again if `split` and `clean` replaced it after the manifest was read."""
        while True:
            try:
                return read_table(self._file_inside(self.manifest.table.path), self.manifest.table)
            except ZooError:
                newer = read_manifest(self.root)
                if newer.table == self.manifest.table:
                    raise
                self.manifest = newer

    def _file_inside(self, path: str) -> Path:
        return inside(self.root, path, str(self.root / MANIFEST))

    def _check_rows(self) -> None:
        rows = np.array([shard.rows for shard in self.manifest.shards], dtype=np.int64)
        place = self.root / self.manifest.table.path
        known = (self.shard_of >= 0) & (self.shard_of < len(rows))
        if not known.all():
            row = int(np.argmin(known))
            raise ZooError(f"{place}, row {row}: there is no shard {self.shard_of[row]}.")
        held = (self.row_of >= 0) & (self.row_of < rows[self.shard_of]) if len(rows) else known
        if not held.all():
            row = int(np.argmin(held))
            raise ZooError(f"{place}, row {row}: its shard has no row {self.row_of[row]}.")


class LocalStore(Store):
    """A whole zoo in a folder; shards are opened when they are first touched.

    Opening the zoo checks the manifest, the table, and that every shard is there with its size; opening a shard checks
    its header, and its sha256 where that is asked for.

    verify: whether a shard is compared with its sha256 when it is first touched; PREPKIT_VERIFY says so if missing
    mmap:   whether shards are mapped into memory; PREPKIT_MMAP says so if missing
    """

    is_remote = False

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        verify: bool | None = None,
        mmap: bool | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        super().__init__(Path(root), maps(mmap), manifest)
        self._verify = verifies(verify, usually=False)
        self._compared: set[int] = set()  # shards whose content was compared with its sha256

    def shard(self, number: int) -> ShardValues:
        """Return a shard, opened."""
        shard = self._shards.get(number)
        if shard is None:
            shard = self._opened(number)
            self._shards.put(number, shard)
        return shard

    def reopened(self) -> LocalStore:
        """Open the same folder anew, as it is now."""
        return LocalStore(self.root, verify=self._verify, mmap=self.is_mapped)

    def file(self, path: str) -> Path:
        """Return the file in the folder."""
        return self._file_inside(path)

    def _opened(self, number: int) -> ShardValues:
        shard = self.manifest.shards[number]
        file = self.file(shard.path)
        if self._verify and number not in self._compared:
            if (sha256 := sha256_of_file(file)) != shard.sha256:
                raise ZooError(
                    f"{file}: damaged, its sha256 is {sha256[:12]}..., the manifest says {shard.sha256[:12]}...; fetch "
                    "it again. `prepkit zoo verify` checks all files."
                )
            self._compared.add(number)
        return self._open_shard(number, file)

    def _check_files(self) -> None:
        """Compare the sizes of the shards with the manifest."""
        check_sizes(self.root, self.manifest)

    def __getstate__(self) -> dict[str, Any]:
        """Return which zoo it is; another process opens it anew, with the table that it has here."""
        return {
            "root": self.root.absolute(),
            "sha256": _sum_of_shards(self.manifest),
            "table": self.manifest.table,
            "splits": self.manifest.splits,
            "verify": self._verify,
            "mmap": self.is_mapped,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        newest = read_manifest(state["root"])
        if _sum_of_shards(newest) != state["sha256"]:
            raise ZooError(f"'{state['root']}' was replaced while this process was started; open it anew.")
        manifest = replace(newest, table=state["table"], splits=state["splits"])  # `split` may have put others there
        self.__init__(  # type: ignore[misc]
            state["root"], verify=state["verify"], mmap=state["mmap"], manifest=manifest
        )


def verifies(asked: bool | None, *, usually: bool) -> bool:
    """Return whether shards are compared with their sha256 when they are first touched.

    asked:   the user's answer; None leaves it to PREPKIT_VERIFY
    usually: what holds if that is not set
    raises ZooError if PREPKIT_VERIFY is neither 0 nor 1
    """
    return _answer(asked, VERIFY, usually, "set it to 1 to compare shards with their sha256, or to 0")


def maps(asked: bool | None) -> bool:
    """Return whether shards are mapped into memory.

    asked: the user's answer; None leaves it to PREPKIT_MMAP, and to yes if that is not set
    raises ZooError if PREPKIT_MMAP is neither 0 nor 1
    """
    return _answer(asked, MMAP, True, "set it to 1 to map shards into memory, or to 0 to read them from their files")


def _answer(asked: bool | None, variable: str, usually: bool, remedy: str) -> bool:
    if asked is not None:
        return asked
    text = os.environ.get(variable, "")
    if text not in ("", "0", "1"):
        raise ZooError(f"{variable} is {text!r}; {remedy}.")
    return text == "1" if text else usually


def _sum_of_shards(manifest: Manifest) -> str:
    """Return a sum of what holds the instances, which changes in place leave as it is."""
    data = manifest.to_dict()
    return checksum({key: data[key] for key in ("architectures", "shards")})
