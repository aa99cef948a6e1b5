"""Converting and merging under kill -9: the target is whole or not there, and the next run cleans up."""

import multiprocessing
import os
import random
from pathlib import Path

import killed_writer
import pytest
from writer_samples import files_of

from prepkit.errors import OutputError
from prepkit.zoo.change.verify import verify
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
    """By time over the whole run, and after any number of pieces that were written."""
    seed = int(os.environ.get("PREPKIT_KILL_SEED", random.SystemRandom().randrange(1 << 30)))
    print("PREPKIT_KILL_SEED =", seed)
    chance = random.Random(seed)
    order = {"job": job, "format": "hdf5", "sources": sources}
    (tmp_path / "straight").mkdir()
    whole = killer.run(root=str(tmp_path / "straight" / "zoo"), **order)
    assert whole["told"].pop() == "closed"
    reference = files_of(tmp_path / "straight" / "zoo")
    before = [files_of(Path(source)) for source in sources]
    kills = left = 0
    for number in range(num_kills):
        folder = tmp_path / f"kill{number}"
        folder.mkdir()
        by_lines = {"lines": chance.randrange(1, len(whole["told"]))}
        how = by_lines if number % 3 else {"seconds": chance.uniform(0, whole["seconds"])}
        told = killer.run(root=str(folder / "zoo"), **order, **how)["told"]
        assert not [line for line in told if line.startswith("error")], (seed, how, told)
        kills += "closed" not in told
        left += bool(litter(folder))
        if (folder / "zoo").exists():  # then it is whole
            assert files_of(folder / "zoo") == reference, (seed, how)
        else:
            again = killer.run(root=str(folder / "zoo"), **order)["told"]
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


def test_only_what_is_left_of_the_same_target_is_removed(tmp_path):
    others = tmp_path / ".prepkit-0123456789ab-01234567.tmp"
    others.mkdir()
    dead, lock = locked_folder(tmp_path / "zoo")
    (dead / "shards").mkdir()
    os.close(lock)  # as the system does when a process dies
    with building(tmp_path / "zoo") as folder:
        assert litter(tmp_path) == sorted([others.name, folder.name])
    assert litter(tmp_path) == [others.name]
    assert not dead.exists()


def test_a_link_that_is_named_like_what_is_left_is_not_followed(tmp_path):
    dead, lock = locked_folder(tmp_path / "zoo")
    os.close(lock)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("x")
    dead.rmdir()
    dead.symlink_to(tmp_path / "precious")
    build(tmp_path / "zoo")
    assert (tmp_path / "precious" / "thesis.tex").exists()


def test_a_folder_that_a_cleaner_took_before_its_lock_is_made_anew(tmp_path, monkeypatch):
    made = []
    open_file = os.open

    def racing(path, *arguments):
        if Path(path).name.startswith(".prepkit-") and not made:
            made.append(path)
            Path(path).rmdir()
        return open_file(path, *arguments)

    monkeypatch.setattr(os, "open", racing)
    with building(tmp_path / "zoo") as folder:
        assert [folder] != made
        assert folder.exists()


def test_a_target_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="zoo"), building(tmp_path / "file" / "zoo"):
        pass
