"""Files become a new version of a repository of the Hub: visible whole, or not at all.

    push_folder([Upload.of("model.safetensors", path), Upload.of("README.md", text)], "user/run", repo_type="model")

Contents are uploaded first, which nobody sees, and then one commit names them all. It names its parent too, so that of
two pushes at once one fails. More files than a commit should have go in several: those that name the others come last.
What the repository has already is skipped; what an interrupted push has uploaded is not sent again. Nothing is deleted.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from prepkit.errors import HubError, listed
from prepkit.hub.client import api, explained, is_passing, quiet
from prepkit.hub.sending import Addition, Upload, batches, interruptibly, one_at_a_time

RepoType = Literal["dataset", "model"]
MAIN = "main"
GIT_ATTRIBUTES = ".gitattributes"  # the Hub's own, in every repository
FILES_A_COMMIT = 100  # what the Hub's documentation recommends as the most
COMMIT_ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 1.0  # doubled after each attempt


@dataclass(frozen=True)
class PushedFile:
    """A file of a push: its path in the repository, its size, and whether the repository had it before."""

    path: str
    bytes: int
    there: bool


@dataclass(frozen=True)
class Push:
    """What was pushed, or would be.

    url:     of its page
    commit:  that holds all files; None after a dry run, unless all of them are there
    commits: how many were made
    created: whether the repository is new
    others:  paths in the repository that are not among the files, and were left alone
    """

    repo: str
    repo_type: RepoType
    url: str
    files: tuple[PushedFile, ...]
    commit: str | None
    commits: int
    created: bool
    others: tuple[str, ...]

    @property
    def new_bytes(self) -> int:
        """Size of the files that the repository did not have."""
        return sum(file.bytes for file in self.files if not file.there)


@dataclass(frozen=True)
class _Remote:
    """A repository as it is: the commit of its main branch, and the files there."""

    commit: str | None
    files: dict[str, RepoFile]


def push_folder(
    files: Sequence[Upload],
    repo: str,
    *,
    repo_type: RepoType,
    message: str,
    last: Collection[str] = (),
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Push:
    """Make files a new version of a repository, which is created if there is none.

    last:     paths that name other files, such as a manifest: in the last commit if there are several
    private:  create the repository for its owner only
    dry_run:  look what is there, change nothing
    progress: called with a number of bytes each time that many more are there; once for all that were there before
    raises HubError if the Hub refuses, cannot be reached, or has got another version meanwhile
    """
    client = api(token)
    with explained(repo, repo_type):
        remote = _remote(client, repo, repo_type, private)
    created = remote is None
    if remote is None and not dry_run:
        with explained(repo, repo_type):
            client.create_repo(repo, repo_type=repo_type, private=private or None, exist_ok=True)
            remote = _remote(client, repo, repo_type, private)
        if remote is None:
            raise HubError(f"'{repo}' was created, but the Hub does not show it; try again in a minute.")
    remote = remote or _Remote(None, {})
    told = tuple(PushedFile(file.path, file.size, _is_there(file, remote.files.get(file.path))) for file in files)
    others = tuple(sorted(remote.files.keys() - {GIT_ATTRIBUTES} - {file.path for file in files}))
    url = f"{client.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo}"
    new = [file for file, known in zip(files, told, strict=True) if not known.there]
    progress = one_at_a_time(None if dry_run else progress)
    progress(sum(file.bytes for file in told if file.there))
    if dry_run or not new:
        return Push(repo, repo_type, url, told, None if new else remote.commit, 0, created, others)
    version = _Version(client, repo, repo_type, message, remote.commit)
    with explained(repo, repo_type), quiet():
        parts = _parts(version.uploaded(new, progress), set(last))
        for number, part in enumerate(parts, 1):
            version.commit(part, f" (part {number} of {len(parts)})" if len(parts) > 1 else "")
        version.check(files)
    return Push(repo, repo_type, url, told, version.parent, len(parts), created, others)


def _remote(client: HfApi, repo: str, repo_type: RepoType, private: bool) -> _Remote | None:
    """The repository as it is, None if there is none that may be seen."""
    try:
        info = client.repo_info(repo, repo_type=repo_type)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:  # a token that is none, which the Hub tells in the same way
            raise
        return None
    if private and info.private is False:
        raise HubError(f"'{repo}' is there already and public; make it private in its settings, or use another name.")
    return _Remote(info.sha, _tree(client, repo, repo_type, info.sha))


def _tree(client: HfApi, repo: str, repo_type: RepoType, commit: str | None) -> dict[str, RepoFile]:
    if commit is None:
        return {}
    entries = client.list_repo_tree(repo, recursive=True, revision=commit, repo_type=repo_type)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _is_there(file: Upload, known: RepoFile | None) -> bool:
    """Whether the repository's file of this path has this content."""
    if known is None or known.size != file.size:
        return False
    if known.lfs is not None:
        return known.lfs.sha256 == file.sha256
    return known.blob_id == _git_sha1(file)


def _git_sha1(file: Upload) -> str:
    """The name that git gives to a content; files that are no LFS files are small."""
    content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class _Version:
    """A new version in the making.

    parent: the commit that it stands on; the last one that was made
    """

    client: HfApi
    repo: str
    repo_type: RepoType
    message: str
    parent: str | None

    def uploaded(self, files: Sequence[Upload], progress: Callable[[int], None]) -> list[Addition]:
        """The contents of files, uploaded: nobody sees them before a commit names them."""
        stop = Event()
        additions = [Addition(file, progress, stop) for file in files]
        for batch in batches(additions):
            interruptibly(partial(self._preupload, batch), stop)
            for addition in batch:
                addition.check()
                addition.counted(addition.file.size)
        return additions

    def _preupload(self, additions: list[Addition]) -> None:
        self.client.preupload_lfs_files(
            self.repo,
            additions,
            repo_type=self.repo_type,
            revision=MAIN,
            free_memory=False,
            gitignore_content="",  # one in the repository would leave files out without a word
        )

    def commit(self, additions: list[Addition], part: str) -> None:
        """Make files visible, all at once.

        A commit whose answer was lost is tried again: its parent says whether it was made.
        """
        for attempt in range(1, COMMIT_ATTEMPTS + 1):
            try:
                made = self.client.create_commit(
                    self.repo,
                    additions,
                    commit_message=self.message + part,
                    repo_type=self.repo_type,
                    revision=MAIN,
                    parent_commit=self.parent,
                )
            except Exception as error:  # of the client, and of the HTTP library under it
                if _is_stale(error):
                    self.parent = self._made_before(additions)
                    return
                if attempt == COMMIT_ATTEMPTS or not is_passing(error):
                    raise
                time.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
                continue
            self.parent = made.oid
            return

    def check(self, files: Sequence[Upload]) -> None:
        """Raise HubError unless the version that was made holds every file with its content."""
        tree = _tree(self.client, self.repo, self.repo_type, self.parent)
        wrong = [file.path for file in files if not _is_there(file, tree.get(file.path))]
        if wrong:
            raise HubError(
                f"the Hub took commit {self.parent} of '{self.repo}', but {listed(wrong)} are not in it as they were "
                "sent; push again, and delete that version if it stays so."
            )

    def _made_before(self, additions: list[Addition]) -> str:
        """The commit on main if it holds these files, as it does when the answer to our own commit was lost.

        raises HubError if somebody else's version came in between
        """
        head = self.client.repo_info(self.repo, repo_type=self.repo_type).sha
        tree = _tree(self.client, self.repo, self.repo_type, head)
        if head is None or not all(_is_there(item.file, tree.get(item.file.path)) for item in additions):
            raise HubError(
                f"'{self.repo}' got another version while this one was uploaded, so this one was not made; look at the "
                "other, then push again: what was uploaded is not sent twice."
            )
        return head


def _parts(additions: list[Addition], last: set[str]) -> list[list[Addition]]:
    """One commit, or several of which the last one names the others' files."""
    if len(additions) <= FILES_A_COMMIT:
        return [additions]
    first = [addition for addition in additions if addition.file.path not in last]
    rest = [addition for addition in additions if addition.file.path in last]
    parts = [first[start : start + FILES_A_COMMIT] for start in range(0, len(first), FILES_A_COMMIT)]
    return [*parts, rest] if rest else parts


def _is_stale(error: Exception) -> bool:
    """Whether a commit was refused because its parent is not the newest any more."""
    return isinstance(error, HfHubHTTPError) and error.response.status_code == 412
