"""push: a zoo on the disk becomes a new version of a dataset repository of the Hub.

    done = push("my-zoo", "user/my-zoo")
    done.commit, done.new_bytes

Only a zoo that verifies and has a licence is pushed. Shards and tables are named after their content, so an older
version's files stay where they were: whoever reads that version goes on reading it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from prepkit.address import parse
from prepkit.errors import HubError, ZooError, listed
from prepkit.hub.readme import picture_for, readme_for
from prepkit.hub.sending import Upload
from prepkit.hub.upload import Push, push_folder
from prepkit.zoo.card.card import PICTURE, README, write_card
from prepkit.zoo.change.verify import verify
from prepkit.zoo.format.counts import num_bytes_of
from prepkit.zoo.format.manifest import MANIFEST, Manifest, manifest_bytes, read_manifest, write_manifest
from prepkit.zoo.format.paths import inside


def push(
    path: str | os.PathLike[str],
    repo: str,
    *,
    license: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    progress: Callable[[int], None] | None = None,
    verified: Callable[[int], None] | None = None,
) -> Push:
    """Verify a zoo and make it the newest version of a dataset repository, which is created if there is none.

    repo:     USER/NAME
    license:  given to a zoo that has none: it is written into its manifest
    private:  create the repository for its owner only
    dry_run:  verify, and tell what would be sent
    token:    of the Hub; HF_TOKEN or that of `hf auth login` if missing
    progress: called with a number of bytes each time that many more are on the Hub
    verified: called with a number of bytes each time that many more were hashed before
    raises ZooError if the folder is no zoo, has no licence or does not verify
    raises HubError if the Hub refuses, cannot be reached, or has got another version meanwhile

    >>> push("my-zoo", "user/my-zoo", dry_run=True).new_bytes    # would be sent
    """
    zoo = zoo_files(path, repo, license=license, dry_run=dry_run, progress=verified)
    return push_files(zoo, private=private, dry_run=dry_run, token=token, progress=progress)


@dataclass(frozen=True)
class ZooFiles:
    """A zoo that may be pushed.

    files: those that its manifest names, the manifest, the card
    last:  paths of those that belong into the last commit
    """

    repo: str
    name: str
    instances: int
    files: tuple[Upload, ...]
    last: frozenset[str]

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size for file in self.files)


def zoo_files(
    path: str | os.PathLike[str],
    repo: str,
    *,
    license: str | None = None,
    dry_run: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ZooFiles:
    """Verify a zoo, and tell what of it is pushed; the arguments are those of `push`.

    raises ZooError
    """
    root, repo = Path(path), repo_name(repo)
    check_licence(read_manifest(root), license, root)
    manifest = _whole(root, progress)
    if license is not None and manifest.license != license:
        manifest = replace(manifest, license=license)
        if not dry_run:
            write_manifest(manifest, root, overwrite=True)
            write_card(root)
    named = [Upload.of(*item) for item in _named(manifest, root)]
    last = [Upload.of(MANIFEST, manifest_bytes(manifest)), *_card(root, manifest, repo)]
    names = frozenset({manifest.table.path, *(file.path for file in last)})
    return ZooFiles(repo, manifest.name, manifest.table.rows, (*named, *last), names)


def push_files(
    zoo: ZooFiles,
    *,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Push:
    """Push a zoo that was verified; the arguments are those of `push`.

    raises HubError
    """
    return push_folder(
        zoo.files,
        zoo.repo,
        repo_type="dataset",
        message=f"{zoo.name}: {zoo.instances:,} instances",
        last=zoo.last,
        private=private,
        dry_run=dry_run,
        token=token,
        progress=progress,
    )


def check_licence(manifest: Manifest, given: str | None, root: Path) -> None:
    """Raise ZooError for a zoo without a licence, which nobody would be allowed to use, or with another one."""
    stands = (manifest.license or "").strip()
    if not stands and not (given or "").strip():
        raise ZooError(f"'{root}' has no licence, so nobody might use it; give it one: --license mit, cc-by-4.0, ...")
    if stands and given is not None and given != manifest.license:
        raise ZooError(f"'{root}' has the licence '{manifest.license}' already, not '{given}'; leave --license out.")


def _whole(root: Path, progress: Callable[[int], None] | None) -> Manifest:
    """The manifest of a zoo that verifies."""
    manifest = read_manifest(root)
    found = verify(root, progress=progress)
    if not found.ok:
        raise ZooError(
            f"'{root}' is not whole, so nothing was pushed: {listed(found.faults, 3)} "
            f"(`prepkit zoo verify {root}` tells all)"
        )
    if read_manifest(root) != manifest:
        raise ZooError(f"'{root}' was changed while it was verified, so nothing was pushed; push it again.")
    return manifest


def repo_name(text: str) -> str:
    """USER/NAME of a repository that may be given as an address.

    raises HubError for a text that is neither, or names a version or a file
    """
    address = parse(text)
    if address.revision is not None or address.path is not None:
        raise HubError(
            f"'{text}': a zoo is pushed as the newest version of a whole repository; write {address.repo_id}."
        )
    return address.repo_id


def num_bytes_to_hash(root: Path) -> int:
    """How many bytes `push` hashes before it sends anything, but for a teacher."""
    return num_bytes_of(read_manifest(root))


def _named(manifest: Manifest, root: Path) -> list[tuple[str, Path, str]]:
    """The files that the manifest names: their paths in the zoo, on the disk, and their sums."""
    named: list[tuple[str, str]] = [(shard.path, shard.sha256) for shard in manifest.shards]
    named += [] if manifest.teacher is None else [(manifest.teacher.path, manifest.teacher.sha256)]
    named += [(manifest.table.path, manifest.table.sha256)]
    return [(path, inside(root, path, str(root / MANIFEST)).absolute(), sha256) for path, sha256 in named]


def _card(root: Path, manifest: Manifest, repo: str) -> list[Upload]:
    picture = picture_for(root, manifest)
    readme = Upload.of(README, readme_for(root, manifest, repo, picture is not None))
    return [readme] if picture is None else [readme, Upload.of(PICTURE, picture)]
