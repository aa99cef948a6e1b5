"""verify_on_hub: whether a zoo on the Hub, and what of it is in the cache, is what its manifest says.

Nothing but the manifest and the table is fetched for it: shards in the cache for streamed zoos are hashed, and the sums
that the Hub itself lists are compared with the manifest. A shard for which it lists none is fetched.
"""

from __future__ import annotations

import os

from huggingface_hub.hf_api import RepoFile

from prepkit.address import HubAddress
from prepkit.errors import HubError, counted
from prepkit.hub._failures import explained, is_busy, retried
from prepkit.hub.client import api
from prepkit.hub.store import HubStore, open_store
from prepkit.support.files import sha256_of_file
from prepkit.support.progress import Advance
from prepkit.zoo.change.rerun import run_again
from prepkit.zoo.change.verify import Fault, Verification, table_faults
from prepkit.zoo.read.zoo import Zoo


def verify_on_hub(
    address: HubAddress | str,
    *,
    rerun: int = 0,
    data: str | os.PathLike[str] | None = None,
    token: str | None = None,
    progress: Advance | None = None,
) -> Verification:
    """Compare a zoo on the Hub with its manifest.

    rerun, data: as for `verify`; the shards of these instances are fetched
    progress:    called with the size of each shard once it was compared
    raises HubError if there is no such zoo, the Hub does not answer, ZooError if it is no zoo or damaged
    """
    store = open_store(str(address), token=token)
    manifest, version = store.manifest, store.address
    with explained(version.repo_id, "dataset", version.revision):
        listed = retried(lambda: _listed(version, token), may_pass=is_busy)
    faults, notes, num_hashed, num_bytes = table_faults(lambda: [store.table], manifest), [], 0, manifest.table.bytes
    for number, shard in enumerate(manifest.shards):
        cached = store.cached_file(number)
        if cached is not None:
            num_hashed, num_bytes = num_hashed + 1, num_bytes + shard.bytes
            if sha256_of_file(cached) != shard.sha256:
                cached.unlink(missing_ok=True)
                notes.append(
                    f"{shard.path}: was damaged in the cache and removed from it; its next use fetches it again."
                )
        problem = _problem(store, number, listed.get(shard.path))
        faults += [Fault(shard.path, f"shards[{number}]", problem)] if problem else []
        if progress is not None:
            progress(shard.bytes)
    missing = [path for path in manifest.beside if path not in listed]
    faults += [Fault(path, manifest.key_of(path), "the repository does not have it.") for path in missing]
    hashed = f"{counted(num_hashed, 'shard')} of {len(manifest.shards):,} hashed in the cache"
    notes.append(f"{hashed}; the sums that the Hub lists were compared for all.")
    return Verification(
        path=str(version),
        instances=manifest.table.rows,
        files=2 + len(manifest.shards),
        bytes=num_bytes,
        faults=tuple(faults),
        notes=tuple(notes),
        function=manifest.function,
        reruns=run_again(Zoo(store, None, manifest.shape), rerun, data) if rerun and not faults else (),
    )


def _listed(version: HubAddress, token: str | None) -> dict[str, RepoFile]:
    """Return the files that the Hub lists now, with their sums; the client's own copy of the list leaves those out."""
    tree = api(token).list_repo_tree(version.repo_id, recursive=True, revision=version.revision, repo_type="dataset")
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _problem(store: HubStore, number: int, remote: RepoFile | None) -> str | None:
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
