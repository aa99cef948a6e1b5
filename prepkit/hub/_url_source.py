"""UrlSource: a zoo in a store that fsspec reads, such as s3://bucket/zoo or https://host/zoo.

Such a store has no versions: zoo.json is fetched each time the zoo is opened, and its sha256 names the version. Files
of another version are refused, since zoo.json has the sums of all files. Keys are fsspec's business: it takes them from
the environment and from its configuration, and they never pass through here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkstemp

from prepkit.address import UrlAddress
from prepkit.errors import HubError, PrepkitError, ZooError
from prepkit.hub._fetch import MAX_THREADS, Fetcher
from prepkit.hub._shard_cache import alone
from prepkit.hub._source import FETCHING, ByteCounter, Damaged, RemoteFile, Source, Stopped
from prepkit.hub._stores import connected, is_missing, is_transient, meaning_of
from prepkit.support.files import is_disk_full, sha256_of_file, system_errors_as_output
from prepkit.zoo.format.manifest import MANIFEST

PART = ".part"  # ends the names of files that are still coming
PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head)\b", re.IGNORECASE)
LONGEST_NAME = 120  # of a folder in the cache; names of file systems have 255 bytes at most


@dataclass(frozen=True)
class UrlSource(Source):
    """Files of a zoo in a store, as they were when its zoo.json had a sum.

    manifest_sha256: sha256 of zoo.json; None before it is known
    """

    address: UrlAddress
    manifest_sha256: str | None = None
    holder = "the store"

    def __str__(self) -> str:
        return str(self.address)

    @property
    def place(self) -> str:
        """The address."""
        return str(self.address)

    @property
    def version(self) -> str:
        """The sha256 of zoo.json."""
        return str(self.manifest_sha256)

    @property
    def folder(self) -> Path:
        """`<protocol>--<bucket>--<zoo>/<sha256 of zoo.json>`; zoos that share the name differ in the sum."""
        return _folder_of(self.address) / str(self.manifest_sha256)

    def download(self, file: RemoteFile, folder: Path, counter: ByteCounter, anew: bool) -> Path:
        """Bring a file whole under a name of its own, so that nothing that was interrupted writes into it."""
        place = folder / file.path
        with system_errors_as_output(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            for left in place.parent.glob(f"{place.name}.*{PART}"):  # by a process that was killed
                with suppress(OSError):
                    left.unlink()
            handle, name = mkstemp(PART, f"{place.name}.", place.parent)
            os.close(handle)
        with _removed_if_it_fails(Path(name)) as part:
            connected(self.address).get(file.path, part, counter)
            with open(part, "rb") as opened:
                if PAGE.match(opened.read(200)):
                    raise HubError(
                        f"{self}/{file.path}: an HTML page came in place of the file. Check the address, and whether "
                        "the server asks to log in; prepkit needs the files themselves."
                    )
        return part

    @contextmanager
    def explained(self, path: str | None = None) -> Iterator[None]:
        """Raise HubError for whatever fsspec raises inside, since its stores raise errors of many kinds."""
        try:
            yield
        except (PrepkitError, Damaged, Stopped):
            raise
        except Exception as error:
            if self.is_missing(error):
                self.check_unchanged()
            file = f"{self}/{path}" if path else str(self)
            if is_disk_full(error):
                raise HubError(f"{file} could not be fetched, because the disk is full; free some room.") from error
            text, status = meaning_of(error, file, self.address.protocol)
            raise HubError(text, status=status) from error

    def may_pass(self, error: Exception) -> bool:
        """Return whether a connection broke, or a server was busy."""
        return is_transient(error)

    def is_missing(self, error: BaseException | None) -> bool:
        """Return whether the store says that there is no such file."""
        return is_missing(error)

    def sizes(self, paths: Collection[str]) -> Mapping[str, int | None]:
        """Return the sizes that the store lists, or tells of each file where it lists none."""
        with self.explained():
            store = connected(self.address)
            if (listed := store.listed(paths)) is not None:
                return listed
            with ThreadPoolExecutor(MAX_THREADS, "prepkit-sizes") as pool:
                found = zip(paths, pool.map(store.has, paths), strict=True)
                return {path: size for path, (is_there, size) in found if is_there}

    def check_unchanged(self) -> None:
        """Raise HubError if zoo.json is another one now than when the zoo was opened."""
        if self.manifest_sha256 is None:
            return
        import hashlib

        try:
            now = hashlib.sha256(connected(self.address).content(MANIFEST)).hexdigest()
        except Exception as error:  # whether it was changed is not known; the caller has its own error to raise
            if not self.is_missing(error):
                return
            now = ""
        if now != self.manifest_sha256:
            raise HubError(
                f"{self} was {'changed' if now else 'removed'} after it was opened: its {MANIFEST} is "
                f"{'another one' if now else 'gone'}. Open it again; what was read so far stays right."
            )

    def no_zoo(self, manifest: str) -> PrepkitError:
        """Return the error that says that the address holds no zoo."""
        return ZooError(f"{self} is no zoo: there is no {self}/{manifest}. Check the address.")


def newest_version(address: UrlAddress, cache: Path) -> UrlSource:
    """Fetch zoo.json of a zoo into the cache, and return the version that it names.

    raises HubError, ZooError if there is none
    """
    home = cache / _folder_of(address)
    newest = home / FETCHING / MANIFEST
    source = UrlSource(address)
    with system_errors_as_output(home), alone(newest):
        if not Fetcher(source, home / FETCHING).fetch_if_there(RemoteFile(MANIFEST), newest):
            raise source.no_zoo(MANIFEST)
        version = replace(source, manifest_sha256=sha256_of_file(newest))
        place = cache / version.folder / MANIFEST
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(newest, place)
    return version


def _folder_of(address: UrlAddress) -> Path:
    return Path(re.sub(r"[^A-Za-z0-9_.@+-]+", "--", str(address))[:LONGEST_NAME])


@contextmanager
def _removed_if_it_fails(file: Path) -> Iterator[Path]:
    """Give a file that is removed if the block fails or is interrupted."""
    try:
        yield file
    except BaseException:
        with suppress(OSError):
            file.unlink()
        raise
