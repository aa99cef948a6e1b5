"""pull: a zoo on the Hub or in another store, or some of its instances, comes into a folder of the user's.

    prepkit.pull("user/zoo")                                          # ./zoo
    prepkit.pull("s3://bucket/zoo")                                   # ./zoo
    prepkit.pull("user/zoo", "good", where="accuracy > 0.9")          # manifest, table, and the shards that are needed

Every file that comes is compared with the manifest, and zoo.json is written last: a folder that has it holds a whole
zoo. Until then it has a folder `.pulling`, and the same call goes on: what came and is right is not fetched again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from prepkit.address import HubAddress, UrlAddress, parse_remote, parse_repository
from prepkit.errors import HubError, ZooError, listed
from prepkit.hub._fetch import MAX_THREADS, Fetcher, is_sound, wait_for_all
from prepkit.hub._hub_source import HubSource
from prepkit.hub._partial import fetch_cut
from prepkit.hub._readme import make_local
from prepkit.hub._sizes import check_rows
from prepkit.hub._source import RemoteFile, Source
from prepkit.hub._target import Target, known_zoo
from prepkit.hub._url_source import newest_version
from prepkit.hub.progress import Counter, Report
from prepkit.hub.selection import PullRecord, Selection
from prepkit.support.cache import cache_folder
from prepkit.support.text import Brief, readable_bytes
from prepkit.zoo.card.card import write_card
from prepkit.zoo.change.cutting import Cut, planned_cut
from prepkit.zoo.format.counts import num_bytes_of
from prepkit.zoo.format.manifest import MANIFEST, Manifest, read_manifest
from prepkit.zoo.format.paths import inside
from prepkit.zoo.format.tables import read_table

OPTIONAL_FILES = ("README.md", "card.png")  # fetched if the repository has them, though no zoo needs them


@dataclass(frozen=True, repr=False)
class Pulled(Brief):
    """Result of a pull.

    record:    repository and commit, or address and sha256 of zoo.json, and which instances were asked for
    manifest:  manifest of the zoo in the folder
    was_there: whether the folder held all of it before
    """

    path: Path
    record: PullRecord
    manifest: Manifest
    was_there: bool


def pull(
    repo: str,
    directory: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    where: str | None = None,
    split: str | Iterable[str] | None = None,
    architecture: str | Iterable[str] | None = None,
    token: str | None = None,
    force: bool = False,
    progress: Report | None = None,
) -> Path:
    """Fetch a zoo from the Hub or another store into a folder, check every file against the manifest, and return it.

    repo:      USER/NAME, or hf://USER/NAME@REVISION, or an address such as s3://bucket/zoo that fsspec reads
    directory: a new or empty folder, or one that this zoo was pulled into; ./NAME if missing
    revision:  branch, tag or commit; the newest version if missing. A commit that is there needs no request. Other
               stores have no versions: there the sha256 of zoo.json stands for one
    where, split, architecture: fetch only instances that meet all of these: first the table, then the shards that hold
               them. The folder becomes a zoo of just these instances, with their old ClassIds.
    token:     token of the Hub; HF_TOKEN or that of `hf auth login` if missing
    force:     replace another zoo in the folder; it stays whole until the new one is
    progress:  called with a prepkit.hub.progress.PullProgress now and then
    raises HubError if the Hub refuses, cannot be reached, or what it sends stays damaged
    raises ZooError if the repository holds no zoo, or none of its instances is chosen
    raises OutputError if the folder holds something else, or cannot be written
    """
    return pull_zoo(
        repo,
        directory,
        revision=revision,
        selection=Selection.of(where, split, architecture),
        token=token,
        force=force,
        progress=progress,
    ).path


def pull_zoo(
    repo: str,
    directory: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    selection: Selection | None = None,
    token: str | None = None,
    force: bool = False,
    progress: Report | None = None,
) -> Pulled:
    """Fetch a zoo as `pull` does, and return what was pulled."""
    source = source_of(_address(repo, revision), token)
    root = Path(source.place.rpartition("/")[2] if directory is None else directory)
    record = PullRecord(source.place, source.version, selection or Selection())
    target, counter = Target(root, record, force), Counter(progress)
    known = known_zoo(root)
    if known is not None and replace(known[0], manifest=None) == record and (selection is None or not force):
        return _complete(target, source, known[1], counter)
    target.check_folder()
    with TemporaryDirectory(prefix="prepkit-") as temporary:
        folder = Path(temporary)
        manifest = fetch_manifest(Fetcher(source, folder), folder)
        if _holds(root, manifest) and record.selection.is_whole:
            return _complete(target, source, manifest, counter)
        target.check()
        cut = _planned_cut(record.selection, manifest, source, folder)
        _check_room(root, manifest, cut)
        with target.working() as work:
            fetcher = Fetcher(source, work)
            if cut is None:
                _fetch_all(fetcher, _missing_files(manifest, root, counter), root, counter)
                for name in OPTIONAL_FILES:
                    fetcher.fetch_if_there(RemoteFile(name), root / name)
                make_local(root, manifest)
                shutil.copyfile(folder / MANIFEST, work / MANIFEST)
            else:
                counter.expect(_num_bytes(manifest, cut), len(cut.table))
                manifest = fetch_cut(fetcher, cut, record.selection, root, work, counter)
            target.finish(manifest)
        if cut is not None:
            write_card(root)  # the repository's card describes the whole zoo
    return Pulled(root, record, manifest, was_there=False)


def fetch_manifest(fetcher: Fetcher, folder: Path) -> Manifest:
    """Fetch a zoo's zoo.json into a folder, and check it.

    raises ZooError if the repository has none, or it is not sound
    """
    if not fetcher.fetch_if_there(RemoteFile(MANIFEST, fetcher.source.manifest_sha256), folder / MANIFEST):
        raise fetcher.source.no_zoo(MANIFEST)
    return fetched_manifest(fetcher.source, folder)


def fetched_manifest(source: Source, folder: Path) -> Manifest:
    """Read a zoo.json that was fetched into a folder; errors name where it came from."""
    try:
        return read_manifest(folder)
    except ZooError as error:
        raise ZooError(str(error).replace(str(folder / MANIFEST), f"{source}/{MANIFEST}")) from None


def source_of(address: HubAddress | UrlAddress | str, token: str | None) -> Source:
    """Return the version that a zoo has now, or that its address names.

    raises HubError, ZooError where a store holds no zoo
    """
    asked = parse_remote(address) if isinstance(address, str) else address
    return newest_version(asked, cache_folder()) if isinstance(asked, UrlAddress) else HubSource.of(asked, token)


def _address(repo: str, revision: str | None) -> HubAddress | UrlAddress:
    """Return the address of the version that a user asked for.

    raises HubError
    """
    address = parse_remote(repo)
    if isinstance(address, UrlAddress):
        if revision is not None:
            raise HubError(f"'{repo}' has no revisions, as only the Hub has some; leave revision={revision} out.")
        return address
    address = parse_repository(repo)
    if revision is not None and address.revision not in (None, revision):
        raise HubError(f"'{repo}' and revision={revision} name two versions; leave one out.")
    return replace(address, revision=revision or address.revision)


def _complete(target: Target, source: Source, manifest: Manifest, counter: Counter) -> Pulled:
    """Hash every file of a version that the folder holds already, and fetch again what is missing or damaged.

    raises ZooError if the folder holds a part of a zoo, and it is damaged
    """
    root = target.root
    missing = _missing_files(manifest, root, counter)
    if missing and not target.record.selection.is_whole:
        raise ZooError(
            f"'{root}' is damaged: {listed(file.path for file, _ in missing)}; it is part of a zoo, so it has to be "
            "pulled again as a whole: force=True."
        )
    if missing:
        with replace(target, force=True).working() as work:
            _fetch_all(Fetcher(source, work), missing, root, counter)
            shutil.copyfile(root / MANIFEST, work / MANIFEST)
            target.finish(manifest)
    else:
        target.note(manifest)
    return Pulled(root, target.record, manifest, was_there=not missing)


FileWithInstances = tuple[RemoteFile, int]  # a file of a zoo, and how many instances it holds


def _missing_files(manifest: Manifest, root: Path, counter: Counter) -> list[FileWithInstances]:
    """Return the files of a zoo that are missing or damaged, and count the others.

    raises ZooError for a file that is a link
    """
    files = [(RemoteFile(shard.path, shard.sha256, shard.bytes), shard.rows) for shard in manifest.shards]
    files += [(RemoteFile(manifest.table.path, manifest.table.sha256, manifest.table.bytes), 0)]
    files += [(RemoteFile(path, sha256), 0) for path, sha256 in manifest.beside.items()]
    counter.expect(num_bytes_of(manifest), manifest.table.rows)

    def is_present(item: FileWithInstances) -> bool:
        file, instances = item
        place = inside(root, file.path, str(root / MANIFEST))
        sound = is_sound(place, str(file.sha256), file.size)
        if sound:
            counter.add_bytes(file.size or 0)
            counter.add_instances(instances)
        return sound

    with ThreadPoolExecutor(MAX_THREADS, "prepkit-hash") as pool:
        present = list(pool.map(is_present, files))
    return [item for item, is_there in zip(files, present, strict=True) if not is_there]


def _fetch_all(fetcher: Fetcher, files: list[FileWithInstances], root: Path, counter: Counter) -> None:
    """Fetch files to their places, several at the same time."""

    def fetch(file: RemoteFile, instances: int) -> None:
        fetcher.fetch(file, root / file.path, counter.add_bytes if file.size else None)
        counter.add_instances(instances)

    with fetcher.pool() as pool:
        wait_for_all([pool.submit(fetch, *item) for item in files])


def _planned_cut(selection: Selection, manifest: Manifest, source: Source, folder: Path) -> Cut | None:
    """Read the zoo's table, and plan what is needed of each shard; None if the whole zoo is chosen."""
    if selection.is_whole:
        return None
    stored = manifest.table
    check_rows(source, manifest)
    Fetcher(source, folder).fetch(RemoteFile(stored.path, stored.sha256, stored.bytes), folder / stored.path)
    rows = selection.chosen(manifest, read_table(folder / stored.path, stored))
    return planned_cut(manifest, rows, f"{source}/{stored.path}")


def _holds(root: Path, manifest: Manifest) -> bool:
    """Return whether a folder holds this very zoo."""
    try:
        return read_manifest(root) == manifest
    except ZooError:
        return False


def _num_bytes(manifest: Manifest, cut: Cut | None) -> int:
    """Return how many bytes a pull needs, with those that are there already."""
    if cut is None:
        return num_bytes_of(manifest)
    return sum(manifest.shards[number].bytes for number in cut.rows)


def _check_room(root: Path, manifest: Manifest, cut: Cut | None) -> None:
    """Raise HubError before anything is fetched if the disk has no room for it."""
    place = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    present = sum(file.stat().st_size for file in root.glob("shards/*") if file.is_file())
    needed, free = _num_bytes(manifest, cut) - present, shutil.disk_usage(place).free
    if needed > free:
        sizes = f"{readable_bytes(needed)} are to be fetched, and '{place}' has {readable_bytes(free)} free"
        raise HubError(f"{sizes}; make room.")
