"""Tests of kills, a second writer and a full disk: nothing is lost, and nothing is visible in part."""

import errno
import os
import random
from pathlib import Path

import killed_writer
import pytest
import torch
from folder_contents import files_of
from writer_samples import interrupt, killed_close, tensors_of

from prepkit.api import open_zoo
from prepkit.errors import (
    OutputError,
    ZooError,
    ZooLocked,
)
from prepkit.support.files import sha256_of_file
from prepkit.tensors import same_bits
from prepkit.zoo.write.writer import ZooWriter


def check_whole(root: Path) -> None:
    """Check that every instance is in the zoo once, with its own values, and that every file has its sha256."""
    zoo = open_zoo(root)
    assert sorted(zoo.table["id"].to_pylist()) == sorted(killed_writer.ALL_IDS)
    for stored in (*zoo.manifest.shards, zoo.manifest.table):
        assert sha256_of_file(root / stored.path) == stored.sha256
    for index in range(killed_writer.NUM_ADDED):
        prep, metadata = zoo[f"m{index}"]
        tensors = tensors_of(index, killed_writer.sizes_of(index))
        assert all(same_bits(prep.tensors()[name], tensor) for name, tensor in tensors.items())
        assert metadata["accuracy"] == index / 64
    for index in range(killed_writer.NUM_STACKED):
        flat = zoo[f"s{index}"][0].values.reshape(-1)
        assert torch.equal(flat[:4481], index + torch.arange(4481) / 8192)


def finished_after(root: Path, format: str) -> frozenset[str] | None:
    """Return the ids that a resuming writer finds, and leave the zoo unfinished; None if the zoo is finished."""
    try:
        writer = ZooWriter(root, format=format, resume=True, **killed_writer.OPTIONS)
    except ZooError as error:
        if "finished zoo" in str(error) and "unfinished" not in str(error):
            return None
        raise
    assert len(writer) == len(writer.finished_ids)
    interrupt(writer)
    return writer.finished_ids


@pytest.mark.parametrize("num_kills", [3, pytest.param(56, marks=pytest.mark.slow)])
def test_kill_at_any_moment(killer, tmp_path, num_kills):
    """Kills come at random times of the run, its close included, and right after an `add`; some zoos meet several."""
    seed = int(os.environ.get("PREPKIT_KILL_SEED", random.SystemRandom().randrange(1 << 30)))
    print("PREPKIT_KILL_SEED =", seed)
    chance = random.Random(seed)
    formats = ("safetensors", "hdf5")
    references, seconds = {}, {}
    for format in formats:
        killed_writer.write(str(tmp_path / format), format)
        references[format] = files_of(tmp_path / format)
        check_whole(tmp_path / format)
        timed = [killer.run(root=str(tmp_path / f"timed-{format}-{n}"), format=format) for n in range(3)]
        assert timed[0]["lines"][-1] == "closed"
        seconds[format] = sorted(time["seconds"] for time in timed)[1]
    kills = kills_in_close = zoos = 0
    while kills < num_kills:
        zoos += 1
        format = formats[zoos % 2]
        root = tmp_path / f"zoo{zoos}"
        returned: set[str] = set()
        for _ in range(chance.choice([1, 1, 2, 4])):
            lines = chance.randrange(len(killed_writer.ALL_IDS) + 1)
            how = {"lines": lines} if chance.random() < 0.4 else {"seconds": chance.uniform(0, 1.1 * seconds[format])}
            lines = killer.run(root=str(root), format=format, **how)["lines"]
            assert not [line for line in lines if line.startswith("error")], (seed, how, lines)
            returned |= set(lines) - {"closed"}
            kills += "closed" not in lines
            found = finished_after(root, format)
            if found is None:
                break
            kills_in_close += len(found) == len(killed_writer.ALL_IDS)
            assert returned <= found, (seed, how)
            assert "closed" not in lines
            with pytest.raises(ZooError, match="unfinished zoo"):
                open_zoo(root)
        if not (root / "zoo.json").exists():
            killed_writer.write(str(root), format)
        check_whole(root)
        assert files_of(root) == references[format], (seed, zoos)
    print(f"{kills} kills of {zoos} zoos, {kills_in_close} of them while closing")


def test_kill_in_close_at_every_step(tmp_path):
    """A kill between two steps of `close` is imitated at each call that gives a file its name."""
    killed_writer.write(str(tmp_path / "reference"), "safetensors")
    reference = files_of(tmp_path / "reference")
    replace = os.replace
    for step in range(100):
        root = tmp_path / f"zoo{step}"
        calls = iter(range(1_000_000))

        def dying(source, target, calls=calls, step=step):
            if next(calls) == step:
                raise KeyboardInterrupt
            replace(source, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", dying)
            try:
                killed_writer.write(str(root), "safetensors")
                break
            except KeyboardInterrupt:
                pass
        killed_writer.write(str(root), "safetensors")
        assert files_of(root) == reference
    assert step > len([name for name in reference if name.startswith("shards")])


def test_killed_after_the_last_step(tmp_path):
    killed_writer.write(str(tmp_path / "zoo"), "safetensors")
    (tmp_path / "zoo" / ".writing").mkdir()
    (tmp_path / "zoo" / ".writing" / "journal.jsonl").write_text("{}\n")
    assert len(open_zoo(tmp_path / "zoo")) == len(killed_writer.ALL_IDS)
    assert finished_after(tmp_path / "zoo", "safetensors") is None
    assert not (tmp_path / "zoo" / ".writing").exists()


def test_second_writer_is_told_who_writes(tmp_path):
    with ZooWriter(tmp_path / "zoo") as writer:
        for resume in (False, True):
            with pytest.raises(ZooLocked, match=rf"being written by process {os.getpid()} on "):
                ZooWriter(tmp_path / "zoo", resume=resume)
        writer.add(tensors_of(1))
    assert len(open_zoo(tmp_path / "zoo")) == 1


def test_lock_of_a_killed_writer_is_free(killer, tmp_path):
    killer.run(root=str(tmp_path / "zoo"), format="safetensors", lines=3)
    with ZooWriter(tmp_path / "zoo", resume=True, **killed_writer.OPTIONS) as writer:
        assert len(writer) >= 3


class FullDisk:
    """Replaces os.write and os.pwrite by those of a disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write, self.pwrite = os.write, os.pwrite

    def take(self, data) -> memoryview:
        piece = memoryview(data).cast("B")[: self.room]
        if not piece:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(piece)
        return piece

    def patched(self, patch) -> None:
        patch.setattr(os, "write", lambda file, data: self.write(file, self.take(data)))
        patch.setattr(os, "pwrite", lambda file, data, at: self.pwrite(file, self.take(data), at))


@pytest.mark.parametrize("room", [0, 10, 5_000, 9_000, 30_000, 80_000, 140_000, 170_000])
@pytest.mark.parametrize("format", ["safetensors", "hdf5"])
def test_full_disk(tmp_path, room, format):
    killed_writer.write(str(tmp_path / "reference"), format)
    root = tmp_path / "zoo"
    returned: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(room).patched(patch)
        with pytest.raises(OutputError, match="disk is full"):
            killed_writer.write(str(root), format, returned.extend)
    assert not (root / "zoo.json").exists()
    found = finished_after(root, format)
    assert found is not None
    assert found == set(returned)
    killed_writer.write(str(root), format)
    assert files_of(root) == files_of(tmp_path / "reference")


def test_full_disk_at_the_table(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "no space")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(OutputError, match="disk is full"):
            killed_writer.write(str(tmp_path / "zoo"), "safetensors")
    killed_writer.write(str(tmp_path / "zoo"), "safetensors")
    killed_writer.write(str(tmp_path / "reference"), "safetensors")
    assert files_of(tmp_path / "zoo") == files_of(tmp_path / "reference")


def test_writer_refuses_to_go_on_after_a_full_disk(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0), id="first")
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(100).patched(patch)
        with pytest.raises(OutputError, match="disk is full"):
            writer.add(tensors_of(1), id="second")
    for again in (lambda: writer.add(tensors_of(1), id="third"), writer.close):
        with pytest.raises(ZooError, match=r"failed before .* resume=True"):
            again()
    writer.__exit__(ValueError, ValueError(), None)
    with pytest.raises(ZooError, match="failed before"):  # not silently closed
        writer.close()
    with ZooWriter(tmp_path / "zoo", resume=True) as writer:
        assert writer.finished_ids == {"first"}


def test_damaged_journal_is_named(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0))
    interrupt(writer)
    journal = tmp_path / "zoo" / ".writing" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:2], "{nonsense}\n", *lines[2:]]))
    with pytest.raises(ZooError, match=r"journal\.jsonl, line 3: damaged"):
        ZooWriter(tmp_path / "zoo", resume=True)


def test_lost_values_are_named(tmp_path):
    """After a power failure a shard may be shorter than the journal says."""
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0))
    interrupt(writer)
    part = next((tmp_path / "zoo" / ".writing").glob("*.part"))
    os.truncate(part, 100)
    with pytest.raises(ZooError, match=r"\.part: the values of instances that were finished are gone"):
        ZooWriter(tmp_path / "zoo", resume=True)


def named_files(root: Path) -> set[str]:
    """Return the files that a zoo should consist of."""
    manifest = open_zoo(root).manifest
    return {stored.path for stored in (*manifest.shards, manifest.table)} | {"zoo.json"}


def test_line_that_a_kill_tore_is_cut_off(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0), id="a")
    interrupt(writer)
    with open(tmp_path / "zoo" / ".writing" / "journal.jsonl", "a") as journal:
        journal.write('{"id":"b","architec')
    with ZooWriter(tmp_path / "zoo", resume=True) as writer:
        assert writer.finished_ids == {"a"}
        writer.add(tensors_of(1), id="b")
    assert open_zoo(tmp_path / "zoo").table["id"].to_pylist() == ["a", "b"]


def test_shards_of_a_stack_that_was_not_finished_leave_no_trace(tmp_path):
    """The stack's values fill shards, which are published before its lines are in the journal."""
    writer = ZooWriter(tmp_path / "zoo", **killed_writer.OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer._journal, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            writer.add_stack(killed_writer.stack_of(0, 5), architecture=killed_writer.STACK_ARCHITECTURE)
    interrupt(writer)
    with ZooWriter(tmp_path / "zoo", resume=True, **killed_writer.OPTIONS) as writer:
        assert len(writer) == 0
        writer.add_stack(killed_writer.stack_of(7, 2), architecture=killed_writer.STACK_ARCHITECTURE)
    assert open_zoo(tmp_path / "zoo").preps()[:, 0, 0].tolist() == [7, 8]
    assert set(files_of(tmp_path / "zoo")) == named_files(tmp_path / "zoo")


def test_table_of_a_killed_close_leaves_no_trace(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0))
    killed_close(writer)
    with ZooWriter(tmp_path / "zoo", resume=True) as writer:
        writer.add(tensors_of(1))
    assert set(files_of(tmp_path / "zoo")) == named_files(tmp_path / "zoo")
    assert len(open_zoo(tmp_path / "zoo")) == 2
