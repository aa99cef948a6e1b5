"""Files of one version of a repository come to the disk: each is compared with its sha256 before it gets its name.

The Hub's client compares sizes only, and downloads under a temporary name in a working folder. What it brings is hashed
there by the thread that fetched it, while other threads download; a damaged file is fetched anew.
"""

from __future__ import annotations

import hashlib
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
from prepkit.errors import HubError
from prepkit.files import current_umask, flush, output_error
from prepkit.hub.client import api, cache_folder, explained, is_passing

AT_ONCE = 8
ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.5  # doubled after each attempt
CHUNK_BYTES = 1 << 20
UMASK = current_umask()  # asked once: to ask is to set it, for all threads


@dataclass(frozen=True)
class HubFile:
    """A file of a version: its path in the repository, and what is known of its content."""

    path: str
    sha256: str | None = None
    size: int | None = None


class Stopped(Exception):
    """A thread was told to leave what it does: another one failed, or the user has had enough."""


class Fetcher:
    """Fetches files of one version, from several threads if need be.

    address: of the version, its revision a commit
    folder:  where the client works, on the disk of the files' last places
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
        """Bring a file to its place: whole, with its sha256, durably; or not at all.

        count: called with a number of bytes each time that many more came
        raises HubError
        """
        counted = _Counted(count or _nothing, self._stop)
        came = self._sound(file, counted)
        size = came.stat().st_size
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.chmod(came, 0o666 & ~UMASK)
            flush(came)
            os.replace(came, target)
            flush(target.parent)
        except OSError as error:
            raise output_error(target, error) from error
        counted.finished(size)

    def fetch_if_there(self, file: HubFile, target: Path) -> bool:
        """As `fetch`; False where the version has no such file."""
        try:
            self.fetch(file, target)
        except HubError as error:
            if _is_missing(error):
                return False
            raise
        return True

    def stop(self) -> None:
        """Make every thread leave what it fetches."""
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    @contextmanager
    def pool(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that fetch; if the block fails or is interrupted, they leave what they do."""
        pool, patient = ThreadPoolExecutor(AT_ONCE, "prepkit-fetch"), True
        try:
            yield pool
        except BaseException as error:
            self._stop.set()
            patient = isinstance(error, Exception)  # a user who interrupts does not wait for a slow network
            raise
        finally:
            pool.shutdown(wait=patient, cancel_futures=True)

    def _sound(self, file: HubFile, counted: _Counted) -> Path:
        """The file as the client brought it, with the right sum."""
        damage = ""
        for attempt in range(1, ATTEMPTS + 1):
            last = attempt == ATTEMPTS
            with explained(self.address.repo_id, self.repo_type, self.address.revision):
                try:
                    came = self._download(file, counted, anew=bool(damage))
                except Exception as error:
                    if last or not _may_pass(error):
                        raise
                    damage = damage or ("size" if _is_cut(error) else "")
                    self._pause(attempt)
                    continue
            damage = _damage(file, came)
            if not damage:
                return came
            came.unlink(missing_ok=True)
        raise HubError(
            f"{self.address}/{file.path} came damaged {ATTEMPTS} times: {damage}. Nothing of it was kept; try again "
            "later, and tell its owner if it stays so."
        )

    def _download(self, file: HubFile, counted: _Counted, anew: bool) -> Path:
        """What the client brings, now or before.

        anew: though it has the file already, in its cache or here
        """
        self._pause(0)
        counted.position = 0
        if not anew and (cached := self._from_cache(file)) is not None:
            return cached
        found = self._client.hf_hub_download(
            self.address.repo_id,
            file.path,
            repo_type=self.repo_type,
            revision=self.address.revision,
            cache_dir=cache_folder(),
            local_dir=self.folder,
            force_download=anew,
            tqdm_class=_bar_of(counted),
        )
        return Path(found)

    def _from_cache(self, file: HubFile) -> Path | None:
        """A copy of the file from the Hub's own cache, without asking the Hub; None if it is not there."""
        where: dict[str, Any] = {"repo_type": self.repo_type, "revision": self.address.revision}
        cached = try_to_load_from_cache(self.address.repo_id, file.path, cache_dir=cache_folder(), **where)
        if not isinstance(cached, str):
            return None
        copy = self.folder / file.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cached, copy)
        return copy

    def _pause(self, attempt: int) -> None:
        """Wait longer after each attempt, or leave at once when told to."""
        if self._stop.wait(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) if attempt else 0):
            raise Stopped


def all_done(futures: Iterable[Future[Any]]) -> None:
    """Wait for all; as soon as one fails, raise its error."""
    futures = list(futures)
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()


def is_sound(file: Path, sha256: str, size: int | None = None) -> bool:
    """Whether a file is there with this content."""
    try:
        if size is not None and file.stat().st_size != size:
            return False
        return sha256_of(file) == sha256
    except FileNotFoundError:
        return False


def sha256_of(file: Path) -> str:
    """sha256 of a file's content; other threads run meanwhile."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    with open(file, "rb", buffering=0) as opened:
        while read := opened.readinto(buffer):
            digest.update(buffer[:read])
    return digest.hexdigest()


def _damage(file: HubFile, came: Path) -> str:
    """What is wrong with a file that came, or an empty text."""
    size = came.stat().st_size
    if file.size is not None and size != file.size:
        return f"it has {size:,} bytes, its zoo says {file.size:,}"
    if file.sha256 is not None and (found := sha256_of(came)) != file.sha256:
        return f"its sha256 is {found[:12]}..., its zoo says {file.sha256[:12]}..."
    return ""


class _Counted:
    """Bytes of one file, each counted once: a download that begins again is behind what was counted."""

    def __init__(self, count: Callable[[int], None], stop: Event) -> None:
        self.count = count
        self.stop = stop
        self.position = 0
        self.told = 0

    def update(self, more: float | None = 1) -> None:
        """More bytes came; the client is made to stop here."""
        if self.stop.is_set():
            raise Stopped
        self.position += int(more or 0)
        self.finished(self.position)

    def finished(self, position: int) -> None:
        """Everything before this position is there."""
        if position > self.told:
            self.count(position - self.told)
            self.told = position


def _bar_of(counted: _Counted) -> Any:
    """What the client takes for a class of progress bars."""

    class Bar:
        """Tells the fetcher what a bar would draw."""

        def __init__(self, *_: Any, **options: Any) -> None:
            counted.position = int(options.get("initial") or 0)

        def update(self, more: float | None = 1) -> None:
            counted.update(more)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def close(self) -> None:
            return None

    return Bar


def _may_pass(error: Exception) -> bool:
    """Whether to ask again: after a long wait for an answer the client has done so itself."""
    return _is_cut(error) or (is_passing(error) and not isinstance(error, LocalEntryNotFoundError))


def _is_cut(error: Exception) -> bool:
    """Whether the client got another size than was announced."""
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def _is_missing(error: HubError) -> bool:
    cause = error.__cause__
    return isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError)


def _nothing(_: int) -> None:
    return None
