"""Meanings of the errors that the Hub's client raises, and new attempts after errors that may pass."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import constants
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

from prepkit.errors import HubError, PrepkitError
from prepkit.support.logs import logger

LOG = logger(__name__)

PASSING = (429, 500, 502, 503, 504)  # HTTP statuses of servers that may be well again a moment later
ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.5  # each pause is twice as long as the one before
LONGEST_PAUSE_SECONDS = 300.0  # a server that asks for more is left alone

MEANING_OF_ERRORS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (HFValidationError, "'{repo}' is no name of a repository; write USER/NAME. ({reason})"),
    (GatedRepoError, "the {what} is gated: ask for access on its page, then {login}."),
    (RepositoryNotFoundError, "the Hub has no {what} that you may see; check the name, or {login} if it is private."),
    (RevisionNotFoundError, "the {what} has no revision '{revision}'; leave it out for the newest version."),
    (
        (IncompleteSnapshotError, LocalEntryNotFoundError, RevisionResolutionError),
        "the Hub cannot be reached, and the {what} is not fully cached; {remedy}.",
    ),
    (
        OfflineModeIsEnabled,
        "this needs the Hub, and HF_HUB_OFFLINE is set ({what}); unset it, or fetch the files first.",
    ),
    (LocalTokenNotFoundError, "there is no token for the Hub; {login}."),
    (EntryNotFoundError, "the {what} does not have that file: {reason}"),
)
MEANING_OF_STATUSES = {
    401: "the Hub does not know your token ({what}); {login} again.",
    403: "your token may not do this with the {what}; use one that may write, or another name.",
    **dict.fromkeys(PASSING, "the Hub is busy or broken just now (HTTP {status}, {what}); run it again in a minute."),
}
HIDDEN = "the Hub does not let you see the {what}, or there is none: check the name, and {login}."
REFUSED = "the Hub refused ({what}): {reason}"
DISK_FULL = "the disk is full, so the {what} could not be fetched; free some room and run it again."
UNREACHABLE = "the Hub cannot be reached for the {what} ({reason}); try again later."
WITHOUT_XET = "this Hub does not serve the {what} by Xet ({reason}); set HF_HUB_DISABLE_XET=1 and run it again."
CUT_SHORT = "a file of the {what} came with another size than announced; run it again."
GAVE_UP = "the Hub's client gave up on the {what}: {reason}"
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"

T = TypeVar("T")


def is_passing(error: BaseException) -> bool:
    """Return whether the same call may succeed a moment later: a connection broke, or a server was busy."""
    if isinstance(error, HfHubHTTPError):
        return is_busy(error)
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return _is_transport(error) or isinstance(error, ConnectionError)


def is_busy(error: BaseException) -> bool:
    """Return whether a server said that it is busy; where none answers, the client has its cache to look into."""
    return isinstance(error, HfHubHTTPError) and error.response.status_code in PASSING


def retried(
    work: Callable[[], T],
    *,
    may_pass: Callable[[Exception], bool] = is_passing,
    pause: Callable[[float], object] = time.sleep,
) -> T:
    """Return what some work returns, which is done again after a pause while its errors may pass.

    The pause is as long as the server asks for, if it does.

    raises the error of the last attempt
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return work()
        except Exception as error:  # the HTTP library under the client raises errors of its own
            if not may_pass(error):
                raise
            seconds = max(FIRST_PAUSE_SECONDS * 2**attempt, asked_pause(error))
            if seconds > LONGEST_PAUSE_SECONDS:
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            LOG.info("attempt %d of %d failed, the next one is in %g s: %s", attempt + 1, ATTEMPTS, seconds, reason)
        pause(seconds)
    return work()


def asked_pause(error: Exception) -> float:
    """Return how many seconds the server asks to wait, in its header Retry-After; 0 if it does not say."""
    headers = getattr(getattr(error, "response", error), "headers", None) or {}
    text = str(headers.get("Retry-After", ""))
    return float(text) if re.fullmatch(r"\d+", text) else 0.0


@contextmanager
def explained(repo: str, repo_type: str, revision: str | None = None) -> Iterator[None]:
    """Raise HubError for whatever the client raises inside; prepkit's own errors pass through."""
    try:
        yield
    except PrepkitError:
        raise
    except Exception as error:
        # The client wraps some errors: "Error while uploading ...".
        wraps = isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception)
        cause = error.__cause__ if wraps and isinstance(error.__cause__, Exception) else error
        meaning, status = _meaning(cause), _status(cause)
        if meaning is None:
            raise
        text = meaning.format(
            what=f"{repo_type} repository '{repo}'",
            repo=repo,
            revision=revision,
            status=status,
            login=LOGIN,
            remedy="unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "check the connection",
            reason=" ".join(str(cause).split()) or type(cause).__name__,
        )
        raise HubError(text, repo=repo, status=status) from error


def is_cut_short(error: Exception) -> bool:
    """Return whether the client got another size than was announced."""
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def _meaning(error: Exception) -> str | None:
    """Return what an error means and what to do; None for an error that has nothing to do with the Hub."""
    status = _status(error)
    if isinstance(error, RepositoryNotFoundError) and status == 401:
        return HIDDEN
    for kinds, meaning in MEANING_OF_ERRORS:
        if isinstance(error, kinds):
            return meaning
    if isinstance(error, HfHubHTTPError):
        return MEANING_OF_STATUSES.get(error.response.status_code, REFUSED)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DISK_FULL
    if re.search(r"404.*/xet-(read|write)-token/", str(error)):
        return WITHOUT_XET
    if _is_transport(error) or isinstance(error, ConnectionError):
        return UNREACHABLE
    if is_cut_short(error):
        return CUT_SHORT
    if isinstance(error, ValueError):  # an answer that the client does not understand, or a card that the Hub refuses
        return GAVE_UP
    return None


def _status(error: Exception) -> int | None:
    """Return the HTTP status that the Hub answered with, None if it did not answer."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def _is_transport(error: BaseException) -> bool:
    """Return whether the HTTP library under the client raised it; which library that is depends on the version."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
