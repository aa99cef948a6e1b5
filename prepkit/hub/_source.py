"""Source: one version of a repository, or of a zoo in another store, whose files can be fetched whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from prepkit.errors import PrepkitError

FETCHING = ".fetching"  # folder in the cache in which sources work


@dataclass(frozen=True)
class RemoteFile:
    """A file of a version: its path there, and what is known of its content."""

    path: str
    sha256: str | None = None
    size: int | None = None


class Stopped(Exception):
    """A thread was told to leave its work: another one failed, or the user interrupted."""


class Damaged(Exception):
    """A file came with another content than its zoo says."""


class Source(ABC):
    """Where files come from. It can be pickled and used after a fork; `str` gives the address for messages."""

    repo: str | None = None  # USER/NAME, if it is a repository on the Hub
    holder = "the repository"  # what holds the files, in messages
    manifest_sha256: str | None = None  # of zoo.json, where that names the version

    @property
    @abstractmethod
    def place(self) -> str:
        """What holds all versions, as records of a pull name it: USER/NAME on the Hub, or the address in a store."""

    @property
    @abstractmethod
    def version(self) -> str:
        """What names the version: the commit on the Hub, or the sha256 of zoo.json."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Two folders in the cache on the disk that hold this version: one for the name, one for the version."""

    @abstractmethod
    def download(self, file: RemoteFile, folder: Path, counter: ByteCounter, anew: bool) -> Path:
        """Bring a file whole to somewhere in a working folder, and return where it is now.

        counter: is told of bytes that came, and raises Stopped where the work shall end
        anew:    what an earlier call brought was damaged, and must not be used
        """

    @abstractmethod
    def explained(self, path: str | None = None) -> AbstractContextManager[None]:
        """Raise HubError for whatever the store's client raises inside; prepkit's own errors pass through.

        path: the file that is asked for
        """

    @abstractmethod
    def may_pass(self, error: Exception) -> bool:
        """Return whether the same call of `download` may succeed a moment later."""

    @abstractmethod
    def is_missing(self, error: BaseException | None) -> bool:
        """Return whether an error of the client says that there is no such file."""

    @abstractmethod
    def sizes(self, paths: Collection[str]) -> Mapping[str, int | None]:
        """Return the sizes that the store lists for files; None for one that it has without a size.

        raises HubError
        """

    def check_unchanged(self) -> None:  # noqa: B027  # most versions never change
        """Raise PrepkitError if the store holds another version now."""

    @abstractmethod
    def no_zoo(self, manifest: str) -> PrepkitError:
        """Return the error that says that the version has no manifest."""


class ByteCounter:
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
