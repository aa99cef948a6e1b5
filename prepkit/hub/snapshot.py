"""Files of one version of a repository in the Hub's own cache, each compared with the sum that the Hub lists.

    folder, address = fetch_folder("hf://user/run")      # all files, and the address with their commit

The Hub's client compares sizes only while it downloads. Its `verify_repo_checksums` is not used here: it needs the Hub
even if all files are cached, hashes all files of the snapshot one after another, and leaves damaged ones in the cache.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_cached_repo_tree
from huggingface_hub.errors import CachedRepoTreeNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from prepkit.address import HubAddress, parse_repository
from prepkit.errors import HubError, counted, listed
from prepkit.hub._failures import explained, is_busy, retried
from prepkit.hub.client import api, hub_cache_folder, pinned, quiet
from prepkit.support.files import sha256_of_file
from prepkit.support.logs import logger

LOG = logger(__name__)
MAX_THREADS = 4
ATTEMPTS = 2
SHA256_LENGTH = 64  # digits; git's sha1 has 40
SUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def fetch_folder(
    address: HubAddress | str, *, repo_type: str = "model", token: str | None = None
) -> tuple[Path, HubAddress]:
    """Fetch all files of a repository, or take them from the Hub's cache.

    Returns the folder, and its address with the commit.
    address: hf://user/name or hf://user/name@revision
    raises HubError if there is no such repository or revision, a file comes damaged, or the Hub cannot be reached
    """
    address = parse_repository(str(address))
    client = api(token)
    with explained(address.repo_id, repo_type, address.revision), quiet():
        address = pinned(client, address, repo_type)
        entries = list(files_of(client, address, repo_type).values())
        if not entries:
            raise HubError(f"{address} has no files.", repo=address.repo_id)
        (first, *_) = fetch_files(client, address, repo_type, entries)
    return first.parents[entries[0].path.count("/")], address


def files_of(client: HfApi, address: HubAddress, repo_type: str) -> dict[str, RepoFile]:
    """Return the files of a commit by path; a list that the cache holds is right for ever."""
    version: dict[str, Any] = {"repo_type": repo_type, "revision": address.revision}
    try:
        entries = get_cached_repo_tree(address.repo_id, cache_dir=hub_cache_folder(), **version)
    except CachedRepoTreeNotFoundError:
        tree = retried(
            lambda: list(client.list_repo_tree(address.repo_id, recursive=True, **version)), may_pass=is_busy
        )
        entries = [entry for entry in tree if isinstance(entry, RepoFile)]
    return {entry.path: entry for entry in entries}


def fetch_files(client: HfApi, address: HubAddress, repo_type: str, entries: Sequence[RepoFile]) -> list[Path]:
    """Bring files of a commit into the cache; a damaged one is fetched once more.

    raises HubError if it is damaged then too
    """
    damaged: list[str] = []
    LOG.info("bringing %s of %s into %s", counted(len(entries), "file"), address, hub_cache_folder())
    for _ in range(ATTEMPTS):
        folder = client.snapshot_download(
            address.repo_id,
            repo_type=repo_type,
            revision=address.revision,
            cache_dir=hub_cache_folder(),
            allow_patterns=[escape(entry.path) for entry in entries],
            max_workers=MAX_THREADS,
        )
        files = [Path(folder) / entry.path for entry in entries]
        with ThreadPoolExecutor(MAX_THREADS, "prepkit-sums") as pool:
            sound = list(pool.map(_is_sound, entries, files))
        damaged = [entry.path for entry, is_good in zip(entries, sound, strict=True) if not is_good]
        if not damaged:
            return files
        for file, is_good in zip(files, sound, strict=True):
            if not is_good:  # else the client would go on believing that it has the file
                file.resolve().unlink(missing_ok=True)
    raise HubError(
        f"{address}: {listed(damaged)} came damaged {ATTEMPTS} times; try again later.", repo=address.repo_id
    )


def _is_sound(entry: RepoFile, file: Path) -> bool:
    """Return whether a file has the sum that the Hub lists: sha256 of a file in LFS, git's name of a small one."""
    expected = _expected_sum(entry, file)
    if expected is None:
        return file.stat().st_size == entry.size
    return expected == (sha256_of_file(file) if len(expected) == SHA256_LENGTH else git_hash(file.read_bytes()))


def _expected_sum(entry: RepoFile, file: Path) -> str | None:
    """Return the sum as it was listed, or as the cache names the content; a list from the cache leaves LFS out.

    None for a content that came by Xet: its name is no sum of the file, and it was checked while it came.
    """
    if entry.lfs is not None:
        return entry.lfs.sha256
    blob = file.resolve()
    return blob.name if blob.parent.name == "blobs" and SUM.fullmatch(blob.name) else None
