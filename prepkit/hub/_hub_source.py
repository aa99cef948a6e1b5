"""HubSource: one commit of a repository on the Hub. Its client resumes what was interrupted, in a working folder."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from prepkit.address import HubAddress, parse_repository
from prepkit.errors import PrepkitError, ZooError
from prepkit.hub._failures import explained, is_cut_short, is_passing
from prepkit.hub._source import ByteCounter, RemoteFile, Source
from prepkit.hub.client import api, hub_cache_folder, pinned
from prepkit.hub.snapshot import files_of


@dataclass(frozen=True)
class HubSource(Source):
    """Files of one version of a repository.

    address: address of the version; its revision is a commit
    """

    address: HubAddress
    token: str | None = field(default=None, repr=False)
    repo_type: str = "dataset"

    @classmethod
    def of(cls, address: HubAddress, token: str | None) -> HubSource:
        """Return the commit of a zoo that an address stands for now.

        raises HubError
        """
        asked = parse_repository(str(address))
        with explained(asked.repo_id, "dataset", asked.revision):
            return cls(pinned(api(token), asked, "dataset"), token)

    def __str__(self) -> str:
        return str(self.address)

    @property
    def repo(self) -> str:  # type: ignore[override]
        """USER/NAME."""
        return self.address.repo_id

    @property
    def place(self) -> str:
        """USER/NAME."""
        return self.address.repo_id

    @property
    def version(self) -> str:
        """The commit."""
        return str(self.address.revision)

    @property
    def folder(self) -> Path:
        """`<user>--<name>/<commit>`."""
        return Path(self.address.repo_id.replace("/", "--"), str(self.address.revision))

    def download(self, file: RemoteFile, folder: Path, counter: ByteCounter, anew: bool) -> Path:
        """Have the client bring a file, or copy it from the client's cache."""
        if not anew and (cached := self._copy_from_cache(file, folder)) is not None:
            return cached
        return Path(
            api(self.token).hf_hub_download(
                self.address.repo_id,
                file.path,
                repo_type=self.repo_type,
                revision=self.address.revision,
                cache_dir=hub_cache_folder(),
                local_dir=folder,
                force_download=anew,
                tqdm_class=_bar_class(counter),
            )
        )

    def explained(self, path: str | None = None) -> AbstractContextManager[None]:
        """Raise HubError for whatever the client raises inside."""
        return explained(self.address.repo_id, self.repo_type, self.address.revision)

    def may_pass(self, error: Exception) -> bool:
        """Return whether to ask again; where the Hub cannot be reached, the client has asked several times already."""
        return is_cut_short(error) or (is_passing(error) and not _is_uncached(error))

    def is_missing(self, error: BaseException | None) -> bool:
        """Return whether the version has no such file."""
        return isinstance(error, EntryNotFoundError) and not _is_uncached(error)

    def sizes(self, paths: Collection[str]) -> Mapping[str, int | None]:
        """Return the sizes that the Hub lists."""
        with self.explained():
            files = files_of(api(self.token), self.address, self.repo_type)
        return {path: files[path].size for path in paths if path in files}

    def no_zoo(self, manifest: str) -> PrepkitError:
        """Return the error that says that the repository is no zoo."""
        return ZooError(f"{self} is no zoo: the repository has no {manifest} at that revision. Check the name.")

    def _copy_from_cache(self, file: RemoteFile, folder: Path) -> Path | None:
        """Copy the file from the Hub's own cache without asking the Hub; None if it is not there."""
        version: dict[str, Any] = {"repo_type": self.repo_type, "revision": self.address.revision}
        cached = try_to_load_from_cache(self.address.repo_id, file.path, cache_dir=hub_cache_folder(), **version)
        if not isinstance(cached, str):
            return None
        copy = folder / file.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cached, copy)
        return copy


def _is_uncached(error: BaseException) -> bool:
    """Return whether the Hub could not be asked for a file that is not in its cache."""
    return isinstance(error, LocalEntryNotFoundError)


def _bar_class(counter: ByteCounter) -> Any:
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
