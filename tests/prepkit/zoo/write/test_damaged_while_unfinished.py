"""Tests of damage between a kill and the resume: nothing damaged gets right sums, and an append counts whole or not."""

import json
import shutil
from pathlib import Path

import killed_writer
import pytest
import torch
from folder_contents import files_of
from writer_samples import interrupt, tensors_of

from prepkit.errors import PrepkitError, ZooError
from prepkit.zoo.format.manifest import Shard
from prepkit.zoo.write.writer import ZooWriter

SDF = killed_writer.STACK_ARCHITECTURE
STACK = torch.arange(3 * 72 * 64, dtype=torch.float32).view(3, 72, 64)


def begin(root: Path, *, stack: bool = True) -> Path:
    """Write three networks, and perhaps a stack of three, and leave the zoo unfinished."""
    writer = ZooWriter(root, name="zoo")
    add(writer)
    if stack:
        writer.add_stack(STACK, architecture=SDF, ids=list("xyz"), note=["n"] * 3)
    interrupt(writer)
    return root


def add(writer: ZooWriter) -> None:
    for index in range(3):
        if f"m{index}" not in writer.finished_ids:
            writer.add(tensors_of(index), id=f"m{index}", accuracy=index / 4)


def finish(root: Path) -> None:
    """Go on as a program does that was killed: it writes what the zoo lacks."""
    with ZooWriter(root, name="zoo", resume=True) as writer:
        add(writer)
        if not writer.finished_ids & set("xyz"):
            writer.add_stack(STACK, architecture=SDF, ids=list("xyz"), note=["n"] * 3)


def error_of(root: Path) -> ZooError | None:
    """Go on with a zoo, and return the error if it is refused."""
    try:
        finish(root)
    except ZooError as error:
        return error
    return None


def journal_of(root: Path) -> Path:
    return root / ".writing" / "journal.jsonl"


def without_sums(root: Path) -> None:
    """Make of a journal what the first version wrote."""
    lines = journal_of(root).read_text().splitlines(keepends=True)
    settings = {key: value for key, value in json.loads(lines[0]).items() if key != "journal"}
    kept = [line for line in lines[1:] if not line.startswith(('{"sum"', '{"values"'))]
    journal_of(root).write_text("".join([json.dumps(settings) + "\n", *kept]))


@pytest.fixture
def reference(tmp_path):
    begin(tmp_path / "reference")
    finish(tmp_path / "reference")
    return files_of(tmp_path / "reference")


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_flipped_bit_in_an_unfinished_shard_is_found(tmp_path, place):
    root = begin(tmp_path / "zoo")
    part = next((root / ".writing").glob("layout-*.part"))
    data = bytearray(part.read_bytes())
    data[{"first": 4096, "middle": (4096 + len(data)) // 2, "last": len(data) - 1}[place]] ^= 1
    part.write_bytes(data)
    with pytest.raises(ZooError, match=r"layout-.*\.part: its values are not those that were written"):
        ZooWriter(root, resume=True, name="zoo")


@pytest.mark.parametrize("format", ["safetensors", "hdf5"])
def test_flipped_bit_in_a_full_shard_that_the_journal_does_not_know_is_found(tmp_path, format):
    """A kill between the new name of a shard and its line in the journal."""
    options = {**killed_writer.OPTIONS, "format": format}
    writer = ZooWriter(tmp_path / "zoo", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer._stages, "_on_published", lambda shard: None)
        writer.add_stack(killed_writer.stack_of(0, 2), architecture=SDF)
        interrupt(writer)
    shards = sorted((tmp_path / "zoo" / "shards").iterdir())
    assert len(shards) == 2  # each shard holds one instance
    whole = shards[0].read_bytes()
    shards[0].write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(ZooError, match="its values are not those that were written"):
        ZooWriter(tmp_path / "zoo", resume=True, **options)


def test_lost_doubled_swapped_or_changed_line_of_the_journal_is_refused_or_written_again(tmp_path, reference):
    begin(tmp_path / "begun")
    lines = journal_of(tmp_path / "begun").read_bytes().splitlines(keepends=True)
    damaged = {}
    for index, line in enumerate(lines):
        changed = bytearray(line)
        changed[len(line) // 2] ^= 1
        damaged |= {
            f"lost {index}": [*lines[:index], *lines[index + 1 :]],
            f"doubled {index}": [*lines[:index], line, *lines[index:]],
            f"changed {index}": [*lines[:index], bytes(changed), *lines[index + 1 :]],
            f"swapped {index}": [*lines[:index], *lines[index : index + 2][::-1], *lines[index + 2 :]],
        }
    refused = 0
    for name, content in damaged.items():
        root = tmp_path / name
        shutil.copytree(tmp_path / "begun", root)
        journal_of(root).write_bytes(b"".join(content))
        error = error_of(root)
        refused += error is not None
        assert "damaged" in str(error) if error else files_of(root) == reference, name
    assert refused > len(damaged) * 0.8  # only what was lost at the end can be written again


@pytest.mark.parametrize("step", [131, pytest.param(1, marks=pytest.mark.slow)])
def test_append_torn_at_any_byte_counts_not_at_all(tmp_path, reference, step):
    """The kernel cuts a write at a page when its process is killed."""
    begin(tmp_path / "before", stack=False)
    before = len(journal_of(tmp_path / "before").read_bytes())
    begin(tmp_path / "begun")
    whole = journal_of(tmp_path / "begun").read_bytes()
    for end in sorted({*range(before, len(whole), step), len(whole) - 1, len(whole)}):
        root = tmp_path / "zoo"
        shutil.copytree(tmp_path / "begun", root)
        journal_of(root).write_bytes(whole[:end])
        with ZooWriter(root, name="zoo", resume=True) as writer:
            stacked = writer.finished_ids & set("xyz")
            assert len(stacked) == (3 if end == len(whole) else 0)
            assert writer.finished_ids - stacked == {"m0", "m1", "m2"}
            if not stacked and (end - before) % 131 == 0:
                writer.add_stack(STACK, architecture=SDF, ids=list("xyz"), note=["n"] * 3)
                stacked = True
        assert bool(stacked) == (files_of(root) == reference)
        shutil.rmtree(root)


def test_zoo_that_an_older_version_began_is_resumed(tmp_path, reference):
    for stack in (False, True):
        root = begin(tmp_path / f"zoo{stack}", stack=stack)
        without_sums(root)
        with open(journal_of(root), "a") as journal:
            journal.write('{"id":"torn')
        finish(root)
        assert files_of(root) == reference


def test_damage_to_a_journal_of_an_older_version_is_named(tmp_path):
    root = begin(tmp_path / "zoo")
    without_sums(root)
    text = journal_of(root).read_text()
    journal_of(root).write_text(text.replace('{"id":"m1"', '{"id"?"m1"'))
    with pytest.raises(ZooError, match=r"line \d: damaged"):
        ZooWriter(root, name="zoo", resume=True)


def test_what_follows_an_interrupted_append_takes_its_place(tmp_path):
    """A KeyboardInterrupt right after the write leaves lines of an `add` that has failed; another thread goes on."""
    writer = ZooWriter(tmp_path / "zoo", name="zoo")
    writer.add(tensors_of(0), id="m0")
    end = writer._journal._end
    writer.add(tensors_of(1), id="m1")
    writer._journal._end = end  # the interrupt came before this was noted
    writer._journal.publish(Shard("shards/x-00000-0.safetensors", 1, 1, "0" * 64, "x"))
    interrupt(writer)
    with ZooWriter(tmp_path / "zoo", name="zoo", resume=True) as writer:
        assert writer.finished_ids == {"m0"}


def test_damaged_teacher_is_found(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    writer.set_teacher(tensors_of(1))
    interrupt(writer)
    file = next((tmp_path / "zoo" / ".writing").glob("teacher*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(PrepkitError, match=r"teacher-.*: the teacher's file is damaged"):
        ZooWriter(tmp_path / "zoo", resume=True)
