"""Files of one version of a repository in the Hub's own cache, each compared with the sum that the Hub keeps of it.

    folder, address = fetch_folder("hf://user/run")      # all of it, and which commit that is

The Hub's client compares sizes only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_cached_repo_tree
from huggingface_hub.errors import CachedRepoTreeNotFoundError
from huggingface_hub.hf_api import RepoFile

from prepkit.address import HubAddress, parse
from prepkit.errors import HubError, listed
from prepkit.hub.client import api, cache_folder, explained, pinned, quiet

AT_ONCE = 4
ATTEMPTS = 2
CHUNK_BYTES = 1 << 20
SUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def fetch_folder(
    address: HubAddress | str, *, repo_type: str = "model", token: str | None = None
) -> tuple[Path, HubAddress]:
    """Fetch all files of a repository, or take them from the Hub's cache: the folder, and its address with the commit.

    address: hf://user/name or hf://user/name@revision
    raises HubError if there is no such repository or revision, a file comes damaged, or the Hub cannot be reached
    """
    asked = parse(address) if isinstance(address, str) else address
    if asked.path is not None:
        raise HubError(f"'{asked}' names a file; a whole repository is meant: hf://{asked.repo_id}.")
    client = api(token)
    with explained(asked.repo_id, repo_type, asked.revision), quiet():
        found = pinned(client, asked, repo_type)
        entries = list(files_of(client, found, repo_type).values())
        if not entries:
            raise HubError(f"{found} has no files.")
        (first, *_) = fetched(client, found, repo_type, entries)
    return first.parents[entries[0].path.count("/")], found


def files_of(client: HfApi, address: HubAddress, repo_type: str) -> dict[str, RepoFile]:
    """The files of a commit by path: a list that was kept is right for ever."""
    where: dict[str, Any] = {"repo_type": repo_type, "revision": address.revision}
    try:
        entries = get_cached_repo_tree(address.repo_id, cache_dir=cache_folder(), **where)
    except CachedRepoTreeNotFoundError:
        listed_now = client.list_repo_tree(address.repo_id, recursive=True, **where)
        entries = [entry for entry in listed_now if isinstance(entry, RepoFile)]
    return {entry.path: entry for entry in entries}


def fetched(client: HfApi, address: HubAddress, repo_type: str, entries: Sequence[RepoFile]) -> list[Path]:
    """Files of a commit, in the cache and compared with their sums; a damaged one is fetched once more.

    raises HubError if it is damaged then too
    """
    for attempt in range(ATTEMPTS):
        folder = client.snapshot_download(
            address.repo_id,
            repo_type=repo_type,
            revision=address.revision,
            cache_dir=cache_folder(),
            allow_patterns=[escape(entry.path) for entry in entries],
            max_workers=AT_ONCE,
        )
        files = [Path(folder) / entry.path for entry in entries]
        with ThreadPoolExecutor(AT_ONCE, "prepkit-sums") as pool:
            sound = list(pool.map(_is_sound, entries, files))
        damaged = [entry.path for entry, good in zip(entries, sound, strict=True) if not good]
        if not damaged:
            break
        for file, good in zip(files, sound, strict=True):
            if not good:  # or the client would think for ever that it has the file
                file.resolve().unlink(missing_ok=True)
        if attempt == ATTEMPTS - 1:
            raise HubError(f"{address}: {listed(damaged)} came damaged {ATTEMPTS} times; try again later.")
    return files


def _is_sound(entry: RepoFile, file: Path) -> bool:
    """Whether a file has the sum that the Hub keeps of it."""
    expected = _sum_of(entry, file)
    if expected is None:
        return file.stat().st_size == entry.size
    with open(file, "rb") as opened:
        if len(expected) == 64:
            return hashlib.file_digest(opened, "sha256").hexdigest() == expected
        digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)  # as git names contents
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == expected


def _sum_of(entry: RepoFile, file: Path) -> str | None:
    """sha256 of a large file, git's sha1 of a small one, as listed or as the cache names its content; None if neither.

    Contents that came by Xet have names of another kind, and were compared with them while they came.
    """
    if entry.lfs is not None:
        return entry.lfs.sha256
    blob = file.resolve()
    return blob.name if blob.parent.name == "blobs" and SUM.fullmatch(blob.name) else None
