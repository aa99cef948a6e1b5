"""pull: a zoo of the Hub, or some of its instances, in a folder of one's own.

    prepkit.pull("user/zoo")                                          # ./zoo
    prepkit.pull("user/zoo", "good", where="accuracy > 0.9")          # manifest, table, and the shards that are needed

What comes is compared with the manifest, file by file, and zoo.json is written last: a folder that has it is a whole
zoo. Until then `.pulling` lies in it, and the same call goes on: what is there and right is not fetched again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from prepkit.address import HubAddress, parse
from prepkit.errors import HubError, ZooError, listed
from prepkit.hub.client import api, explained, pinned
from prepkit.hub.fetch import AT_ONCE, Fetcher, HubFile, all_done, is_sound
from prepkit.hub.partial import fetch_cut
from prepkit.hub.progress import Counter, Progress
from prepkit.hub.selection import Record, Selection
from prepkit.hub.target import Target, known_zoo
from prepkit.text import readable_bytes
from prepkit.zoo.change.cutting import Cut, planned_cut
from prepkit.zoo.format.counts import num_bytes_of
from prepkit.zoo.format.manifest import MANIFEST, Manifest, read_manifest
from prepkit.zoo.format.paths import inside
from prepkit.zoo.format.tables import read_table

BESIDE = ("README.md", "card.png")  # fetched where there are any, though no zoo needs them


@dataclass(frozen=True)
class Pulled:
    """What was pulled.

    record:    repository, commit, and which instances were asked for
    manifest:  of the zoo in the folder
    was_there: whether all of it was there before
    """

    path: Path
    record: Record
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
    progress: Progress | None = None,
) -> Path:
    """Fetch a zoo from the Hub into a folder, and give that folder; every file is checked against the manifest.

    repo:      USER/NAME, or hf://USER/NAME@REVISION
    directory: a new or empty folder, or one that this zoo was pulled into; ./NAME if missing
    revision:  branch, tag or commit; the newest version if missing. A whole commit that is there needs no request.
    where, split, architecture: only instances that meet all of these: the table is fetched first, then the shards that
               hold them, and what is written is a zoo of just these, with the ClassIds that they had
    token:     of the Hub; HF_TOKEN or that of `hf auth login` if missing
    force:     replace another zoo in the folder; it stays whole until the new one is
    progress:  called with a prepkit.hub.progress.State now and then
    raises HubError if the Hub refuses, cannot be reached, or what it sends stays damaged
    raises ZooError if the repository holds no zoo, or none of its instances is meant
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
    progress: Progress | None = None,
) -> Pulled:
    """As `pull`, and tell what was pulled."""
    asked = _address(repo, revision)
    root = Path(asked.repo_id.partition("/")[2] if directory is None else directory)
    with explained(asked.repo_id, "dataset", asked.revision):
        address = pinned(api(token), asked, "dataset")
    record = Record(asked.repo_id, str(address.revision), selection or Selection())
    target, counter = Target(root, record, force), Counter(progress)
    known = known_zoo(root)
    if known is not None and replace(known[0], manifest=None) == record and (selection is None or not force):
        return _completed(target, address, known[1], token, counter)
    target.check_folder()
    with TemporaryDirectory(prefix="prepkit-") as folder:
        manifest = fetch_manifest(Fetcher(address, Path(folder), token=token), Path(folder))
        if _is_same(root, manifest) and record.selection.is_whole:
            return _completed(target, address, manifest, token, counter)
        target.check()
        cut = _cut(record.selection, manifest, address, Path(folder), token)
        _check_room(root, manifest, cut)
        with target.working() as work:
            fetcher = Fetcher(address, work, token=token)
            if cut is None:
                _fetch_all(fetcher, _unsound(manifest, root, counter), root, counter)
                for name in BESIDE:
                    fetcher.fetch_if_there(HubFile(name), root / name)
                shutil.copyfile(Path(folder) / MANIFEST, work / MANIFEST)
            else:
                counter.expect(_num_bytes(manifest, cut), len(cut.table))
                manifest = fetch_cut(fetcher, cut, record.selection, root, work, counter)
            target.finish(manifest)
    return Pulled(root, record, manifest, was_there=False)


def fetch_manifest(fetcher: Fetcher, folder: Path) -> Manifest:
    """Fetch a zoo's zoo.json into a folder, and check it.

    raises ZooError if there is none, or it is none
    """
    address = fetcher.address
    if not fetcher.fetch_if_there(HubFile(MANIFEST), folder / MANIFEST):
        raise ZooError(f"{address} is no zoo: the repository has no {MANIFEST} at that revision. Check the name.")
    try:
        return read_manifest(folder)
    except ZooError as error:
        raise ZooError(str(error).replace(str(folder / MANIFEST), f"{address}/{MANIFEST}")) from None


def _address(repo: str, revision: str | None) -> HubAddress:
    """The version that is meant.

    raises HubError
    """
    address = parse(repo)
    if address.path is not None:
        raise HubError(f"'{repo}' names a file; a zoo is a whole repository: hf://{address.repo_id}.")
    if revision is not None and address.revision not in (None, revision):
        raise HubError(f"'{repo}' and --revision {revision} name two versions; leave one out.")
    return replace(address, revision=revision or address.revision)


def _completed(target: Target, address: HubAddress, manifest: Manifest, token: str | None, counter: Counter) -> Pulled:
    """The version that the folder holds already: each file is hashed, and what is missing or damaged fetched again.

    raises ZooError if it is a part of a zoo, and damaged
    """
    root = target.root
    wrong = _unsound(manifest, root, counter)
    if wrong and not target.record.selection.is_whole:
        raise ZooError(
            f"'{root}' is damaged: {listed(file.path for file, _ in wrong)}; it is part of a zoo, so it has to be "
            "pulled again as a whole: --force (force=True)."
        )
    if wrong:
        with replace(target, force=True).working() as work:
            _fetch_all(Fetcher(address, work, token=token), wrong, root, counter)
            shutil.copyfile(root / MANIFEST, work / MANIFEST)
            target.finish(manifest)
    else:
        target.note(manifest)
    return Pulled(root, target.record, manifest, was_there=not wrong)


Wanted = tuple[HubFile, int]  # and how many instances are in it


def _unsound(manifest: Manifest, root: Path, counter: Counter) -> list[Wanted]:
    """The files of a zoo that are missing or damaged; the others are counted.

    raises ZooError for one that is a link
    """
    files = [(HubFile(shard.path, shard.sha256, shard.bytes), shard.rows) for shard in manifest.shards]
    files += [(HubFile(manifest.table.path, manifest.table.sha256, manifest.table.bytes), 0)]
    if manifest.teacher is not None:
        files += [(HubFile(manifest.teacher.path, manifest.teacher.sha256), 0)]
    counter.expect(num_bytes_of(manifest), manifest.table.rows)

    def is_here(wanted: Wanted) -> bool:
        file, instances = wanted
        place = inside(root, file.path, str(root / MANIFEST))
        found = is_sound(place, str(file.sha256), file.size)
        if found:
            counter.bytes(file.size or 0)
            counter.instances(instances)
        return found

    with ThreadPoolExecutor(AT_ONCE, "prepkit-hash") as pool:
        here = list(pool.map(is_here, files))
    return [wanted for wanted, found in zip(files, here, strict=True) if not found]


def _fetch_all(fetcher: Fetcher, wanted: list[Wanted], root: Path, counter: Counter) -> None:
    """Fetch files to their places, some at once."""

    def job(file: HubFile, instances: int) -> None:
        fetcher.fetch(file, root / file.path, counter.bytes if file.size else None)
        counter.instances(instances)

    with fetcher.pool() as pool:
        all_done([pool.submit(job, *item) for item in wanted])


def _cut(selection: Selection, manifest: Manifest, address: HubAddress, folder: Path, token: str | None) -> Cut | None:
    """What is needed of each shard, by the zoo's table; None if the whole zoo is meant."""
    if selection.is_whole:
        return None
    stored = manifest.table
    Fetcher(address, folder, token=token).fetch(HubFile(stored.path, stored.sha256, stored.bytes), folder / stored.path)
    rows = selection.chosen(manifest, read_table(folder / stored.path, stored))
    return planned_cut(manifest, rows, f"{address}/{stored.path}")


def _is_same(root: Path, manifest: Manifest) -> bool:
    """Whether a folder holds this very zoo."""
    try:
        return read_manifest(root) == manifest
    except ZooError:
        return False


def _num_bytes(manifest: Manifest, cut: Cut | None) -> int:
    """Bytes to be fetched, but for what is there."""
    if cut is None:
        return num_bytes_of(manifest)
    return sum(manifest.shards[number].bytes for number in cut.rows)


def _check_room(root: Path, manifest: Manifest, cut: Cut | None) -> None:
    """Raise HubError before anything is fetched if the disk has no room for it."""
    place = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    there = sum(file.stat().st_size for file in root.glob("shards/*") if file.is_file())
    needed, free = _num_bytes(manifest, cut) - there, shutil.disk_usage(place).free
    if needed > free:
        sizes = f"{readable_bytes(needed)} are to be fetched, and '{place}' has {readable_bytes(free)} free"
        raise HubError(f"{sizes}; make room.")
