"""verify_at: whether a zoo on the Hub or in another store, and what of it is in the cache, is what its manifest says.

Shards in the cache are hashed. Of a zoo on the Hub nothing but the manifest and the table is fetched for it: the sums
that the Hub itself lists are compared with the manifest, and a shard for which it lists none is fetched. Other stores
list no sha256, so all files are fetched from there, compared, and removed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from huggingface_hub.hf_api import RepoFile

from prepkit.address import HubAddress, UrlAddress
from prepkit.errors import HubError, counted
from prepkit.hub._failures import explained, is_busy, retried
from prepkit.hub._fetch import Fetcher, wait_for_all
from prepkit.hub._hub_source import HubSource
from prepkit.hub._shard_cache import alone
from prepkit.hub._source import FETCHING, Damaged, RemoteFile
from prepkit.hub.client import api
from prepkit.hub.store import RemoteStore, open_store
from prepkit.support.files import sha256_of_file, system_errors_as_output
from prepkit.support.progress import Advance, one_at_a_time
from prepkit.zoo.change.rerun import run_again
from prepkit.zoo.change.verify import Fault, Verification, table_faults
from prepkit.zoo.format.manifest import Manifest
from prepkit.zoo.read.zoo import Zoo

VERIFYING, COMPARED = "verifying", "compared"  # folder of files that are compared and removed, and one in it


def verify_at(
    address: HubAddress | UrlAddress | str,
    *,
    rerun: int = 0,
    data: str | os.PathLike[str] | None = None,
    token: str | None = None,
    progress: Advance | None = None,
) -> Verification:
    """Compare a zoo on the Hub or in another store with its manifest.

    rerun, data: as for `verify`; the shards of these instances are fetched
    progress:    called with the size of each shard once it was compared
    raises HubError if there is no such zoo, or the store does not answer; ZooError if it is no zoo or damaged
    """
    store = open_store(address, token=token)
    manifest, source = store.manifest, store.source
    advance = one_at_a_time(progress)
    faults = table_faults(lambda: [store.table], manifest)
    found, notes, num_bytes = _faults_in_the_cache(store)
    if isinstance(source, HubSource):
        faults += _faults_on_hub(store, source.address, token, advance)
        notes.append(f"{found}; the sums that the Hub lists were compared for all.")
    else:
        faults += _faults_in_store(store, advance)
        notes.append(f"{found}; all {counted(len(manifest.shards), 'shard')} were fetched and compared.")
        num_bytes = sum(shard.bytes for shard in manifest.shards)
    return Verification(
        path=str(source),
        instances=manifest.table.rows,
        files=2 + len(manifest.shards),
        bytes=manifest.table.bytes + num_bytes,
        faults=tuple(faults),
        notes=tuple(notes),
        function=manifest.function,
        reruns=run_again(Zoo(store, None, manifest.shape), rerun, data) if rerun and not faults else (),
    )


def _faults_in_the_cache(store: RemoteStore) -> tuple[str, list[str], int]:
    """Hash the shards in the cache; return how many, notes about those that were removed, and their bytes."""
    notes, num_hashed, num_bytes = [], 0, 0
    for number, shard in enumerate(store.manifest.shards):
        cached = store.cached_file(number)
        if cached is not None:
            num_hashed, num_bytes = num_hashed + 1, num_bytes + shard.bytes
            if sha256_of_file(cached) != shard.sha256:
                cached.unlink(missing_ok=True)
                notes.append(
                    f"{shard.path}: was damaged in the cache and removed from it; its next use fetches it again."
                )
    return f"{counted(num_hashed, 'shard')} of {len(store.manifest.shards):,} hashed in the cache", notes, num_bytes


def _faults_in_store(store: RemoteStore, advance: Advance) -> list[Fault]:
    """Fetch each file that the manifest names, a few at a time, and compare it."""
    work = store.root / FETCHING / VERIFYING
    with system_errors_as_output(store.root), alone(work / COMPARED):
        shutil.rmtree(work)  # a verification that was killed may have left files there
        try:
            fetcher = Fetcher(store.source, work)
            with fetcher.pool() as pool:
                futures = [pool.submit(_fault_of, fetcher, *item, advance) for item in _files(store.manifest)]
                wait_for_all(futures)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return [fault for future in futures if (fault := future.result()) is not None]


def _files(manifest: Manifest) -> Iterator[tuple[str, RemoteFile]]:
    """Give the files that a manifest names, and where it names them."""
    for number, shard in enumerate(manifest.shards):
        yield f"shards[{number}]", RemoteFile(shard.path, shard.sha256, shard.bytes)
    yield "table", RemoteFile(manifest.table.path, manifest.table.sha256, manifest.table.bytes)
    for path, sha256 in manifest.beside.items():
        yield manifest.key_of(path), RemoteFile(path, sha256)


def _fault_of(fetcher: Fetcher, place: str, file: RemoteFile, advance: Advance) -> Fault | None:
    """Fetch a file, compare it, and remove it again."""
    target = fetcher.folder / COMPARED / file.path
    try:
        fetcher.fetch(file, target, advance)
    except HubError as error:
        if isinstance(error.__cause__, Damaged):
            return Fault(file.path, place, f"{error.__cause__}.")
        if not fetcher.source.is_missing(error.__cause__):
            raise
        return Fault(file.path, place, "the store does not have it.")
    target.unlink()
    return None


def _faults_on_hub(store: RemoteStore, version: HubAddress, token: str | None, advance: Advance) -> list[Fault]:
    """Compare the sums that the Hub lists with the manifest."""
    manifest, faults = store.manifest, []
    with explained(version.repo_id, "dataset", version.revision):
        listed = retried(lambda: _listed(version, token), may_pass=is_busy)
    for number, shard in enumerate(manifest.shards):
        problem = _problem(store, number, listed.get(shard.path))
        faults += [Fault(shard.path, f"shards[{number}]", problem)] if problem else []
        advance(shard.bytes)
    missing = [path for path in manifest.beside if path not in listed]
    return faults + [Fault(path, manifest.key_of(path), "the repository does not have it.") for path in missing]


def _listed(version: HubAddress, token: str | None) -> dict[str, RepoFile]:
    """Return the files that the Hub lists now, with their sums; the client's own copy of the list leaves those out."""
    tree = api(token).list_repo_tree(version.repo_id, recursive=True, revision=version.revision, repo_type="dataset")
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _problem(store: RemoteStore, number: int, remote: RepoFile | None) -> str | None:
    """Return what is wrong with a shard in the repository, None if it is as the manifest says."""
    shard = store.manifest.shards[number]
    if remote is None:
        return "the repository does not have it."
    if remote.size != shard.bytes:
        return f"it has {counted(remote.size, 'byte')}, the manifest says {shard.bytes:,}."
    if remote.lfs is not None and remote.lfs.sha256 != shard.sha256:
        return f"its sha256 is {remote.lfs.sha256[:12]}..., not {shard.sha256[:12]}..."
    if remote.lfs is None:
        try:
            store.values(number)  # it is compared when it comes
        except HubError as error:
            return str(error)
    return None
