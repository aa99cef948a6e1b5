"""Files of one version come to the disk, each compared with its sha256 before it gets its name.

A source brings a file into a working folder. What it brings is hashed there by the thread that fetched it, while other
threads download; a damaged file is fetched again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from prepkit.errors import HubError, counted
from prepkit.hub._failures import ATTEMPTS, is_cut_short, retried
from prepkit.hub._source import ByteCounter, Damaged, RemoteFile, Source, Stopped
from prepkit.support.files import current_umask, flush, output_error, sha256_of_file
from prepkit.support.logs import logger
from prepkit.support.text import readable_bytes

LOG = logger(__name__)
MAX_THREADS = 8
UMASK = current_umask()  # it is read once, because reading it sets it for a moment, for all threads


class Fetcher:
    """Fetches files of one version, in several threads if need be.

    source: where the files come from
    folder: folder in which the source works, on the same disk as the places where the files go
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self.source = source
        self.folder = folder
        self._stop = Event()

    def fetch(self, file: RemoteFile, target: Path, count: Callable[[int], None] | None = None) -> None:
        """Bring a file to its place, durably and with its sha256, or not at all.

        count: called with a number of bytes each time that many more came
        raises HubError
        """
        counter = ByteCounter(count or _ignore, self._stop)
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
        LOG.info("fetched %s/%s, %s", self.source, file.path, readable_bytes(size))

    def fetch_if_there(self, file: RemoteFile, target: Path) -> bool:
        """Fetch a file as `fetch` does; return False if the version has no such file."""
        try:
            self.fetch(file, target)
        except HubError as error:
            if self.source.is_missing(error.__cause__):
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

    def _fetch_sound(self, file: RemoteFile, counter: ByteCounter) -> Path:
        """Return the file as the source brought it, once it has the right content."""
        distrusts = False  # after damage the source must not use what it has

        def attempt() -> Path:
            nonlocal distrusts
            self._pause(0)
            counter.position = 0
            try:
                source = self.source.download(file, self.folder, counter, anew=distrusts)
                self._check(file, source)
            except Exception as error:
                distrusts = distrusts or isinstance(error, Damaged) or is_cut_short(error)
                raise
            return source

        try:
            with self.source.explained(file.path):
                return retried(attempt, may_pass=self._may_pass, pause=self._pause)
        except Damaged as error:
            raise HubError(
                f"{self.source}/{file.path} came damaged {ATTEMPTS} times: {error}. Nothing of it was kept; try again "
                "later, and tell its owner if it stays so.",
                repo=self.source.repo,
            ) from error

    def _may_pass(self, error: Exception) -> bool:
        return isinstance(error, Damaged) or self.source.may_pass(error)

    def _check(self, file: RemoteFile, source: Path) -> None:
        """Raise Damaged, and remove what came, if it is not what the zoo says."""
        size, damage = source.stat().st_size, ""
        if file.size is not None and size != file.size:
            damage = f"it has {counted(size, 'byte')}, its zoo says {file.size:,}"
        elif file.sha256 is not None and (sha256 := sha256_of_file(source)) != file.sha256:
            damage = f"its sha256 is {sha256[:12]}..., its zoo says {file.sha256[:12]}..."
        if damage:
            source.unlink(missing_ok=True)
            self.source.check_unchanged()
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


def _ignore(num_bytes: int) -> None:
    """Count for nobody."""
