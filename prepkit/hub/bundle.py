"""A bundle of files for a push, with the repository they go to and the title of their commit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prepkit.address import parse
from prepkit.errors import HubError
from prepkit.support.files import sha256_of_file

RepoType = Literal["dataset", "model"]


@dataclass(frozen=True)
class Upload:
    """A file to be pushed.

    path:    path in the repository
    content: a file on the disk, or the bytes themselves
    sha256:  sha256 of the content, in hex
    size:    number of bytes
    """

    path: str
    content: Path | bytes
    sha256: str
    size: int

    @classmethod
    def of(cls, path: str, content: Path | bytes, sha256: str | None = None) -> Upload:
        """Describe a file to be pushed; its content is hashed here if the sha256 is not known."""
        if isinstance(content, bytes):
            return cls(path, content, hashlib.sha256(content).hexdigest(), len(content))
        return cls(path, content, sha256 or sha256_of_file(content), content.stat().st_size)


@dataclass(frozen=True)
class Bundle:
    """Files that become a new version of a repository.

    repo:    USER/NAME, see `repo_name`
    message: title of the commit
    last:    paths of files that name other files, such as a manifest; they go into the last commit
    """

    repo: str
    repo_type: RepoType
    message: str
    files: tuple[Upload, ...]
    last: frozenset[str] = frozenset()

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size for file in self.files)


def repo_name(text: str) -> str:
    """Return USER/NAME of a repository, which may be given as an address.

    raises HubError for a text that is neither, or names a version or a file
    """
    if "/" not in text:
        raise HubError(f"'{text}' is no repository on the Hub; write USER/{text}, with the name of its owner.")
    address = parse(text)
    if address.revision is not None or address.path is not None:
        raise HubError(f"'{text}': a push makes the newest version of a whole repository; write {address.repo_id}.")
    return address.repo_id
