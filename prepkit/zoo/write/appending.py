"""Append to a finished zoo: instances are written as a zoo of their own in the folder `.appending`, and then joined.

`join` gives the shards of that zoo names beside the old ones, writes the table of all instances, and replaces zoo.json
as the last step, all under the zoo's lock. So a process that is killed leaves the zoo as it was or as it should be, and
whoever reads it meanwhile goes on reading what was there. The provenance keeps the sum of the manifest that was joined,
by which a zoo that is part of the other one already is known.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from prepkit.errors import PrepkitError, ZooError, ZooLocked, counted, listed
from prepkit.support.files import ZOO_LOCK, flush, system_errors_as_output
from prepkit.support.lock import POLLING, changing, holder_of
from prepkit.zoo.card.card import README, replace_card
from prepkit.zoo.format.appends import APPENDS, append_record, appends_in, was_appended
from prepkit.zoo.format.drawn_split import DRAWN_SPLIT, drawn_split
from prepkit.zoo.format.function import Function
from prepkit.zoo.format.manifest import (
    MANIFEST,
    Manifest,
    Shard,
    StoredArchitecture,
    StoredFile,
    read_manifest,
    write_manifest,
)
from prepkit.zoo.format.networks import differing_facts
from prepkit.zoo.format.paths import APPENDING
from prepkit.zoo.format.shards import shard_format
from prepkit.zoo.format.sizes import check_sizes
from prepkit.zoo.format.tables import write_table_at_once
from prepkit.zoo.write._earlier import Earlier, earlier_zoo
from prepkit.zoo.write._journal import has_begun
from prepkit.zoo.write._settings import with_defaults
from prepkit.zoo.write.joined_table import SourceZoo, joined_table, shared_runs
from prepkit.zoo.write.linking import link_shards
from prepkit.zoo.write.staging import SHARDS
from prepkit.zoo.write.working import JOURNAL, WRITING

if TYPE_CHECKING:
    import pyarrow as pa

    from prepkit.families.registry import Registry

PATIENCE = 60.0  # seconds for which the last step waits while another process changes the zoo
GO_ON = "go on with append=True, resume=True"
NUMBER = re.compile(r"-(\d{5,})-[0-9a-f]{12}\.")  # of a shard, in its file's name


@dataclass(frozen=True)
class Target:
    """What a writer writes: a zoo of its own, or instances that are appended to one.

    root:     the folder that is written
    settings: width, height, format, name, dtype, task and license
    earlier:  the zoo that is appended to
    notes:    sentences that its owner should read
    """

    root: Path
    settings: Mapping[str, Any]
    earlier: Earlier | None = None
    notes: tuple[str, ...] = ()


def target_of(path: Path, given: Mapping[str, Any], registry: Registry | None, resume: bool, append: bool) -> Target:
    """Return what a writer writes with the settings that it was given.

    What an interrupted append has finished is joined to the zoo first.
    raises ZooError if what is appended to is no finished zoo, has other settings, keeps what was finished of an
    interrupted append while `resume` is false, or there is a registry
    """
    if not append:
        return Target(path, with_defaults(given))
    if registry is not None:
        raise ZooError(f"'{path}' keeps its ClassIds, and new architectures get the next ones; leave registry= out.")
    folder = path / APPENDING
    notes: tuple[str, ...] = ()
    manifest = read_manifest(path)
    if (folder / MANIFEST).exists():
        appended = read_manifest(folder)
        if not resume and not was_appended(_sum(appended), manifest):
            _check_nobody_joins(path)
            raise _interrupted(path, counted(appended.table.rows, "instance"))
        notes = join(path)
    journal = folder / WRITING / JOURNAL
    if not resume and has_begun(journal) and not holder_of(folder / WRITING / "lock"):
        raise _interrupted(path, "what was finished")
    earlier = earlier_zoo(path, read_manifest(path))
    return Target(folder, earlier.settings(given), earlier, notes)


def _check_nobody_joins(root: Path) -> None:
    """Raise ZooLocked if another process is about to join what it has finished, or waits for one that changes the zoo.

    It is asked twice, as between its two locks that process holds neither for some milliseconds.
    """
    for pause in (0, POLLING):
        time.sleep(pause)
        holder = holder_of(root / APPENDING / WRITING / "lock") or holder_of(root / ZOO_LOCK)
        if holder is not None:
            raise ZooLocked(f"'{root}' is being written by {holder}; wait for it, or stop it.")
        if not (root / APPENDING / MANIFEST).exists():
            raise ZooLocked(f"'{root}' was written by another process, which has just finished; try again.")


def _interrupted(root: Path, kept: str) -> ZooError:
    return ZooError(
        f"appending to '{root}' was interrupted, and {kept} is kept in '{root / APPENDING}'; {GO_ON}, or delete that "
        "folder to begin anew."
    )


def join(root: Path, sha256: str | None = None) -> tuple[str, ...]:
    """Make the zoo in `.appending` part of the zoo, if it is not part of it yet, and remove it there.

    sha256: sum of that zoo's manifest, to whoever has just finished it
    returns sentences that the zoo's owner should read
    raises ZooError if the two do not fit each other, or the appended zoo is gone; ZooLocked if another process changes
    the zoo for long; OutputError
    """
    folder = root / APPENDING
    try:
        with changing(root, patience=PATIENCE), system_errors_as_output(root):
            manifest = read_manifest(root)
            is_gone = sha256 is None and not (folder / MANIFEST).exists()
            if is_gone or (sha256 is not None and was_appended(sha256, manifest)):
                return ()  # another process has joined it, and may write the next
            return _join_and_remove(root, manifest, folder)
    except (PrepkitError, KeyboardInterrupt) as error:
        if (folder / MANIFEST).exists():
            error.add_note(
                f"All that is to be appended is kept in '{folder}'; when the cause is removed, {GO_ON}. An import goes "
                "on with append=True alone."
            )
        raise


def _join_and_remove(root: Path, manifest: Manifest, folder: Path) -> tuple[str, ...]:
    appended = read_manifest(folder)
    notes: list[str] = []
    if not was_appended(_sum(appended), manifest):
        check_sizes(root, manifest)
        check_sizes(folder, appended)
        _join(SourceZoo(root, manifest), SourceZoo(folder, appended), notes)
    if (root / README).exists() and replace_card(root).readme is None:
        notes.append(f"{root / README} is your own text, so it was left alone; see whether its numbers still hold.")
    gone = root / f".prepkit-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    os.rename(folder, gone)  # at once, as half of a folder would be taken for an unfinished zoo
    shutil.rmtree(gone, ignore_errors=True)
    return tuple(notes)


def _sum(manifest: Manifest) -> str:
    return str(manifest.to_dict()["sha256"])


def _join(zoo: SourceZoo, new: SourceZoo, notes: list[str]) -> None:
    """Write the shards, the table and the manifest of a zoo with the instances of another one."""
    root, old, appended = zoo.root, zoo.manifest, new.manifest
    if (old.width, old.dtype, old.shard_format) != (appended.width, appended.dtype, appended.shard_format):
        raise ZooError(f"'{root}' has another width, dtype or format than '{new.root}'; merge them.")
    architectures = joined_architectures(old.architectures, appended.architectures, root)
    tables = [zoo.table(), new.table()]
    _check_ids(zoo, tables)
    table = joined_table([zoo, new], tables, {stored.name: stored.class_id for stored in architectures})
    notes += _notes(zoo, new, tables)
    with TemporaryDirectory(prefix=".prepkit-", dir=root) as name:
        folder = Path(name)
        (folder / SHARDS).mkdir()
        kind = shard_format(old.shard_format)
        shards = link_shards(new.root, appended, kind, folder, _numbers(old), None)
        stored = write_table_at_once(table, folder)
        for path in [*(shard.path for shard in shards), stored.path]:
            os.replace(folder / path, root / path)
        flush(root / SHARDS)
        flush(root)
    write_manifest(_joined(old, appended, architectures, shards, stored), root, overwrite=True)


def joined_architectures(
    old: Sequence[StoredArchitecture], new: Sequence[StoredArchitecture], place: Path
) -> tuple[StoredArchitecture, ...]:
    """Return all architectures: those that have a ClassId keep it, new ones follow, ascending in packed parameters.

    raises ZooError if two of one name are not the same
    """
    known = {stored.name: stored for stored in old}
    for stored in new:
        differing = differing_facts(known.get(stored.name, stored), stored)
        if differing:
            raise ZooError(f"'{place}' has another {stored.name} than what is appended: {listed(differing)} differ.")
    first = sum(stored.class_id is not None for stored in old)
    joining = [one for one in new if one.name not in known or known[one.name].class_id is None]
    joining.sort(key=lambda stored: (stored.layout.num_parameters, stored.name))
    numbered = [replace(stored, class_id=first + number) for number, stored in enumerate(joining)]
    names = {stored.name for stored in numbered}
    kept = [stored for stored in old if stored.name not in names]
    return tuple(sorted([*kept, *numbered], key=lambda one: (one.class_id is None, one.class_id or 0)))


def _check_ids(zoo: SourceZoo, tables: Sequence[pa.Table]) -> None:
    new = frozenset(tables[1]["id"].to_pylist())
    shared = [id for id in tables[0]["id"].to_pylist() if id in new]
    if shared:
        raise ZooError(
            f"'{zoo.root}' has got {counted(len(shared), 'id')} of the instances that are to be appended meanwhile: "
            f"{listed(map(repr, shared), 3)}; ids are unique. Remove one of each, by `prepkit zoo drop {zoo.root}`, or "
            f"delete '{zoo.root / APPENDING}' and append under other ids."
        )


def _numbers(manifest: Manifest) -> dict[str, int]:
    """Return the number of the next shard of each architecture, above all that stand in names already."""
    numbers: dict[str, int] = {}
    for shard in manifest.shards:
        found = NUMBER.search(shard.path)
        number = numbers.get(shard.architecture, 0) if found is None else int(found[1])
        numbers[shard.architecture] = max(numbers.get(shard.architecture, 0), number + 1)
    return numbers


def _joined(
    old: Manifest,
    appended: Manifest,
    architectures: tuple[StoredArchitecture, ...],
    shards: Sequence[Shard],
    table: StoredFile,
) -> Manifest:
    """Return the manifest of the zoo with what was appended."""
    drawn = drawn_split(old) if appended.splits else None
    record = append_record(datetime.now(UTC).isoformat(timespec="seconds"), appended, drawn)
    provenance = {**old.provenance, APPENDS: [*appends_in(old.provenance), record]}
    if drawn is not None:
        del provenance[DRAWN_SPLIT]
    return replace(
        old,
        height=max(old.height, appended.height),
        architectures=architectures,
        shards=(*old.shards, *shards),
        table=table,
        splits=dict(sorted((Counter(old.splits) + Counter(appended.splits)).items())),
        provenance=provenance,
        function=_function(old, appended),
        preprocessing=None if _is_outdated(old, appended) else old.preprocessing,
    )


def _is_outdated(old: Manifest, appended: Manifest) -> bool:
    """Return whether the zoo's preprocessing was computed from fewer instances than its split has now."""
    stored = old.preprocessing
    return stored is not None and (stored.split is None or bool(appended.splits.get(stored.split)))


def _function(old: Manifest, appended: Manifest) -> Function | None:
    """Return how all instances are run; running some of the old ones proved nothing of the new ones."""
    if old.function is None and appended.function is None:
        return None
    if old.function is None or (appended.function and appended.function.how_to_run != old.function.how_to_run):
        return Function()
    return Function(old.function.how_to_run)


def _notes(zoo: SourceZoo, new: SourceZoo, tables: Sequence[pa.Table]) -> list[str]:
    """Return what changes for whoever knows the zoo, or does not change where that was perhaps expected."""
    old, appended, notes = zoo.manifest, new.manifest, []
    without = appended.table.rows - sum(appended.splits.values())
    if without and (old.splits or appended.splits):
        has, them = ("has", "it") if without == 1 else ("have", "them")
        notes.append(
            f"{counted(without, 'appended instance')} {has} no split, so no split holds {them}. A split may be named "
            "when an instance is added, and `prepkit zoo split --force` draws all splits anew."
        )
    if old.splits and appended.splits:
        sizes = ", ".join(f"{name} by {count:,}" for name, count in appended.splits.items())
        was_drawn = "; that they were drawn is true of the others only" if drawn_split(old) else ""
        notes.append(f"The splits have grown, {sizes}, so their sha256 are others than before{was_drawn}.")
    if _is_outdated(old, appended):
        notes.append(
            "What the zoo was normalised by was computed without the new instances, and is gone; run `prepkit zoo "
            "normalise`."
        )
    elif old.preprocessing is not None:
        lacking = sorted({one.name for one in appended.architectures} - {shard.architecture for shard in old.shards})
        if lacking:
            notes.append(f"What the zoo is normalised by has no statistics of {listed(lacking)}.")
    if old.function is not None and old.function.verified is not None:
        notes.append("None of the new instances was run yet, so the zoo's function counts as unverified again.")
    joined = _function(old, appended)
    known = any(one is not None and one.how_to_run is not None for one in (old.function, appended.function))
    if known and joined is not None and joined.how_to_run is None:
        notes.append(
            "How the old and the new instances are run is noted in different ways, or not of all, so zoo.json says no "
            "more how this zoo's are."
        )
    runs = shared_runs(tables)
    if runs is not None:
        notes.append(f"run {runs} is among the old instances and the new ones, and counts as one run.")
    return notes
