"""push: a zoo on the disk becomes a new version of a dataset repository on the Hub.

    done = push("my-zoo", "user/my-zoo")
    done.commit, done.new_bytes

Only a zoo that verifies and has a licence is pushed. Shards and tables are named after their content, so the files of
an older version stay where they were, and whoever reads that version goes on reading it. The rows of each split go
along once more, as files for the Hub's viewer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prepkit.errors import ZooError, counted, listed
from prepkit.hub._readme import picture_for, readme_for
from prepkit.hub.bundle import Bundle, Upload, repo_name
from prepkit.hub.upload import Push, push_bundle
from prepkit.support.lock import changing
from prepkit.support.progress import Advance
from prepkit.zoo.card.card import PICTURE, README, replace_card
from prepkit.zoo.card.viewer import ViewerSplit, viewer_splits
from prepkit.zoo.change.verify import verify_folder
from prepkit.zoo.format.counts import num_bytes_of
from prepkit.zoo.format.manifest import MANIFEST, Manifest, manifest_bytes, read_manifest, write_manifest
from prepkit.zoo.format.paths import inside
from prepkit.zoo.format.tables import read_table


def push(
    path: str | os.PathLike[str],
    repo: str,
    *,
    license: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    progress: Advance | None = None,
    verified: Advance | None = None,
) -> Push:
    """Verify a zoo and make it the newest version of a dataset repository, which is created if there is none.

    repo:     USER/NAME
    license:  licence of a zoo that has none; it is written into the zoo's manifest
    private:  create the repository for its owner only
    dry_run:  verify, and return what would be sent
    token:    token of the Hub; HF_TOKEN or that of `hf auth login` if missing
    progress: called with a number of bytes each time that many more are on the Hub
    verified: called with a number of bytes each time that many more were verified
    raises ZooError if the folder is no zoo, has no licence or does not verify
    raises HubError if the Hub refuses, cannot be reached, or has got another version meanwhile

    >>> push("my-zoo", "user/my-zoo", dry_run=True).new_bytes    # would be sent
    """
    bundle = zoo_bundle(path, repo, license=license, dry_run=dry_run, progress=verified)
    return push_bundle(bundle, private=private, dry_run=dry_run, token=token, progress=progress)


def zoo_bundle(
    path: str | os.PathLike[str],
    repo: str,
    *,
    license: str | None = None,
    dry_run: bool = False,
    progress: Advance | None = None,
) -> Bundle:
    """Verify a zoo, and return what is pushed of it: the files that its manifest names, the manifest and the card.

    The arguments are those of `push`.
    raises ZooError
    """
    root, repo = Path(path), repo_name(repo)
    _check_licence(read_manifest(root), license, root)
    manifest = _verified_manifest(root, progress)
    if license is not None and manifest.license != license:
        manifest = replace(manifest, license=license) if dry_run else _licensed(root, manifest, license)
    viewer = viewer_splits(
        manifest, read_table(inside(root, manifest.table.path, str(root / MANIFEST)), manifest.table)
    )
    copies = [Upload.of(split.path, split.content) for split in viewer if split.content is not None]
    last = [Upload.of(MANIFEST, manifest_bytes(manifest)), *_card(root, manifest, repo, viewer)]
    return Bundle(
        repo,
        "dataset",
        message=f"{manifest.name}: {counted(manifest.table.rows, 'instance')}",
        files=(*_named_files(manifest, root), *copies, *last),
        last=frozenset({manifest.table.path, *(file.path for file in last)}),
    )


def num_bytes_to_verify(root: Path) -> int:
    """Return how many bytes `push` verifies before it sends anything, without those beside shards and table."""
    return num_bytes_of(read_manifest(root))


def _check_licence(manifest: Manifest, given: str | None, root: Path) -> None:
    """Raise ZooError for a zoo without a licence, which nobody would be allowed to use, or with another one."""
    present = (manifest.license or "").strip()
    if not present and not (given or "").strip():
        raise ZooError(
            f"'{root}' has no licence, so nobody might use it; give it one with license=, such as mit or cc-by-4.0."
        )
    if present and given is not None and given != manifest.license:
        raise ZooError(f"'{root}' has the licence '{manifest.license}' already, not '{given}'; leave license= out.")


def _verified_manifest(root: Path, progress: Advance | None) -> Manifest:
    """Return the manifest of a zoo that verifies."""
    manifest = read_manifest(root)
    result = verify_folder(root, progress=progress)
    if not result.ok:
        raise ZooError(
            f"'{root}' does not verify, so nothing was pushed: {listed(result.faults, 3)} "
            f"(`prepkit zoo verify {root}` lists everything)"
        )
    if read_manifest(root) != manifest:
        raise _changed(root)
    return manifest


def _licensed(root: Path, verified: Manifest, license: str) -> Manifest:
    """Write a licence into a zoo, and return the manifest."""
    with changing(root):
        if read_manifest(root) != verified:
            raise _changed(root)
        manifest = replace(verified, license=license)
        write_manifest(manifest, root, overwrite=True)
        replace_card(root)
    return manifest


def _changed(root: Path) -> ZooError:
    return ZooError(f"'{root}' was changed while it was verified, so nothing was pushed; push it again.")


def _named_files(manifest: Manifest, root: Path) -> list[Upload]:
    """Return the files that the manifest names, with the sums that it gives them."""
    named: list[tuple[str, str]] = [(shard.path, shard.sha256) for shard in manifest.shards]
    named += manifest.beside.items()
    named += [(manifest.table.path, manifest.table.sha256)]
    place = str(root / MANIFEST)
    return [Upload.of(path, inside(root, path, place).absolute(), sha256) for path, sha256 in named]


def _card(root: Path, manifest: Manifest, repo: str, viewer: Sequence[ViewerSplit]) -> list[Upload]:
    picture = picture_for(root, manifest)
    readme = Upload.of(README, readme_for(root, manifest, repo, picture is not None, viewer))
    return [readme] if picture is None else [readme, Upload.of(PICTURE, picture)]
