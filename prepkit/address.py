"""Addresses on the Hub, `hf://user/name` with `@revision` and `/path` where they are needed, and in other stores.

A zoo may also lie in any store that fsspec reads: `s3://bucket/zoo`, `gs://bucket/zoo`, `https://host/zoo`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from prepkit.errors import HubError

HUB_SCHEME = "hf://"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
REFERENCE = r"refs/(?:pr/\d+|convert/[^@/\s]+)"  # the Hub's names of pull requests and of converted data
ADDRESS = re.compile(rf"({NAME}/{NAME})(?:@({REFERENCE}|[^@/\s]+))?(?:/(\S+))?")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+::)*[A-Za-z][A-Za-z0-9+.-]+:/")
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://([^/\s]+(?:/[^\s]*)?)")


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


@dataclass(frozen=True)
class UrlAddress:
    """The folder of a zoo in a store that fsspec reads, such as s3://bucket/zoo.

    protocol: fsspec's name of the kind of store, such as s3
    place:    what follows `://`, without a slash at its end
    """

    protocol: str
    place: str

    def __str__(self) -> str:
        """Return `protocol://place`."""
        return f"{self.protocol}://{self.place}"


def parse_remote(text: str) -> HubAddress | UrlAddress:
    """Return the address in a text that names a zoo on the Hub, or in another store.

    raises HubError with an example
    """
    return parse(text) if text.startswith(HUB_SCHEME) or not SCHEME.match(text) else _parse_url(text)


def is_remote(text: str) -> bool:
    """Return whether a text is meant as an address, and not as a path."""
    return SCHEME.match(text) is not None


def _parse_url(text: str) -> UrlAddress:
    """Return the address in a text such as s3://bucket/zoo; no message repeats a password or a token in it."""
    shown = re.sub(r"//[^/@]*@", "//...@", re.sub(r"[?#].*", "?...", text, flags=re.DOTALL))
    if re.match(r"(file|local):", text):
        raise HubError(f"'{shown}' is on this machine; give the path of its folder.")
    if "?" in text or "#" in text:
        raise HubError(
            f"'{shown}' is no address of a zoo: write it without '?' and '#'. Keys and tokens are left to fsspec's "
            "configuration, as in FSSPEC_S3_KEY."
        )
    match = URL.fullmatch(text)
    protocol, place = (match[1].lower(), match[2].rstrip("/")) if match else ("", "")
    if match is None or not place or "::" in text or ".." in place.split("/"):
        raise HubError(f"'{shown}' is no address of a zoo; write it as s3://bucket/zoo or https://host/zoo.")
    name, at, _ = place.partition("/")[0].rpartition("@")
    if at and (":" in name or protocol in ("http", "https")):
        raise HubError(
            f"'{shown}' holds a password or a token, which would stand in messages and in names of files; leave it to "
            "fsspec's configuration, as in FSSPEC_SFTP_PASSWORD."
        )
    return UrlAddress(protocol, place)


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
    """Raise HubError for an address that is not on the Hub, where only that will do; elsewhere only zoos are read."""
    if SCHEME.match(text) and not text.startswith(HUB_SCHEME):
        raise HubError(
            f"'{text}' cannot be read here: this takes hf://user/name, on the Hub; copy anything else to a local disk. "
            "In other stores whole zoos are read, by `open_zoo` and `prepkit zoo info`, `verify` and `export`."
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
