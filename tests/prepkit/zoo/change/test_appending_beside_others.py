"""Tests of appending to a zoo beside readers, changes and other appenders, and of kills at any moment."""

import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from folder_contents import files_of
from killed_changes import killed
from zoo_samples import NAMES, network, write_zoo

from prepkit.api import open_zoo, verify
from prepkit.errors import ZooError, ZooLocked
from prepkit.support.lock import changing
from prepkit.tensors import same_bits
from prepkit.zoo.change.annotating import annotate
from prepkit.zoo.change.cleaning import clean
from prepkit.zoo.write import appending
from prepkit.zoo.write import writer as writer_module
from prepkit.zoo.write.writer import ZooWriter

OLD = [f"m{number}" for number in range(7)]


@pytest.fixture(scope="module")
def only(tmp_path_factory):
    """Seven instances m0 ... m6."""
    return write_zoo(tmp_path_factory.mktemp("only") / "zoo", count=7)


@pytest.fixture
def root(only, tmp_path):
    return shutil.copytree(only, tmp_path / "zoo")


def append(root, *ids):
    """Append networks of other seeds than those of the zoo."""
    with ZooWriter(root, append=True) as writer:
        for number, id in enumerate(ids):
            writer.add(network(NAMES[0], 100 + number), id=id)


# Others at work -----------------------------------------------------------------------------------------------


def test_a_reader_goes_on_and_a_second_appender_is_refused(root, only):
    zoo = open_zoo(root)
    zoo.preps([0])
    with ZooWriter(root, append=True) as writer:
        writer.add(network(NAMES[0], 1), id="n0")
        with pytest.raises(ZooLocked, match=rf"\.appending' is being written by process {os.getpid()}"):
            ZooWriter(root, append=True)
        with pytest.raises(ZooLocked):
            ZooWriter(root, append=True, resume=True)
        assert (len(open_zoo(root)), len(open_zoo(root, unfinished=True))) == (7, 7)
        assert verify(root).notes == ()
        clean(root)
        annotate(root, {"id": ["m0"], "late": [1]}, card=False)  # others may change the zoo meanwhile
    assert torch.equal(zoo.preps(), open_zoo(only).preps())
    table = open_zoo(root).table
    assert table["id"].to_pylist() == [*OLD, "n0"]
    assert table["late"].to_pylist() == [1, *[None] * 7]


def test_the_last_step_waits_for_another_change(root, monkeypatch):
    monkeypatch.setattr(appending, "PATIENCE", 0.0)
    with changing(root), pytest.raises(ZooLocked) as caught:
        append(root, "n0")
    assert any("is kept in" in note and "append=True, resume=True" in note for note in caught.value.__notes__)
    monkeypatch.setattr(appending, "PATIENCE", 60.0)
    holding, done = threading.Event(), threading.Event()

    def hold():
        with changing(root):
            holding.set()
            done.wait(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait()
    with ZooWriter(root, append=True, resume=True) as writer:
        assert "n0" in writer
    thread.join()
    assert len(open_zoo(root)) == 8


def test_a_second_appender_is_not_told_to_delete_what_the_first_is_about_to_join(root, monkeypatch):
    with monkeypatch.context() as patched, changing(root):
        patched.setattr(appending, "PATIENCE", 0.0)
        with pytest.raises(ZooLocked, match=r"zoo' is being written by"):
            append(root, "n0")
        assert (root / ".appending" / "zoo.json").exists()
        with pytest.raises(ZooLocked, match=rf"zoo' is being written by process {os.getpid()} on .*; wait for it"):
            ZooWriter(root, append=True)
    with pytest.raises(ZooError, match="was interrupted, and 1 instance is kept in"):
        ZooWriter(root, append=True)
    with monkeypatch.context() as patched:
        patched.setattr(appending.time, "sleep", lambda pause: shutil.rmtree(root / ".appending", ignore_errors=True))
        with pytest.raises(ZooLocked, match="another process, which has just finished; try again"):
            ZooWriter(root, append=True)
    assert open_zoo(root).table["id"].to_pylist() == OLD


def test_an_appender_that_comes_when_the_first_has_finished_is_to_try_again(root, only, monkeypatch):
    target_of = writer_module.target_of

    def finished_meanwhile(*given):
        target = target_of(*given)
        shutil.copytree(only, target.root)
        return target

    monkeypatch.setattr(writer_module, "target_of", finished_meanwhile)
    with pytest.raises(ZooLocked, match=r"zoo' was written by another process, which has just finished; try again"):
        ZooWriter(root, append=True)


def test_a_change_meanwhile_that_does_not_fit_is_named_and_nothing_is_lost(root):
    writer = ZooWriter(root, append=True)
    writer.add(network(NAMES[0], 1), id="n0", late=3)
    annotate(root, {"id": ["m0"], "late": ["text"]}, card=False)
    with pytest.raises(ZooError, match=r"the column 'late' is string in .* and int64 in") as caught:
        writer.close()
    assert any("is kept in" in note for note in caught.value.__notes__)
    assert len(open_zoo(root)) == 7
    annotate(root, rename={"late": "remark"}, card=False)
    with pytest.raises(ZooError, match=r"appending to .* was interrupted, and 1 instance is kept in"):
        ZooWriter(root, append=True)
    ZooWriter(root, append=True, resume=True).close()
    assert open_zoo(root).metadata("n0")["late"] == 3
    assert not (root / ".appending").exists()


# Kills --------------------------------------------------------------------------------------------------------


def append_three(root: Path) -> None:
    """Append what is missing of three instances, as a script does that goes on after a kill."""
    with ZooWriter(root, append=True, resume=True) as writer:
        for number in range(3):
            if f"n{number}" not in writer:
                writer.add(network(NAMES[number % 2], 60 + number), id=f"n{number}", split="train")


def assert_unchanged(root: Path, before: Path) -> None:
    """Check that the old instances are as they were."""
    after, old = open_zoo(root), open_zoo(before)
    assert same_bits(after.select(OLD).preps(), old.select(OLD).preps())
    assert after.select(OLD).table.select(old.table.column_names).to_pylist() == old.table.to_pylist()


def check_killed(change, root: Path, copies: Path, after: int | None) -> int:
    """Kill a change at each call, and go on after each kill; return the number of kills before the zoo changed.

    after: number of kills after it changed, and to go on after every third kill is enough; None for all of them
    """
    lengths = []
    for copy in killed(change, root, copies):
        lengths.append(len(open_zoo(copy)))
        assert_unchanged(copy, root)
        if after is None or len(lengths) % 3 == 0:
            check_going_on(copy, root)
        shutil.rmtree(copy)
        if lengths.count(10) == after:
            break
    assert lengths == [7] * lengths.count(7) + [10] * lengths.count(10)
    assert lengths.count(10) > 0
    return lengths.count(7)


def check_going_on(copy: Path, root: Path) -> None:
    """Check that the same append that is begun again gives the whole zoo, once."""
    append_three(copy)
    assert open_zoo(copy).table["id"].to_pylist() == [*OLD, "n0", "n1", "n2"]
    assert len(open_zoo(copy).manifest.provenance["appends"]) == 1
    assert verify(copy).ok
    assert_unchanged(copy, root)
    clean(copy)
    assert not [name for name in files_of(copy) if name.startswith(".")]


@pytest.mark.parametrize("after", [3, pytest.param(None, marks=pytest.mark.slow)])
def test_killed_at_any_call_of_the_last_step(root, tmp_path, monkeypatch, after):
    with monkeypatch.context() as patch:
        patch.setattr("prepkit.zoo.write.writer.join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            append_three(root)
    assert check_killed(appending.join, root, tmp_path / "copies", after) > 12


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_killed_at_any_call(root, tmp_path):
    assert check_killed(append_three, root, tmp_path / "copies", None) > 30
