"""A push: files become a new version of a repository on the Hub, visible together or not at all.

    files = (Upload.of("model.safetensors", path), Upload.of("README.md", b"..."))
    push_bundle(Bundle("user/run", "model", "first run", files))

The contents are uploaded first, where nobody sees them, and then one commit names them all. The commit names its parent
too, so that of two pushes at the same time one fails. When there are more files than one commit should have, there are
several commits, and the files that name the others come last. Contents that the repository has are not sent again, not
even after an interrupted push. Nothing is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from threading import Thread

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from prepkit.errors import HubError, listed
from prepkit.hub._failures import explained, is_busy, retried
from prepkit.hub.bundle import Bundle, RepoType, Upload
from prepkit.hub.client import api, quiet
from prepkit.support.progress import Advance
from prepkit.support.text import Brief

MAIN = "main"
GIT_ATTRIBUTES = ".gitattributes"  # the Hub puts it into every repository
FILES_PER_COMMIT = 100  # the Hub's documentation recommends no more
FILES_PER_BATCH = 64  # one call of the client uploads a batch, several files at a time
BYTES_PER_BATCH = 512 << 20
LISTEN_SECONDS = 0.5  # time within which Ctrl-C is heard


@dataclass(frozen=True)
class PushedFile:
    """A file of a push: its path in the repository, its size, and whether the repository had it before."""

    path: str
    bytes: int
    there: bool


@dataclass(frozen=True, repr=False)
class Push(Brief):
    """Result of a push, or of its dry run.

    url:     address of the repository's page
    commit:  the commit that holds all files; None after a dry run, unless the repository has all files
    commits: number of commits that were made
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


def push_bundle(
    bundle: Bundle,
    *,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    progress: Advance | None = None,
) -> Push:
    """Make files the newest version of a repository, which is created if there is none.

    private:  create the repository for its owner only
    dry_run:  look at what the repository has, change nothing
    progress: called with a number of bytes each time that many more are on the Hub
    raises HubError if the Hub refuses, cannot be reached, or has got another version meanwhile
    """
    client, repo, repo_type = api(token), bundle.repo, bundle.repo_type
    with explained(repo, repo_type), quiet():
        remote = _remote(client, bundle, private)
        created = remote is None
        if remote is None and not dry_run:
            retried(
                lambda: client.create_repo(repo, repo_type=repo_type, private=private or None, exist_ok=True),
                may_pass=is_busy,
            )
            remote = _remote(client, bundle, private)
            if remote is None:
                raise HubError(f"'{repo}' was created, but the Hub does not show it; try again in a minute.")
        remote = remote or _Remote(None, {})
        files = tuple(PushedFile(file.path, file.size, _has(remote.files, file)) for file in bundle.files)
        new = [file for file, known in zip(bundle.files, files, strict=True) if not known.there]
        version = _Version(client, bundle, remote.commit)
        commits = 0 if dry_run else version.push(new, progress or _ignore)
    return Push(
        repo,
        repo_type,
        url=f"{client.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo}",
        files=files,
        commit=None if dry_run and new else version.parent,
        commits=commits,
        created=created,
        others=tuple(sorted(remote.files.keys() - {GIT_ATTRIBUTES} - {file.path for file in files})),
    )


# What the repository has --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Remote:
    """A repository as it is: the commit of its main branch, and the files there."""

    commit: str | None
    files: dict[str, RepoFile]


def _remote(client: HfApi, bundle: Bundle, private: bool) -> _Remote | None:
    """Return the repository as it is, or None if there is none that the user may see."""
    repo = bundle.repo
    try:
        info = retried(lambda: client.repo_info(repo, repo_type=bundle.repo_type), may_pass=is_busy)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:  # the Hub answers so to a wrong token too
            raise
        return None
    if private and info.private is False:
        raise HubError(f"'{repo}' is there already and public; make it private in its settings, or use another name.")
    return _Remote(info.sha, _tree(client, bundle, info.sha))


def _tree(client: HfApi, bundle: Bundle, commit: str | None) -> dict[str, RepoFile]:
    """Return the files of a commit by their paths."""
    if commit is None:
        return {}
    entries = retried(
        lambda: list(client.list_repo_tree(bundle.repo, recursive=True, revision=commit, repo_type=bundle.repo_type)),
        may_pass=is_busy,
    )
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _has(tree: dict[str, RepoFile], file: Upload) -> bool:
    """Return whether a commit has this file with this content."""
    known = tree.get(file.path)
    if known is None or known.size != file.size:
        return False
    if known.lfs is not None:
        return known.lfs.sha256 == file.sha256
    content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    return known.blob_id == git_hash(content)  # files that are not in LFS are small


# Sending ------------------------------------------------------------------------------------------------------


@dataclass
class _Version:
    """A new version in the making.

    parent: the commit that it stands on, and finally its own last commit
    """

    client: HfApi
    bundle: Bundle
    parent: str | None

    def push(self, new: Sequence[Upload], progress: Advance) -> int:
        """Upload the new files of the bundle and commit them; return the number of commits."""
        progress(self.bundle.num_bytes - sum(file.size for file in new))
        if not new:
            return 0
        parts = _parts(self.upload(new, progress), self.bundle.last)
        for number, part in enumerate(parts, 1):
            self.commit(part, f" (part {number} of {len(parts)})" if len(parts) > 1 else "")
        self.check()
        return len(parts)

    def upload(self, files: Sequence[Upload], progress: Advance) -> list[CommitOperationAdd]:
        """Upload the contents of files, which nobody sees before a commit names them."""
        uploaded = []
        for batch in _batches(files):
            additions = [_addition(file) for file in batch]
            send = partial(
                self.client.preupload_lfs_files,
                self.bundle.repo,
                additions,
                repo_type=self.bundle.repo_type,
                revision=MAIN,
                gitignore_content="",  # the repository's own would leave files out silently
            )
            interruptibly(send)
            for file, addition in zip(batch, additions, strict=True):
                if addition.upload_info.sha256.hex() != file.sha256:
                    raise _changed(file)
                progress(file.size)
            uploaded += additions
        return uploaded

    def commit(self, additions: Sequence[CommitOperationAdd], part: str) -> None:
        """Make files visible, all at the same time.

        A commit whose answer was lost is tried again: then its parent is not the newest any more.
        """
        try:
            answer: CommitInfo = retried(
                lambda: self.client.create_commit(
                    self.bundle.repo,
                    additions,
                    commit_message=self.bundle.message + part,
                    repo_type=self.bundle.repo_type,
                    revision=MAIN,
                    parent_commit=self.parent,
                )
            )
            self.parent = answer.oid
        except HfHubHTTPError as error:
            if error.response.status_code != 412:  # 412 says that the parent is not the newest commit
                raise
            self.parent = self._commit_that_has({addition.path_in_repo for addition in additions})

    def check(self) -> None:
        """Raise HubError unless the new version holds every file with its content."""
        tree = _tree(self.client, self.bundle, self.parent)
        wrong = [file.path for file in self.bundle.files if not _has(tree, file)]
        if wrong:
            raise HubError(
                f"commit {self.parent} of '{self.bundle.repo}' was made, but does not hold what was sent as "
                f"{listed(wrong)}; push again, and delete that version if it stays so."
            )

    def _commit_that_has(self, paths: set[str]) -> str:
        """Return the newest commit if it holds these files: then it is our own, whose answer was lost.

        raises HubError if somebody else's version came in between
        """
        head = self.client.repo_info(self.bundle.repo, repo_type=self.bundle.repo_type).sha
        tree = _tree(self.client, self.bundle, head)
        if head is None or not all(_has(tree, file) for file in self.bundle.files if file.path in paths):
            raise HubError(
                f"'{self.bundle.repo}' got another version while this one was uploaded, so this one was not made; look "
                "at the other, then push again: what was uploaded is not sent twice."
            )
        return head


def interruptibly(work: Callable[[], None]) -> None:
    """Do some work in a thread, so that Ctrl-C is heard at once: the client would first wait for its own threads."""
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    Thread(target=run, name="prepkit-push", daemon=True).start()
    while not outcome.done():
        wait([outcome], LISTEN_SECONDS)
    outcome.result()


def _addition(file: Upload) -> CommitOperationAdd:
    """Return what the client calls a file of a commit."""
    try:
        return CommitOperationAdd(
            file.path, file.content if isinstance(file.content, bytes) else file.content.absolute()
        )
    except (OSError, ValueError):  # the client says in this way that there is no such file
        raise _changed(file) from None


def _changed(file: Upload) -> HubError:
    return HubError(f"'{file.path}' was changed or removed while it was pushed; nothing is visible. Push again.")


def _batches(files: Sequence[Upload]) -> Iterator[list[Upload]]:
    """Divide files into groups with limits on their number and size."""
    batch: list[Upload] = []
    size = 0
    for file in files:
        if batch and (len(batch) == FILES_PER_BATCH or size + file.size > BYTES_PER_BATCH):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield batch


def _parts(additions: list[CommitOperationAdd], last: frozenset[str]) -> list[list[CommitOperationAdd]]:
    """Divide files among commits: one if they are few, else several of which the last names the others' files."""
    if len(additions) <= FILES_PER_COMMIT:
        return [additions]
    first = [addition for addition in additions if addition.path_in_repo not in last]
    rest = [addition for addition in additions if addition.path_in_repo in last]
    parts = [first[start : start + FILES_PER_COMMIT] for start in range(0, len(first), FILES_PER_COMMIT)]
    return [*parts, rest] if rest else parts


def _ignore(num_bytes: int) -> None:
    """Take a progress that nobody asked for."""
