"""Tests of clean: it removes what prepkit left behind, nothing that the zoo needs, and nothing that is the user's."""

import contextlib

import pytest
import torch
from folder_contents import files_of
from zoo_samples import write_zoo

from prepkit.api import open_zoo, verify
from prepkit.errors import OutputError, ZooError
from prepkit.zoo.change.cleaning import clean
from prepkit.zoo.change.splitting import split
from prepkit.zoo.format.manifest import read_manifest
from prepkit.zoo.write.writer import ZooWriter


def test_what_is_left_behind_is_removed(tmp_path):
    root = write_zoo(tmp_path / "zoo", teacher="resnet8@digits")
    old = read_manifest(root).table
    split(root, force=True)
    whole = files_of(root)
    left = ["shards/x@y-00000-0123456789ab.safetensors", "teacher-0123456789ab.prep.safetensors"]
    left += [".prepkit-12-ab.tmp", ".prepkit-xyz/models.part", ".pulling/request.json", ".writing/journal.jsonl"]
    mine = {"notes.txt": b"mine", "shards/mine.bin": b"1", ".git/config": b"2", ".cache/prepkit/pulled.json": b"{}"}
    for path, content in {**dict.fromkeys(left, b"12345"), **mine}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    before = files_of(root)
    would = clean(root, dry_run=True)
    assert files_of(root) == before
    assert clean(root) == would
    assert {(file.path, file.bytes) for file in would.removed} == {(old.path, old.bytes), *((path, 5) for path in left)}
    assert set(would.others) == {"notes.txt", "shards/mine.bin"}
    assert files_of(root) == {path: content for path, content in whole.items() if path != old.path} | mine
    assert not any((root / name).exists() for name in (".pulling", ".writing", ".prepkit-xyz"))
    assert verify(root).ok
    assert clean(root).removed == ()


def test_files_outside_are_safe(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x-00000-0123456789ab.safetensors").write_bytes(b"mine")
    root = write_zoo(tmp_path / "zoo")
    (root / ".pulling").symlink_to(outside)
    (root / "shards" / "x-00000-0123456789ab.safetensors").symlink_to(outside / "x-00000-0123456789ab.safetensors")
    clean(root)
    assert (outside / "x-00000-0123456789ab.safetensors").read_bytes() == b"mine"
    assert verify(root).ok


def test_a_damaged_manifest_names_nothing_so_nothing_is_removed(tmp_path):
    root = write_zoo(tmp_path / "zoo")
    manifest = root / "zoo.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"models-", b"modelz-"))
    before = files_of(root)
    with pytest.raises(ZooError, match="damaged"):
        clean(root)
    assert files_of(root) == before


def test_a_file_that_cannot_be_removed(tmp_path, monkeypatch):
    root = write_zoo(tmp_path / "zoo")
    split(root, card=False, force=True)

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", refuse)
        with pytest.raises(OutputError, match="Permission denied"):
            clean(root)
    assert len(clean(root).removed) == 1


def test_shards_that_a_cut_journal_has_forgotten_are_removed(tmp_path):
    """The resumed writer goes on with another architecture, so it never meets the shards of the first one."""
    root, settings = tmp_path / "zoo", {"shard_bytes": 1, "width": 64}
    with contextlib.suppress(KeyboardInterrupt), ZooWriter(root, **settings) as writer:
        for number in range(3):
            writer.add({"w": torch.full((3, 5), number + 0.5)}, id=f"m{number}")
        raise KeyboardInterrupt
    journal = root / ".writing" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]))  # the settings and their sum
    left = {file.name for file in (root / "shards").iterdir()}
    assert len(left) >= 2
    with ZooWriter(root, resume=True, **settings) as writer:
        assert writer.finished_ids == set()
        writer.add({"v": torch.ones(4)}, id="other")
    notes = verify(root).notes
    assert {note.partition(":")[0] for note in notes} == {f"shards/{name}" for name in left}
    assert all(note.endswith("`prepkit zoo clean` removes it.") for note in notes)
    assert {file.path for file in clean(root).removed} == {f"shards/{name}" for name in left}
    assert verify(root).ok
    assert verify(root).notes == ()
    assert open_zoo(root)["other"][0].tensors()["v"].tolist() == [1.0] * 4
