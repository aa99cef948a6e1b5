"""The one place that knows the Hub's client: how it is called, and what its errors mean.

Where the Hub is and where its cache lies is asked of the environment at each call: HF_ENDPOINT, HF_HUB_CACHE, HF_HOME.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from prepkit.address import HubAddress
from prepkit.errors import HubError, PrepkitError
from prepkit.version import __version__

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
COMMIT = re.compile(r"[0-9a-f]{40}")
PASSING = (429, 500, 502, 503, 504)  # HTTP statuses of servers that may be well again a moment later
ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.5  # each pause is twice as long as the one before

T = TypeVar("T")


def api(token: str | None = None) -> HfApi:
    """The client of the Hub; without a token it finds HF_TOKEN, or that of `hf auth login`."""
    return HfApi(
        endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="prepkit", library_version=__version__
    )


def cache_folder() -> Path:
    """The Hub's own cache."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    if "HF_HOME" in os.environ:
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    return Path(constants.HF_HUB_CACHE)


def pinned(client: HfApi, address: HubAddress, repo_type: str) -> HubAddress:
    """The address with the commit that its branch or tag, or the main branch, stands for now.

    A commit needs no request; the Hub's cache tells what it knows where the Hub cannot be reached.
    """
    if address.revision is not None and COMMIT.fullmatch(address.revision):
        return address
    found = client.resolve_revision(
        address.repo_id, repo_type=repo_type, revision=address.revision, cache_dir=cache_folder()
    )
    return replace(address, revision=found.resolved)  # as text it is the revision that was asked for


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of the client inside."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    change = not are_progress_bars_disabled()
    if change:
        disable_progress_bars()
    try:
        yield
    finally:
        if change:
            enable_progress_bars()


def is_passing(error: BaseException) -> bool:
    """Whether an error may be gone a moment later: a broken connection, a busy server."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return _is_transport(error) or isinstance(error, ConnectionError)


def retried(
    work: Callable[[], T],
    *,
    may_pass: Callable[[Exception], bool] = is_passing,
    pause: Callable[[float], object] = time.sleep,
) -> T:
    """Return what some work returns, which is done again after a pause while its errors may pass.

    raises the error of the last attempt
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return work()
        except Exception as error:  # the HTTP library under the client raises errors of its own
            if not may_pass(error):
                raise
        pause(FIRST_PAUSE_SECONDS * 2**attempt)
    return work()


@contextmanager
def explained(repo: str, repo_type: str, revision: str | None = None) -> Iterator[None]:
    """Raise HubError for whatever the client raises inside; errors of ours pass through."""
    try:
        yield
    except PrepkitError:
        raise
    except Exception as error:
        told = _told(error, repo, repo_type, revision)
        if told is None:
            raise
        raise HubError(told) from error


def _told(error: Exception, repo: str, repo_type: str, revision: str | None) -> str | None:
    """What an error means and what to do; None for one that is not of the Hub."""
    what = f"{repo_type} repository '{repo}'"
    if isinstance(error, HFValidationError):
        return f"'{repo}' is no name of a repository; write USER/NAME. ({_line(error)})"
    if isinstance(error, GatedRepoError):
        return f"the {what} is gated: ask for access on its page, then {LOGIN}."
    if isinstance(error, RepositoryNotFoundError):
        if error.response.status_code == 401:
            return f"the Hub does not let you see the {what}, or there is none: check the name, and {LOGIN}."
        return f"the Hub has no {what} that you may see; check the name, or {LOGIN} if it is private."
    if isinstance(error, RevisionNotFoundError):
        return f"the {what} has no revision '{revision}'; leave it out for the newest version."
    if isinstance(error, IncompleteSnapshotError | LocalEntryNotFoundError | RevisionResolutionError):
        return f"not all of the {what} is in the cache, and the Hub is out of reach: {_line(error)}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"this needs the Hub, and HF_HUB_OFFLINE is set ({what}); unset it, or fetch the files before."
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token for the Hub; {LOGIN}."
    if isinstance(error, EntryNotFoundError):
        return f"the {what} does not have that file: {_line(error)}"
    if isinstance(error, HfHubHTTPError):
        return _status(error, what)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full, so the {what} could not be fetched; free some room and run it again."
    if _is_transport(error) or isinstance(error, ConnectionError):
        return f"the Hub cannot be reached for the {what} ({_line(error) or type(error).__name__}); try again later."
    if isinstance(error, OSError) and "Consistency check failed" in str(error):  # the client compares sizes
        return f"a file of the {what} came with another size than announced; run it again."
    cause = error.__cause__
    if isinstance(error, RuntimeError) and isinstance(cause, Exception):  # "Error while uploading ..."
        return _told(cause, repo, repo_type, revision)
    if isinstance(error, ValueError):  # answers that the client does not understand, and cards that the Hub refuses
        return f"the Hub's client gave up on the {what}: {_line(error)}"
    return None


def _status(error: HfHubHTTPError, what: str) -> str:
    status = error.response.status_code
    if status == 401:
        return f"the Hub does not know your token ({what}); {LOGIN} again."
    if status == 403:
        return f"your token may not do this with the {what}; use one that may write, or another name."
    if status in PASSING:
        return f"the Hub is busy or broken just now (HTTP {status}, {what}); run it again in a minute."
    return f"the Hub refused ({what}): {_line(error)}"


def _is_transport(error: BaseException) -> bool:
    """Whether the HTTP library under the client raised it, whichever that is in this version."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
