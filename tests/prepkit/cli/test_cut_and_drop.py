"""Tests of `prepkit zoo cut` and `zoo drop`, and of `zoo merge --link`."""

import json
from pathlib import Path

import pytest
from cli_samples import run, zoo_of_three

from prepkit.api import open_zoo


@pytest.fixture
def zoo(folder: Path) -> Path:
    return zoo_of_three()


def ids(folder: str) -> list[str]:
    found: list[str] = open_zoo(folder).table["id"].to_pylist()
    return found


def test_cut(zoo: Path) -> None:
    run("zoo", "cut", "zoo", "good", "--where", "acc > 0.15", "--name", "better")
    assert ids("good") == ["r2", "r3"]
    assert open_zoo("good").name == "better"
    Path("ids.txt").write_text("r3\n\nr1\n")
    run("zoo", "cut", "zoo", "some", "--ids", "ids.txt")
    assert ids("some") == ["r1", "r3"]


def test_drop(zoo: Path) -> None:
    result = run("zoo", "drop", "zoo", "--where", "acc < 0.15", "--dry-run")
    assert result.stdout == "zoo: 1 instance would go, 2 would stay; 1 shard would be written anew\n"
    assert ids("zoo") == ["r1", "r2", "r3"]
    result = run("zoo", "drop", "zoo", "--where", "acc < 0.15")
    assert result.stdout == "zoo: 1 instance removed, 2 left; 1 shard written anew\n"
    Path("ids.txt").write_text("r3\n")
    document = json.loads(run("zoo", "drop", "zoo", "--ids", "ids.txt", "--json").stdout)
    assert (document["instances"], document["left"]) == (1, 1)
    assert ids("zoo") == ["r2"]
    assert run("zoo", "verify", "zoo").stdout.startswith("zoo: whole; 1 instance,")


def test_merge_by_links(zoo: Path) -> None:
    run("zoo", "cut", "zoo", "a", "--where", "acc > 0.15")
    run("zoo", "cut", "zoo", "b", "--where", "acc < 0.15")
    run("zoo", "merge", "both", "a", "b", "--link")
    assert ids("both") == ["r2", "r3", "r1"]
    assert all(file.stat().st_nlink == 2 for file in Path("both/shards").iterdir())
    message = run("zoo", "merge", "other", "a", "b", "--link", "--format", "hdf5", code=2).stderr
    assert "without --link they are written anew" in message


@pytest.mark.parametrize("command", [["cut", "zoo", "new"], ["drop", "zoo"]])
def test_mistakes(zoo: Path, command: list[str]) -> None:
    assert "choose instances with --where EXPR or --ids FILE." in run("zoo", *command, code=2).stderr
    assert "Did you mean 'acc'?" in run("zoo", *command, "--where", "ac > 1", code=2).stderr
    Path("ids.txt").write_text("r7\n")
    assert "'r7' is not an id of the zoo's 3 instances" in run("zoo", *command, "--ids", "ids.txt", code=2).stderr
    assert not Path("new").exists()
