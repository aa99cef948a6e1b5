"""Addresses on the Hub: `hf://user/name`, with `@revision` and `/path` where they are needed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from prepkit.errors import HubError

HUB_SCHEME = "hf://"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
REFERENCE = r"refs/(?:pr/\d+|convert/[^@/\s]+)"  # the Hub's names of pull requests and of converted data
ADDRESS = re.compile(rf"({NAME}/{NAME})(?:@({REFERENCE}|[^@/\s]+))?(?:/(\S+))?")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@dataclass(frozen=True)
class HubAddress:
    """A repository on the Hub, or one version of it, or one file of it.

    revision: branch, tag, commit or pull request such as refs/pr/1; None for the newest version
    path:     path of a file in the repository
    """

    repo_id: str
    revision: str | None = None
    path: str | None = None

    def __str__(self) -> str:
        """Return `hf://user/name@revision/path`."""
        at = "" if self.revision is None else f"@{_written(self.revision)}"
        return f"{HUB_SCHEME}{self.repo_id}{at}" + ("" if self.path is None else f"/{self.path}")


def parse(text: str) -> HubAddress:
    """Return the address in a text, which may leave `hf://` out; a slash in the name of a branch is written %2F.

    raises HubError with an example, also for an address of another kind
    """
    check_served(text)
    match = ADDRESS.fullmatch(text.removeprefix(HUB_SCHEME))
    path = match[3] if match else None
    if match is None or (path is not None and ".." in path.split("/")):
        raise HubError(f"'{text}' is no address on the Hub; write hf://user/name or hf://user/name@revision/path.")
    return HubAddress(match[1], None if match[2] is None else unquote(match[2]), path)


def check_served(text: str) -> None:
    """Raise HubError for an address of a kind that nothing here reads, such as s3://bucket/zoo."""
    if SCHEME.match(text) and not text.startswith(HUB_SCHEME):
        raise HubError(
            f"'{text}' cannot be read: addresses are hf://user/name, on the Hub; copy anything else to a local disk."
        )


def _written(revision: str) -> str:
    """Return a revision as addresses have it."""
    return revision if re.fullmatch(REFERENCE, revision) else quote(revision, safe="")


def parse_repository(text: str) -> HubAddress:
    """Return the address of a whole repository.

    raises HubError with an example, also for the address of a file
    """
    address = parse(text)
    if address.path is not None:
        raise HubError(f"'{text}' names a file; give the whole repository: {HUB_SCHEME}{address.repo_id}.")
    return address
