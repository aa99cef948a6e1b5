"""Tests of writers whose folder is deleted, finished or locked by others, and of how many files a writer has open."""

import errno
import fcntl
import gc
import os
import resource
import shutil
from pathlib import Path

import pytest
from folder_contents import files_of
from writer_samples import interrupt, tensors_of

from prepkit.api import open_zoo
from prepkit.errors import OutputError, PrepkitError, ZooError, ZooLocked
from prepkit.zoo.write import _finishing, working
from prepkit.zoo.write.writer import ZooWriter


def test_writer_of_a_deleted_folder_leaves_the_zoo_that_was_begun_anew_alone(tmp_path):
    root = tmp_path / "zoo"
    old = ZooWriter(root)
    old.add(tensors_of(0), id="old")
    shutil.rmtree(root)
    new = ZooWriter(root)
    new.add(tensors_of(1), id="new")
    for call in (lambda: old.add(tensors_of(2)), lambda: old.set_teacher(tensors_of(2)), old.discard, old.close):
        with pytest.raises(ZooError, match=r"journal\.jsonl' was deleted or replaced"):
            call()
    interrupt(old)
    new.close()
    assert open_zoo(root).table["id"].to_pylist() == ["new"]
    with ZooWriter(tmp_path / "straight", name="zoo") as writer:
        writer.add(tensors_of(1), id="new")
    assert files_of(root) == files_of(tmp_path / "straight")


def test_folder_that_is_begun_anew_while_the_old_writer_closes_gets_no_manifest_of_it(tmp_path, monkeypatch):
    root = tmp_path / "zoo"
    old = ZooWriter(root)
    old.add(tensors_of(0), id="old")
    write_table = _finishing.write_table

    def replaced(*arguments):
        table = write_table(*arguments)
        shutil.rmtree(root)
        interrupt(ZooWriter(root))
        return table

    monkeypatch.setattr(_finishing, "write_table", replaced)
    with pytest.raises(ZooError, match="was deleted or replaced"):
        old.close()
    assert not (root / "zoo.json").exists()


@pytest.mark.parametrize("step", ["take_lock", "open_journal"])
def test_resume_that_waited_while_another_finished_is_told(tmp_path, monkeypatch, step):
    root = tmp_path / "zoo"
    first = ZooWriter(root)
    first.add(tensors_of(0), id="a")
    original = working.take_lock

    def late(*arguments):
        if step == "take_lock":
            first.close()
            return original(*arguments)
        monkeypatch.undo()
        first.close()
        root.joinpath(".writing").mkdir()
        return original(*arguments)

    monkeypatch.setattr(working, "take_lock", late)
    with pytest.raises(ZooError, match="is a finished zoo"):
        ZooWriter(root, resume=True)
    assert len(open_zoo(root)) == 1
    assert not (root / ".writing").exists()


def test_working_folder_that_cannot_be_removed_is_named(tmp_path, monkeypatch):
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0))
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(OutputError, match=r"is finished and whole, but '.*\.writing' cannot be removed"):
        writer.close()
    assert len(open_zoo(tmp_path / "zoo")) == 1


@pytest.mark.parametrize("name", ["lock", "journal.jsonl", "teacher.part"])
def test_file_that_cannot_be_made_is_named(tmp_path, name):
    (tmp_path / "zoo" / ".writing" / name).mkdir(parents=True)
    match = r"cannot write .*\.writing"
    with pytest.raises(PrepkitError, match=match), ZooWriter(tmp_path / "zoo", resume=True) as writer:
        writer.set_teacher(tensors_of(0))


def test_hdf5_under_a_limit_of_a_files_size_is_named(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = ZooWriter(tmp_path / "zoo", format="hdf5")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OutputError, match=r"\.part': .*[Ff]ile"):
            writer.add(tensors_of(0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    interrupt(writer)


def test_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(OutputError, match="its file system cannot lock files"):
        ZooWriter(tmp_path / "zoo")


def test_writer_that_nobody_holds_gives_its_lock_back(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0), id="a")
    with pytest.raises(
        ZooLocked, match=rf"by process {os.getpid()} on .*, which is this one; close its writer, or `del`"
    ):
        ZooWriter(tmp_path / "zoo", resume=True)
    del writer
    gc.collect()
    open_files = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    assert not [file for file in open_files if str(tmp_path) in file]
    with ZooWriter(tmp_path / "zoo", resume=True) as writer:
        assert writer.finished_ids == {"a"}


def test_reader_is_told_who_writes_a_zoo_that_is_not_finished(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    with pytest.raises(ZooError, match=rf"unfinished zoo: process {os.getpid()} on .* is writing it\. Open it when"):
        open_zoo(tmp_path / "zoo")
    writer.add(tensors_of(0))
    interrupt(writer)
    with pytest.raises(ZooError, match="writing it was interrupted"):
        open_zoo(tmp_path / "zoo")
    ZooWriter(tmp_path / "zoo", resume=True).close()
    assert len(open_zoo(tmp_path / "zoo")) == 1


def test_more_architectures_than_open_files_are_written_and_resumed(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(used + 100, hard), hard))
    try:
        writer = ZooWriter(tmp_path / "zoo", width=8)
        for index in range(150):
            writer.add(tensors_of(index, (3, 1 + index, 2)), id=f"{index}")
        interrupt(writer)
        with ZooWriter(tmp_path / "zoo", width=8, resume=True) as writer:
            for index in range(150):
                writer.add(tensors_of(200 + index, (3, 1 + index, 2)), id=f"again{index}")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    zoo = open_zoo(tmp_path / "zoo")
    assert [zoo[f"again{index}"][0].tensors()["0.bias"][0].item() for index in (0, 149)] == [200, 349]
