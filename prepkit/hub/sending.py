"""Files on their way to the Hub: counted while they are sent, stopped at once when the user says so."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import IO, Any

from huggingface_hub import CommitOperationAdd

from prepkit.errors import HubError

FILES_A_BATCH = 64  # uploaded by one call of the client, five at a time
BYTES_A_BATCH = 512 << 20
LISTEN_SECONDS = 0.5  # for Ctrl-C


@dataclass(frozen=True)
class Upload:
    """A file to be pushed.

    path:    in the repository
    content: a file on the disk, or the bytes themselves
    sha256:  of the content, in hex
    size:    in bytes
    """

    path: str
    content: Path | bytes
    sha256: str
    size: int

    @classmethod
    def of(cls, path: str, content: Path | bytes, sha256: str | None = None) -> Upload:
        """A file to be pushed; it is read and hashed here if its sha256 is not known."""
        if isinstance(content, bytes):
            return cls(path, content, hashlib.sha256(content).hexdigest(), len(content))
        if sha256 is None:
            with open(content, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(path, content, sha256, content.stat().st_size)


class Addition(CommitOperationAdd):
    """A file for a commit, which tells how many of its bytes were sent, and sends no more when it is stopped."""

    def __init__(self, file: Upload, progress: Callable[[int], None], stop: Event) -> None:
        self.file = file
        self.progress = progress
        self.stop = stop
        self.sent = 0
        try:
            super().__init__(file.path, file.content if isinstance(file.content, bytes) else file.content.absolute())
        except (OSError, ValueError):  # the client's way to say that there is no such file
            raise HubError(self._changed()) from None

    @contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[IO[bytes]]:  # type: ignore[override]
        """The content; the client asks for a progress bar where it is about to send it."""
        if with_tqdm and isinstance(self.file.content, Path):
            with _Told(self.file.content, self.counted) as told:
                yield told
        else:
            with super().as_file() as file:
                yield file

    def counted(self, position: int) -> None:
        """Everything before this position was sent; a retry begins before it, and is not told."""
        if self.stop.is_set():
            raise HubError("interrupted")
        if position > self.sent:
            self.progress(position - self.sent)
            self.sent = position

    def check(self) -> None:
        """Raise HubError if other bytes were sent than were meant: the file was changed meanwhile."""
        if self.upload_info.sha256.hex() != self.file.sha256:
            raise HubError(self._changed())

    def _changed(self) -> str:
        return f"'{self.file.path}' was changed or removed while it was pushed; nothing is visible. Push again."


class _Told(io.FileIO):
    """A file that tells how far it was read."""

    def __init__(self, path: Path, progress: Callable[[int], None]) -> None:
        super().__init__(path)
        self._progress = progress

    def read(self, size: int | None = -1, /) -> Any:
        """As FileIO does, and tell."""
        content = super().read(-1 if size is None else size)
        self._progress(self.tell())
        return content


def interruptibly(work: Callable[[], None], stop: Event) -> None:
    """Do some work in a thread: the client waits for its own threads, so that Ctrl-C would be heard when they end."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = Thread(target=run, name="prepkit-push", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(LISTEN_SECONDS)
    except BaseException:
        stop.set()
        raise
    if failures:
        raise failures[0]


def batches(additions: list[Addition]) -> Iterator[list[Addition]]:
    """Additions in groups of some files and bytes."""
    batch: list[Addition] = []
    size = 0
    for addition in additions:
        if batch and (len(batch) == FILES_A_BATCH or size + addition.file.size > BYTES_A_BATCH):
            yield batch
            batch, size = [], 0
        batch.append(addition)
        size += addition.file.size
    if batch:
        yield batch


def one_at_a_time(progress: Callable[[int], None] | None) -> Callable[[int], None]:
    """One call at a time: several threads send."""
    lock = Lock()

    def told(count: int) -> None:
        if progress is not None:
            with lock:
                progress(count)

    return told
