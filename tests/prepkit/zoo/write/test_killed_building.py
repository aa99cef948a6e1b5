"""Kill conversions and merges: the target is whole or not there, and the next run cleans up."""

import fcntl
import multiprocessing
import os
import random
from pathlib import Path

import killed_writer
import pytest
from folder_contents import files_of

from prepkit.api import verify
from prepkit.errors import OutputError
from prepkit.zoo.write.building import building, locked_folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    killed_writer.write(str(root / "one"), "safetensors")
    killed_writer.write_other(root / "other")
    return [str(root / "one"), str(root / "other")]


def litter(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("num_kills", [3, pytest.param(24, marks=pytest.mark.slow)])
@pytest.mark.parametrize("job", ["convert", "merge"])
def test_kill_at_any_moment(killer, tmp_path, sources, job, num_kills):
    """Kills come at random times of the run, and after random numbers of written pieces."""
    seed = int(os.environ.get("PREPKIT_KILL_SEED", random.SystemRandom().randrange(1 << 30)))
    print("PREPKIT_KILL_SEED =", seed)
    chance = random.Random(seed)
    order = {"job": job, "format": "hdf5", "sources": sources}
    (tmp_path / "straight").mkdir()
    whole = killer.run(root=str(tmp_path / "straight" / "zoo"), **order)
    assert whole["lines"].pop() == "closed"
    reference = files_of(tmp_path / "straight" / "zoo")
    before = [files_of(Path(source)) for source in sources]
    kills = left = 0
    for number in range(num_kills):
        folder = tmp_path / f"kill{number}"
        folder.mkdir()
        by_lines = {"lines": chance.randrange(1, len(whole["lines"]))}
        how = by_lines if number % 3 else {"seconds": chance.uniform(0, whole["seconds"])}
        lines = killer.run(root=str(folder / "zoo"), **order, **how)["lines"]
        assert not [line for line in lines if line.startswith("error")], (seed, how, lines)
        kills += "closed" not in lines
        left += bool(litter(folder))
        if (folder / "zoo").exists():  # then it is whole
            assert files_of(folder / "zoo") == reference, (seed, how)
        else:
            again = killer.run(root=str(folder / "zoo"), **order)["lines"]
            assert again[-1] == "closed", (seed, how, again)
            assert litter(folder) == [], (seed, how)
            assert files_of(folder / "zoo") == reference, (seed, how)
        assert verify(folder / "zoo").ok
    assert [files_of(Path(source)) for source in sources] == before
    print(f"{kills} kills, {left} of them left a folder")
    assert left >= num_kills // 3


def test_a_folder_in_which_another_process_builds_is_left_alone(tmp_path):
    with building(tmp_path / "zoo") as first, building(tmp_path / "zoo") as second:
        (first / "x").write_text("one")
        (second / "x").write_text("two")
        assert first != second
        assert (first / "x").read_text() == "one"
        process = multiprocessing.get_context("fork").Process(target=build, args=(tmp_path / "zoo",))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert (first / "x").exists()
        assert (second / "x").exists()
        for file in (tmp_path / "zoo" / "shards", tmp_path / "zoo"):
            file.rmdir()
        (second / "x").unlink()
        (first / "x").unlink()
        (second / "shards").rmdir()  # an empty folder may be replaced
    assert litter(tmp_path) == []


def build(target: Path) -> None:
    with building(target):
        pass


def leave_dead(target: Path) -> Path:
    """Leave a folder and its lock file behind, as a process that is killed while it builds."""
    with locked_folder(target) as folder:
        pass
    folder.mkdir()
    folder.with_suffix(".lock").touch()
    return folder


def test_only_what_is_left_of_the_same_target_is_removed(tmp_path):
    others = tmp_path / ".prepkit-0123456789ab-01234567.tmp"
    others.mkdir()
    dead = leave_dead(tmp_path / "zoo")
    (dead / "shards").mkdir()
    without_folder, without_lock = (leave_dead(tmp_path / "zoo") for _ in range(2))
    without_folder.rmdir()
    without_lock.with_suffix(".lock").unlink()  # as earlier versions left it
    with building(tmp_path / "zoo") as folder:
        assert litter(tmp_path) == sorted([others.name, folder.name, folder.with_suffix(".lock").name])
    assert litter(tmp_path) == [others.name]


def test_a_link_that_is_named_like_what_is_left_is_not_followed(tmp_path):
    dead = leave_dead(tmp_path / "zoo")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("x")
    dead.rmdir()
    dead.symlink_to(tmp_path / "precious")
    build(tmp_path / "zoo")
    assert (tmp_path / "precious" / "thesis.tex").exists()


def test_a_lock_that_a_cleaner_took_away_is_taken_anew(tmp_path, monkeypatch):
    """Between opening the lock's file and locking it, somebody who removes dead folders may remove the file."""
    removed = []
    flock = fcntl.flock

    def racing(descriptor, operation):
        if not removed and operation & fcntl.LOCK_EX:
            removed.extend(tmp_path.glob(".prepkit-*.lock"))
            for file in removed:
                file.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", racing)
    with building(tmp_path / "zoo") as folder:
        assert removed == [folder.with_suffix(".lock")]
        assert removed[0].exists()


def test_a_target_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="zoo"), building(tmp_path / "file" / "zoo"):
        pass
