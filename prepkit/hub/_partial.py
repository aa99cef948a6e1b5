"""Pull some instances of a zoo: shards that hold them are fetched whole, and cut.

Each shard is cut as soon as it came, and then removed, so that the disk holds little more than what stays. A note says
what became of a shard, so that an interrupted pull does not fetch it again.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from prepkit.hub._fetch import Fetcher, is_sound, wait_for_all
from prepkit.hub._source import RemoteFile
from prepkit.hub.progress import Counter
from prepkit.hub.selection import Selection
from prepkit.support.files import replacing, system_errors_as_output
from prepkit.zoo.change.copying import check_whole
from prepkit.zoo.change.cutting import Cut, cut_manifest, cut_shard, cut_table
from prepkit.zoo.format.manifest import Manifest, Shard, write_manifest
from prepkit.zoo.write.staging import SHARDS

NOTES = "cut"  # folder of the notes, in the working folder
WHOLE = "whole"  # folder of shards that are being cut, in the working folder


def fetch_cut(fetcher: Fetcher, cut: Cut, selection: Selection, root: Path, work: Path, counter: Counter) -> Manifest:
    """Fetch and cut what a plan names: the files go to `root`, the new zoo.json to `work`.

    fetcher: brings files of the version that is cut, which the new zoo.json names
    raises HubError, OutputError
    """
    with system_errors_as_output(root):
        _forget_other_plans(work, cut, selection)
        with fetcher.pool() as pool:
            futures = {number: pool.submit(_shard, fetcher, cut, number, root, work, counter) for number in cut.rows}
            wait_for_all(futures.values())
        shards = {number: future.result() for number, future in futures.items()}
        for path, sha256 in cut.manifest.beside.items():
            if not is_sound(root / path, sha256):
                fetcher.fetch(RemoteFile(path, sha256), root / path)
        table = cut_table(cut, work)
        os.replace(work / table.path, root / table.path)
        origin = {
            "repo": fetcher.source.place,
            "commit": fetcher.source.version,
            "where": selection.where,
            "splits": list(selection.splits),
            "architectures": list(selection.architectures),
        }
        manifest = cut_manifest(cut, shards, table, origin)
        check_whole(root, manifest)
        write_manifest(manifest, work, overwrite=True)
    return manifest


def _shard(fetcher: Fetcher, cut: Cut, number: int, root: Path, work: Path, counter: Counter) -> Shard:
    """Bring what stays of a shard to `root`, unless it was noted and lies there."""
    note = work / NOTES / f"{number}.json"
    shard = _read_note(note)
    if shard is not None and is_sound(root / shard.path, shard.sha256, shard.bytes):
        counter.add_bytes(cut.manifest.shards[number].bytes)
    else:
        shard = _fetch_and_cut(fetcher, cut, number, root, work / WHOLE / str(number), counter)
        with replacing(note, overwrite=True) as temporary:
            temporary.write_text(json.dumps(vars(shard)), encoding="utf-8")
    counter.add_instances(len(cut.rows[number]))
    return shard


def _fetch_and_cut(fetcher: Fetcher, cut: Cut, number: int, root: Path, folder: Path, counter: Counter) -> Shard:
    shard = cut.manifest.shards[number]
    fetcher.fetch(RemoteFile(shard.path, shard.sha256, shard.bytes), folder / shard.path, counter.add_bytes)
    source = folder
    if not cut.is_whole(number):
        source = folder / "cut"
        (source / SHARDS).mkdir(parents=True, exist_ok=True)
        shard = cut_shard(cut, number, folder, source)
    (root / shard.path).parent.mkdir(parents=True, exist_ok=True)
    os.replace(source / shard.path, root / shard.path)
    shutil.rmtree(folder, ignore_errors=True)
    return shard


def _forget_other_plans(work: Path, cut: Cut, selection: Selection) -> None:
    """Remove the notes if they are about another version or selection."""
    plan = json.dumps([cut.manifest.to_dict()["sha256"], str(selection), cut.table.num_rows])
    (work / NOTES).mkdir(exist_ok=True)
    file = work / NOTES / "plan"
    if not file.exists() or file.read_text(encoding="utf-8") != plan:
        for note in (work / NOTES).glob("*.json"):
            note.unlink()
        file.write_text(plan, encoding="utf-8")


def _read_note(note: Path) -> Shard | None:
    with suppress(OSError, ValueError, TypeError):
        return Shard(**json.loads(note.read_bytes()))
    return None
