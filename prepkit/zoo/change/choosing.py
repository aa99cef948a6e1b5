"""cut and drop: keep some instances of a zoo, as a new zoo or in place, by a condition or by their ids.

    cut("my-zoo", "good", where="accuracy > 0.8")     a new zoo of some instances
    drop("my-zoo", ids=["run3", "run7"])              the same zoo without some

Shards all of whose rows stay are taken as they are; from the others the rows that stay are copied.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.errors import ZooError, counted, listed, nearest
from prepkit.support.files import flush, sha256_of_file, system_errors_as_output
from prepkit.support.lock import changing
from prepkit.support.progress import Advance
from prepkit.support.text import Brief
from prepkit.zoo.card.card import README, replace_card, write_card
from prepkit.zoo.change.copying import check_target, check_whole, copy_file
from prepkit.zoo.change.cutting import Cut, cut_manifest, cut_shard, cut_table, planned_cut
from prepkit.zoo.format.manifest import MANIFEST, Manifest, Shard, read_manifest, write_manifest
from prepkit.zoo.format.numbered_ids import DROPS, HIGHEST, highest_number
from prepkit.zoo.format.paths import inside
from prepkit.zoo.format.sizes import check_sizes
from prepkit.zoo.format.tables import read_table, rows_at
from prepkit.zoo.read.where import matching_rows
from prepkit.zoo.write.building import building
from prepkit.zoo.write.staging import SHARDS
from prepkit.zoo.write.written import WrittenZoo

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, repr=False)
class Removal(Brief):
    """What was removed from a zoo.

    instances: number of instances that were removed
    left:      number of those that are left
    rewritten: number of shards that were written anew; all others stay as they are, or are named no more
    notes:     sentences that the zoo's owner should read
    """

    instances: int
    left: int
    rewritten: int
    notes: tuple[str, ...] = ()


def cut(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    where: str | None = None,
    ids: Iterable[str] | None = None,
    name: str | None = None,
    card: bool = True,
    progress: Advance | None = None,
) -> WrittenZoo:
    """Write a new zoo of some instances of another one, in its order.

    where:    condition on the table, see `prepkit.zoo.read.where`
    ids:      ids of the instances; either these or a condition is given, or both
    name:     name of the new zoo; its folder's if missing
    card:     whether the new zoo gets README.md and card.png
    progress: called with a number of bytes each time that many more of the old zoo's shards were dealt with
    raises ZooError for a wrong condition, an unknown id, no instance, or a damaged shard; OutputError if the target
    exists; nothing is written then

    >>> len(open_zoo(cut("my-zoo", "good", where="accuracy > 0.8").path))
    12
    """
    root = Path(source)
    check_target(Path(target), [root])
    manifest, table = _read(root)
    chosen = chosen_rows(table, where, ids)
    if not len(chosen):
        raise ZooError(f"'{root}': no instance is chosen, and a zoo has at least one.")
    plan = planned_cut(manifest, rows_at(table, chosen), str(root / MANIFEST))
    with building(target) as new:
        shards = _shards_of(plan, root, new, progress)
        for path in manifest.beside:
            copy_file(root, path, new)
        origin = {"where": where, "ids": None if ids is None else len(chosen)}
        written = cut_manifest(plan, shards, cut_table(plan, new), origin)
        write_manifest(replace(written, name=name or Path(target).resolve().name), new, overwrite=False)
        check_whole(new)
        if card:
            write_card(new)
    return WrittenZoo(Path(target), read_manifest(target))


def drop(
    path: str | os.PathLike[str],
    *,
    where: str | None = None,
    ids: Iterable[str] | None = None,
    dry_run: bool = False,
    card: bool = True,
    progress: Advance | None = None,
) -> Removal:
    """Remove instances from a zoo. Old shards and the old table stay for whoever reads them, until `clean`.

    where:    condition on the table; the instances that it selects go
    ids:      ids of the instances that go
    dry_run:  only tell what would be removed
    card:     whether README.md is written anew
    progress: called with a number of bytes each time that many more of the shards were dealt with
    raises ZooError for a wrong condition, an unknown id, if none or all would go, or a damaged shard; ZooLocked;
    OutputError

    >>> drop("my-zoo", where="accuracy < 0.2").instances
    3
    """
    root = Path(path)
    read_manifest(root)  # before a lock is put into the folder
    if dry_run:
        return _removal(root, where, ids)[0]
    with changing(root):
        removal, plan, gone = _removal(root, where, ids)
        with system_errors_as_output(root), TemporaryDirectory(prefix=".prepkit-", dir=root) as folder:
            new = Path(folder)
            (new / SHARDS).mkdir()
            shards = _shards_of(plan, root, new, progress, in_place=True)
            table = cut_table(plan, new)
            for file in [*(new / SHARDS).iterdir(), new / table.path]:
                os.replace(file, root / file.relative_to(new))
            flush(root / SHARDS)
            flush(root)
        before = plan.manifest
        record = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "instances": removal.instances,
            "where": where,
            "ids": ids is not None,
            HIGHEST: highest_number(gone),
        }
        earlier = before.provenance.get(DROPS)
        drops = [*(earlier if isinstance(earlier, list) else []), record]
        manifest = replace(
            cut_manifest(plan, shards, table, {}),
            provenance={**before.provenance, DROPS: drops},
            created_by=before.created_by,
        )
        write_manifest(manifest, root, overwrite=True)
        notes = list(removal.notes)
        if card and replace_card(root).readme is None:
            notes.append(f"{root / README} is your own text, so it was left alone; see whether its numbers still hold.")
    return replace(removal, notes=tuple(notes))


def chosen_rows(table: pa.Table, where: str | None, ids: Iterable[str] | None) -> np.ndarray:
    """Return the numbers of the rows that a condition and ids select, ascending.

    raises ZooError if neither is given or an id is unknown, WhereError
    """
    if where is None and ids is None:
        raise ZooError("name the instances by a condition, by ids, or by both.")
    rows = np.arange(len(table)) if where is None else np.asarray(matching_rows(table, where))
    if ids is None:
        return rows
    asked = list(ids)
    wanted = frozenset(asked)
    known = {id: row for row, id in enumerate(table["id"].to_pylist()) if id in wanted}
    unknown = [id for id in asked if id not in known]
    if unknown:
        are = "is not an id" if len(unknown) == 1 else "are not ids"
        raise ZooError(
            f"{listed(map(repr, unknown), 3)} {are} of the zoo's {counted(len(table), 'instance')}."
            f"{nearest(unknown[0], table['id'].to_pylist())}"
        )
    is_asked = np.zeros(len(table), dtype=bool)
    is_asked[list(known.values())] = True
    return rows[is_asked[rows]]


def _read(root: Path) -> tuple[Manifest, pa.Table]:
    manifest = read_manifest(root)
    check_sizes(root, manifest)
    return manifest, read_table(inside(root, manifest.table.path, str(root / MANIFEST)), manifest.table)


def _removal(root: Path, where: str | None, ids: Iterable[str] | None) -> tuple[Removal, Cut, list[str]]:
    """Return what would be removed, the cut that keeps the rest, and the ids that go."""
    manifest, table = _read(root)
    gone = chosen_rows(table, where, ids)
    if not len(gone):
        raise ZooError(f"'{root}': no instance is chosen, so nothing would change.")
    if len(gone) == len(table):
        raise ZooError(f"'{root}': all {counted(len(gone), 'instance')} would go; delete the folder, or choose fewer.")
    stays = np.ones(len(table), dtype=bool)
    stays[gone] = False
    kept = np.flatnonzero(stays)
    plan = planned_cut(manifest, rows_at(table, kept), str(root / MANIFEST))
    rewritten = sum(not plan.is_whole(number) for number in plan.rows)
    return Removal(len(gone), len(kept), rewritten), plan, rows_at(table, gone)["id"].to_pylist()


def _shards_of(
    plan: Cut, source: Path, target: Path, progress: Advance | None, *, in_place: bool = False
) -> Mapping[int, Shard]:
    """Bring what stays of each shard to `target`, and return the new shards by their old numbers.

    in_place: leave whole shards where they are
    raises ZooError for a shard that is damaged, as a new sum would hide it
    """
    shards: dict[int, Any] = {}
    for number in plan.rows:
        shard = plan.manifest.shards[number]
        if not plan.is_whole(number):
            file = inside(source, shard.path, str(source / MANIFEST))
            if sha256_of_file(file) != shard.sha256:
                raise ZooError(
                    f"{file}: damaged, its content does not match the sha256 in the manifest. Fetch it again."
                )
            shard = cut_shard(plan, number, source, target)
        elif not in_place:
            copy_file(source, shard.path, target)
        shards[number] = shard
        if progress is not None:
            progress(plan.manifest.shards[number].bytes)
    return shards
