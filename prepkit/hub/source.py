"""A zoo on the Hub, open: manifest and table are here, shards come when they are first touched.

    zoo = prepkit.open_zoo("hf://user/zoo@revision")

Shards are fetched whole, checked against the manifest, and kept on the disk (shard_cache.py), so that the next process
finds them there. A loader has the next shards in its order fetched by threads that stay ahead of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Condition, Lock, RLock, Thread
from typing import TYPE_CHECKING, Any

from prepkit.address import HubAddress, parse
from prepkit.cache import cache_folder
from prepkit.errors import HubError, OutputError, PrepkitError, ZooError
from prepkit.files import output_error
from prepkit.hub.client import api, explained, pinned
from prepkit.hub.fetch import Fetcher, HubFile, Stopped, all_done, is_sound
from prepkit.hub.pull import fetch_manifest
from prepkit.hub.shard_cache import alone, make_room, mapped, shelf_bytes
from prepkit.zoo.format.manifest import MANIFEST, read_manifest
from prepkit.zoo.read.store import MappedShard, Store

if TYPE_CHECKING:
    from torch import Tensor

AHEAD_AT_ONCE = 4
TRIES = 5  # another process may remove a shard between its coming and its mapping


def open_store(address: str, *, token: str | None = None, cache_bytes: int | None = None) -> HubStore:
    """Open a zoo of the Hub; its manifest and table are fetched unless they were before.

    raises HubError, ZooError
    """
    asked = parse(address)
    if asked.path is not None:
        raise HubError(f"'{address}' names a file; a zoo is a whole repository: hf://{asked.repo_id}.")
    with explained(asked.repo_id, "dataset", asked.revision):
        found = pinned(api(token), asked, "dataset")
    return HubStore(found, cache_folder(), shelf_bytes(cache_bytes), token)


class HubStore(Store):
    """An open zoo whose shards may be elsewhere; safe with threads, forks and several processes.

    address: its revision a commit
    shelf:   folder of the disk cache
    bound:   bytes of shards to be kept in it
    """

    def __init__(self, address: HubAddress, shelf: Path, bound: int, token: str | None) -> None:
        self.address = address
        self.shelf = shelf
        self.bound = bound
        self._token = token
        self._folder = shelf / address.repo_id.replace("/", "--") / str(address.revision)
        self._mapped: dict[int, MappedShard] = {}
        self._used: dict[Path, float] = {}
        self._state = Own(self._new_fetcher(), bound // 2)
        with on_disk(self._folder):
            self._fetch_head()
        super().__init__(self._folder)

    def values(self, number: int) -> Tensor:
        """The values of a shard, which is fetched if it is not here.

        raises HubError if it does not come
        """
        return self._shard(number).values

    def populate(self, number: int) -> None:
        """Map all pages of a shard now, after it was fetched."""
        self._shard(number).populate()

    def need(self, numbers: Collection[int]) -> None:
        """Fetch and map these shards, several at once."""
        missing = [number for number in numbers if number not in self._mapped]
        if len(missing) > 1 and not all(map(self._is_here, missing)):
            with self._new_fetcher().pool() as pool:
                # The futures hold what was mapped: one of these shards must not make room for another one.
                all_done([pool.submit(self._shard, number) for number in missing])

    @contextmanager
    def ahead(self, numbers: Iterable[int]) -> Iterator[None]:
        """While inside, threads fetch shards in this order, as far ahead as half of the shelf has room."""
        if all(map(self._is_here, range(len(self.manifest.shards)))):
            yield
            return
        fetcher, order = self._new_fetcher(), Shared(numbers)
        for _ in range(AHEAD_AT_ONCE):
            Thread(target=self._go_ahead, args=(fetcher, order), name="prepkit-ahead", daemon=True).start()
        try:
            yield
        finally:
            fetcher.stop()  # they end with the next piece that comes; nobody waits for a slow network
            self._own.untouched.forget()

    def file(self, path: str) -> Path:
        """The file that the manifest names so; the teacher's is fetched if it is not here."""
        teacher = self.manifest.teacher
        if teacher is not None and path == teacher.path and not (self.root / path).exists():
            with on_disk(self.root), alone(self.root / path):
                self._own.fetcher.fetch(HubFile(path, teacher.sha256), self.root / path)
        return self._file_inside(path)

    def _shard(self, number: int) -> MappedShard:
        self._used[self._place(number)] = time.time()
        found = self._mapped.get(number)
        if found is None:
            found = self._mapped_anew(number)
        self._own.untouched.touched(number)
        return found

    def _mapped_anew(self, number: int) -> MappedShard:
        for attempt in range(TRIES):
            self._fetch_shard(self._own.fetcher, number)
            with self._own.lock:
                if number in self._mapped:
                    return self._mapped[number]
                try:
                    file = self._file_inside(self.manifest.shards[number].path)
                    found = self._mapped[number] = self._map_shard(number, file, mapped)
                except (ZooError, OSError):  # another process removed it, or the disk has damaged it
                    if attempt == TRIES - 1:
                        raise
                    with suppress(OSError):
                        self._place(number).unlink(missing_ok=True)
                    continue
            with suppress(OSError):
                os.utime(self._place(number))  # for other processes: used now
            return found
        raise AssertionError

    def _fetch_head(self) -> None:
        """Manifest and table, unless they are here."""
        place = self._folder / MANIFEST
        with alone(place):
            try:
                manifest = read_manifest(self._folder)
            except ZooError:
                manifest = fetch_manifest(self._own.fetcher, self._folder)
            table = manifest.table
            if not is_sound(self._folder / table.path, table.sha256, table.bytes):
                self._own.fetcher.fetch(HubFile(table.path, table.sha256, table.bytes), self._folder / table.path)

    def _fetch_shard(self, fetcher: Fetcher, number: int) -> None:
        """Bring a shard to the shelf, unless it is there, and make room for it."""
        if self._is_here(number):
            return
        shard, place = self.manifest.shards[number], self._place(number)
        with on_disk(self.root), alone(place):
            if self._is_here(number):
                return
            with self._room_for(number, shard.bytes):
                fetcher.fetch(HubFile(shard.path, shard.sha256, shard.bytes), place)

    @contextmanager
    def _room_for(self, number: int, size: int) -> Iterator[None]:
        """Room on the shelf for a shard, beside those that other threads are fetching."""
        with self._own.lock:
            self._own.coming[number] = size
            make_room(self.shelf, self.bound - sum(self._own.coming.values()), self._used_last, self._let_go)
        try:
            yield
        finally:
            with self._own.lock:
                self._own.coming.pop(number, None)

    def _used_last(self, file: Path) -> float:
        return self._used.get(file, 0.0)

    def _go_ahead(self, fetcher: Fetcher, order: Shared) -> None:
        """What a thread does: fetch the next shards until it is told to stop; who touches one meets its errors."""
        with suppress(PrepkitError, OSError, Stopped):
            for number in order:
                if not self._is_here(number) and self._own.untouched.add(number, self.manifest.shards[number].bytes):
                    self._fetch_shard(fetcher, number)
                    if number in self._mapped:  # touched while it came
                        self._own.untouched.touched(number)
                if fetcher.is_stopped:
                    return

    def _let_go(self, file: Path) -> None:
        """Forget the mapping of a file; the tensors that somebody has of it keep it."""
        with self._own.lock:
            for number in [number for number in self._mapped if self._place(number) == file]:
                self._mapped.pop(number)

    def _is_here(self, number: int) -> bool:
        try:
            return self._place(number).stat().st_size == self.manifest.shards[number].bytes
        except OSError:
            return False

    def _place(self, number: int) -> Path:
        return self._folder / self.manifest.shards[number].path

    @property
    def _own(self) -> Own:
        if self._state.process != os.getpid():  # a forked child has its parent's locks as other threads held them
            self._state = Own(self._new_fetcher(), self.bound // 2)
        return self._state

    def _new_fetcher(self) -> Fetcher:
        return Fetcher(self.address, self._folder / ".fetching", token=self._token)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: which zoo, and where its files are kept."""
        return {"address": self.address, "shelf": self.shelf.absolute(), "bound": self.bound, "token": self._token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class Shared:
    """Numbers, each once, in their order, for several threads that take turns."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = iter(numbers)
        self._given: set[int] = set()
        self._lock = Lock()

    def __iter__(self) -> Iterator[int]:
        while (number := self._next()) is not None:
            yield number

    def _next(self) -> int | None:
        with self._lock:
            number = next((number for number in self._numbers if number not in self._given), None)
            if number is not None:
                self._given.add(number)
            return number


class Untouched:
    """Shards that were fetched ahead and that nobody has touched yet; whoever would go too far ahead waits."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._bytes: dict[int, int] = {}
        self._changed = Condition()
        self._round = 0

    def add(self, number: int, size: int) -> bool:
        """Wait until there is room for one more; False if all was forgotten meanwhile."""
        with self._changed:
            current = self._round
            self._changed.wait_for(
                lambda: current != self._round or not self._bytes or sum(self._bytes.values()) + size <= self.bound
            )
            if current == self._round:
                self._bytes[number] = size
            return current == self._round

    def touched(self, number: int) -> None:
        """A shard is in use now."""
        if number in self._bytes:
            with self._changed:
                self._bytes.pop(number, None)
                self._changed.notify_all()

    def forget(self) -> None:
        """Nobody goes ahead any more."""
        with self._changed:
            self._bytes.clear()
            self._round += 1
            self._changed.notify_all()


class Own:
    """What belongs to one process.

    coming: shards that are being fetched, and their sizes
    """

    def __init__(self, fetcher: Fetcher, ahead_bytes: int) -> None:
        self.process = os.getpid()
        self.fetcher = fetcher
        self.lock = RLock()
        self.coming: dict[int, int] = {}
        self.untouched = Untouched(ahead_bytes)


@contextmanager
def on_disk(folder: Path) -> Iterator[None]:
    """Say of the system's errors that the shelf cannot be written."""
    try:
        yield
    except OSError as error:
        raise error if isinstance(error, OutputError) else output_error(folder, error) from error
