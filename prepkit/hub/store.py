"""An open zoo on the Hub or in another store: manifest and table are fetched at once, shards when they are first used.

    zoo = prepkit.open_zoo("hf://user/zoo@revision")
    zoo = prepkit.open_zoo("s3://bucket/zoo")

Shards are fetched whole, checked against the manifest, and kept on the disk (shard_cache.py), so that the next process
finds them there. While a loader runs, threads fetch the next shards in its order and stay ahead of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock, Thread
from typing import Any

from prepkit.address import HubAddress, UrlAddress
from prepkit.errors import PrepkitError, ZooError
from prepkit.hub._fetch import Fetcher, is_sound, wait_for_all
from prepkit.hub._prefetch import PrefetchBudget, SharedIterator
from prepkit.hub._shard_cache import alone, bound_of_cache, held, link_from_another_version, make_room
from prepkit.hub._sizes import check_rows
from prepkit.hub._source import FETCHING, RemoteFile, Source, Stopped
from prepkit.hub.pull import fetch_manifest, source_of
from prepkit.support.cache import cache_folder
from prepkit.support.files import system_errors_as_output
from prepkit.zoo.format.manifest import MANIFEST, Manifest, read_manifest
from prepkit.zoo.read.shard_values import MAX_OPEN, Latest, OpenFile, ShardValues
from prepkit.zoo.read.store import Store, maps, verifies

PREFETCH_THREADS = 4
OPENING_ATTEMPTS = 5  # another process may remove a shard before this one has opened it


def open_store(
    address: HubAddress | UrlAddress | str,
    *,
    token: str | None = None,
    cache_bytes: int | None = None,
    verify: bool | None = None,
    mmap: bool | None = None,
) -> RemoteStore:
    """Open a zoo on the Hub or in another store; its manifest and table are fetched unless they are in the cache.

    raises HubError, ZooError
    """
    bound, checked, is_mapped = bound_of_cache(cache_bytes), verifies(verify, usually=True), maps(mmap)
    return RemoteStore(source_of(address, token), cache_folder(), bound, checked, is_mapped)


def manifest_at(address: HubAddress | UrlAddress, *, token: str | None = None) -> Manifest:
    """Return the manifest of a zoo on the Hub or in another store; it is fetched unless it is in the cache.

    raises HubError, ZooError
    """
    source = source_of(address, token)
    folder = cache_folder() / source.folder
    with system_errors_as_output(folder), alone(folder / MANIFEST):
        return _cached_manifest(Fetcher(source, folder / FETCHING), folder)


def _cached_manifest(fetcher: Fetcher, folder: Path) -> Manifest:
    try:
        return read_manifest(folder)
    except ZooError:
        return fetch_manifest(fetcher, folder)


class RemoteStore(Store):
    """An open zoo whose shards may still be in a store; threads, forks and several processes may use it.

    source:      the version of the zoo that is open
    cache:       folder of the cache on the disk
    cache_bytes: how many bytes of shards are kept there
    verify:      whether shards that are there already are compared with their sha256 before this process uses them
    mmap:        whether shards are mapped into memory
    """

    def __init__(
        self,
        source: Source,
        cache: Path,
        cache_bytes: int,
        verify: bool = True,
        mmap: bool = True,
    ) -> None:
        self.source = source
        self.cache = cache
        self.cache_bytes = cache_bytes
        self._verify = verify
        self._sound: set[int] = set()  # shards whose content this process has compared, or inherited from its parent
        self._folder = cache / source.folder
        self._locks = Latest[OpenFile](MAX_OPEN)
        self._used: dict[Path, float] = {}
        self._process_state = self._new_process_state()
        with system_errors_as_output(self._folder):
            self._fetch_manifest_and_table()
        super().__init__(self._folder, mmap)

    def shard(self, number: int) -> ShardValues:
        """Return a shard, which is fetched if it is not in the cache.

        raises HubError if it does not come
        """
        self._used[self._place(number)] = time.time()
        shard = self._shards.get(number) or self._opened(number)
        self._own.budget.release(number)
        return shard

    def need(self, numbers: Collection[int]) -> None:
        """Fetch and open these shards, several at the same time."""
        missing = [number for number in numbers if number not in self._shards]
        if len(missing) > 1 and not all(map(self._is_ready, missing)):
            with self._new_fetcher().pool() as pool:
                # The futures keep the shards in use, so that none of them makes room for another.
                wait_for_all([pool.submit(self.shard, number) for number in missing])

    @contextmanager
    def ahead(self, numbers: Iterable[int]) -> Iterator[None]:
        """Have threads fetch shards in this order, as far ahead as half of the cache has room."""
        if all(map(self._is_ready, range(len(self.manifest.shards)))):
            yield
            return
        fetcher, order = self._new_fetcher(), SharedIterator(numbers)
        for _ in range(PREFETCH_THREADS):
            Thread(target=self._prefetch, args=(fetcher, order), name="prepkit-ahead", daemon=True).start()
        try:
            yield
        finally:
            fetcher.stop()  # the threads end with the next piece that comes; nobody waits for a slow network
            self._own.budget.clear()

    def file(self, path: str) -> Path:
        """Return the file of this name in the manifest; one beside the shards is fetched if the cache lacks it."""
        beside = self.manifest.beside
        if path in beside and not (self.root / path).exists():
            with system_errors_as_output(self.root), alone(self.root / path):
                self._own.fetcher.fetch(RemoteFile(path, beside[path]), self.root / path)
        return self._file_inside(path)

    def _opened(self, number: int) -> ShardValues:
        """Open a shard, after it was fetched, and fetch it again if it is gone or damaged by then."""
        for attempt in range(1, OPENING_ATTEMPTS + 1):
            self._fetch_shard(self._own.fetcher, number)
            with self._own.lock:
                if (shard := self._shards.get(number)) is not None:
                    return shard
                try:
                    shard = self._locked(number, self._file_inside(self.manifest.shards[number].path))
                except (ZooError, OSError):  # another process removed it, or the disk has damaged it
                    if attempt == OPENING_ATTEMPTS:
                        raise
                    self._sound.discard(number)
                    with suppress(OSError):
                        self._place(number).unlink(missing_ok=True)
                    continue
            with suppress(OSError):
                os.utime(self._place(number))  # so other processes know that it is in use
            return shard
        raise AssertionError

    def _locked(self, number: int, file: Path) -> ShardValues:
        """Open a shard with a lock on its file, and let the lock go that was used longest ago if there are many."""
        lock = held(file)
        shard = self._open_shard(number, file, lock)
        self._shards.put(number, shard)
        if self.is_mapped:  # otherwise the shard needs its file, and there are few
            for other in self._locks.put(number, lock):
                other.close()
        return shard

    def cached_file(self, number: int) -> Path | None:
        """Return the file of a shard if it is in the cache, sound or not."""
        return self._place(number) if self._is_cached(number) else None

    def _fetch_manifest_and_table(self) -> None:
        """Fetch the manifest and the table, unless they are in the cache."""
        with alone(self._folder / MANIFEST):
            manifest = _cached_manifest(self._own.fetcher, self._folder)
            table = manifest.table
            if not is_sound(self._folder / table.path, table.sha256, table.bytes):
                check_rows(self.source, manifest)
                self._own.fetcher.fetch(RemoteFile(table.path, table.sha256, table.bytes), self._folder / table.path)

    def _fetch_shard(self, fetcher: Fetcher, number: int) -> None:
        """Bring a shard into the cache, unless it is there and sound, and make room for it."""
        if self._is_sound(number):
            return
        shard, place = self.manifest.shards[number], self._place(number)
        with system_errors_as_output(self.root), alone(place):
            if self._is_sound(number):  # another thread or process was faster
                return
            if link_from_another_version(place, shard.bytes):
                if self._is_sound(number):
                    return
                place.unlink(missing_ok=True)
            with self._room_for(number, shard.bytes):
                fetcher.fetch(RemoteFile(shard.path, shard.sha256, shard.bytes), place)
            self._sound.add(number)

    @contextmanager
    def _room_for(self, number: int, size: int) -> Iterator[None]:
        """Keep room in the cache for a shard, beside those that other threads are fetching."""
        with self._own.lock:
            self._own.coming[number] = size
            make_room(self.cache, self.cache_bytes - sum(self._own.coming.values()), self._used_last, self._forget)
        try:
            yield
        finally:
            with self._own.lock:
                self._own.coming.pop(number, None)

    def _used_last(self, file: Path) -> float:
        return self._used.get(file, 0.0)

    def _prefetch(self, fetcher: Fetcher, order: SharedIterator) -> None:
        """Fetch the next shards until the fetcher is stopped; an error comes again when the shard is used."""
        with suppress(PrepkitError, OSError, Stopped):
            for number in order:
                size = self.manifest.shards[number].bytes
                if not self._is_ready(number) and (self._is_cached(number) or self._own.budget.reserve(number, size)):
                    self._fetch_shard(fetcher, number)
                    if number in self._shards:  # it was used while it came
                        self._own.budget.release(number)
                if fetcher.is_stopped:
                    return

    def _forget(self, file: Path) -> None:
        """Forget the shard in a file; what is still in use keeps it and its lock alive."""
        with self._own.lock:
            for number in [number for number in list(self._shards) if self._place(number) == file]:
                self._shards.pop(number, None)
                self._locks.pop(number, None)
                self._populated.discard(number)

    def _is_cached(self, number: int) -> bool:
        try:
            return self._place(number).stat().st_size == self.manifest.shards[number].bytes
        except OSError:
            return False

    def _is_sound(self, number: int) -> bool:
        """Return whether a shard is in the cache with its content, which is compared at its first use here."""
        if self._is_ready(number) or not self._is_cached(number):
            return self._is_ready(number)
        if is_sound(self._place(number), self.manifest.shards[number].sha256):
            self._sound.add(number)
        return self._is_ready(number)

    def _is_ready(self, number: int) -> bool:
        """Return whether a shard can be opened without a look at its content."""
        return self._is_cached(number) and (number in self._sound or not self._verify)

    def _place(self, number: int) -> Path:
        return self._folder / self.manifest.shards[number].path

    @property
    def _own(self) -> ProcessState:
        if self._process_state.process != os.getpid():  # a forked child gets locks that threads of its parent held
            self._process_state = self._new_process_state()
        return self._process_state

    def _new_process_state(self) -> ProcessState:
        return ProcessState(self._new_fetcher(), self.cache_bytes // 2)

    def _new_fetcher(self) -> Fetcher:
        return Fetcher(self.source, self._folder / FETCHING)

    def __getstate__(self) -> dict[str, Any]:
        """Say to another process which zoo this is, and where its files are kept."""
        return {
            "source": self.source,
            "cache": self.cache.absolute(),
            "cache_bytes": self.cache_bytes,
            "verify": self._verify,
            "mmap": self.is_mapped,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class ProcessState:
    """State that belongs to one process, and must not be used in a forked child.

    coming: shards that are being fetched, and their sizes
    """

    def __init__(self, fetcher: Fetcher, prefetch_bytes: int) -> None:
        self.process = os.getpid()
        self.fetcher = fetcher
        self.lock = RLock()
        self.coming: dict[int, int] = {}
        self.budget = PrefetchBudget(prefetch_bytes)
