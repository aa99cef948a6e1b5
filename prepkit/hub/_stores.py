"""Calls of fsspec, and meanings of the errors that its stores raise.

A store is asked for anew at each call: fsspec keeps its connections, but a forked child may not use those of its
parent, and is given others.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Collection
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.callbacks import Callback
from fsspec.registry import known_implementations

from prepkit.address import UrlAddress
from prepkit.errors import HubError, nearest
from prepkit.hub._failures import PASSING
from prepkit.hub._source import ByteCounter

WEB = ("http", "https")
LOOK_SECONDS = 0.2  # so often a thread that waits for a file looks whether it shall stop
SILENCE_SECONDS = 60.0  # a server that sends nothing for so long is given up
REFUSALS = (401, 403)
MISSING = (404, 410)
BROKEN = frozenset(("ClientConnectionError", "ClientPayloadError"))  # aiohttp's errors; they may pass
UNREACHABLE = BROKEN | {"ConnectionError", "HTTPClientError"}  # with botocore's, after which it has tried again itself
LONGEST_REASON = 300

# When fsspec forgets a connection in a forked child, closing it waits a second for a thread that only the parent has.
_kept: set[Any] = set()


@dataclass(frozen=True)
class Connected:
    """A folder in a store, as this process reaches it."""

    files: Any  # an fsspec.AbstractFileSystem
    root: str
    protocol: str

    def get(self, path: str, target: Path, counter: ByteCounter) -> None:
        """Fetch a file whole; when that fails, is interrupted or told to stop, nothing more comes.

        Most stores download in a thread of fsspec's, which no signal reaches, and may wait long for a server there.
        """
        arguments: dict[str, Any] = {"rpath": self._at(path), "lpath": str(target), "callback": _Counting(counter)}
        if not self.files.async_impl:
            self.files.get_file(**arguments)
            return
        coming = asyncio.run_coroutine_threadsafe(self.files._get_file(**arguments), self.files.loop)
        try:
            while not wait([coming], LOOK_SECONDS).done:
                counter.advance(0)
            coming.result()
        except BaseException:
            coming.cancel()
            raise

    def content(self, path: str) -> bytes:
        """Return a small file."""
        content: bytes = self.files.cat_file(self._at(path))
        return content

    def listed(self, paths: Collection[str]) -> dict[str, int | None] | None:
        """Return the sizes of those files that are there; None if the store does not list files, or not for us."""
        if self.protocol in WEB:
            return None
        self.files.invalidate_cache()
        sizes = {}
        try:
            for folder in sorted({path.rpartition("/")[0] for path in paths}):
                for entry in self.files.ls(self._at(folder), detail=True):
                    sizes[self.files._strip_protocol(entry["name"])] = entry["size"]
        except FileNotFoundError:
            pass
        except (PermissionError, NotImplementedError):
            return None
        return {path: sizes[self._at(path)] for path in paths if self._at(path) in sizes}

    def has(self, path: str) -> tuple[bool, int | None]:
        """Return whether a file is there, and its size if the store tells it."""
        try:
            return True, self.files.info(self._at(path))["size"]
        except FileNotFoundError:
            return False, None

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"


def connected(address: UrlAddress) -> Connected:
    """Return the store of an address, with fsspec's configuration.

    raises HubError if fsspec has no such store, or needs a package for it
    """
    known = sorted({*fsspec.available_protocols(), *known_implementations})
    if address.protocol not in known:
        raise HubError(
            f"'{address}': fsspec knows no store '{address.protocol}'; it knows s3, gs, az, https, sftp and others."
            f"{nearest(address.protocol, known)}"
        )
    try:
        fsspec.get_filesystem_class(address.protocol)
    except ImportError as error:
        raise HubError(f"'{address}' needs a package that is not installed: {error}.") from error
    files, root = fsspec.core.url_to_fs(str(address), **_patience(address.protocol))
    if files.async_impl:
        _kept.add(files)
    return Connected(files, root.rstrip("/"), address.protocol)


def _patience(protocol: str) -> dict[str, Any]:
    """Let a large file take its time; aiohttp would end it after five minutes, unless the user says otherwise."""
    configured = fsspec.config.conf.get(protocol, {})
    if protocol not in WEB or "timeout" in {**configured, **configured.get("client_kwargs", {})}:
        return {}
    from aiohttp import ClientTimeout

    return {"timeout": ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)}


class _Counting(Callback):  # type: ignore[misc]
    """Tells a counter of the bytes that came."""

    def __init__(self, counter: ByteCounter) -> None:
        super().__init__()
        self._counter = counter
        self._told = 0

    def call(self, hook_name: str | None = None, **_: Any) -> None:
        """Note how far the download is; an error here ends it."""
        self._told, count = self.value, self.value - self._told
        self._counter.advance(count)


# Errors -------------------------------------------------------------------------------------------------------


def is_missing(error: BaseException | None) -> bool:
    """Return whether a store says that there is no such file."""
    return isinstance(error, FileNotFoundError | IsADirectoryError) or _status(error) in MISSING


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed a moment later, and the store's package did not try that itself."""
    broken = isinstance(error, ConnectionError | TimeoutError) or BROKEN & _kinds(error)
    return bool(broken) or _status(error) in PASSING


def meaning_of(error: Exception, file: str, protocol: str) -> tuple[str, int | None]:
    """Return what an error means for a file and what to do, and the HTTP status if there is one."""
    status, reason = _status(error), _reason(error)
    if is_missing(error):
        return f"{file} is not there. Check the address, and that the zoo was copied as a whole.", status
    if status in REFUSALS or isinstance(error, PermissionError) or "NoCredentialsError" in _kinds(error):
        anonymous = "; a public bucket is read with FSSPEC_S3_ANON=true" if protocol == "s3" else ""
        return (
            f"{file}: the store refuses it, or has no such file ({reason}). Keys are taken from the environment and "
            f"from fsspec's configuration (~/.config/fsspec){anonymous}.",
            status,
        )
    if is_transient(error) or UNREACHABLE & _kinds(error) or getattr(error, "errno", None) == errno.EBUSY:
        return f"{file}: the store is busy or cannot be reached ({reason}); try again later.", status
    return f"{file} could not be fetched ({reason}). Check the address and fsspec's configuration.", status


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status of an answer, where the packages under fsspec keep it."""
    for name in ("status", "code"):
        if isinstance(status := getattr(error, name, None), int):
            return status
    return 403 if str(error).startswith("Forbidden: ") else None  # so gcsfs says it


def _reason(error: Exception) -> str:
    """Return what an error says in one line, without the part of an address that may hold a signature."""
    text = re.sub(r"\?[^\s'\")]*", "", " ".join(str(error).split()))
    return text[:LONGEST_REASON].rstrip(". ") or type(error).__name__
