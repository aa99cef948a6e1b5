"""Files of one version of a repository come to the disk, each compared with its sha256 before it gets its name.

The Hub's client compares sizes only, and downloads under a temporary name in a working folder. What it brings is hashed
there by the thread that fetched it, while other threads download; a damaged file is fetched again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from prepkit.address import HubAddress
from prepkit.errors import HubError, counted
from prepkit.hub._failures import ATTEMPTS, explained, is_cut_short, is_passing, retried
from prepkit.hub.client import api, hub_cache_folder
from prepkit.support.files import current_umask, flush, output_error, sha256_of_file

MAX_THREADS = 8
UMASK = current_umask()  # it is read once, because reading it sets it for a moment, for all threads


@dataclass(frozen=True)
class HubFile:
    """A file of a version: its path in the repository, and what is known of its content."""

    path: str
    sha256: str | None = None
    size: int | None = None


class Stopped(Exception):
    """A thread was told to leave its work: another one failed, or the user interrupted."""


class Damaged(Exception):
    """A file came with another content than its zoo says."""


class Fetcher:
    """Fetches files of one version, in several threads if need be.

    address: address of the version; its revision is a commit
    folder:  folder in which the client works, on the same disk as the places where the files go
    """

    def __init__(
        self,
        address: HubAddress,
        folder: Path,
        *,
        token: str | None = None,
        repo_type: str = "dataset",
    ) -> None:
        self.address = address
        self.folder = folder
        self.repo_type = repo_type
        self._client = api(token)
        self._stop = Event()

    def fetch(self, file: HubFile, target: Path, count: Callable[[int], None] | None = None) -> None:
        """Bring a file to its place, durably and with its sha256, or not at all.

        count: called with a number of bytes each time that many more came
        raises HubError
        """
        counter = _ByteCounter(count or _ignore, self._stop)
        source = self._fetch_sound(file, counter)
        size = source.stat().st_size
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.chmod(source, 0o666 & ~UMASK)
            flush(source)
            os.replace(source, target)
            flush(target.parent)
        except OSError as error:
            raise output_error(target, error) from error
        counter.reached(size)

    def fetch_if_there(self, file: HubFile, target: Path) -> bool:
        """Fetch a file as `fetch` does; return False if the version has no such file."""
        try:
            self.fetch(file, target)
        except HubError as error:
            if isinstance(error.__cause__, EntryNotFoundError) and not _is_uncached(error.__cause__):
                return False
            raise
        return True

    def stop(self) -> None:
        """Make every thread leave what it fetches."""
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        """Whether the threads were told to stop."""
        return self._stop.is_set()

    @contextmanager
    def pool(self) -> Iterator[ThreadPoolExecutor]:
        """Give threads that fetch; if the block fails or is interrupted, they leave their work."""
        pool, patient = ThreadPoolExecutor(MAX_THREADS, "prepkit-fetch"), True
        try:
            yield pool
        except BaseException as error:
            self._stop.set()
            patient = isinstance(error, Exception)  # a user who interrupts does not wait for a slow network
            raise
        finally:
            pool.shutdown(wait=patient, cancel_futures=True)

    def _fetch_sound(self, file: HubFile, counter: _ByteCounter) -> Path:
        """Return the file as the client brought it, once it has the right content."""
        distrusts = False  # after damage the client must not use what it has

        def attempt() -> Path:
            nonlocal distrusts
            try:
                source = self._download(file, counter, anew=distrusts)
                self._check(file, source)
            except Exception as error:
                distrusts = distrusts or isinstance(error, Damaged) or is_cut_short(error)
                raise
            return source

        try:
            with explained(self.address.repo_id, self.repo_type, self.address.revision):
                return retried(attempt, may_pass=_may_pass, pause=self._pause)
        except Damaged as error:
            raise HubError(
                f"{self.address}/{file.path} came damaged {ATTEMPTS} times: {error}. Nothing of it was kept; try again "
                "later, and tell its owner if it stays so.",
                repo=self.address.repo_id,
            ) from None

    def _download(self, file: HubFile, counter: _ByteCounter, anew: bool) -> Path:
        """Return what the client brings.

        anew: download the file even if the client has it in its cache or in the working folder
        """
        self._pause(0)
        counter.position = 0
        if not anew and (cached := self._copy_from_cache(file)) is not None:
            return cached
        return Path(
            self._client.hf_hub_download(
                self.address.repo_id,
                file.path,
                repo_type=self.repo_type,
                revision=self.address.revision,
                cache_dir=hub_cache_folder(),
                local_dir=self.folder,
                force_download=anew,
                tqdm_class=_bar_class(counter),
            )
        )

    def _copy_from_cache(self, file: HubFile) -> Path | None:
        """Copy the file from the Hub's own cache without asking the Hub; None if it is not there."""
        version: dict[str, Any] = {"repo_type": self.repo_type, "revision": self.address.revision}
        cached = try_to_load_from_cache(self.address.repo_id, file.path, cache_dir=hub_cache_folder(), **version)
        if not isinstance(cached, str):
            return None
        copy = self.folder / file.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cached, copy)
        return copy

    @staticmethod
    def _check(file: HubFile, source: Path) -> None:
        """Raise Damaged, and remove what came, if it is not what the zoo says."""
        size, damage = source.stat().st_size, ""
        if file.size is not None and size != file.size:
            damage = f"it has {counted(size, 'byte')}, its zoo says {file.size:,}"
        elif file.sha256 is not None and (sha256 := sha256_of_file(source)) != file.sha256:
            damage = f"its sha256 is {sha256[:12]}..., its zoo says {file.sha256[:12]}..."
        if damage:
            source.unlink(missing_ok=True)
            raise Damaged(damage)

    def _pause(self, seconds: float) -> None:
        """Wait, or leave at once when told to."""
        if self._stop.wait(seconds):
            raise Stopped


def wait_for_all(futures: Iterable[Future[Any]]) -> None:
    """Wait for all; as soon as one fails, raise its error."""
    done, _ = wait(list(futures), return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()


def is_sound(file: Path, sha256: str, size: int | None = None) -> bool:
    """Return whether a file is there with this content."""
    try:
        return (size is None or file.stat().st_size == size) and sha256_of_file(file) == sha256
    except FileNotFoundError:
        return False


class _ByteCounter:
    """Counts the bytes of one file once, although a download that begins again brings some of them twice."""

    def __init__(self, count: Callable[[int], None], stop: Event) -> None:
        self.position = 0
        self._count = count
        self._stop = stop
        self._counted = 0

    def advance(self, num_bytes: int) -> None:
        """Note that more bytes came; this is also where the client is made to stop."""
        if self._stop.is_set():
            raise Stopped
        self.position += num_bytes
        self.reached(self.position)

    def reached(self, position: int) -> None:
        """Note that everything before this position came."""
        if position > self._counted:
            self._count(position - self._counted)
            self._counted = position


def _bar_class(counter: _ByteCounter) -> Any:
    """Make a class that the client takes for one of progress bars; it only counts."""

    class Bar:
        """Hands to the counter what a bar would draw."""

        def __init__(self, *_: Any, **options: Any) -> None:
            counter.position = int(options.get("initial") or 0)

        def update(self, num_bytes: float | None = 1) -> None:
            counter.advance(int(num_bytes or 0))

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def close(self) -> None:
            return None

    return Bar


def _may_pass(error: Exception) -> bool:
    """Return whether to ask again; where the Hub cannot be reached, the client has asked several times already."""
    return isinstance(error, Damaged) or is_cut_short(error) or (is_passing(error) and not _is_uncached(error))


def _is_uncached(error: BaseException) -> bool:
    """Return whether the Hub could not be asked for a file that is not in its cache."""
    return isinstance(error, LocalEntryNotFoundError)


def _ignore(num_bytes: int) -> None:
    """Count for nobody."""
