"""Some instances of a zoo on the Hub become a zoo of their own: shards that hold them are fetched whole, and cut.

Each shard is cut as soon as it is there and then removed, so that the disk holds little more than what stays. What
became of a shard is noted, and an interrupted pull does not fetch it again.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from prepkit.errors import OutputError
from prepkit.files import output_error, replacing
from prepkit.hub.fetch import Fetcher, HubFile, is_sound, wait_for_all
from prepkit.hub.progress import Counter
from prepkit.hub.selection import Selection
from prepkit.zoo.change.convert import check_whole
from prepkit.zoo.change.cutting import Cut, cut_manifest, cut_shard, cut_table
from prepkit.zoo.format.manifest import MANIFEST, Manifest, Shard, write_manifest

BUILT = "zoo"
NOTES = "cut"


def fetch_cut(fetcher: Fetcher, cut: Cut, selection: Selection, root: Path, work: Path, counter: Counter) -> Manifest:
    """Fetch and cut what a plan names, and move it all into `root` but for zoo.json, which is left in `work`.

    raises HubError, OutputError
    """
    built = work / BUILT
    try:
        for folder in (built, work / NOTES):
            folder.mkdir(exist_ok=True)
        _forget_other(work, cut, selection)
        shards: dict[int, Shard] = {}
        with fetcher.pool() as pool:
            futures = {number: pool.submit(_shard, fetcher, cut, number, root, work, counter) for number in cut.rows}
            wait_for_all(futures.values())
            shards = {number: future.result() for number, future in futures.items()}
        if (teacher := cut.manifest.teacher) is not None:
            _take_back(root, built, teacher.path)
            if not is_sound(built / teacher.path, teacher.sha256):
                fetcher.fetch(HubFile(teacher.path, teacher.sha256), built / teacher.path)
        origin = {
            "repo": fetcher.address.repo_id,
            "commit": fetcher.address.revision,
            "where": selection.where,
            "splits": list(selection.splits),
            "architectures": list(selection.architectures),
        }
        manifest = cut_manifest(cut, shards, cut_table(cut, built), origin)
        write_manifest(manifest, built, overwrite=True)
        check_whole(built)
        _move(built, root)
        os.replace(built / MANIFEST, work / MANIFEST)
    except OSError as error:
        raise error if isinstance(error, OutputError) else output_error(root, error) from error
    return manifest


def _shard(fetcher: Fetcher, cut: Cut, number: int, root: Path, work: Path, counter: Counter) -> Shard:
    """What became of a shard, in `work/zoo`; as it was noted, if it lies there or in `root`."""
    built, shard = work / BUILT, cut.manifest.shards[number]
    note = work / NOTES / f"{number}.json"
    done = _noted(note)
    if done is not None:
        _take_back(root, built, done.path)
    if done is None or not is_sound(built / done.path, done.sha256, done.bytes):
        done = _cut_anew(fetcher, cut, number, work, counter)
        with replacing(note, overwrite=True) as temporary:
            temporary.write_text(json.dumps(vars(done)), encoding="utf-8")
    else:
        counter.add_bytes(shard.bytes)
    counter.add_instances(len(cut.rows[number]))
    return done


def _cut_anew(fetcher: Fetcher, cut: Cut, number: int, work: Path, counter: Counter) -> Shard:
    shard = cut.manifest.shards[number]
    folder = work / "whole" / str(number)
    fetcher.fetch(HubFile(shard.path, shard.sha256, shard.bytes), folder / shard.path, counter.add_bytes)
    if cut.is_whole(number):
        done = shard
    else:
        (folder / "cut" / Path(shard.path).parent).mkdir(parents=True, exist_ok=True)
        (folder / "cut" / "shards").mkdir(exist_ok=True)
        done = cut_shard(cut, number, folder, folder / "cut")
        folder = folder / "cut"
    (work / BUILT / done.path).parent.mkdir(parents=True, exist_ok=True)
    os.replace(folder / done.path, work / BUILT / done.path)
    shutil.rmtree(work / "whole" / str(number), ignore_errors=True)
    return done


def _forget_other(work: Path, cut: Cut, selection: Selection) -> None:
    """Begin anew if what was noted is of another version or selection."""
    plan = json.dumps([cut.manifest.to_dict()["sha256"], str(selection), cut.table.num_rows])
    file = work / NOTES / "plan"
    if not file.exists() or file.read_text(encoding="utf-8") != plan:
        for note in (work / NOTES).glob("*.json"):
            note.unlink()
        shutil.rmtree(work / BUILT)
        (work / BUILT).mkdir()
        file.write_text(plan, encoding="utf-8")


def _noted(note: Path) -> Shard | None:
    with suppress(OSError, ValueError, TypeError):
        return Shard(**json.loads(note.read_bytes()))
    return None


def _take_back(root: Path, built: Path, path: str) -> None:
    """Bring a file back that a killed pull had moved already."""
    if (root / path).exists() and not (built / path).exists():
        (built / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(root / path, built / path)


def _move(built: Path, root: Path) -> None:
    """Move all files of a finished zoo but its zoo.json."""
    for folder, _, files in os.walk(built):
        for name in files:
            path = (Path(folder) / name).relative_to(built)
            if str(path) != MANIFEST:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(built / path, root / path)
